"""A card and the records of a run stay with the weights that they describe, on the Hub as on disk."""

import json

import pytest

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.hub.errors import PushError
from hf_vqvae.model_card.card import build_card
from hf_vqvae.publishing.push import push_folder
from support.hub import HubServer, read_card_metadata
from support.pushes import TOKEN, make_run
from support.scripts import ScriptServer

RECORDS = {"metrics.json", "history.json", "arguments.json", "run.json", "figures/samples.png"}
PUSHES = """
import shutil, sys
from pathlib import Path
from huggingface_hub import snapshot_download
from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.publishing.push import push_folder

folder = sys.argv[1]
first = push_folder(folder, "me/run", license="mit").rsplit("/")[-1]
before = VQVAEForImageGeneration.from_pretrained("me/run")
changed = VQVAEForImageGeneration.from_pretrained("me/run")
next(changed.parameters()).data.add_(1)
changed.push_to_hub("me/run")
before.push_to_hub("me/before")
at_commit = VQVAEForImageGeneration.from_pretrained("me/run", revision=first)
at_commit.push_to_hub("me/at_commit", max_shard_size="4KB")
again = VQVAEForImageGeneration.from_pretrained("me/run")
again.push_to_hub("me/renamed")
snapshot = Path(snapshot_download("me/before"))
squashed = VQVAEForImageGeneration.from_pretrained("me/before")
shutil.copytree(snapshot, snapshot.with_name("f" * 40))  # a commit that the Hub does not know
squashed.push_to_hub("me/squashed")
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("outputs") / "tiny")
    home = tmp_path_factory.mktemp("home")
    (home / "push.py").write_text(PUSHES)
    with HubServer() as hub:
        hub.add_token(TOKEN)
        with ScriptServer(home, environment=hub.environment(home)) as client:
            done = client.run(home / "push.py", folder, environment={"HF_TOKEN": TOKEN})
            assert done.returncode == 0, done.stderr
        yield hub


def files_of(hub, name, revision="main"):
    return {path: blob.content for path, blob in hub.repo(name).find(revision).files.items()}


def test_changed_weights_take_the_place_of_the_run_that_they_are_not_of(pushed):
    newest, run, _ = pushed.repo("me/run").history()
    assert set(run.files) >= RECORDS and set(newest.files).isdisjoint(RECORDS)
    card = newest.files["README.md"].content.decode()
    assert "0.0042" not in card and read_card_metadata(card)["license"] == "mit"


@pytest.mark.parametrize("name", ["me/before", "me/at_commit", "me/squashed"])
def test_a_model_has_the_card_of_the_commit_that_it_was_loaded_from(pushed, name):
    files = files_of(pushed, name)
    assert set(files) >= RECORDS and b"0.0042" in files["README.md"]
    assert ("model.safetensors" in files) == (name != "me/at_commit")


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
