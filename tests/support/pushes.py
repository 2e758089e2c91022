"""Pushes of a finished run to a loopback Hub."""

import hashlib
import json
import re
import shlex

from PIL import Image

from hf_vqvae.hub.card_signature import sign_card
from hf_vqvae.hub.download import hash_saved_weights, image_processor_for
from hf_vqvae.model_card.card import write_card
from hf_vqvae.publishing.staging import add_code
from support.models import make_model
from support.scripts import ScriptServer

TOKEN = "hf_secretwritetoken"
NAME = "me/tiny"

# The requests of a push, in their order; a shard of an earlier push is deleted by this one.
STAGES = {
    "whoami": ("GET", r"^/api/whoami-v2"),
    "repo": ("GET", r"^/api/models/me/tiny$"),
    "create": ("POST", r"^/api/repos/create"),
    "branch": ("POST", r"^/api/models/me/tiny/branch/"),
    "card": ("GET|HEAD", r"^/me/tiny/resolve/.*README"),
    "preupload": ("POST", r"^/api/models/me/tiny/preupload"),
    "batch": ("POST", r"^/me/tiny.git/info/lfs/objects/batch"),
    "upload": ("PUT", r"^/large-files/"),
    "verify": ("POST", r"^/large-files/.*/verify"),
    "validate": ("POST", r"^/api/validate-yaml"),
    "commit": ("POST", r"^/api/models/me/tiny/commit/"),
}
# Those that Xet makes in place of "batch", "upload" and "verify"; after an error in the middle three, it uploads
# to /xet/v1/xorbs.
XET_STAGES = {
    "token": ("GET", r"^/api/models/me/tiny/xet-write-token/"),
    "grant": ("POST", r"^/xet/v1/(xorb-grants|xorbs)/"),
    "storage": ("PUT|POST", r"^/xet(-storage|/v1/xorbs)/"),
    "stored": ("POST", r"^/xet/v1/(xorb-commits|xorbs)/"),
    "shard": ("POST", r"^/xet/v[12]/shards"),
}


def model_of_run():
    return make_model({"kernel_size": 3, "num_residual_blocks": 1}, num_embeddings=8)


def make_run(folder, model=None):
    """The folder of a finished run of a model, with what must never be pushed in it too."""
    model = model or model_of_run()
    model.save_pretrained(folder)
    image_processor_for(model.base_model.config).save_pretrained(folder)
    error = {"name": "Reconstruction MSE", "value": 0.0042, "split": "test", "count": 9}
    error |= {"scale": "[0, 1]", "stage": "vqvae", "protocol": "mean over all pixels"}
    records = {"metrics": {"reconstruction_mse": error}, "history": {}}
    records["run"] = {"weights_sha256": hash_saved_weights(folder)}
    records["run"]["dataset"] = {"name": "me/digits", "kind": "hub", "revision": "0" * 40}
    records["arguments"] = {"seed": 0, "dataset_name": "/home/somebody/secret/mnist"}
    records["arguments"] |= {"dataset_revision": None, "cache_dir": "/home/somebody/.cache"}
    records["arguments"] |= {"push_to_hub": True, "hub_model_id": "me/tiny", "hub_license": "mit"}
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    for name in ("figures", "checkpoints/step-1", "codes"):
        (folder / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "figures" / "samples.png")
    add_code(folder, type(model))
    write_card(folder)
    (folder / "checkpoints" / "step-1" / "model.safetensors").write_bytes(b"0" * 100)
    (folder / "codes" / "data.arrow").write_bytes(b"0" * 100)
    return folder


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class World:
    """A loopback Hub, a user there, and the folder of a finished run."""

    def __init__(self, hub, client, folder):
        self.hub, self.client, self.folder = hub, client, folder
        self.before = digest(folder)
        self.count = 0

    def start(self, old: bool) -> None:
        """Empties the Hub; `old` is whether the repo is there already, with an earlier model."""
        hub = self.hub
        for kept in (hub.repos, hub.large_files, hub.failures, hub.tokens, hub.requests, hub.parts):
            kept.clear()
        for kept in (hub.xorbs, hub.xorbs_sent):
            kept.clear()
        hub.part_size = None
        hub.add_token(TOKEN)
        self.count += 1
        if old:  # another card each time: the client's cache knows none of them
            card = sign_card(f"---\nlicense: mit\n---\n# Number {self.count}").encode()
            weights = {"model-00001-of-00001.safetensors": b"old", "notes.txt": b"kept"}
            hub.add_repo(NAME, {"README.md": card, "config.json": b"{}", **weights})
        self.commits_before = self.commits()

    def fail(self, stage: str, fault: int | str, **options) -> None:
        if fault in (429, 500, 503, "late_504"):
            options["Retry_After"] = "0"  # the client makes a second of it, the package none
        self.hub.fail(*(STAGES | XET_STAGES)[stage], status=fault, **options)

    def run(self, *words: str):
        done = self.client.run(*words, environment={"HF_TOKEN": TOKEN})
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert digest(self.folder) == self.before
        return done

    def push(self, *flags: str):
        return self.run("scripts/push_to_hub.py", self.folder, "--hub_model_id", "me/tiny", *flags)

    def requests(self, stage: str) -> int:
        methods, path = (STAGES | XET_STAGES)[stage]
        return sum(
            method in methods.split("|") and re.search(path, url.partition("?")[0]) is not None
            for method, url in self.hub.requests
        )

    def commits(self, revision: str = "main") -> list[str]:
        """Their titles, newest first; none where there is no such repo or branch."""
        repo = self.hub.repos.get(("model", NAME))
        return [commit.title for commit in repo.history(revision)] if repo else []

    def check_done(self, done, revision: str = "main", before: list[str] | None = None) -> None:
        """The push is reported as done, and is: one commit more than before, with all in it."""
        assert done.returncode == 0, done.stderr
        before = self.commits_before if before is None else before
        assert self.commits(revision) == ["Upload tiny", *(before or ["initial commit"])]
        commit = self.hub.repo(NAME).find(revision)
        assert f"/me/tiny/commit/{commit.oid}" in done.stdout
        weights = (self.folder / "model.safetensors").read_bytes()
        assert commit.files["model.safetensors"].content == weights
        assert {"README.md", "config.json", "figures/samples.png"} <= set(commit.files)
        assert "model-00001-of-00001.safetensors" not in commit.files
        assert ("notes.txt" in commit.files) == bool(self.commits_before)

    def check_failed(self, done, message: str) -> list[str]:
        """The push is reported as failed, for the reason in `message`; returns the words of the printed command."""
        assert done.returncode == 1
        assert "Pushed" not in done.stdout
        assert re.search(message, done.stderr), done.stderr
        (command,) = re.findall(r"^    python (.*)$", done.stderr, re.MULTILINE)
        return shlex.split(command)

    def repair(self) -> None:
        self.hub.failures.clear()
        self.hub.add_token(TOKEN)


def hub_client(hub, home, xet=False):
    """A server of scripts whose Hub is `hub`, and whose pauses before a repeated request are ten times shorter."""
    return ScriptServer(home, environment=hub.environment(home, xet=xet), haste=10)
