"""Flags of small training runs, and what is asked of their ends."""

import json
import signal

from support.scripts import ROOT

TRAIN = str(ROOT / "scripts/train.py")
MODEL = ["--hidden_sizes", "4", "8", "--num_embeddings", "8"]
MODEL += ["--hidden_size", "8", "--kernel_size", "3"]
DATA = ["--dataset_name", "digits", "--max_train_samples", "70", "--max_eval_samples", "32"]
# 4 steps an epoch; dead codes are replaced at random, so that a resumed run must find its random numbers again.
STEPS = ["--train_batch_size", "16", "--num_train_epochs", "2", "--prior_num_train_epochs", "2"]
TINY = [*DATA, *MODEL, *STEPS, "--dead_code_threshold", "0.5", "--checkpointing_steps", "3"]
# Processes, and parts of a batch, drop other values than one of them alone.
TINY += ["--dropout", "0", "--label_dropout", "0", "--num_eval_samples", "0", "--prior_shift", "1"]
LATEST = ["--resume_from_checkpoint", "latest"]
RECORDS = ("config.json", "history.json", "metrics.json", "preprocessor_config.json")
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
USR1 = signal.SIGUSR1


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def assert_same_run(folder, other):
    """Bit for bit: weights, configs, history, metrics."""
    for name in ("model.safetensors", *RECORDS):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def assert_refused(done, *words, status=1):
    """One clear line, and no traceback."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last
