"""Publishing and loading, end to end: real clients, a loopback Hub, fresh processes and caches."""

import json
import os
import shlex
import subprocess
import sys
import textwrap

import pytest
import torch

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.hub.card_signature import is_as_signed, sign_card
from hf_vqvae.hub.errors import PushError
from hf_vqvae.hub.preflight import check_can_push
from hf_vqvae.model_card.card import build_card
from hf_vqvae.publishing.push import push_command, push_folder
from support.hub import HubServer, read_card_metadata
from support.pushes import TOKEN, digest, make_run, model_of_run
from support.scripts import ROOT, ScriptServer

# All of what travels to the Hub does.
CODE = {path.name for path in (ROOT / "src/hf_vqvae/models").glob("[a-z]*.py")}
CARD = """---
library_name: transformers
pipeline_tag: unconditional-image-generation
tags: [vq-vae]
---

# Tiny

It reaches an error of 0.0042. ![samples](figures/samples.png)
"""
# An importer that knows no hf_vqvae, whatever is installed.
WITHOUT_PACKAGE = """
import importlib, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_vqvae":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
try:
    importlib.import_module("hf_vqvae")
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hf_vqvae can be imported")
"""


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        server.add_token(TOKEN, organizations=("lab",))
        server.add_token("hf_read", role="read")
        server.add_token("hf_fine", role="fineGrained", scopes=(("me/mine", ("repo.write",)),))
        yield server


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("outputs") / "tiny")


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """Runs scripts where the package is installed."""
    home = tmp_path_factory.mktemp("home")
    with ScriptServer(home, environment=server.environment(home)) as client:
        yield client


def printed_by(done):
    """What was printed last, as JSON."""
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_code(client, code, token=TOKEN):
    """Runs code where the package is installed."""
    path = client.home / "code.py"
    path.write_text(textwrap.dedent(code))
    return printed_by(client.run(path, environment={} if token is None else {"HF_TOKEN": token}))


def run_afresh(server, home, code):
    """Runs code in a process that has imported nothing, with a fresh cache."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=server.environment(home, token=TOKEN),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return printed_by(done)


@pytest.fixture(scope="module")
def published(server, client, run_folder):
    """me/tiny, pushed by the script: in vain at first, then by the command that it printed."""
    token = {"HF_TOKEN": TOKEN}
    before = digest(run_folder)
    server.fail("POST", "/me/tiny/commit/main", status=503, times=4, Retry_After="0")
    flags = ["--hub_model_id", "tiny", "--hub_private", "--hub_license", "mit"]
    failed = client.run("scripts/push_to_hub.py", run_folder, *flags, environment=token)
    is_there_after_failure = ("model", "me/tiny") in server.repos
    command = next(line for line in failed.stderr.splitlines() if "scripts/push_to_hub.py" in line)
    words = shlex.split(command)
    again = client.run(*words[1:], environment=token)
    assert digest(run_folder) == before
    return failed, is_there_after_failure, words, again


def test_a_failed_push_says_what_failed_and_how_to_go_on(published, run_folder):
    failed, is_there_after_failure, words, _ = published
    assert failed.returncode not in (0, None)
    assert "Traceback" not in failed.stderr
    assert "the Hub answered 503" in failed.stderr
    assert not is_there_after_failure, "no empty repo is left"
    assert words[:3] == ["python", str(ROOT / "scripts/push_to_hub.py"), str(run_folder)]
    assert words[3:] == ["--hub_model_id", "me/tiny", "--hub_private", "--hub_license", "mit"]


def test_the_printed_command_pushes_the_run_in_one_commit(published, server):
    again = published[-1]
    assert again.returncode == 0, again.stderr
    repo = server.repo("me/tiny")
    assert f"{server.url}/me/tiny/commit/{repo.refs['main']}" in again.stdout
    assert [commit.title for commit in repo.history()] == ["Upload tiny", "initial commit"]
    assert repo.private
    files = repo.find("main").files
    run_files = {f"{name}.json" for name in ("metrics", "history", "arguments", "run", "config")}
    others = {".gitattributes", "README.md", "figures/samples.png", "preprocessor_config.json"}
    assert set(files) == CODE | run_files | others | {"model.safetensors"}
    card = files["README.md"].content.decode()
    assert "0.0042" in card and is_as_signed(card)
    assert 'model_id = "me/tiny"' in card and "trust_remote_code=True" in card
    assert json.loads(files["arguments.json"].content)["dataset_name"] == "mnist"
    assert read_card_metadata(card)["license"] == "mit"
    assert not any(TOKEN.encode() in blob.content for blob in files.values())


def test_it_loads_where_the_package_is_not_installed(published, server, run_folder, tmp_path):
    expected = model_of_run().sample(3, generator=torch.Generator().manual_seed(5))
    result = run_afresh(
        server,
        tmp_path,
        WITHOUT_PACKAGE
        + """
import json, os, torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

config = AutoConfig.from_pretrained("me/tiny", trust_remote_code=True)
model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("me/tiny", trust_remote_code=True)
images = model.sample(3, generator=torch.Generator().manual_seed(5))
pixels = processor(Image.new("L", (8, 8), 255), return_tensors="pt").pixel_values
pipe = pipeline(model="me/tiny", trust_remote_code=True)
drawn = pipe(2, seed=5)
model.push_to_hub("alone")
try:
    AutoModel.from_pretrained("me/tiny")
except ValueError as error:
    refused = str(error)
# transformers has asked on stdout whether to trust the code, without ending the line
print("\\n" + json.dumps([config.model_type, images.tolist(), pixels.max().item(), list(pixels.shape),
                         [image.size for image in drawn], refused]))
""",
    )
    model_type, images, white, shape, sizes, refused = result
    assert model_type == "vqvae_image_generation"
    assert torch.allclose(torch.tensor(images), expected, atol=1e-6)
    assert (white, shape, sizes) == (0.5, [1, 1, 8, 8], [[8, 8], [8, 8]])
    assert "trust_remote_code=True" in refused
    # Without the package, `push_to_hub` is that of transformers: the model without its card.
    alone = server.repo("me/alone").find("main").files
    assert {"config.json", "model.safetensors"} <= set(alone)
    assert {"metrics.json", "preprocessor_config.json"}.isdisjoint(alone)


def test_the_snippet_of_the_hub_loads_it_onto_devices_and_in_low_precision(published, server, tmp_path):
    results = run_afresh(
        server,
        tmp_path,
        WITHOUT_PACKAGE
        + """
import json, torch
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("me/tiny", trust_remote_code=True)
pixels = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
results = {}

def use(name, **options):
    model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True, **options)
    codes = model.vqvae.encode(pixels).codes
    known = results["plain"][1] if results else codes
    images = model.vqvae.decode(known)
    drawn = model.sample(seeds=range(64), return_dict=True)
    pictures = processor.postprocess(drawn.images)
    results[name] = codes, known, images.float(), drawn.codes
    dtypes = [str(one.dtype) for one in (model, images, drawn.images, *model.vqvae.buffers())]
    same = [(mine == theirs).float().mean().item() for mine, theirs in zip(results[name], results["plain"])]
    error = (results[name][2] - results["plain"][2]).abs().max().item()
    bits = model.log_likelihood(codes=known).bits.mean().item()
    finite = drawn.images.isfinite().all().item()
    offloaded = sum(parameter.is_meta for parameter in model.parameters())
    return [dtypes, same[0], same[3], error, bits, finite, len(pictures), offloaded]

found = {"plain": use("plain")}
size = sum(weight.nbytes for weight in AutoModel.from_pretrained("me/tiny", trust_remote_code=True).parameters())
for name, options in {
    "map": {"device_map": "auto"},
    "auto": {"device_map": "auto", "dtype": "auto"},
    "bfloat16": {"device_map": "auto", "dtype": torch.bfloat16},
    "float16": {"dtype": "float16"},
    "disk": {"device_map": "auto", "max_memory": {"cpu": size // 2}, "offload_folder": "offload"},
}.items():
    found[name] = use(name, **options)
print("\\n" + json.dumps(found))
""",
    )
    plain = results["plain"]
    for name in ("map", "auto", "disk"):
        assert results[name][:-1] == plain[:-1], name
    assert [result[-1] > 0 for result in results.values()] == [name == "disk" for name in results]
    for name, error in {"bfloat16": 1e-2, "float16": 1e-3}.items():
        dtypes, encoded, drawn, difference, bits, finite, pictures, _ = results[name]
        # The codebook's averages stay as they are, and so does how codes are found.
        assert dtypes[:3] == [f"torch.{name}"] * 3 and set(dtypes[3:]) == {"torch.float32"}
        assert encoded >= 0.95 and drawn >= 0.95 and difference < error and finite and pictures == 64
        assert bits == pytest.approx(plain[4], rel=1e-2)


def test_a_model_of_the_code_in_a_repo_is_pushed_by_the_installed_package(published, server, tmp_path):
    result = run_afresh(
        server,
        tmp_path,
        """
        import json
        from transformers import AutoModel

        model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True)
        model.push_to_hub("copy", tags=["copied"])
        model.prior.requires_grad_(False)
        next(model.prior.parameters()).add_(1)
        model.push_to_hub("changed")
        print("\\n" + json.dumps(type(model).__module__.split(".")[0]))
        """,
    )
    assert result == "transformers_modules"
    original, copy = (server.repo(f"me/{name}").find("main").files for name in ("tiny", "copy"))
    assert set(copy) == set(original)
    different = {name for name in copy if copy[name].content != original[name].content}
    assert different <= {"README.md", "config.json", "preprocessor_config.json", "arguments.json"}
    assert json.loads(copy["config.json"].content)["auto_map"] == {
        "AutoConfig": "configuration_image_generation.VQVAEForImageGenerationConfig",
        "AutoModel": "modeling_image_generation.VQVAEForImageGeneration",
    }
    card = copy["README.md"].content.decode()
    assert "0.0042" in card and 'model_id = "me/copy"' in card and "me/tiny" not in card
    assert "copied" in read_card_metadata(card)["tags"]
    changed = server.repo("me/changed").find("main").files
    assert set(changed) >= CODE and "metrics.json" not in changed
    assert "0.0042" not in changed["README.md"].content.decode()


def test_it_loads_with_the_package_and_without_trusting_its_code(published, client):
    result = run_code(
        client,
        """
        import json, hf_vqvae
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline
        model = AutoModel.from_pretrained("me/tiny")
        pipe = pipeline(model="me/tiny", trust_remote_code=True)
        print(json.dumps([
            type(AutoConfig.from_pretrained("me/tiny")) is hf_vqvae.VQVAEForImageGenerationConfig,
            type(model) is hf_vqvae.VQVAEForImageGeneration,
            type(AutoImageProcessor.from_pretrained("me/tiny")) is hf_vqvae.VQVAEImageProcessorPil,
            type(pipe.model) is hf_vqvae.VQVAEForImageGeneration,
            type(hf_vqvae.VQVAEModel.from_pretrained("me/tiny")).__name__,
            list(model.sample(2).shape),
        ]))
        """,
    )
    assert result == [True] * 4 + ["VQVAEModel", [2, 1, 8, 8]]


@pytest.fixture(scope="module")
def pushed_from_python(server, client, run_folder):
    server.add_repo("me/described", {"README.md": b"---\ntags: [old]\n---\n# By hand\n"})
    server.add_repo("me/public")
    server.add_repo("other/model", {"config.json": b"{}"})
    return run_code(
        client,
        f"""
        import json, os, tempfile
        from hf_vqvae import PixelCNNModel, VQVAEForImageGeneration, VQVAEModel
        run_folder = {str(run_folder)!r}

        def plain_files(model):
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                return sorted(os.listdir(folder))

        trained = VQVAEForImageGeneration.from_pretrained(run_folder)
        plain = [plain_files(trained)]
        commit = trained.push_to_hub("me/python", private=True, commit_message="Mine",
                                     commit_description="All of it")
        same = trained.push_to_hub("me/python")
        plain.append(plain_files(trained))
        trained.push_to_hub("me/described")
        branch = trained.push_to_hub("me/python", revision="v1/beta", tags=["beta"])
        request = trained.push_to_hub("other/model", create_pr=True)
        try:
            trained.push_to_hub("me/public", private=True)
        except ValueError as error:
            public = str(error)
        VQVAEModel(trained.config.vqvae_config).push_to_hub("me/autoencoder")
        trained.prior.push_to_hub("lab/prior", max_shard_size="4KB")
        trained.prior.push_to_hub("lab/prior")
        print(json.dumps([plain, commit.commit_url, same.oid == commit.oid, branch.oid,
                          request.pr_revision, public]))
        """,
    )


def test_push_to_hub_from_python_brings_everything_along(pushed_from_python, server):
    plain, url, same, *_ = pushed_from_python
    repo = server.repo("me/python")
    assert repo.private
    assert [commit.title for commit in repo.history()] == ["Mine", "initial commit"]
    assert repo.history()[0].message == "All of it"
    assert url == f"{server.url}/me/python/commit/{repo.refs['main']}"
    files = repo.find("main").files
    assert set(files) >= CODE | {"metrics.json", "figures/samples.png", "preprocessor_config.json"}
    assert "0.0042" in files["README.md"].content.decode()
    assert not any(path.startswith(("checkpoints", "codes/")) for path in files)
    assert same, "the same model again makes no commit"
    assert plain == [["config.json", "model.safetensors"]] * 2, "save_pretrained writes no code"


def test_a_model_without_a_run_gets_a_card_without_results(pushed_from_python, server):
    files = server.repo("me/autoencoder").find("main").files
    card = files["README.md"].content.decode()
    assert 'model_id = "me/autoencoder"' in card
    assert "this card has no results" in card
    metadata = read_card_metadata(card)
    assert metadata["license"] == "apache-2.0"
    assert metadata["pipeline_tag"] == "unconditional-image-generation"
    assert metadata["library_name"] == "transformers" and "model-index" not in metadata
    assert json.loads(files["preprocessor_config.json"].content)["size"] == {"height": 8, "width": 8}
    assert "custom_pipelines" not in json.loads(files["config.json"].content)


def test_a_prior_has_no_image_processor_and_old_shards_go(pushed_from_python, server):
    newest, sharded, _ = server.repo("lab/prior").history()
    assert "preprocessor_config.json" not in newest.files
    assert set(newest.files) >= {"modeling_pixelcnn.py", "configuration_pixelcnn.py", "input_checks.py"}
    assert "model.safetensors.index.json" in sharded.files
    weights = [name for name in newest.files if name.startswith("model.")]
    assert weights == ["model.safetensors"]


def test_branches_and_pull_requests_leave_main_alone(pushed_from_python, server):
    branch, request = pushed_from_python[3:5]
    python, other = server.repo("me/python"), server.repo("other/model")
    assert python.refs["v1/beta"] == branch != python.refs["main"]
    assert "beta" in python.find("v1/beta").files["README.md"].content.decode()
    assert request == "refs/pr/1"
    assert set(other.find("main").files) == {".gitattributes", "config.json"}
    assert set(other.find(request).files) >= CODE | {"model.safetensors", "README.md"}


def test_a_hand_written_card_is_kept_and_a_public_repo_not_taken_for_a_private(pushed_from_python, server):
    files = server.repo("me/described").find("main").files
    card = files["README.md"].content.decode()
    assert "# By hand" in card and read_card_metadata(card)["tags"] == ["old"]
    assert "model.safetensors" in files
    assert "me/public exists and is public" in pushed_from_python[-1]
    assert len(server.repo("me/public").history()) == 1


@pytest.fixture(scope="module")
def outcomes(server, client, run_folder):
    """What check_can_push and push_folder say in one process each; True where they succeed."""
    server.add_repo("me/mine")
    server.add_repo("other/theirs")
    server.add_repo("me/edited", {"README.md": sign_card(CARD).replace("0.0042", "0").encode()})
    server.fail("GET", "/api/models/lab/offline", status="cut", times=9)
    before = digest(run_folder)
    result = run_code(
        client,
        f"""
        import json, time
        from hf_vqvae.hub.preflight import check_can_push
        from hf_vqvae.publishing.push import push_folder
        time.sleep = lambda seconds: None  # the client's own retries, without their pauses
        folder = {str(run_folder)!r}

        def outcome(call, *arguments, **options):
            try:
                return [type(call(*arguments, **options)).__name__, ""]
            except Exception as error:
                return [type(error).__name__, str(error)]

        print(json.dumps({{
            "check new": [check_can_push("new", {TOKEN!r}), ""],
            "check mine": outcome(check_can_push, "me/mine", {TOKEN!r}),
            "check lab": outcome(check_can_push, "lab/new", {TOKEN!r}),
            "check no token": outcome(check_can_push, "me/mine"),
            "check unknown": outcome(check_can_push, "me/mine", "hf_none"),
            "check read": outcome(check_can_push, "me/mine", "hf_read"),
            "check other": outcome(check_can_push, "other/theirs", {TOKEN!r}),
            "check other pull": outcome(check_can_push, "other/theirs", {TOKEN!r}, create_pr=True),
            "check other new": outcome(check_can_push, "other/new", {TOKEN!r}),
            "check fine": outcome(check_can_push, "me/mine", "hf_fine"),
            "check fine new": outcome(check_can_push, "me/new", "hf_fine"),
            "check public": outcome(check_can_push, "me/mine", {TOKEN!r}, private=True),
            "check network": outcome(check_can_push, "lab/offline", {TOKEN!r}),
            "check license": outcome(check_can_push, "me/mine", {TOKEN!r}, license="apache2"),
            "push license": outcome(push_folder, folder, "me/mine", token={TOKEN!r}, license="apache2"),
            "push no token": outcome(push_folder, folder, "me/mine"),
            "push read": outcome(push_folder, folder, "me/mine", token="hf_read"),
            "push edited": outcome(push_folder, folder, "me/edited", token={TOKEN!r}),
            "push edited anyway": outcome(push_folder, folder, "me/edited", token={TOKEN!r},
                                          overwrite_card=True),
        }}))
        """,
        token=None,
    )
    assert digest(run_folder) == before
    return result


def test_who_may_push_is_told_so_before_training(outcomes):
    assert outcomes["check new"][0] == "me/new"
    for name in ("mine", "lab", "other pull", "fine"):
        assert outcomes[f"check {name}"] == ["str", ""]


@pytest.mark.parametrize(
    "case, message",
    [
        ("check no token", "no token to push with: set HF_TOKEN"),
        ("check unknown", "does not accept the token"),
        ("check read", "can only read"),
        ("check other", "may not write to other/theirs"),
        ("check other new", "may not create repos under other. Allowed are: me/new, lab/new"),
        ("check fine new", "fine-grained and may not write to the repos of me"),
        ("check public", "me/mine exists and is public"),
        ("check network", "no connection to http://127.0.0.1"),
        ("push no token", "401"),
        ("push read", "the Hub answered 403"),
        ("push edited", "was written or edited by hand"),
    ],
)
def test_what_goes_wrong_is_named(outcomes, run_folder, case, message):
    kind, said = outcomes[case]
    assert kind == "PushError"
    assert message in said
    if case.startswith("push"):
        assert f"The run is complete in {run_folder}" in said
        assert f"python {ROOT / 'scripts/push_to_hub.py'}" in said
        assert ("--overwrite_card" in said) == (case == "push edited")


def test_a_license_that_the_hub_refuses_is_found_before_training(outcomes):
    kind, said = outcomes["check license"]
    assert kind == "ValueError" and "`--hub_license apache2` is refused by the Hub" in said
    kind, said = outcomes["push license"]
    assert kind == "PushError" and "must be one of [apache-2.0" in said and "--hub_license" in said
    assert "push_to_hub.py" not in said, "the same command would fail again"


def test_failed_pushes_and_checks_commit_nothing(outcomes, server):
    for name in ("me/mine", "other/theirs"):
        assert len(server.repo(name).history()) == 1
    assert ("model", "me/new") not in server.repos and ("model", "lab/new") not in server.repos


def test_an_edited_card_is_overwritten_only_when_asked(outcomes, server):
    assert outcomes["push edited anyway"] == ["str", ""]
    newest, edited, _ = server.repo("me/edited").history()
    assert is_as_signed(newest.files["README.md"].content.decode())
    assert not is_as_signed(edited.files["README.md"].content.decode())


# A card and the records of a run stay with the weights that they describe.

RECORDS = {"metrics.json", "history.json", "arguments.json", "run.json", "figures/samples.png"}
PUSHES = """
from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.publishing.push import push_folder

folder = {folder!r}
push_folder(folder, "me/run", license="mit")
before = VQVAEForImageGeneration.from_pretrained("me/run")
before.push_to_hub("me/copy", max_shard_size="4KB")
changed = VQVAEForImageGeneration.from_pretrained("me/run")
next(changed.parameters()).data.add_(1)
changed.push_to_hub("me/run")
before.push_to_hub("me/before")
again = VQVAEForImageGeneration.from_pretrained("me/run")
again.push_to_hub("me/renamed")
print(0)
"""


@pytest.fixture(scope="module")
def pushed(server, client, run_folder):
    run_code(client, PUSHES.format(folder=str(run_folder)))
    return server


def files_of(hub, name, revision="main"):
    return {path: blob.content for path, blob in hub.repo(name).find(revision).files.items()}


def test_changed_weights_take_the_place_of_the_run_that_they_are_not_of(pushed):
    newest, run, _ = pushed.repo("me/run").history()
    assert set(run.files) >= RECORDS and set(newest.files).isdisjoint(RECORDS)
    card = newest.files["README.md"].content.decode()
    assert "0.0042" not in card and read_card_metadata(card)["license"] == "mit"


def test_a_model_has_the_card_of_its_repo_as_long_as_that_has_its_weights(pushed):
    copy, before = files_of(pushed, "me/copy"), files_of(pushed, "me/before")
    assert set(copy) >= RECORDS and b"0.0042" in copy["README.md"] and "model.safetensors" not in copy
    assert set(before).isdisjoint(RECORDS) and b"this card has no results" in before["README.md"]


def test_a_card_without_a_run_follows_the_repo_and_keeps_the_license(pushed):
    card = files_of(pushed, "me/renamed")["README.md"].decode()
    assert 'model_id = "me/renamed"' in card and "me/run" not in card
    assert read_card_metadata(card)["license"] == "mit"


def test_published_arguments_repeat_the_training_alone(pushed):
    (run,) = (commit for commit in pushed.repo("me/run").history() if "run.json" in commit.files)
    assert json.loads(run.files["arguments.json"].content) == {
        "seed": 0,
        "dataset_name": "mnist",
        "dataset_revision": "0" * 40,
        "cache_dir": None,
        "push_to_hub": False,
        "hub_model_id": None,
        "hub_license": "mit",
    }


@pytest.mark.parametrize("shards", ["50GB", "4KB"])
def test_records_belong_to_weights_however_these_are_saved(tmp_path, shards):
    run = make_run(tmp_path / "run")
    model = VQVAEForImageGeneration.from_pretrained(run)
    (run / "model.safetensors").unlink()
    model.save_pretrained(run, max_shard_size=shards)
    assert "0.0042" in build_card(run).text
    model.save_for_hub(tmp_path / "same", max_shard_size=shards)
    assert (tmp_path / "same" / "metrics.json").exists()
    next(model.parameters()).data.add_(1)
    model.save_for_hub(tmp_path / "changed", max_shard_size=shards)
    assert not (tmp_path / "changed" / "metrics.json").exists()
    model.save_pretrained(run, max_shard_size=shards)
    with pytest.raises(ValueError, match=r"run\.json in run describes other weights"):
        build_card(run)
    with pytest.raises(PushError, match=r"Cannot push .*run: run\.json in run describes other"):
        push_folder(run, "me/run")
    (run / "run.json").write_text("{}")  # of an older version
    assert "0.0042" in build_card(run).text


@pytest.mark.parametrize("name", ["", "a/b/c", "-a", "a--b", "me/na me", "me/x.git", "x" * 97])
def test_a_name_the_hub_does_not_allow_is_refused(name):
    with pytest.raises(ValueError, match=r"(?i)repo.id"):
        check_can_push(name, "token")


def test_an_unfinished_folder_is_refused_and_what_is_missing_named(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = (run / "metrics.json").read_bytes()
    for damaged in (metrics[:9], b"[]"):
        (run / "metrics.json").write_bytes(damaged)
        with pytest.raises(PushError, match=r"metrics\.json in run is damaged"):
            push_folder(run, "me/run")
    for name in ("metrics.json", "figures/samples.png", "model.safetensors"):
        (run / name).unlink()
    with pytest.raises(PushError, match=r"lacks metrics.json, figures/samples.png, model.safetensors"):
        push_folder(run, "me/run")
    run.rename(tmp_path / "run.partial")
    for folder in (run, tmp_path / "run.partial"):
        with pytest.raises(PushError, match=r"has not finished; .*--resume_from_checkpoint latest"):
            push_folder(folder, "me/run")
    with pytest.raises(PushError, match="no such folder"):
        push_folder(tmp_path / "none", "me/run")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "metrics.json", "figures/samples.png"])
def test_a_run_whose_files_lie_elsewhere_is_not_pushed_without_them(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    message = rf"Cannot push .*run: {name} is a link out of the folder\. Put the files themselves"
    with pytest.raises(PushError, match=message):
        push_folder(run, "me/run")


def test_a_run_is_not_pushed_with_a_part_of_its_weights(tmp_path):
    run = make_run(tmp_path / "run")
    model_of_run().save_pretrained(run, max_shard_size="4KB")
    parts = sorted(run.glob("model-*.safetensors"))
    for path in parts[1:]:
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with pytest.raises(PushError, match=f"{parts[1].name}.* out of the folder"):
        push_folder(run, "me/run")


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", b"[]"),
        ("config.json", b'{"architectures": {"a": 1}}'),
        ("config.json", b'{"architectures": 5}'),
        ("config.json", b'{"architectures": [["x"]]}'),
        ("config.json", b'{"architectures": ["VQVAEConfig"]}'),
        ("config.json", b'{"architectures": ["VQVAEImageProcessorPil"]}'),
        ("config.json", b"\xff"),
        ("config.json", b"[" * 100_000),
        ("metrics.json", b"[1]"),
        ("metrics.json", b"[" * 100_000),
        ("run.json", b"null"),
        ("arguments.json", b"[" * 100_000),
        ("README.md", b"\xff\xfe"),
        ("README.md", b"---\n!!python/object/apply:os.mkdir ['{mark}']\n---\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_a_folder_with_damaged_or_hostile_records_is_refused_before_the_hub_is_asked(
    tmp_path, monkeypatch, name, content
):
    folder = make_run(tmp_path / "run")
    mark = tmp_path / "mark"
    (folder / name).write_bytes(content.replace(b"{mark}", str(mark).encode()))
    with pytest.raises(PushError, match=r"Cannot push .*(damaged|which is not a model)"):
        push_folder(folder, "me/x", license="mit")
    assert not mark.exists()


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n# x", b"# caf\xe9", b"---\n[]\n---\n"])
def test_a_damaged_card_of_a_run_is_named(tmp_path, card):
    run = make_run(tmp_path / "run")
    model = VQVAEForImageGeneration.from_pretrained(run)
    (run / "README.md").write_bytes(card)
    with pytest.raises(ValueError, match=r"README\.md is damaged .*: repair it"):
        model.save_for_hub(tmp_path / "repo")


def test_the_command_repeats_the_options_and_survives_a_shell_in_any_folder():
    command = push_command("my runs/a", "me/a", create_pr=True, commit_message="Don't ask")
    assert shlex.split(command)[1:] == [
        str(ROOT / "scripts/push_to_hub.py"),
        f"{os.getcwd()}/my runs/a",
        "--hub_model_id",
        "me/a",
        "--hub_create_pr",
        "--hub_commit_message",
        "Don't ask",
    ]


def test_what_begins_with_a_dash_is_no_flag_of_the_command():
    command = push_command("-tiny", "me/a", revision="", commit_message="-x")
    words = ["--hub_model_id", "me/a", "--hub_revision", "", "--hub_commit_message=-x"]
    assert shlex.split(command)[3:] == words


def test_a_signed_card_shows_any_edit():
    signed = sign_card(CARD)
    assert is_as_signed(signed) and sign_card(signed) == signed
    assert is_as_signed(signed.replace("\n", "\r\n"))
    assert not is_as_signed(signed.replace("0.0042", "0.0001"))
    assert not is_as_signed(CARD)
