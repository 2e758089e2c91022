"""Faults of the Hub and of the network at every stage of a push and of a download, and pushes that are stopped.

Of each fault: what is asked again, what the user reads, that the run on disk is whole, that the Hub has one commit or
none, and that the printed command finishes the job.
"""

import hashlib
import io
import re
import signal
import time

import datasets
import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import load, save

from hf_vqvae.evaluation.classifier import SmallClassifier, SmallClassifierConfig
from support.hub import HubServer
from support.pushes import NAME, STAGES, TOKEN, World, digest, hub_client, make_run

BEFORE_CREATION = ("whoami", "repo", "create")
OF_LARGE_FILES = ("upload", "verify")
# What stays until somebody does something, and the words that say what.
LASTING = {
    401: "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew",
    403: "the Hub answered 403 .*the token has no right to do this",
    404: "the Hub answered 404 .*or the token may not see it",
    409: "the Hub answered 409 .*it clashes with what is there",
    412: "the Hub answered 412 .*somebody else has pushed in the meantime",
    "revoke": "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew",
}
# What may pass by itself; the same words where it does not.
PASSING = {
    429: "the Hub answered 429 .*too many requests; wait and push again",
    500: "the Hub answered 500: the Hub has a problem; push again later",
    503: "the Hub answered 503: the Hub has a problem; push again later",
    "cut": "no connection to http://127.0.0.1",
    "lost_answer": "no connection to http://127.0.0.1",
    "late_504": "the Hub answered 504: the Hub has a problem; push again later",
}


@pytest.fixture(scope="module")
def module_world(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("outputs") / "tiny")
    home = tmp_path_factory.mktemp("home")
    with HubServer() as hub, hub_client(hub, home) as client:
        yield World(hub, client, folder)


@pytest.fixture
def world(module_world):
    module_world.start(old=False)
    return module_world


def cases(faults, is_quick):
    """Every fault at every stage, of a push to a new repo and to one that is there."""
    found = []
    for stage in STAGES:
        for old in (False, True):
            if (stage == "create" and old) or (stage == "card" and not old):
                continue  # no such request
            for fault in faults:
                if (stage, fault) == ("upload", "revoke"):
                    continue  # storage is sent no token
                marks = () if is_quick(stage, old, fault) else pytest.mark.long
                name = f"{stage}-{fault}-{'old' if old else 'new'}"
                found.append(pytest.param(stage, old, fault, id=name, marks=marks))
    return found


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--hub_modl", "x"], "unknown argument --hub_modl (did you mean --hub_model_id?)"),
        (["--overwrite"], "unknown argument --overwrite (did you mean --overwrite_card?)"),
        (["--push_to_hub"], "unknown argument --push_to_hub"),
    ],
)
def test_a_flag_that_is_none_is_named_and_nothing_is_pushed(world, flags, message):
    done = world.push(*flags)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not world.hub.requests


def test_the_help_says_whose_license_is_kept(world):
    text = " ".join(world.run("scripts/push_to_hub.py", "--help").stdout.split())
    assert "License on the card (default: the card's is kept). --" in text
    assert "--push_to_hub" not in text and "(default: None)" not in text


def test_a_folder_that_is_no_run_is_named_before_the_hub_is_asked(world, tmp_path):
    """Without a token, too, and without a command that would fail again."""
    flags = ("--hub_model_id", "me/tiny")
    for folder, message in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "not the folder")):
        done = world.client.run("scripts/push_to_hub.py", folder, *flags, environment={"HF_TOKEN": ""})
        assert done.returncode == 1 and message in done.stderr
        assert str(folder) in done.stderr and "tries again" not in done.stderr
    assert not world.hub.requests


def flags_for(stage: str) -> tuple[str, ...]:
    return ("--hub_revision", "v1") if stage == "branch" else ()


def expected_message(stage: str, fault: int | str) -> str:
    if stage in OF_LARGE_FILES and fault in (403, 404, 409, 412):
        return rf"Error while uploading .* Its storage answered {fault}: push again"
    if fault == 409 and stage in ("create", "branch"):
        return LASTING[404]  # 409 means that it is there already, and then it is not
    if stage == "validate" and fault == 503:
        return "is not of the Hub .* login page"  # the client looks for JSON before the status
    return {**LASTING, **PASSING}[fault]


@pytest.mark.parametrize(
    "stage, old, fault", cases(LASTING, lambda stage, old, fault: stage == "commit" if old else fault == "revoke")
)
def test_a_fault_that_stays_ends_the_push_at_once(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault)  # once: asked again, it would pass
    revision = "v1" if stage == "branch" else "main"
    command = world.check_failed(world.push(*flags_for(stage)), expected_message(stage, fault))
    # Only who may no longer do anything leaves the repo that was made for this push.
    left = fault == "revoke" and not old and stage not in BEFORE_CREATION
    assert world.commits() == (["initial commit"] if left else world.commits_before)
    assert world.commits("v1") in ([], world.commits())
    world.repair()
    world.check_done(world.run(*command), revision)


@pytest.mark.parametrize(
    "stage, old, fault",
    cases(
        PASSING,
        lambda stage, old, fault: (
            (stage == "create" and fault in (429, 500, 503)) or (stage == "commit" and old and fault != "cut")
        ),
    ),
)
def test_a_fault_that_passes_is_waited_out(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault)
    done = world.push(*flags_for(stage))
    revision = "v1" if stage == "branch" else "main"
    world.check_done(done, revision)
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    if stage == "commit" and fault in ("lost_answer", "late_504"):
        assert world.requests("commit") == 1, "the commit was there: looked up, not made again"


@pytest.mark.parametrize(
    "stage, old, fault",
    [
        pytest.param(*case, id="-".join(map(str, case)), marks=pytest.mark.long)
        for case in [
            *((stage, stage != "create", 503) for stage in STAGES),
            *((stage, False, 429) for stage in ("repo", "create", "upload", "commit")),
            *((stage, False, "cut") for stage in ("whoami", "create", "upload", "commit")),
        ]
    ],
)
def test_a_fault_that_does_not_pass_ends_the_push_after_a_while(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault, times=99)
    done = world.push(*flags_for(stage))
    command = world.check_failed(done, expected_message(stage, fault))
    assert 4 <= world.requests(stage) <= 14
    assert world.commits() == world.commits_before, "and no empty repo"
    world.repair()
    world.check_done(world.run(*command), "v1" if stage == "branch" else "main")


def test_a_commit_of_somebody_else_in_between_is_kept(world):
    world.start(old=True)
    world.fail("commit", "overtaken")
    command = world.check_failed(world.push(), LASTING[412])
    theirs = ["By somebody else", *world.commits_before]
    assert world.commits() == theirs
    world.check_done(world.run(*command), before=theirs)


def test_a_new_repo_that_somebody_else_has_used_is_not_deleted(world):
    world.fail("commit", "overtaken")
    command = world.check_failed(world.push(), LASTING[412])
    assert world.commits() == ["By somebody else", "initial commit"]
    world.hub.requests.clear()
    done = world.run(*command)
    assert done.returncode == 0
    assert world.commits() == ["Upload tiny", "By somebody else", "initial commit"]


def test_a_commit_below_another_is_found_too(world):
    """The answer is lost, and before the look somebody else commits on top."""
    world.start(old=True)
    world.fail("commit", "lost_answer")
    world.hub.fail("GET", "/commits/main", status="overtaken")
    done = world.push()
    assert done.returncode == 0
    commits = world.hub.repo(NAME).history()
    assert [commit.title for commit in commits[:2]] == ["By somebody else", "Upload tiny"]
    assert commits[1].oid in done.stdout


@pytest.mark.parametrize("pull_request", [False, True])
@pytest.mark.long
def test_a_commit_that_cannot_be_looked_up_is_not_made_twice(world, pull_request):
    world.start(old=True)
    world.fail("commit", "lost_answer")
    # Not found at all, as where a proxy knows the repo no more: nothing that is asked again.
    after = int(pull_request)  # its refs may be listed before the commit
    world.hub.fail("GET", "/commits/|/refs$", status=404, times=9, after=after)
    done = world.push(*(["--hub_create_pr"] if pull_request else []))
    place = "discussions" if pull_request else "commits/main"
    message = rf"may have made the commit all the same: look at http\S+/me/tiny/{place} before"
    command = world.check_failed(done, message)
    world.repair()
    again = world.run(*command)
    assert again.returncode == 0
    if pull_request:
        assert f"{world.hub.url}/me/tiny/discussions/" in again.stdout
        assert "refs/pr/1" in world.hub.repo(NAME).refs
    else:
        world.check_done(again)
        assert world.requests("commit") == 1


def test_a_pull_request_whose_answer_was_lost_is_found(world):
    world.start(old=True)
    world.fail("commit", "lost_answer")
    done = world.push("--hub_create_pr")
    assert done.returncode == 0
    assert f"{world.hub.url}/me/tiny/discussions/1" in done.stdout
    assert set(world.hub.repo(NAME).refs) == {"main", "refs/pr/1"}
    assert world.commits() == world.commits_before


def test_an_earlier_pull_request_is_not_taken_for_a_commit_that_failed(world):
    world.start(old=True)
    assert f"{world.hub.url}/me/tiny/discussions/1" in world.push("--hub_create_pr").stdout
    world.fail("commit", 503)
    assert f"{world.hub.url}/me/tiny/discussions/2" in world.push("--hub_create_pr").stdout
    assert set(world.hub.repo(NAME).refs) == {"main", "refs/pr/1", "refs/pr/2"}


def test_a_new_repo_whose_creation_went_unanswered_is_not_left_empty(world):
    world.fail("create", "lost_answer")
    world.fail("commit", 403)
    command = world.check_failed(world.push(), LASTING[403])
    assert world.requests("create") == 2 and world.commits() == []
    world.fail("create", "lost_answer", times=4)
    world.fail("create", 503, times=9)
    world.repair()
    world.fail("create", "lost_answer", times=1)
    world.fail("create", 403)
    world.check_failed(world.push(), LASTING[403])
    assert world.commits() == []
    world.repair()
    world.check_done(world.run(*command))


def test_a_repo_that_somebody_else_has_just_created_is_not_deleted(world):
    world.fail("create", 409)
    world.hub.fail("POST", "/preupload/", status=403)
    # After the check of the right to write.
    world.hub.fail("GET", "/api/models/me/tiny$", status=404, after=1, X_Error_Code="RepoNotFound")
    world.hub.add_repo(NAME)
    command = world.check_failed(world.push(), LASTING[403])
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    assert world.commits() == ["initial commit"]
    world.repair()
    world.commits_before = []
    world.check_done(world.run(*command))


def test_a_branch_that_was_there_before_or_has_a_commit_is_kept(world):
    world.start(old=True)
    repo = world.hub.repo(NAME)
    repo.refs["v1"] = repo.refs["main"]
    world.fail("commit", 403)
    world.check_failed(world.push("--hub_revision", "v1"), LASTING[403])
    assert set(repo.refs) == {"main", "v1"}
    world.fail("commit", "overtaken_branch")
    world.check_failed(world.push("--hub_revision", "v2"), LASTING[412])
    assert repo.history("v2")[0].title == "By somebody else"


PARTS = {"part": ("PUT", r"/part/2$"), "complete": ("POST", r"/large-files/.*/complete")}


@pytest.mark.parametrize("stage", PARTS)
@pytest.mark.parametrize("fault", ["cut", "lost_answer", "late_504", 429, 500, 503, 403, 404])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.long
def test_a_large_file_in_parts_arrives_whole_or_not_at_all(world, stage, fault, old):
    world.start(old)
    world.hub.part_size = 5000
    options = {"Retry_After": "0"} if fault in (429, 500, 503, "late_504") else {}
    world.hub.fail(*PARTS[stage], status=fault, **options)
    done = world.push()
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    if fault in (403, 404):
        message = rf"Error while uploading .* Its storage answered {fault}: push again"
        command = world.check_failed(done, message)
        assert world.commits() == world.commits_before
        world.repair()
        done = world.run(*command)
    world.check_done(done)
    assert len(world.hub.parts) > 2


def test_a_login_page_in_place_of_the_hub_is_named(world):
    world.start(old=True)
    world.hub.fail("POST", "/preupload/", status="page")
    command = world.check_failed(world.push(), "answered is not of the Hub .* login page")
    world.check_done(world.run(*command))


@pytest.mark.parametrize(
    "stage, content",
    [
        *(("whoami", content) for content in ([], None, "ok")),
        ("repo", []),
        ("preupload", []),
        ("batch", []),
        ("validate", []),
    ],
    ids=str,
)
def test_an_answer_of_somebody_else_is_named(world, stage, content):
    """JSON, but not the Hub's."""
    world.start(old=True)
    world.fail(stage, "json", content=content)
    command = world.check_failed(world.push(), "answered is not of the Hub .* login page")
    assert world.commits() == world.commits_before
    world.check_done(world.run(*command))


@pytest.mark.parametrize("known", [{"auth": None}, {"auth": {"accessToken": None}, "orgs": None}])
def test_a_hub_that_tells_nothing_of_a_token_can_be_pushed_to(world, known):
    world.fail("whoami", "json", content={"name": "me", **known}, times=9)
    world.check_done(world.push())


def test_a_card_that_is_no_text_is_one_written_by_hand(world):
    world.start(old=True)
    world.hub.add_repo(NAME, {"README.md": b"# caf\xe9", "notes.txt": b"kept"})
    command = world.check_failed(world.push(), "was written or edited by hand")
    assert "--overwrite_card" in command
    world.check_done(world.run(*command))


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n# x %d", b"# caf\xe9 %d", b"---\n[]\n---\n%d"])
def test_a_damaged_card_is_kept_as_it_is_by_a_push_from_python(world, tmp_path, card):
    world.start(old=True)
    card = card % world.count  # one that the client's cache does not have
    world.hub.add_repo(NAME, {"README.md": card, "notes.txt": b"kept"})
    script = tmp_path / "push.py"
    script.write_text(PUSH_MODEL)
    done = world.run(script, world.folder)
    world.check_done(done)
    assert "was written or edited by hand and is kept" in done.stderr
    assert world.hub.repo(NAME).find("main").files["README.md"].content == card


PUSH_IN_A_SECOND = """
import sys
from hf_vqvae.publishing.push import PushError, push_folder
try:
    print(push_folder(sys.argv[1], "me/tiny", timeout=1))
except PushError as error:
    sys.exit(str(error))
"""


@pytest.mark.long
def test_slow_answers_are_waited_for(world):
    world.start(old=True)
    for stage in STAGES:
        world.fail(stage, "slow", seconds=1.5)
    world.check_done(world.push())
    assert [world.requests(stage) for stage in ("whoami", "commit")] == [1, 1]


@pytest.mark.long
@pytest.mark.parametrize("old", [False, True])
def test_no_answer_is_not_waited_for_without_end(world, tmp_path, old):
    world.start(old)
    script = tmp_path / "push.py"
    script.write_text(PUSH_IN_A_SECOND)
    world.fail("repo", "slow", seconds=2)
    command = world.check_failed(world.run(script, world.folder), "no answer from .* in time")
    # A commit that is made long after the answer to it was waited for.
    world.fail("commit", "slow", seconds=3)
    done = world.run(script, world.folder)
    command = world.check_failed(done, "may have made the commit all the same: .*no answer from")
    until = time.monotonic() + 20
    while len(world.commits()) < len(world.commits_before or ["initial commit"]) + 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    again = world.run(*command)
    world.check_done(again)
    assert world.requests("commit") == 1


PUSH_BARE_FOLDER = """
import sys
from hf_vqvae.hub.commit import commit_folder
print(commit_folder(sys.argv[1], "me/tiny", commit_message="No weights").commit_url)
"""


def test_a_commit_without_weights_deletes_none(world, tmp_path):
    world.start(old=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"new": 1}')
    script = tmp_path / "push.py"
    script.write_text(PUSH_BARE_FOLDER)
    assert world.run(script, bare).returncode == 0
    files = world.hub.repo(NAME).find("main").files
    assert files["config.json"].content == b'{"new": 1}'
    assert "model-00001-of-00001.safetensors" in files


ASK_AFTER_A_LOST_CONNECTION = """
import sys
from huggingface_hub import get_session
from huggingface_hub.utils import _http, http_backoff, httpx
from hf_vqvae.hub.requests import request_timeout
factory = _http._GLOBAL_CLIENT_FACTORY
with request_timeout(9), request_timeout(1):
    try:
        http_backoff("GET", "http://127.0.0.1:9/", max_retries=1)
    except httpx.ConnectError:
        pass
    try:
        print(get_session().get(sys.argv[1]).status_code)
    except httpx.TimeoutException as error:
        print(type(error).__name__)
print(get_session().get(sys.argv[1]).status_code)
print(_http._GLOBAL_CLIENT_FACTORY is factory, len(get_session().event_hooks["request"]))
"""


def test_the_limit_of_time_outlives_a_lost_connection_but_not_its_block(world, tmp_path):
    """The client closes its session then, and opens another."""
    script = tmp_path / "ask.py"
    script.write_text(ASK_AFTER_A_LOST_CONNECTION)
    world.hub.fail("GET", "/silent", status="slow", seconds=1.5, times=2)
    done = world.run(script, f"{world.hub.url}/silent")
    assert done.stdout.split() == ["ReadTimeout", "404", "True", "1"], done.stderr


PUSH_BY_OWN_CLIENT = """
import sys
from huggingface_hub import close_session, get_session, set_client_factory
from huggingface_hub.utils import httpx
from huggingface_hub.utils._http import default_client_factory
from hf_vqvae.publishing.push import PushError, push_folder
set_client_factory(lambda: httpx.Client(headers={"x-client": "own"}, timeout=None))
try:
    print(push_folder(sys.argv[1], "me/tiny"))
except PushError as error:
    print("failed")
kept = [get_session()]
close_session()
kept.append(get_session())
print(*(client.headers.get("x-client") for client in kept))
print(*(len(client.event_hooks["request"]) for client in kept))
set_client_factory(default_client_factory)
"""


@pytest.mark.parametrize("fault", [None, 403, "cut"])
def test_a_client_factory_of_the_caller_is_back_after_a_push(world, tmp_path, fault):
    script = tmp_path / "push.py"
    script.write_text(PUSH_BY_OWN_CLIENT)
    if fault is not None:
        world.fail("commit", fault, times=9)
    done = world.run(script, world.folder)
    pushed, *rest = done.stdout.splitlines()
    assert (pushed == "failed") == (fault is not None), done.stderr
    assert rest == ["own own", "0 0"]


LOAD_MODEL = """
import sys
from transformers import AutoModel
import hf_vqvae
from hf_vqvae.hub.download import fetch_model
try:
    folder = fetch_model("me/tiny")
except ValueError as error:
    sys.exit(f"Error: {error}")
print(AutoModel.from_pretrained(folder).num_parameters())
"""
LOAD_DATA = """
import sys
from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.sources import open_source
try:
    source = open_source(DataArguments(dataset_name=sys.argv[1]))
    print(sum(len(source.read(split)) for split in source.splits))
except ValueError as error:
    sys.exit(f"Error: {error}")
"""


def parquet(rows: int, seed: str) -> bytes:
    pixels = hashlib.sha512(seed.encode()).digest()  # 64: no file of another test is like it
    images = [Image.frombytes("L", (8, 8), pixels) for _ in range(rows)]
    columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    data = {"image": images, "label": [row % 2 for row in range(rows)]}
    file = io.BytesIO()
    datasets.Dataset.from_dict(data, features=datasets.Features(columns)).to_parquet(file)
    return file.getvalue()


def downloads(faults, is_quick):
    found = []
    for file in ("config.json", "model.safetensors"):
        for fault in faults:
            marks = () if is_quick(file, fault) else pytest.mark.long
            found.append(pytest.param(file, fault, id=f"{file}-{fault}", marks=marks))
    return found


def publish_model(world) -> None:
    """A model that the client's cache does not have."""
    config = (world.folder / "config.json").read_bytes() + b"\n" * world.count
    weights = (world.folder / "model.safetensors").read_bytes()
    weights = save(load(weights), metadata={"format": "pt", "number": str(world.count)})
    world.hub.add_repo(NAME, {"config.json": config, "model.safetensors": weights})


def gets(world, file: str) -> int:
    return sum(method == "GET" and file in url for method, url in world.hub.requests)


@pytest.mark.parametrize(
    "file, fault",
    downloads(
        ("cut", "closed", "lost_answer", 503, 429),
        lambda file, fault: file == "model.safetensors" and fault in (503, 429),
    ),
)
def test_a_download_that_breaks_goes_on(world, tmp_path, file, fault):
    publish_model(world)
    script = tmp_path / "load.py"
    script.write_text(LOAD_MODEL)
    options = {"Retry_After": "0"} if fault in (503, 429) else {}
    world.hub.fail("GET", f"/me/tiny/resolve/.*{file}", status=fault, **options)
    done = world.run(script)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"


@pytest.mark.parametrize("file, fault", downloads(("cut", 401, 403, 503, "page"), lambda file, fault: fault != "cut"))
def test_a_download_that_fails_says_so_and_leaves_a_cache_that_can_be_used(world, tmp_path, file, fault):
    publish_model(world)
    script = tmp_path / "load.py"
    script.write_text(LOAD_MODEL)
    options = {"Retry_After": "0"} if fault == 503 else {}
    world.hub.fail("GET", f"/me/tiny/resolve/.*{file}", status=fault, times=99, **options)
    done = world.run(script)
    assert done.returncode == 1
    message = {
        "page": "file should be of size",
        403: "the Hub answered 403 .*the token may not read this",
        503: "the Hub answered 503: the Hub has a problem; download again later",
    }.get(fault, {**LASTING, **PASSING}.get(fault))
    assert re.search(f"Error: cannot get the model 'me/tiny': .*{message}", done.stderr, re.DOTALL)
    assert "the same command goes on" in done.stderr
    world.repair()
    again = world.run(script)
    assert again.returncode == 0, again.stderr
    # Once more without the Hub: the cache is whole.
    world.hub.fail("GET|HEAD", "/me/tiny", status=403, times=99)
    assert world.run(script).returncode == 0


def test_a_model_is_not_waited_for_without_end(world, tmp_path):
    files = {name: (world.folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    world.hub.add_repo("me/silent", files)  # not in the cache, which would be taken else
    script = tmp_path / "load.py"
    script.write_text(LOAD_MODEL.replace('"me/tiny"', '"me/silent", timeout=0.5'))
    world.hub.fail("GET", "/api/models/me/silent", status="slow", seconds=1.5)
    done = world.run(script)
    message = (
        "cannot get the model 'me/silent': there is no folder me/silent, and getting it from the Hub failed: "
        "no answer from http://127.0.0.1.* in time"
    )
    assert re.search(message, done.stderr), done.stderr
    assert world.run(script).returncode == 0


@pytest.mark.parametrize("name", ["me/nothing", "nothing"])
def test_a_model_that_is_nowhere_is_neither_a_folder_nor_downloaded_in_part(world, name):
    done = world.run("scripts/sample.py", name)
    assert done.returncode == 1
    assert f"model {name!r}: there is no folder {name}, and getting it from the Hub" in done.stderr
    assert "the Hub answered 404" in done.stderr and "Name a folder with config.json" in done.stderr
    assert "downloaded is kept" not in done.stderr and ".." not in done.stderr


def test_a_model_that_no_repo_can_be_is_not_asked_for(world, tmp_path):
    (tmp_path / "model").write_text("")
    for name in ("outputs/mnist/8", "./outputs", tmp_path / "model"):
        done = world.run("scripts/sample.py", name)
        assert f"there is no folder {name}, and it is no name of a repo. Name" in done.stderr
    assert not world.hub.requests


LOAD_CLASSIFIER = """
from hf_vqvae.evaluation.classifier import load_classifier
classifier = load_classifier("me/classifier")
print(classifier.num_classes, classifier.description)
"""


def test_a_classifier_comes_from_the_hub_and_over_a_connection_that_breaks(world, tmp_path):
    SmallClassifier(SmallClassifierConfig(num_labels=3)).save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    world.hub.add_repo("me/classifier", files | {"pytorch_model.bin": b"a pickle"})
    script = tmp_path / "load.py"
    script.write_text(LOAD_CLASSIFIER)
    world.hub.fail("GET", "/me/classifier/resolve/.*model.safetensors", status="cut")
    done = world.run(script)
    assert done.stdout == "3 classifier me/classifier\n", done.stderr
    assert not gets(world, "pytorch_model.bin")


@pytest.fixture
def data(world, tmp_path):
    """A dataset of two files, and the script that reads it."""
    name = f"me/digits{world.count}"
    files = {
        f"data/{split}-00000-of-00001.parquet": parquet(5, f"{split} {world.count}") for split in ("train", "test")
    }
    world.hub.add_repo(name, files, kind="dataset")
    script = tmp_path / "load.py"
    script.write_text(LOAD_DATA)
    return name, script


@pytest.mark.parametrize("fault", ["cut", "closed", "lost_answer", "page", "slow", 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("place", ["lookup", "listing", "file"])
@pytest.mark.long
def test_data_whose_download_breaks_is_never_read_in_part(world, data, place, fault):
    name, script = data
    paths = {"lookup": f"/api/datasets/{name}$", "listing": f"/api/datasets/{name}/"}
    path = paths.get(place, f"/{name}/resolve/.*test.*parquet")
    options = {"Retry_After": "0"} if fault in (429, 500, 503) else {}
    world.hub.fail("GET", path, status=fault, **options)
    done = world.run(script, name)
    if done.returncode == 0:  # asked again
        assert int(done.stdout.split()[-1]) == 10
    else:
        assert re.search(f"^Error: .*{name}", done.stderr, re.MULTILINE), done.stderr
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    fetched = gets(world, "train-00000-of-00001.parquet")
    again = world.run(script, name)
    assert again.returncode == 0, again.stderr
    assert int(again.stdout.split()[-1]) == 10
    if place == "file":
        assert gets(world, "train-00000-of-00001.parquet") == fetched, "what is there is kept"


STREAM_DATA = """
import sys
from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.splits import load_images
from hf_vqvae.models.configuration_vqvae import VQVAEConfig
try:
    arguments = DataArguments(dataset_name=sys.argv[1], streaming=True)
    images = load_images(arguments, VQVAEConfig(image_size=8, hidden_sizes=[4]))
    print("opened")
    shades = [round(255 * row["pixel_values"].mean().item() + 127.5) for row in images.train]
    print(shades == [number % 251 for number in range(len(shades))], len(shades))
except (ValueError, OSError) as error:  # as scripts/train.py does
    sys.exit(f"Error: {error}")
"""


def large_parquet(rows: int, seed: int) -> bytes:
    """Images of growing shades, in several groups of rows; the noise in them does not compress."""
    noise = hashlib.shake_256(str(seed).encode()).digest(64 * 64)
    images = []
    for number in range(rows):
        image = Image.new("L", (64, 64), number % 251)
        text = PngImagePlugin.PngInfo()
        text.add(b"noIs", noise + number.to_bytes(4, "big"))
        stream = io.BytesIO()
        image.save(stream, "PNG", pnginfo=text)
        images.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image()})
    file = io.BytesIO()
    datasets.Dataset.from_dict({"image": images}, features).to_parquet(file, batch_size=50)
    return file.getvalue()


@pytest.mark.parametrize("fault", ["cut", "closed", "lost_answer", "slow", 401, 403, 404, 429, 503])
@pytest.mark.parametrize("after", [0, 2, 4], ids=["at_its_end", "when_measured", "in_training"])
@pytest.mark.long
def test_a_stream_that_breaks_goes_on_where_it_was_or_says_so(world, tmp_path, fault, after):
    name = f"me/stream{world.count}"
    train = "data/train-00000-of-00001.parquet"
    files = {train: large_parquet(300, world.count), train.replace("train", "test"): large_parquet(5, -1)}
    world.hub.add_repo(name, files, kind="dataset")
    script = tmp_path / "stream.py"
    script.write_text(STREAM_DATA)
    options = {"Retry_After": "0"} if fault in (429, 503) else {}
    world.hub.fail("GET", f"/{name}/resolve/.*train", status=fault, after=after, **options)
    done = world.run(script, name)
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    if fault in (401, 403, 404):
        assert re.search(f"^Error: .*{fault}.*{name}", done.stderr, re.MULTILINE | re.DOTALL)
        assert done.returncode == 1 and "True" not in done.stdout
        done = world.run(script, name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["opened", "True", "300"]


PUSH_MODEL = """
import sys
from hf_vqvae import VQVAEForImageGeneration
model = VQVAEForImageGeneration.from_pretrained(sys.argv[1])
try:
    print(model.push_to_hub("tiny", commit_message="Upload tiny").commit_url)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("fault", ["cut", "lost_answer", 401, 429, 503])
@pytest.mark.parametrize("stage", ["whoami", "create", "upload", "commit"])
@pytest.mark.long
def test_a_push_from_python_is_one_commit_or_none_too(world, tmp_path, stage, fault):
    script = tmp_path / "push.py"
    script.write_text(PUSH_MODEL)
    world.fail(stage, fault)
    done = world.run(script, world.folder)
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"
    if fault == 401:
        assert done.returncode == 1
        assert re.search("401|user token|Error while uploading", done.stderr), done.stderr
        assert world.commits() == []
        done = world.run(script, world.folder)
    world.check_done(done)


@pytest.mark.parametrize("fault", ["cut", 503])
@pytest.mark.parametrize("times", [1, 99], ids=["passes", "stays"])
@pytest.mark.long
def test_a_card_that_cannot_be_read_is_not_replaced_by_one_without_results(world, tmp_path, fault, times):
    """A model that comes from a repo of the Hub is pushed back there, with the card of its run."""
    world.start(old=True)  # so that the client's cache does not know the commit
    assert world.push().returncode == 0
    card = world.hub.repo(NAME).find("main").files["README.md"].content
    assert b"0.0042" in card
    script = tmp_path / "push.py"
    script.write_text(PUSH_MODEL)
    options = {"Retry_After": "0"} if fault == 503 else {}
    path = r"^/me/tiny/resolve/.*metrics"
    world.hub.fail("GET|HEAD", path, status=fault, times=times, **options)
    done = world.run(script, NAME)
    assert done.returncode == (0 if times == 1 else 1), done.stderr
    assert world.hub.repo(NAME).find("main").files["README.md"].content == card


# Pushes that are stopped or killed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start_slow_push(world, stage, old, seconds, *flags):
    """A push that has come to `stage`, whose answer takes `seconds`."""
    world.start(old)
    world.fail(stage, "slow", seconds=seconds, times=99)
    words = ("scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny", *flags)
    push = world.client.start(*words, environment={"HF_TOKEN": TOKEN})
    until = time.monotonic() + 60
    while not world.requests(stage):
        assert time.monotonic() < until
        time.sleep(0.01)
    return push


def check_stopped(world, done, number):
    """The words of the command that the user reads."""
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    assert "Pushed" not in done.stdout and "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert digest(world.folder) == world.before
    if number == signal.SIGKILL:
        return ["scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny"]
    message = rf"The push was stopped by {signal.Signals(number).name}. This tries again:\n\n    "
    (command,) = re.findall(message + "python (.*)$", done.stderr, re.MULTILINE)
    return command.split()


def wait_until_idle(world, seconds):
    """What the server was slow with has taken effect."""
    time.sleep(seconds + 0.2)


STOPS = [
    pytest.param(
        stage,
        old,
        number,
        id=f"{stage}-{'old' if old else 'new'}-{number.name}",
        marks=() if (stage, old, number) == ("upload", False, SIGNALS[1]) else pytest.mark.long,
    )
    for stage in STAGES
    for old in (False, True)
    for number in SIGNALS
    if stage != "branch" and (stage != "create" or not old) and (stage != "card" or old)
]


@pytest.mark.parametrize("stage, old, number", STOPS)
def test_a_push_that_is_stopped_can_be_done_again(module_world, stage, old, number):
    world = module_world
    push = start_slow_push(world, stage, old, 0.5)
    push.send(number)
    words = check_stopped(world, push.wait(), number)
    wait_until_idle(world, 0.5)
    left = world.commits()
    # The commit itself may go through on the Hub although nobody hears of it any more. One or none it is.
    possible = [world.commits_before]
    if stage == "commit":
        possible.append(["Upload tiny", *(world.commits_before or ["initial commit"])])
    if not old and (number == signal.SIGKILL or stage == "create"):
        possible.append(["initial commit"])  # nobody was left to delete the new repo
    assert left in possible
    world.repair()
    world.check_done(world.run(*words))


@pytest.mark.parametrize("number", SIGNALS[:2])
@pytest.mark.long
def test_a_second_signal_waits_for_nothing(module_world, number):
    world = module_world
    push = start_slow_push(world, "upload", False, 20)
    push.send(number)
    time.sleep(1)
    start = time.monotonic()
    push.send(number)
    done = push.wait()
    assert time.monotonic() - start < 5
    assert "once more stops at once" in done.stderr
    words = check_stopped(world, done, number)
    assert world.commits() == ["initial commit"], "the repo is left, and the model is not in it"
    world.repair()
    world.check_done(world.run(*words))


@pytest.mark.long
def test_killed_over_and_over_it_is_done_in_the_end(module_world):
    """A push to a new repo, killed at random moments until one goes through."""
    world = module_world
    world.start(old=False)
    words = ("scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny")
    for moment in range(12):
        push = world.client.start(*words, environment={"HF_TOKEN": TOKEN})
        time.sleep(0.05 * moment)
        push.send(signal.SIGKILL)
        push.wait()
        assert world.commits() in ([], ["initial commit"], ["Upload tiny", "initial commit"])
    world.check_done(world.run(*words))
