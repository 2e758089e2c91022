"""scripts/benchmark.py: reference and package agree, rounds interleave, tables are complete."""

import time
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from benchmark import PEERS, PriorArguments, compare, peak_memory, time_interleaved
from benchmark_networks import VARIANTS, make_prior_step, make_reference, uncached_sample
from hf_vqvae import PixelCNNConfig, PixelCNNModel
from hf_vqvae.files import read_json

BENCHMARK = "scripts/benchmark.py"


def make_pair(**settings):
    """A prior with weights and biases that no ReLU hides, and its reference implementation."""
    torch.manual_seed(0)
    small = {"num_embeddings": 11, "grid_size": (4, 5), "hidden_size": 16}
    config = PixelCNNConfig(**{**small, **settings})
    prior = PixelCNNModel(config).eval()
    for name, parameter in prior.named_parameters():
        mean = 0.3 if name.endswith("bias") else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.1)
    return prior, make_reference(prior)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel_size": 3, "grid_size": (1, 1)},
        {"kernel_size": 5, "grid_size": (9, 2), "num_residual_blocks": 3},
        {"num_residual_blocks": 0, "num_pixelcnn_layers": 0},
        {"num_embeddings": 128, "hidden_size": 128, "grid_size": (7, 7)},
    ],
)
def test_the_reference_has_the_same_parameters_logits_and_gradients(settings):
    prior, reference = make_pair(**settings)
    assert sum(p.numel() for p in reference.parameters()) == prior.num_parameters()
    codes = torch.randint(prior.config.num_embeddings, (3, *prior.config.grid_size))
    outputs = [network(codes, return_loss=True) for network in (prior, reference)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    others = dict(reference.named_parameters())
    for name, parameter in prior.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("number", [1, 5])
def test_the_uncached_samples_draw_the_codes_of_cached_sampling(number):
    prior, reference = make_pair()
    size = (number, *prior.config.grid_size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(3))
    codes = prior.sample(number, generator=torch.Generator().manual_seed(3))
    assert len(codes.unique()) > 3
    assert torch.equal(uncached_sample(prior, noise), codes)
    assert torch.equal(uncached_sample(reference, noise), codes)


def test_a_shortened_loop_takes_so_many_steps_spread_over_the_grid():
    prior, _ = make_pair()
    calls = []
    prior.register_forward_hook(lambda *_: calls.append(1))
    drawn = uncached_sample(prior, torch.full((1, 4, 5), 0.999), num_steps=4)
    assert len(calls) == 4
    # Noise near 1 draws no code 0, so what is not 0 was drawn.
    assert drawn.nonzero().tolist() == [[0, row, 0] for row in range(4)]
    uncached_sample(prior, torch.rand(1, 4, 5), num_steps=100)
    assert len(calls) == 4 + 20


def test_rounds_interleave_drop_the_first_and_repeat_short_calls():
    calls = []

    def long(name):
        calls.append(name)
        until = time.perf_counter() + 0.03
        while time.perf_counter() < until:
            pass

    compared = {"a": lambda: long("a"), "b": lambda: calls.append("b"), "c": lambda: long("c")}
    seconds = time_interleaved(compared, 3, "test")
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["a", "b", "c"] * 4
    assert calls.count("a") == calls.count("c") == 2 + 3  # warm-up and rounds
    assert calls.count("b") > 3 * 100
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(seconds["a"] + seconds["c"]) >= 0.03 > max(seconds["b"])


def test_the_speed_is_the_median_of_ratios_not_a_ratio_of_medians():
    rows = compare({"a": [1, 20, 3], "b": [1, 10, 1]}, "a", 6)
    assert rows == [["a", "3,000", "2", "1"], ["b", "1,000", "6", "2"]]


def test_all_plain_variants_have_one_loss_curve():
    arguments = PriorArguments(device="cpu", batch_size=16, num_embeddings=16)
    plain = [variant for variant, architecture in VARIANTS.items() if architecture == "plain"]
    curves = []
    for variant in plain:
        step = make_prior_step(variant, arguments)
        curves.append(torch.stack([step() for _ in range(16)]))
    assert curves[0][-1] < curves[0][0] - 0.1
    for variant, curve in zip(plain, curves, strict=True):
        tolerance = 2e-2 if "bf16" in variant else 1e-3
        torch.testing.assert_close(curve, curves[0], rtol=tolerance, atol=0)


@pytest.mark.cuda
def test_peak_memory_counts_weights_gradients_and_adam():
    arguments = PriorArguments(device="cuda", batch_size=2, grid_size=[3, 3], num_embeddings=1024)
    parameters = 1024 * 128 * 49 + 250_000
    peak = peak_memory(partial(make_prior_step, "ours, float32", arguments))
    assert 4 * 4 * parameters < peak < 16 * 4 * parameters


def rows_of(output):
    """Cells of the table's lines, without the header."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert set("".join(cells[1])) <= set("-:")
    return cells[2:]


def numbers(cells):
    return [float(cell.replace(",", "")) for cell in cells if cell != "-"]


def test_sample_prints_a_line_for_every_case_and_method(scripts):
    flags = ["--rounds", 2, "--cases", "3x4x8x1", "5x5x16x3"]
    done = scripts.succeed(BENCHMARK, "sample", *flags, "--device", "cpu")
    rows = rows_of(done.stdout)
    own, reference = ["own loop", "own forward"], ["reference loop", "reference forward"]
    assert [row[:5] for row in rows] == [
        [network, *case, method]
        for network, methods in (("plain", own + reference), ("gated", own))
        for case in (("3x4", "8", "1"), ("5x5", "16", "3"))
        for method in ["cached", *methods]
    ]
    assert all(min(numbers(row[5:])) > 0 for row in rows)
    assert {row[7] for row in rows if row[4] == "own loop"} == {"1"}
    for fact in ("Medians of 2 interleaved rounds", "threads 1 of", f"torch {torch.__version__}"):
        assert fact in done.stdout
    assert "more than 16 codes, 16 of the steps" in done.stdout


def test_prior_prints_throughputs(scripts):
    sizes = ["--batch_size", 4, "--grid_size", 3, 4, "--num_embeddings", 8]
    flags = ["--rounds", 1, "--device", "cpu", *sizes]
    done = scripts.succeed(BENCHMARK, "prior", *flags)
    rows = rows_of(done.stdout)
    assert [row[0] for row in rows] == list(VARIANTS)
    assert rows[0][3] == "1"
    assert all(len(row) == 4 and min(numbers(row[1:])) > 0 for row in rows)


FEW = ["--dataset_name", "digits", "--max_train_samples", 250, "--max_eval_samples", 20]


def train_peers(scripts, *names, epochs=1):
    """Rows of the table by name: the cells behind the name, as numbers."""
    done = scripts.succeed(
        BENCHMARK, "peers", *FEW, "--epochs", epochs, "--device", "cpu", "--implementations", *names
    )
    assert "Medians" not in done.stdout and all(f"{name}, MSE 0." in done.stderr for name in names)
    return {row[0]: numbers(row[1:]) for row in rows_of(done.stdout)}


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
        (["prior", "--device", "abacus"], "invalid choice: 'abacus'"),
        (["peers", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["peers", "--implementations", "jax"], "invalid choice: 'jax'"),
        (["peers", "--streaming"], "unknown argument --streaming"),
        (["sample", "--round", "3"], "unknown argument --round (did you mean --rounds?)"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_flags_are_named_before_anything_is_timed(refusal, capsys, flags, message):
    assert message in refusal(BENCHMARK, *flags)
    assert not capsys.readouterr().out
