"""Runs that commit a750bcd left unfinished are resumed to the same bits; see fixtures/README.md."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parent / "fixtures" / "unfinished"
TRAIN = "scripts/train.py"
# Those that the runs were started with. Dropout and replaced codes take random numbers.
FLAGS = ["--dataset_name", "digits", "--max_train_samples", "70", "--max_eval_samples", "32"]
FLAGS += ["--hidden_sizes", "4", "8", "--num_embeddings", "8", "--embedding_dim", "4"]
FLAGS += ["--hidden_size", "8", "--kernel_size", "3", "--num_gated_layers", "2"]
FLAGS += ["--train_batch_size", "16", "--num_train_epochs", "2", "--prior_num_train_epochs", "2"]
FLAGS += ["--dead_code_threshold", "0.5", "--checkpointing_steps", "3", "--num_eval_samples", "0"]
FLAGS += ["--prior_weight_decay", "0.01", "--optimizer", "adamw", "--learning_rate", "1.6e-2"]  # defaults of that time
# The checkpoint that each run goes on from, and the steps that are left of 8 in each stage.
RUNS = {"stage1": ("vqvae-5", 11), "stage2": ("prior-5", 3)}


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(scripts, tmp_path_factory):
    """An uninterrupted run of the same flags, which held out no rows then."""
    folder = tmp_path_factory.mktemp("unfinished") / "whole"
    done = scripts.run(TRAIN, *FLAGS, "--validation_samples", "0", "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_an_unfinished_run_is_resumed_to_the_same_bits(scripts, whole, tmp_path, name):
    folder, made = tmp_path / name, read(FIXTURES / "made_with.json")
    shutil.copytree(FIXTURES / f"{name}.partial", f"{folder}.partial")
    checkpoint, steps = RUNS[name]
    flags = [*FLAGS, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    # One that started a stage anew would come to the same bits: it is killed at the first step too many.
    done = scripts.run(TRAIN, *flags, signals=[(steps + 1, signal.SIGKILL)])

    # With other pixels, or another version of torch, the bits are others: one line says so.
    refusal = None
    before = read(FIXTURES / f"{name}.partial" / "data.json")["fingerprint"]
    if read(whole / "run.json")["dataset"]["fingerprint"] != before:
        refusal = ["was trained on other data", before]
    elif torch.__version__ != made["torch"]:
        refusal = [f"torch {made['torch']} there, {torch.__version__} here", checkpoint]
    if refusal:
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert all(words in last for words in [*refusal, "--resume_with_changes"]), last
        return

    assert done.returncode == 0, done.stderr
    assert not Path(f"{folder}.partial").exists()
    files = {"model.safetensors", "metrics.json", "history.json", "README.md"}
    assert files <= {path.name for path in folder.iterdir()}
    if torch.backends.cpu.get_cpu_capability() != made["cpu_capability"]:
        pytest.skip("Other instructions of the CPU: the steps before the interruption had other bits.")
    weights, expected = (load_file(run / "model.safetensors") for run in (folder, whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert read(folder / "metrics.json") == read(whole / "metrics.json")
    history = read(folder / "history.json")
    for row in history["vqvae"] + history["prior"]:
        # Of the epochs that ended before the interruption, which measured the evaluation split.
        for key in [key for key in row if key.startswith("eval_")]:
            del row[key]
    assert history == read(whole / "history.json")
