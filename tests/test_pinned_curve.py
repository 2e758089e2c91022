"""The numbers of 20 steps of both stages, of their evaluation and of samples do not drift.

Where a change of numbers is intended, `OMP_NUM_THREADS=1 python tests/test_pinned_curve.py` writes the new ones.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import hf_vqvae  # noqa: F401  (its classes are those of AutoModel)
from support.scripts import ScriptServer

PINNED = Path(__file__).parent / "fixtures" / "pinned_curve.json"
FLAGS = ["--dataset_name", "digits", "--max_train_samples", "160", "--max_eval_samples", "64"]
FLAGS += ["--train_batch_size", "32", "--num_train_epochs", "4", "--prior_num_train_epochs", "4"]
FLAGS += ["--hidden_sizes", "8", "16", "--hidden_size", "16", "--validation_samples", "0"]
FLAGS += ["--prior_weight_decay", "0.01", "--optimizer", "adamw"]  # the defaults of that time
GATED = ["--num_embeddings", "16", "--embedding_dim", "4", "--learning_rate", "0.01"]
GATED += ["--num_gated_layers", "2", "--dead_code_threshold", "0.5", "--num_eval_samples", "32"]
PLAIN = ["--num_embeddings", "32", "--embedding_dim", "8", "--learning_rate", "0.006"]
PLAIN += ["--num_residual_layers", "1", "--codebook_update", "gradient", "--architecture", "plain"]
PLAIN += ["--no_class_conditional", "--gradient_accumulation_steps", "2", "--dropout", "0.1"]
PLAIN += [
    "--dead_code_threshold",
    "0",
    "--prior_average_decay",
    "0",
    "--eval_batch_size",
    "24",
    "--num_eval_samples",
    "0",
]
RUNS = {"gated": GATED, "plain": PLAIN}
MACHINE = {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}

# Metrics of a classifier of 160 images, which magnifies the last bits (measured with AVX2: a third of the distance).
OF_CLASSIFIER = ("frechet_", "sure_", "class_", "label_", "classifier_")


def measure(scripts, folder, name):
    """Trains a run and returns its numbers, as the file holds them."""
    done = scripts.run("scripts/train.py", *FLAGS, *RUNS[name], "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    history, metrics = (json.loads((folder / f"{n}.json").read_text()) for n in ("history", "metrics"))
    model = AutoModel.from_pretrained(folder)
    labels = [i % 10 for i in range(16)] if name == "gated" else None
    drawn = model.sample(seeds=list(range(16)), class_labels=labels, return_dict=True)
    tensors = load_file(folder / "model.safetensors")
    return {
        "history": history,
        "metrics": {key: metric["value"] for key, metric in metrics.items()},
        "sample_codes": [" ".join(map(str, codes)) for codes in drawn.codes.flatten(1).tolist()],
        # The bits of each tensor, whatever else the file records.
        "weights": {
            key: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            for key, tensor in sorted(tensors.items())
        },
    }


def same_machine():
    """Whether torch and the instructions that it uses are those of the pinned numbers."""
    return json.loads(PINNED.read_text())["machine"] == MACHINE


@pytest.fixture(scope="module", params=RUNS)
def numbers(request, scripts, tmp_path_factory):
    """The numbers of a run, and those that it is to have."""
    folder = tmp_path_factory.mktemp("pinned") / request.param
    pinned = json.loads(PINNED.read_text())
    return measure(scripts, folder, request.param), pinned[request.param]


def test_the_losses_are_the_pinned_ones(numbers):
    history, pinned = (one["history"] for one in numbers)
    assert history.keys() == pinned.keys() == {"vqvae", "prior"}
    for stage, rows in pinned.items():
        assert [row["step"] for row in history[stage]] == [5, 10, 15, 20]
        for row, expected in zip(history[stage], rows, strict=True):
            # Pinned when the evaluation split was measured after every epoch.
            expected = {key: value for key, value in expected.items() if not key.startswith("eval_")}
            assert row == pytest.approx(expected, rel=1e-5), stage


def test_the_metrics_are_the_pinned_ones(numbers):
    metrics, pinned = (one["metrics"] for one in numbers)
    assert metrics.keys() == pinned.keys()
    if not same_machine():
        pinned = {key: value for key, value in pinned.items() if not key.startswith(OF_CLASSIFIER)}
    assert {key: metrics[key] for key in pinned} == pytest.approx(pinned, rel=1e-5)


def test_the_samples_of_16_seeds_are_the_pinned_ones(numbers):
    codes, pinned = (one["sample_codes"] for one in numbers)
    assert codes == pinned
    assert len({*codes}) == 16


def test_the_weights_have_the_pinned_bits(numbers):
    if not same_machine():
        pytest.skip("The weights were pinned with another torch or other instructions of a CPU.")
    weights, pinned = (one["weights"] for one in numbers)
    assert weights == pinned


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home, ScriptServer(Path(home)) as server:
        runs = {name: measure(server, Path(home) / name, name) for name in RUNS}
    PINNED.write_text(json.dumps({"machine": MACHINE, **runs}, indent=1) + "\n")
