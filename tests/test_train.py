"""scripts/train.py from end to end, in real processes, on 64 of the embedded digits."""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import accelerate.commands.launch
import numpy as np
import pytest
import torch
import yaml
from datasets import load_from_disk
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import hf_vqvae
from hf_vqvae import VQVAEForImageGeneration, VQVAEModel
from support.hub import HubServer
from support.runs import (
    DATA,
    INT,
    KILL,
    LATEST,
    MODEL,
    STEPS,
    TERM,
    TINY,
    TRAIN,
    USR1,
    assert_refused,
    assert_same_run,
    read,
)
from support.scripts import ROOT, ScriptServer


def digest(folder):
    """Content and time of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(f), f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def reference(scripts, outputs):
    """An uninterrupted run of both stages."""
    folder = outputs / "reference"
    done = scripts.succeed(TRAIN, *TINY, "--log_with", "tensorboard", "--output_dir", folder)
    (outputs / "reference.log").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def autoencoder(scripts, outputs):
    """A run without a prior, out of a YAML file and flags after it."""
    folder, file = outputs / "autoencoder", outputs / "run.yaml"
    names = {"dataset_name": "digits", "max_train_samples": 70, "max_eval_samples": 32}
    names |= {"hidden_sizes": [4, 8], "num_embeddings": 8, "num_train_epochs": 5, "seed": 5}
    names |= {"train_prior": False, "train_batch_size": 16, "dataset_revision": None}
    file.write_text(yaml.safe_dump(names))
    scripts.succeed(TRAIN, file, "--num_train_epochs", "1", "--output_dir", folder)
    return folder


# A run and what it leaves


def test_a_run_leaves_a_complete_folder_and_nothing_beside_it(reference):
    records = {"arguments.json", "history.json", "metrics.json", "run.json", "README.md"}
    records |= {"config.json", "model.safetensors", "preprocessor_config.json"}
    there = {path.name for path in reference.iterdir()}
    assert records < there
    assert {"figures", "codes"} < there
    assert not there & {"checkpoints", "vqvae", "full", "seconds.json"}
    assert not reference.with_name("reference.partial").exists()
    figures = {path.stem for path in (reference / "figures").glob("*.png")}
    assert {"reconstructions", "codes", "samples", "training_curves", "architecture"} <= figures
    assert len(load_from_disk(str(reference / "codes" / "train"))) == 70


def test_the_history_has_a_row_for_each_epoch_and_the_record_says_which_were_kept(reference):
    history, metrics = read(reference, "history"), read(reference, "metrics")
    for stage in ("vqvae", "prior"):
        assert [(row["epoch"], row["step"]) for row in history[stage]] == [(1, 4), (2, 8)]
        assert all(math.isfinite(value) for row in history[stage] for value in row.values())
    last, losses = history["vqvae"][-1], [row["validation_loss"] for row in history["prior"]]
    # Other rows, of the same distribution.
    error = metrics["reconstruction_mse"]["value"]
    assert error != last["validation_reconstruction_mse"] == pytest.approx(error, rel=0.5)
    assert metrics["nll"]["value"] != min(losses) == pytest.approx(metrics["nll"]["value"], rel=0.5)
    assert metrics["nll"]["count"] == 32
    assert 1 <= last["perplexity"] <= last["codes_used"] <= 8
    run = read(reference, "run")
    assert (run["dataset"]["train_count"], run["dataset"]["validation_count"]) == (65, 5)
    assert run["kept_epochs"] == {"vqvae": 2, "prior": 1 + losses.index(min(losses))}
    assert "65 images of the split `train`. Another 5 of" in (reference / "README.md").read_text("utf-8")
    assert set(run["seconds"]) == {"vqvae", "prior"}


def test_a_log_has_a_line_for_each_epoch_and_no_bars(reference, outputs):
    log, rows = (outputs / "reference.log").read_text(), read(reference, "history")
    lines = [line for line in log.splitlines() if re.match(r"(vqvae|prior): ", line)]
    assert not re.search(r"(Decoding|encode|evaluate|vqvae|prior)[^\n]*%\|", log)
    for line, row in zip(lines, rows["vqvae"] + rows["prior"], strict=True):
        start, *named, speed = line.split(", ")
        assert start.endswith(f": epoch {row['epoch']}/2") and speed.endswith(" images/s")
        figures = {name: float(value) for name, value in (text.split() for text in named)}
        del row["epoch"], row["learning_rate"]
        assert figures == pytest.approx(row, rel=1e-4)


def test_the_model_loads_by_the_auto_classes_and_samples(reference):
    model = AutoModel.from_pretrained(reference)
    assert isinstance(model, VQVAEForImageGeneration)
    assert model.config.prior_config.label2id["7"] == 7  # the names of the dataset's labels
    images = model.sample(2, class_labels="7", generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, 1, 28, 28)
    processor = AutoImageProcessor.from_pretrained(reference)
    assert processor.postprocess(images, output_type="pil")[0].size == (28, 28)
    assert model.config.vqvae_config.data_variance == pytest.approx(0.1, rel=0.5)


def test_the_codes_of_stage_2_are_those_of_the_trained_model(reference):
    from hf_vqvae.arguments import DataArguments
    from hf_vqvae.data.splits import load_images

    vqvae = VQVAEModel.from_pretrained(reference)
    data = DataArguments(dataset_name="digits", max_train_samples=70)
    images = load_images(data, vqvae.config).train.__getitems__(list(range(70)))
    codes = load_from_disk(str(reference / "codes" / "train"))
    assert torch.equal(vqvae.encode(images["pixel_values"]).codes, torch.tensor(codes["codes"]))
    assert images["labels"].tolist() == codes["label"]
    frequencies = images["labels"].bincount(minlength=10).double() / len(images["labels"])
    config = json.loads((reference / "config.json").read_text())["prior_config"]
    assert config["class_frequencies"] == pytest.approx(frequencies.tolist())


def test_trackers_get_figures_and_pictures_of_both_stages_on_one_axis(reference):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # One folder has the numbers, others the flags.
    folders = {path.parent for path in (reference / "trackers").rglob("events*")}
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    pictures = {tag: event for event in events for tag in event.Tags()["images"]}
    assert set(pictures) == {"vqvae/reconstructions", "vqvae/codes", "prior/samples"}
    event = pictures["prior/samples"]
    assert [image.step for image in event.Images("vqvae/reconstructions")] == [4, 8]
    assert [image.step for image in event.Images("prior/samples")] == [12, 16]
    assert [value.step for value in event.Scalars("prior/validation_loss")] == [12, 16]


def test_the_recorded_arguments_give_the_same_run_bit_for_bit(scripts, reference, outputs):
    folder = outputs / "again"
    record = reference / "arguments.json"
    scripts.succeed(TRAIN, record, "--output_dir", folder, "--checkpointing_steps", "0")
    assert_same_run(folder, reference)
    changed = {"output_dir", "checkpointing_steps"}
    there, here = read(reference, "arguments"), read(folder, "arguments")
    assert {name for name in there if there[name] != here[name]} == changed


def test_flags_after_a_yaml_file_win_and_the_prior_can_be_left_out(autoencoder):
    assert isinstance(AutoModel.from_pretrained(autoencoder), VQVAEModel)
    arguments = read(autoencoder, "arguments")
    assert (arguments["seed"], arguments["num_train_epochs"]) == (5, 1)
    assert set(read(autoencoder, "history")) == {"vqvae"}
    assert "nll" not in read(autoencoder, "metrics")


def test_a_handed_in_model_gets_a_prior_and_keeps_its_own_weights(scripts, reference, outputs):
    folder = outputs / "prior"
    before = digest(reference)
    scripts.succeed(TRAIN, *TINY, "--vqvae_name_or_path", reference, "--output_dir", folder)
    assert digest(reference) == before
    # The same codes and the same seed: the same prior, too.
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, reference))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert read(folder, "history") == {"prior": read(reference, "history")["prior"]}
    assert read(folder, "metrics") == read(reference, "metrics")


def test_a_trained_vqvae_is_trained_on_from_its_weights_and_resumes(scripts, reference, outputs):
    folder, more = outputs / "fine-tuned", ["--vqvae_name_or_path", reference, "--train_vqvae"]
    more += ["--learning_rate", "1e-4", "--no_train_prior", "--checkpointing_steps", "4"]
    scripts.succeed(TRAIN, *TINY, *more, "--output_dir", folder)
    first, before = (read(path, "history")["vqvae"] for path in (folder, reference))
    assert first[0]["reconstruction_mse"] < 0.85 * before[0]["reconstruction_mse"]
    error = "validation_reconstruction_mse"
    assert first[0][error] < 1.1 * before[-1][error]
    assert "train_vqvae" in (folder / "README.md").read_text("utf-8")
    trained, source = (VQVAEModel.from_pretrained(path) for path in (folder, reference))
    assert not torch.equal(trained.quantizer.codebook, source.quantizer.codebook)
    stopped = outputs / "fine-tuned-in-parts"
    for resume, signals, status in (([], [(6, KILL)], -KILL), (LATEST, [], 0)):
        again = scripts.run(TRAIN, *TINY, *more, *resume, "--output_dir", stopped, signals=signals)
        assert again.returncode == status, again.stderr
    assert_same_run(stopped, folder)


def test_a_prior_trained_in_parts_of_a_batch_is_the_one_trained_on_whole_ones(scripts, reference, outputs):
    folder, vqvae = outputs / "in-parts", outputs / "vqvae"
    VQVAEModel.from_pretrained(reference).save_pretrained(vqvae)
    flags = ["--vqvae_name_or_path", vqvae, "--gradient_accumulation_steps", "2"]
    scripts.succeed(TRAIN, *TINY, *flags, "--output_dir", folder)
    rows = zip(read(folder, "history")["prior"], read(reference, "history")["prior"], strict=True)
    assert all(here == pytest.approx(there, rel=1e-5) for here, there in rows)
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, vqvae))
    assert all(torch.equal(weights[f"vqvae.{name}"], expected[name]) for name in expected)


def test_the_script_carries_the_package_and_the_settings_of_a_job():
    block = re.search(r"^# /// script\n(.*?)^# ///$", Path(TRAIN).read_text(), re.MULTILINE | re.DOTALL)
    metadata = tomllib.loads(re.sub("^# ?", "", block[1], flags=re.MULTILINE))
    assert metadata["dependencies"] == [f"hf_vqvae[train,plot]=={hf_vqvae.__version__}"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["requires-python"] == project["requires-python"]
    # The client accepts the table, and shows what it would submit.
    words = [Path(sys.executable).with_name("hf"), "jobs", "uv", "run", "--dry-run", TRAIN, *LATEST]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "l4x1 (from script)" in done.stdout and "UV_NO_SOURCES=1 (from script)" in done.stdout, done.stderr


def test_accelerate_launch_starts_the_script(scripts, outputs):
    folder = outputs / "launched"
    launch = [accelerate.commands.launch.__file__, "--cpu", "--num_processes", "1"]
    flags = [*DATA, *MODEL, "--train_batch_size", "16", "--num_train_epochs", "1", "--no_train_prior"]
    scripts.succeed(*launch, TRAIN, *flags, "--output_dir", folder)
    assert (folder / "model.safetensors").is_file()


# Stopping and going on


def stop(scripts, folder, sessions):
    """Stops and resumes a run; each session is a step, the signal after it, and the newest checkpoint left."""
    for step, number, checkpoint in sessions:
        done = scripts.run(TRAIN, *TINY, *LATEST, "--output_dir", folder, signals=[(step, number)])
        assert done.returncode == (-KILL if number == KILL else 128 + number), done.stderr
        assert "Traceback" not in done.stderr
        assert not folder.exists()
        found = sorted(Path(f"{folder}.partial/checkpoints").glob("[a-z]*"), key=os.path.getmtime)
        assert (found[-1].name if found else None) == checkpoint
    return done


def test_a_run_stopped_in_many_places_ends_as_if_it_had_not_been(scripts, reference, outputs):
    folder = outputs / "stopped"
    sessions = [
        (2, KILL, None),  # before the first checkpoint
        (1, TERM, "vqvae-1"),
        (7, INT, "vqvae-8"),  # in the last step of stage 1
        (3, USR1, "prior-3"),
        (2, KILL, "prior-3"),
    ]
    stop(scripts, folder, sessions)
    scripts.succeed(TRAIN, *TINY, *LATEST, "--output_dir", folder)
    assert_same_run(folder, reference)
    assert read(folder, "arguments")["resume_from_checkpoint"] is None


def test_the_printed_line_goes_on_to_the_very_run_that_was_not_stopped(scripts, reference, outputs):
    folder = outputs / "a folder's name"
    # Killed after a checkpoint; then stopped in the first step of stage 2, as 5 of stage 1 were left.
    done = stop(scripts, folder, [(5, KILL, "vqvae-3"), (6, TERM, "prior-1")])
    lines = done.stderr.splitlines()
    place = next(i for i, line in enumerate(lines) if "stopped by SIGTERM; saved" in line)
    assert lines[place].endswith("checkpoints/prior-1. Go on with:")
    python, *words = shlex.split(lines[place + 1])
    assert python == sys.executable
    scripts.succeed(*words)
    assert_same_run(folder, reference)


def test_latest_starts_a_run_where_there_is_none_and_says_so(scripts, tmp_path):
    folder = tmp_path / "run"
    done = scripts.run(TRAIN, *TINY, *LATEST, "--output_dir", folder, signals=[(2, TERM)])
    assert done.stdout.count(f"There is no unfinished run {folder}.partial to resume: a new run starts.") == 1
    named = f"{folder}.partial/checkpoints/vqvae-2"
    shutil.rmtree(f"{folder}.partial")
    done = scripts.run(TRAIN, *TINY, "--resume_from_checkpoint", named, "--output_dir", folder)
    assert_refused(done, "no unfinished run")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_has_nothing_to_resume(scripts, reference):
    before = digest(reference)
    done = scripts.run(TRAIN, *TINY, *LATEST, "--output_dir", reference)
    assert done.returncode == 0
    assert "there is nothing to resume" in done.stdout
    assert digest(reference) == before


def test_a_finished_run_of_other_flags_is_not_taken_for_the_one_to_resume(scripts, autoencoder, outputs):
    folder = outputs / "other-flags"
    shutil.copytree(autoencoder, folder)
    before = digest(folder)
    flags = [outputs / "run.yaml", "--num_train_epochs", "1", "--seed", "6", *LATEST]
    flags += ["--output_dir", folder]
    other = scripts.run(TRAIN, *flags)
    assert_refused(other, "finished run with other flags", "--seed was 5, not 6", "--overwrite")
    assert digest(folder) == before
    done = scripts.succeed(TRAIN, *flags, "--overwrite_output_dir")
    assert "has other flags: a new run starts" in done.stdout
    assert read(folder, "arguments")["seed"] == 6


def test_a_run_is_discarded_whole_or_not_at_all(scripts, stopped):
    new = [*TINY, "--seed", "1", "--overwrite_output_dir", "--output_dir", stopped]
    done = scripts.run(TRAIN, *new, dies_at=(stopped, 7))
    assert done.returncode == -KILL
    partial, discarded = (stopped.with_name(name) for name in ("run.partial", ".run.discarded"))
    assert discarded.exists() and not partial.exists()  # it died in the middle of it
    assert "no unfinished run" in scripts.run(TRAIN, *new, *LATEST, signals=[(1, KILL)]).stdout
    assert partial.exists() and not discarded.exists()


def test_two_runs_do_not_write_one_folder(scripts, tmp_path):
    folder = tmp_path / "run"
    flags = [*TINY, "--num_train_epochs", "1000", "--output_dir", folder]
    (job,) = scripts.start_together(TRAIN, *flags, processes=1)
    while not (tmp_path / "run.partial" / "checkpoints").exists():
        time.sleep(0.01)
    for how in ([], LATEST, ["--overwrite_output_dir"]):
        other = scripts.run(TRAIN, *flags, *how)
        assert_refused(other, f"process {job.pid} on", "is writing the run", "another --output_dir")
    job.send(KILL)
    job.wait(10)
    assert scripts.run(TRAIN, *flags, *LATEST, signals=[(1, TERM)]).returncode == 128 + TERM
    assert [path.name for path in tmp_path.iterdir()] == ["run.partial"]


def test_a_finished_run_is_replaced_only_when_the_new_one_is_whole(scripts, autoencoder, outputs):
    folder = outputs / "replaced"
    shutil.copytree(autoencoder, folder)
    before = digest(folder)
    flags = [*DATA, *MODEL, *STEPS, "--no_train_prior", "--overwrite_output_dir"]
    done = scripts.run(TRAIN, *flags, "--output_dir", folder, signals=[(2, TERM)])
    assert done.returncode == 128 + TERM
    assert digest(folder) == before
    # The printed line keeps --overwrite_output_dir, which does not discard what it goes on with.
    assert f"--overwrite_output_dir --output_dir {folder} --resume_from" in done.stderr
    done = scripts.run(TRAIN, *flags, *LATEST, "--output_dir", folder, signals=[(1, TERM)])
    assert "vqvae-3" in done.stderr
    assert digest(folder) == before
    scripts.succeed(TRAIN, *flags, *LATEST, "--output_dir", folder)
    assert read(folder, "history")["vqvae"][-1]["epoch"] == 2
    assert sorted(path.name for path in outputs.glob("replaced*")) == ["replaced"]


@pytest.fixture
def stopped(scripts, tmp_path):
    """A run that was stopped after its third step; returns the folder it would have been finished in."""
    done = scripts.run(TRAIN, *TINY, "--output_dir", tmp_path / "run", signals=[(3, TERM)])
    assert done.returncode == 128 + TERM
    return tmp_path / "run"


def test_a_run_goes_on_from_the_last_whole_checkpoint_and_not_as_another_run(scripts, stopped, reference):
    folder = stopped.with_name("run.partial")
    checkpoint = folder / "checkpoints" / "vqvae-3"
    before = digest(folder)
    go_on = [*TINY, "--output_dir", stopped]
    assert_refused(scripts.run(TRAIN, *go_on), "holds an unfinished run", *LATEST)
    changes = [*LATEST, "--resume_with_changes"]
    for how in (LATEST, changes):
        other = scripts.run(TRAIN, *go_on, *how, "--embedding_dim", "4")
        assert_refused(other, "--embedding_dim was 16, not 4")
        other = scripts.run(TRAIN, *go_on, *how, "--validation_samples", "4")
        assert_refused(other, "--validation_samples was 5, not 4")
    other = scripts.run(TRAIN, *go_on, *LATEST, "--learning_rate", "1e-4")
    assert_refused(other, "--learning_rate was 0.008, not 0.0001", "--resume_with_changes")
    other = scripts.run(TRAIN, *go_on, *LATEST, "--max_eval_samples", "33")
    assert_refused(other, "--max_eval_samples was 32, not 33")
    nowhere = scripts.run(TRAIN, *go_on, "--resume_from_checkpoint", stopped)
    assert_refused(nowhere, f"--resume_from_checkpoint {stopped}", str(checkpoint))
    assert digest(folder) == before
    # What the record of flags would have told is found from the checkpoint alone, too.
    record = folder / "arguments.json"
    kept = record.read_bytes()
    record.unlink()
    other = scripts.run(TRAIN, *go_on, *LATEST, "--commitment_cost", "1")
    assert_refused(other, str(checkpoint), "commitment_cost 0.25 there, 1.0 here")
    record.write_bytes(kept)
    # A second checkpoint, which is damaged then: the one before it is taken.
    done = scripts.run(TRAIN, *go_on, *LATEST, signals=[(2, TERM)])
    assert done.returncode == 128 + TERM
    newer = checkpoint.with_name("vqvae-5")
    file = newer / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:-100])
    done = scripts.succeed(TRAIN, *go_on, *LATEST)
    assert f"The checkpoint {newer} is skipped: optimizer.bin damaged" in done.stdout
    assert f"Resuming from {checkpoint}." in done.stdout
    assert_same_run(stopped, reference)


def test_a_run_goes_on_with_other_settings_when_told_to(scripts, stopped):
    """Another batch, schedule, data and length; and an end that is that of the new settings."""
    flags = [*TINY, *LATEST, "--resume_with_changes", "--output_dir", stopped]
    flags += ["--train_batch_size", "8", "--num_train_epochs", "3", "--learning_rate", "1e-3"]
    flags += ["--max_train_samples", "71"]
    done = scripts.run(TRAIN, *flags, signals=[(4, TERM)])
    assert "From here on: --max_train_samples was 70, not 71." in done.stdout
    assert "From here on: --train_batch_size was 16, not 8." in done.stdout
    assert "From here on, other data: train_count was 65, is 66" in done.stdout
    # Three quarters of an epoch of 4 steps are 6 of 8.
    assert "saved" in done.stderr and "checkpoints/vqvae-10" in done.stderr, done.stderr
    scripts.succeed(TRAIN, *flags)
    history = read(stopped, "history")
    assert [row["step"] for row in history["vqvae"]] == [8, 16, 24]
    assert 0 < history["vqvae"][-1]["learning_rate"] < 1e-4
    assert len(load_from_disk(str(stopped / "codes" / "train"))) == 71
    assert read(stopped, "arguments")["resume_with_changes"] is False


def test_a_diverging_run_stops_and_goes_on_from_its_last_good_checkpoint(scripts, tmp_path):
    folder = tmp_path / "run"
    # The first of two warm-up steps has a learning rate of 0, the second ruins the weights, the third finds out.
    flags = [*TINY, "--num_train_epochs", "6", "--checkpointing_steps", "1", "--no_train_prior"]
    flags += ["--output_dir", folder]
    done = scripts.run(TRAIN, *flags, "--learning_rate", "1e30")
    assert_refused(
        done,
        "NaN or infinite at step 3 (epoch 1, learning rate 1e+30)",
        f"The last good checkpoint is {folder}.partial/checkpoints/vqvae-1.",
        "A lower --learning_rate",
    )
    assert not folder.exists()
    flags += [*LATEST, "--resume_with_changes"]
    done = scripts.run(TRAIN, *flags, "--learning_rate", "1e-3", signals=[(9, TERM)])
    assert "From here on: --learning_rate was 1e+30, not 0.001." in done.stdout
    assert "saved" in done.stderr
    state = json.loads((tmp_path / "run.partial/checkpoints/vqvae-10/state.json").read_text())
    assert state["history"][-1]["learning_rate"] < 1e-3
    assert math.isfinite(state["history"][-1]["loss"])


# Lets the disk be full from the moment on that the finished model's config is written: it has room, the weights do not.
FULL_DISK = """
import os, resource, runpy, sys

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("run.partial/config.json"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))

sys.addaudithook(watch)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_disk_that_is_full_at_the_very_end_is_a_clear_error(scripts, tmp_path):
    pytest.importorskip("resource")
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    flags = [*TINY, "--no_train_prior", "--output_dir", tmp_path / "run"]
    done = scripts.run(tmp_path / "full_disk.py", TRAIN, *flags)
    assert_refused(done, "cannot write", "MiB are free there", "make room", LATEST[0])
    scripts.succeed(TRAIN, *flags, *LATEST)


# Several processes


@pytest.fixture(scope="session")
def together(scripts, outputs):
    """The reference run on two processes."""
    folder = outputs / "together"
    for done in scripts.run_together(TRAIN, *TINY, "--output_dir", folder):
        assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_train_as_one_with_the_same_batch(together, reference):
    for stage, rows in read(reference, "history").items():
        for there, here in zip(rows, read(together, "history")[stage], strict=True):
            assert here == pytest.approx(there, rel=1e-5)
    weights, expected = (load_file(f / "model.safetensors") for f in (together, reference))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    for split in ("train", "eval"):
        codes, expected = (load_from_disk(str(f / "codes" / split)) for f in (together, reference))
        assert codes.to_dict() == expected.to_dict()
    assert read(together, "run")["num_processes"] == 2
    files = [{p.name for p in f.iterdir()} - {"trackers"} for f in (together, reference)]
    assert files[0] == files[1]


def test_two_processes_stop_at_the_same_step_and_go_on_to_the_same_run(scripts, together, outputs):
    folder = outputs / "together-again"
    flags = [*TINY, "--output_dir", folder]
    stopped = scripts.run_together(TRAIN, *flags, signals=[(2, TERM)])
    assert [done.returncode for done in stopped] == [128 + TERM] * 2
    assert "saved" in stopped[0].stderr and "accelerate launch --num_processes 2" in stopped[0].stderr
    assert "vqvae-2" in stopped[0].stderr
    assert "Go on" not in stopped[1].stderr
    alone = scripts.run(TRAIN, *flags, *LATEST)
    assert_refused(alone, "num_processes 2 there, 1 here", "--resume_with_changes")
    # 6 steps are left of stage 1; then one of stage 2.
    stopped = scripts.run_together(TRAIN, *flags, *LATEST, signals=[(7, TERM)])
    assert [done.returncode for done in stopped] == [128 + TERM] * 2
    weights = load_file(f"{folder}.partial/vqvae/model.safetensors")
    expected = load_file(together / "model.safetensors")
    assert all(torch.equal(weights[name], expected[f"vqvae.{name}"]) for name in weights)
    history = read(Path(f"{folder}.partial"), "history")
    assert history == {"vqvae": read(together, "history")["vqvae"]}


def test_a_batch_that_processes_cannot_share_is_refused(scripts, tmp_path):
    flags = [*TINY, "--train_batch_size", "15", "--output_dir", tmp_path / "run"]
    for done in scripts.run_together(TRAIN, *flags):
        assert_refused(done, "--train_batch_size 15", "2 processes", "multiple of 2")
    assert list(tmp_path.iterdir()) == []


# Kinds of data and of arithmetic


def test_a_stream_trains_resumes_and_is_shared_by_processes(scripts, outputs):
    # 74 rows are 4 batches and, in parts of 8, one part more, which must not make a step of its own.
    flags = [*TINY, "--max_train_samples", "74", "--streaming", "--gradient_accumulation_steps", "2"]
    whole, resumed, two = (outputs / f"stream-{name}" for name in ("whole", "resumed", "two"))
    done = scripts.succeed(TRAIN, *flags, "--output_dir", whole)
    history = read(whole, "history")
    assert {stage: rows[-1]["step"] for stage, rows in history.items()} == {"vqvae": 8, "prior": 8}
    go_on = [*flags, "--output_dir", resumed]
    assert scripts.run(TRAIN, *go_on, signals=[(6, TERM)]).returncode == 128 + TERM
    # Two steps of stage 1 are left.
    assert scripts.run(TRAIN, *go_on, *LATEST, signals=[(3, KILL)]).returncode == -KILL
    weights = load_file(f"{resumed}.partial/vqvae/model.safetensors")
    expected = load_file(whole / "model.safetensors")
    assert all(torch.equal(weights[name], expected[f"vqvae.{name}"]) for name in weights)
    assert read(Path(f"{resumed}.partial"), "history") == {"vqvae": history["vqvae"]}
    for done in scripts.run_together(TRAIN, *flags, "--output_dir", two):
        assert done.returncode == 0, done.stderr
    for stage, rows in read(two, "history").items():
        for there, here in zip(history[stage], rows, strict=True):
            assert here == pytest.approx(there, rel=1e-4)


@pytest.fixture(scope="session")
def image_folder(outputs):
    """Colour images of 32x32 random pixels in two classes, and one split without enough of them."""
    folder, random = outputs / "pictures", np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for label in ("cats", "dogs"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return folder


def test_a_folder_of_colour_images_trains_in_bf16_with_clipped_gradients(scripts, image_folder, outputs):
    folder = outputs / "colour"
    flags = ["--dataset_name", image_folder]  # their size and channels are found
    flags += ["--mixed_precision", "bf16", "--max_grad_norm", "0.5", "--train_batch_size", "8"]
    epochs = ["--num_train_epochs", "1", "--prior_num_train_epochs", "1"]
    scripts.succeed(TRAIN, *flags, *MODEL, *epochs, "--output_dir", folder)
    model = AutoModel.from_pretrained(folder)
    assert model.sample(1).shape == (1, 3, 32, 32)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    run, arguments = read(folder, "run"), read(folder, "arguments")
    assert (arguments["image_size"], arguments["num_channels"]) == ([32], 3)
    assert run["mixed_precision"] == "bf16"
    assert run["dataset"]["label_names"] == ["cats", "dogs"]
    assert all(math.isfinite(row["loss"]) for rows in read(folder, "history").values() for row in rows)


# Bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset_name", "no/such/folder"], ["no/such/folder", "no such folder", "digits"]),
        (["--train_split", "training"], ["--train_split training", "'train'", "'test'"]),
        (["--image_column", "picture"], ["--image_column picture", "'image'"]),
        (["--max_train_samples", "10"], ["10 training rows", "--train_batch_size 16"]),
        (["--validation_samples", "70"], ["0 training rows beside --validation_samples 70", "smaller"]),
        (["--validation_samples", "99"], ["0 training rows beside --validation_samples 70", "smaller"]),
        (["--image_size", "30"], ["image_size", "30", "28", "32"]),
        (["--background", "no colour"], ["background", "'no colour'", "#ffffff"]),
        (["--kernel_size", "4"], ["kernel_size", "4"]),
        (["--mixed_precision", "fp16"], ["--mixed_precision fp16", "bf16"]),
        (["--log_with", "wandb"], ["--log_with wandb", "not installed", "pip install wandb"]),
        (["--vqvae_name_or_path", "no/such/model"], ["no/such/model"]),
        (["--push_to_hub", "--hub_model_id", "a b"], ["'a b'"]),
        (["--push_to_hub", "--hub_model_id", "me/mine"], ["token"]),
        (["--output_dir", "."], ["--output_dir ."]),
        (["--resume_from_checkpoint", "run.partial/checkpoints/vqvae-3"], ["no unfinished run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0][:1] == "-" else "",
)
def test_bad_input_is_refused_before_anything_is_written(scripts, tmp_path, flags, words):
    done = scripts.run(TRAIN, *TINY, "--output_dir", tmp_path / "run", *flags)
    assert_refused(done, *words)
    assert list(tmp_path.iterdir()) == []


# Runs a script where a package cannot be imported, and what may import it has not been.
WITHOUT = """
import runpy, sys
for name in [name for name in sys.modules if name.startswith("hf_vqvae.") and ".models" not in name]:
    del sys.modules[name]
sys.modules[sys.argv[1]] = None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("package", ["accelerate", "matplotlib", "jinja2"])
def test_a_missing_extra_is_one_line_before_any_work(scripts, tmp_path, package):
    (tmp_path / "without.py").write_text(WITHOUT)
    done = scripts.run(tmp_path / "without.py", package, TRAIN, *TINY, "--output_dir", tmp_path / "run")
    assert_refused(done, package, "pip install 'hf_vqvae[train,plot,demo,onnx,keras]'")
    assert [path.name for path in tmp_path.iterdir()] == ["without.py"]


def test_gradients_that_the_launcher_accumulates_are_not_counted_twice(scripts, tmp_path):
    launcher = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    flags = [*TINY, "--output_dir", tmp_path / "run"]
    done = scripts.run(TRAIN, *flags, environment=launcher)
    assert_refused(done, "told to accumulate 4", "--gradient_accumulation_steps is 1")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_name(scripts, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset_name: digits\nnum_embedings: 5\n")
    done = scripts.run(TRAIN, file, "--output_dir", tmp_path / "run")
    assert_refused(done, "--num_embedings", "did you mean --num_embeddings?", status=2)


def test_a_flag_that_contradicts_the_handed_in_vqvae_is_refused(scripts, autoencoder, tmp_path):
    flags = ["--vqvae_name_or_path", autoencoder, "--num_embeddings", "16"]
    done = scripts.run(TRAIN, *DATA, *STEPS, *flags, "--output_dir", tmp_path / "run")
    assert_refused(done, "--num_embeddings 16", "which has 8")
    assert list(tmp_path.iterdir()) == []


# The Hub: a loopback server, unmodified clients


@pytest.fixture(scope="module")
def hub(image_folder):
    """With the images as a dataset."""
    with HubServer() as server:
        server.add_token("hf_write", user="me")
        server.add_token("hf_read", role="read")
        files = {path.relative_to(image_folder).as_posix(): path.read_bytes() for path in image_folder.rglob("*.png")}
        files["README.md"] = b"---\nlicense: cc-by-4.0\n---\n"
        server.add_repo("me/pictures", files, kind="dataset")
        yield server


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory):
    """A function that runs a script with that Hub."""
    home = tmp_path_factory.mktemp("home")
    with ScriptServer(home, environment=hub.environment(home)) as client:
        yield lambda *words, token="hf_write": client.run(*words, environment={"HF_TOKEN": token})


PICTURES = ["--dataset_name", "me/pictures", "--image_size", "32", "--num_channels", "3", *MODEL]
PICTURES += ["--train_batch_size", "8", "--num_train_epochs", "1", "--prior_num_train_epochs", "1"]
PUSH = ["--push_to_hub", "--hub_model_id", "me/tiny"]


def test_a_token_that_cannot_write_is_found_before_training(online, tmp_path):
    flags = [*PICTURES, *PUSH, "--output_dir", tmp_path / "run"]
    done = online(TRAIN, *flags, token="hf_read")
    assert_refused(done, "can only read", "me/tiny")
    assert not list(tmp_path.glob("run*"))


def test_a_run_on_a_dataset_of_the_hub_is_pushed_back_to_it(hub, online, tmp_path):
    folder = tmp_path / "run"
    hub.fail("POST", "/commit/", status=403, times=1)
    flags = [*PICTURES, *PUSH, "--log_with", "tensorboard", "--output_dir", folder]
    done = online(TRAIN, *flags)
    # The push fails: the run is whole, and one command pushes it.
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "hf_write" not in done.stdout + done.stderr
    before = digest(folder)
    lines = [line.strip() for line in done.stderr.splitlines()]
    command = next(line for line in lines if "scripts/push_to_hub.py" in line)
    revision = read(folder, "run")["dataset"]["revision"]
    assert revision == hub.repo("me/pictures", "dataset").refs["main"]
    assert "Its license, by its dataset card: `cc-by-4.0`." in (folder / "README.md").read_text("utf-8")
    _, *push = command.split()
    # So does the command of the run, which finds nothing to train; what is pushed already is no second commit.
    for words in (push, [TRAIN, *flags, *LATEST]):
        done = online(*words)
        assert done.returncode == 0 and "Pushed" in done.stdout, done.stderr
        assert digest(folder) == before
        assert len(hub.repo("me/tiny").history()) == 2
    files = hub.repo("me/tiny").find("main").files
    assert 'model_id = \\"me/tiny\\"' in files["notebook.ipynb"].content.decode()
    assert {f"figures/gallery/{number}.png" for number in range(2)} <= files.keys()
    # For the Hub's tab "Training metrics": the event files of this run, without paths of this machine.
    events = {path: blob.content for path, blob in files.items() if path.startswith("trackers/")}
    written = {path.relative_to(folder).as_posix() for path in folder.glob("trackers/**/events*")}
    assert events.keys() == written and len(written) == 2
    assert any(b"vqvae/validation_reconstruction_mse" in content for content in events.values())
    assert any(b"output_dir" in content for content in events.values())
    assert not any(str(tmp_path).encode() in content or b"hf_write" in content for content in events.values())
    # A fresh process with a fresh cache, which cannot import this package.
    code = """
import sys
sys.modules["hf_vqvae"] = None
from transformers import AutoModel
model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True)
print(tuple(model.sample(2).shape))
"""
    environment = hub.environment(tmp_path / "fresh")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[-2] == "(2, 3, 32, 32)", done.stderr
    # A prior on the codes of the pushed model: its card names that.
    flags = [
        *PICTURES,
        "--vqvae_name_or_path",
        "me/tiny",
        "--num_eval_samples",
        "0",
        "--output_dir",
        tmp_path / "prior",
    ]
    done = online(TRAIN, *flags)
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(tmp_path / "prior" / "README.md")
    assert card.data.base_model == "me/tiny" and "The VQ-VAE is that of [`me/tiny`](" in card.text


def test_a_folder_that_is_named_like_a_repo_is_no_base_model(scripts, reference, outputs):
    VQVAEModel.from_pretrained(reference).save_pretrained(outputs / "me" / "vqvae")
    flags = ["--vqvae_name_or_path", "me/vqvae", "--max_train_samples", "32", "--num_eval_samples", "0"]
    done = scripts.run(TRAIN, *TINY, *flags, "--output_dir", "unnamed", folder=outputs)
    assert done.returncode == 0, done.stderr
    assert ModelCard.load(outputs / "unnamed" / "README.md").data.base_model is None


@pytest.mark.long
def test_make_release_model_leaves_a_folder_that_the_printed_command_publishes(hub, tmp_path):
    flags = "--num_train_epochs 1 --prior_num_train_epochs 1 --max_train_samples 140 --max_eval_samples 32"
    variables = {"DATASET": "digits", "OUTPUT_DIR": tmp_path / "weights", "HUB_MODEL_ID": "me/weights"}
    variables |= {"FLAGS": f"{flags} --num_eval_samples 0 --hidden_size 8", "BIN": Path(sys.executable).parent}
    words = [f"{name}={value}" for name, value in variables.items()]
    environment = hub.environment(tmp_path / "home", "hf_write")
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    installed = ["VENV=no", "--old-file", "no/.installed"]  # the environment that this test runs in is complete
    done = subprocess.run(["make", *installed, "release-model", *words], **options)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(shlex.split(done.stdout.splitlines()[-1]), **options)
    assert done.returncode == 0 and "Pushed" in done.stdout, done.stderr
    files = hub.repo("me/weights").find("main").files.keys()
    assert {"model.safetensors", "onnx/encoder.onnx", "onnx/prior.onnx", "notebook.ipynb", "README.md"} <= files


# Runs a script with a module in place of trackio, which is no dependency, and writes down what it was asked for.
WITH_TRACKIO = """
import json, runpy, sys, types
import accelerate.tracking

class Run:
    def log(self, values, step):
        calls.extend(["log", name, step] for name in values)

    def finish(self):
        calls.append(["finish"])

calls, trackio = [], types.ModuleType("trackio")
trackio.config, trackio.Image = {}, type
trackio.init = lambda **options: calls.append(["init", options]) or Run()
trackio.freeze = lambda *words, **options: calls.append(["freeze", words, options]) or "me/runs_static"
sys.modules["trackio"] = trackio
accelerate.tracking._available_trackers.append(accelerate.utils.LoggerType.TRACKIO)
place, *sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open(place, "w") as file:
    json.dump([calls, trackio.config], file)
"""


def test_a_space_shows_the_run_live_and_the_card_links_to_its_static_copy(hub, online, tmp_path):
    (tmp_path / "with_trackio.py").write_text(WITH_TRACKIO)
    hub.add_repo("me/runs", kind="space")
    flags = [*TINY, "--num_train_epochs", "1", "--no_train_prior", "--trackio_space_id", "runs"]
    flags += ["--output_dir", tmp_path / "run"]
    refused = online(TRAIN, *flags)
    assert_refused(refused, "--log_with trackio", "pip install trackio")
    done = online(tmp_path / "with_trackio.py", tmp_path / "calls.json", TRAIN, *flags)
    assert done.returncode == 0, done.stderr
    (start, *logged, finish, freeze), config = json.loads((tmp_path / "calls.json").read_text())
    name = start[1].pop("name")
    assert start == ["init", {"project": "hf_vqvae", "space_id": "me/runs", "private": None, "resume": "allow"}]
    assert re.fullmatch("run-[0-9a-f]{8}", name)
    assert ["log", "vqvae/validation_reconstruction_mse", 4] in logged
    assert (finish, freeze) == (["finish"], ["freeze", ["me/runs", "hf_vqvae"], {"private": False}])
    assert config["learning_rate"] == "0.008" and not any(str(tmp_path) in str(value) for value in config.values())
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.tags[-2:] == ["trackio", "trackio:https://huggingface.co/spaces/me/runs_static"]
    assert "[me/runs_static](https://huggingface.co/spaces/me/runs_static)" in card.text
    assert read(tmp_path / "run", "arguments")["trackio_space_id"] is None
