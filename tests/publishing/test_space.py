"""A static Space for a model: scripts/push_space.py and scripts/demo.py, with real clients and a loopback Hub."""

import json
import re
import shlex
import signal
import time
import urllib.request

import numpy as np
import onnxruntime
import pytest
import torch

from hf_vqvae.export.page import serve
from hf_vqvae.hub.card_signature import is_as_signed
from hf_vqvae.hub.download import load_model
from support.hub import SPACE_FILES, HubServer, read_card_metadata
from support.models import seeded
from support.pushes import TOKEN, digest, hub_client
from support.runs import TINY, TRAIN, assert_refused
from support.scripts import ROOT

MODEL, SPACE = "me/digits", "me/digits-demo"
PUSH = ["scripts/push_space.py", MODEL, "--space_id", SPACE]
PAGE = {path.name for path in (ROOT / "src/hf_vqvae/export/space").iterdir()}
OTHERS = {".gitattributes", "README.md", "settings.json", "thumbnail.png"}
ONNX = ("decoder.onnx", "encoder.onnx", "prior.onnx")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_token(TOKEN)
        server.add_token("hf_read", role="read")
        server.add_token("hf_other", user="somebody")
        yield server


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory):
    """A function that runs a script with that Hub."""
    with hub_client(hub, tmp_path_factory.mktemp("home")) as client:

        def run(*words, token=TOKEN):
            done = client.run(*words, environment={"HF_TOKEN": token} if token else {})
            assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
            return done

        run.client = client
        yield run


@pytest.fixture(scope="module")
def folder(hub, online, tmp_path_factory):
    """The folder of a run with ONNX files, pushed to me/digits."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    flags = [*TINY, "--num_eval_samples", "4", "--onnx", "--push_to_hub", "--hub_model_id", MODEL]
    done = online(TRAIN, *flags, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def new_hub(hub, folder):
    """The Hub with that model and without a Space; what a test changes there is put back."""
    repo, repos = hub.repo(MODEL), dict(hub.repos)
    state = dict(repo.commits), dict(repo.refs), repo.private
    hub.requests.clear()
    yield hub
    hub.failures.clear()
    hub.repos.clear()
    hub.repos.update(repos)
    repo.commits, repo.refs, repo.private = state


def writes(hub):
    """The requests that change something."""
    asking = ("preupload", "objects/batch", "validate-yaml")
    return [url for method, url in hub.requests if method not in ("GET", "HEAD") and not url.endswith(asking)]


def test_a_run_with_onnx_pushes_its_files_in_the_same_commit(hub, folder):
    commit, first = hub.repo(MODEL).history()
    assert first.title == "initial commit"
    pushed = {path: blob.content for path, blob in commit.files.items() if path.startswith("onnx/")}
    assert pushed == {f"onnx/{name}": (folder / "onnx" / name).read_bytes() for name in ONNX}
    assert "model.safetensors" in commit.files
    model = load_model(str(folder))
    codes = torch.randint(8, (1, *model.prior.config.grid_size), generator=seeded())
    session = onnxruntime.InferenceSession(folder / "onnx/prior.onnx")
    (logits,) = session.run(None, {"codes": codes.numpy(), "class_labels": np.array([2])})
    with torch.no_grad():
        assert np.abs(logits - model.prior(codes, torch.tensor([2])).logits.numpy()).max() < 1e-4


def test_a_space_is_made_in_one_commit_and_the_card_links_to_it(new_hub, online):
    done = online(*PUSH)
    assert done.returncode == 0, done.stderr
    repo = new_hub.repo(SPACE, "space")
    commit, first = repo.history()
    assert (commit.title, first.title) == (f"Show {MODEL}", "initial commit")
    assert f"{new_hub.url}/spaces/{SPACE}/commit/{commit.oid}" in done.stdout
    assert set(commit.files) == PAGE | OTHERS
    settings = json.loads(commit.files["settings.json"].content)
    assert settings.items() >= {"hub": new_hub.url, "model": MODEL, "revision": "main"}.items()
    card = commit.files["README.md"].content.decode()
    data = read_card_metadata(card)
    assert data["sdk"] == "static" and data["models"] == [MODEL] and data["license"] == "apache-2.0"
    assert data["thumbnail"] == f"{new_hub.url}/spaces/{SPACE}/resolve/main/thumbnail.png"
    assert commit.files["thumbnail.png"].content.startswith(b"\x89PNG")
    assert not any(TOKEN.encode() in blob.content for blob in commit.files.values())

    # Served under a host of its own, whose page may read the public files of the Hub.
    host = new_hub.space_url(SPACE).removeprefix("http://").partition(":")[0]
    with urllib.request.urlopen(urllib.request.Request(new_hub.url, headers={"Host": host})) as answer:
        assert answer.headers["Content-Type"] == "text/html" and b"<html" in answer.read()
    with urllib.request.urlopen(f"{new_hub.url}/{MODEL}/resolve/main/config.json") as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"

    link = f"[Try it in your browser]({new_hub.url}/spaces/{SPACE})"
    after, before = (each.files["README.md"].content.decode() for each in new_hub.repo(MODEL).history()[:2])
    assert is_as_signed(after) and link not in before
    title = re.search(r"^# .*\n", after, re.MULTILINE)
    assert after[title.end() :].startswith(f"\n{link}\n\n")
    assert read_card_metadata(after) == read_card_metadata(before)

    # Again: nothing to do, nothing done, no error. Then to another Space: one link, the new one.
    again = online(*PUSH)
    assert again.returncode == 0, again.stderr
    assert len(repo.history()) == 2 and len(new_hub.repo(MODEL).history()) == 3
    assert "links to it already" in again.stdout
    done = online(*PUSH[:-1], "me/another")
    assert done.returncode == 0, done.stderr
    card = new_hub.repo(MODEL).find("main").files["README.md"].content.decode()
    assert card.count("Try it in your browser") == 1 and "/spaces/me/another)" in card and is_as_signed(card)


def test_what_cannot_be_pushed_is_found_out_before_anything_is_changed(new_hub, online, folder):
    done = online("scripts/push_to_hub.py", folder, "--hub_model_id", MODEL, "--onnx", token="hf_read")
    assert re.search(r"^    python .*push_to_hub\.py .* --hub_model_id me/digits --onnx$", done.stderr, re.MULTILINE)
    done = online(*PUSH, token="hf_read")
    assert_refused(done, "can only read", SPACE)
    done = online(*PUSH, token="hf_other")
    assert_refused(done, "somebody may not create repos under me")
    done = online(*PUSH, token=None)
    assert_refused(done, "no token")
    done = online(*PUSH, "--hub_license", "mine")
    assert_refused(done, "--hub_license mine", "refused")
    done = online(*PUSH[:2])
    assert_refused(done, "--space_id", status=2)
    done = online("scripts/push_space.py", "me/nowhere", "--space_id", SPACE)
    assert done.returncode == 1 and "no such repo" in done.stderr
    assert shlex.join(["python", str(ROOT / PUSH[0]), "me/nowhere", "--space_id", SPACE]) in done.stderr
    files = {"config.json": b"{}", "model.safetensors": b""}
    new_hub.add_repo("me/without", files)
    done = online("scripts/push_space.py", "me/without", "--space_id", SPACE)
    assert_refused(done, "me/without has no ONNX files", "--hub_model_id me/without --onnx")
    new_hub.repo(MODEL).private = True
    done = online(*PUSH)
    assert_refused(done, f"{MODEL} is private or gated", "public")
    assert not writes(new_hub)


@pytest.mark.parametrize("stage", ["commit", "lfs"])
def test_a_push_that_fails_leaves_no_space_and_prints_what_tries_again(new_hub, online, stage):
    paths = {"lfs": r"/info/lfs/objects/batch", "commit": rf"/api/spaces/{SPACE}/commit/"}
    new_hub.fail("POST", paths[stage], status=503, times=9, Retry_After="0")
    before = len(new_hub.repo(MODEL).history())
    done = online(*PUSH)
    assert done.returncode == 1 and "the Hub answered 503" in done.stderr
    assert ("space", SPACE) not in new_hub.repos and len(new_hub.repo(MODEL).history()) == before
    assert "Pushed" not in done.stdout
    (command,) = re.findall(r"^    python (.*)$", done.stderr, re.MULTILINE)
    new_hub.failures.clear()
    done = online(*shlex.split(command))
    assert done.returncode == 0, done.stderr
    assert len(new_hub.repo(SPACE, "space").history()) == 2


def test_a_card_that_somebody_edited_is_kept(new_hub, online):
    """That of the model, and that of a Space unless asked otherwise; the Hub's own card of a new Space is none."""
    new_hub.add_repo(SPACE, kind="space")
    head = new_hub.repo(MODEL)
    edited = head.find("main").files["README.md"].content + b"By hand.\n"
    files = head.find("main").files | {"README.md": new_hub._blob("README.md", edited)}
    head.add_commit("main", files, "Edit", "", "me", head.refs["main"])
    done = online(*PUSH)
    assert done.returncode == 0, done.stderr
    assert f"    [Try it in your browser]({new_hub.url}/spaces/{SPACE})" in done.stdout
    assert head.find("main").files["README.md"].content == edited
    space = new_hub.repo(SPACE, "space")
    files = space.find("main").files | {"README.md": new_hub._blob("README.md", SPACE_FILES["README.md"])}
    space.add_commit("main", files, "Edit", "", "me", space.refs["main"])
    done = online(*PUSH)
    assert done.returncode == 1 and "written or edited by hand" in done.stderr
    assert len(space.history()) == 3
    done = online(*PUSH, "--overwrite_card")
    assert done.returncode == 0, done.stderr
    assert is_as_signed(space.find("main").files["README.md"].content.decode())


def test_the_demo_serves_this_machine_alone_and_exports_what_is_missing(online, folder, tmp_path):
    copied = tmp_path / "model"
    copied.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "metrics.json"):
        (copied / name).write_bytes((folder / name).read_bytes())
    before = digest(copied)
    job = online.client.start("scripts/demo.py", copied)
    until = time.monotonic() + 60
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+) ", job.printed())):
        assert job.is_running() and time.monotonic() < until, job.printed("stderr")
        time.sleep(0.05)

    def get(path):
        with urllib.request.urlopen(found[0].strip() + path) as answer:
            return answer.headers, answer.read()

    headers, page = get("/")
    assert headers["Content-Type"].startswith("text/html") and b"<html" in page
    scripts = {name for name in PAGE if name.endswith(".js")}
    assert all(get(f"/{name}")[0]["Content-Type"].startswith("text/javascript") for name in scripts)
    settings = json.loads(get("/settings.json")[1])
    assert settings["hub"] == ""
    root = f"/{settings['model']}/resolve/{settings['revision']}"
    assert get(f"{root}/config.json")[1] == (copied / "config.json").read_bytes()
    assert all(get(f"{root}/onnx/{name}")[1][4:] for name in ONNX)
    assert b"class VectorQuantizer" in get(f"{root}/quantization.py")[1]
    job.send(signal.SIGINT)
    done = job.wait()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert digest(copied) == before
    with serve(copied) as server:
        assert server.server_address[0] == "127.0.0.1"
