"""scripts/benchmark.py: every method and package has its row, with numbers that a run of train.py confirms."""

import re
from importlib.util import find_spec

import pytest
import torch

from benchmark import PEERS
from hf_vqvae.files import read_json

BENCHMARK = "scripts/benchmark.py"


def test_sample_prints_a_column_for_every_case_and_a_line_for_every_method(scripts):
    cases = ["3x4x8x1", "5x5x16x3"]
    done = scripts.succeed(BENCHMARK, "sample", "--rounds", 2, "--device", "cpu", "--cases", *cases)
    for network in ("plain", "gated"):
        table = done.stdout.split(f" {network} prior ")[1].split("Times are in")[0]
        header, _, *lines = table.splitlines()[1:-1]
        assert re.findall(r"\d\S+", header) == cases
        rows = [re.split(r"\s+\|\s+", line.strip()) for line in lines if line]
        assert [row[0] for row in rows] == ["sample", "forward pass"]
        assert all(float(cell) > 0 for row in rows for cell in row[1:]) and {len(row) for row in rows} == {3}
    for fact in ("medians of 2 interleaved rounds", "threads 1 of", f"torch {torch.__version__}"):
        assert fact in done.stdout


def rows_of(output):
    """Cells of the table's lines, without the header."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert set("".join(cells[1])) <= set("-:")
    return cells[2:]


FEW = ["--dataset_name", "digits", "--max_train_samples", 250, "--max_eval_samples", 20]


def train_peers(scripts, *names, epochs=1):
    """Rows of the table by name: the cells behind the name, as numbers."""
    done = scripts.succeed(
        BENCHMARK, "peers", *FEW, "--epochs", epochs, "--device", "cpu", "--implementations", *names
    )
    assert all(f"{name}, MSE 0." in done.stderr for name in names)
    return {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in rows_of(done.stdout)}


@pytest.mark.long
def test_the_row_of_this_package_is_stage_1_of_train(scripts, tmp_path):
    epochs, error, perplexity, used, speed = train_peers(scripts, "hf_vqvae", epochs=2)["hf_vqvae"]
    flags = ["--no_train_prior", "--validation_samples", 0, "--num_train_epochs", 2, "--output_dir", tmp_path / "run"]
    assert scripts.run("scripts/train.py", *FEW, *flags).returncode == 0
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert error == pytest.approx(metrics["reconstruction_mse"]["value"], rel=5e-3)
    assert perplexity == pytest.approx(metrics["codebook_perplexity"]["value"], rel=5e-3)
    assert (epochs, used) == (2, metrics["codes_used"]["value"]) and speed > 0


@pytest.mark.parametrize("name", PEERS[1:])
def test_a_peer_learns_and_its_codes_are_counted(name, scripts):
    package = name.partition(":")[0]
    if find_spec(package) is None:
        done = scripts.run(BENCHMARK, "peers", *FEW)
        assert "the package is not installed: pip install 'hf_vqvae[peers]'" in done.stderr
        pytest.skip(f"{package} is not installed: pip install -e '.[peers]'")
    short, long = (train_peers(scripts, name, epochs=epochs)[name] for epochs in (1, 8))
    assert long[1] < short[1] < 0.25  # images are in [0, 1]
    assert 1 <= long[2] <= long[3] <= 128


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["sample", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["sample", "--cases", "7x7x128x0"], "--cases 7x7x128x0: each must be"),
        (["sample", "--device", "abacus"], "invalid choice: 'abacus'"),
        (["peers", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["peers", "--implementations", "jax"], "invalid choice: 'jax'"),
        (["peers", "--streaming"], "unknown argument --streaming"),
        (["prior"], "invalid choice: 'prior'"),
        (["sample", "--round", "3"], "unknown argument --round (did you mean --rounds?)"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_flags_are_named_before_anything_is_timed(refusal, capsys, flags, message):
    assert message in refusal(BENCHMARK, *flags)
    assert not capsys.readouterr().out
