"""The sweep: each point once, each a run like any other, and one table and figure of all."""

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vqvae.arguments import TrainingArguments
from hf_vqvae.files import read_json
from hf_vqvae.models import VQVAEModel
from hf_vqvae.training.locking import locked
from sweep import SweepArguments

SCRIPTS = Path(__file__).parents[1] / "scripts"
SWEEP = str(SCRIPTS / "sweep.py")
TINY = ["--dataset_name", "digits", "--max_train_samples", "64", "--max_eval_samples", "16"]
TINY += ["--hidden_sizes", "4", "8", "--train_batch_size", "16", "--learning_rate", "5e-3"]
GRID = ["--num_embeddings", "4", "8", "--embedding_dim", "2"]
FEW = [*TINY, "--num_train_epochs", "2"]


@pytest.fixture(autouse=True)
def one_thread():
    """What the other processes of these tests compute with: sums in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sweep(scripts, tmp_path_factory):
    """The folder of a finished sweep of two points, and what was printed."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    done = scripts.succeed(SWEEP, *FEW, *GRID, "--output_dir", folder, timeout=240)
    return folder, done.stdout


# What a sweep leaves


def test_a_sweep_leaves_a_run_for_each_point_and_one_table_and_figure(sweep):
    folder, _ = sweep
    assert {path.name for path in folder.iterdir()} == {"4x2", "8x2", "results.json", "results.md", "sweep.png"}
    for size in (4, 8):
        run = folder / f"{size}x2"
        config = VQVAEModel.from_pretrained(run).config
        assert (config.num_embeddings, config.embedding_dim) == (size, 2)
        assert (run / "README.md").is_file() and not (run / "checkpoints").exists()
        assert [row["epoch"] for row in read_json(run / "history.json")["vqvae"]] == [1, 2]


def test_the_results_are_those_of_the_runs_with_both_rates(sweep):
    folder, _ = sweep
    results = read_json(folder / "results.json")
    assert results["dataset"]["eval_count"] == 16
    assert [point["folder"] for point in results["points"]] == ["4x2", "8x2"]
    for point in results["points"]:
        metrics = read_json(folder / point["folder"] / "metrics.json")
        assert all(point[key] == metric["value"] for key, metric in metrics.items())
        counts = np.array(read_json(folder / point["folder"] / "run.json")["codebook_counts"])
        shares = counts[counts > 0] / counts.sum()
        assert counts.sum() == 16 * 49 and len(counts) == point["num_embeddings"]
        assert point["bits_per_image_at_most"] == 49 * math.log2(point["num_embeddings"])
        entropy = -(shares * np.log2(shares)).sum()
        assert point["bits_per_image_entropy"] == pytest.approx(49 * entropy, rel=1e-6)


def test_the_table_is_printed_and_written_and_has_a_row_for_each_point(sweep):
    folder, output = sweep
    page = (folder / "results.md").read_text()
    table, figure = page.rstrip().rsplit("\n\n", 1)
    assert table in output and figure.endswith("(sweep.png)")
    assert "Point 1 of 2 (4x2):" in output and "Point 2 of 2 (8x2) took" in output
    lines = table.split("\n\n")[0].splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    points = read_json(folder / "results.json")["points"]
    for line, point in zip(lines[2:], points, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [str(point["num_embeddings"]), "2"]
        assert cells[2] == f"{point['reconstruction_mse']:.5f}"
        assert cells[7] == f"{point['bits_per_image_at_most']:.0f}"
    assert "16 images of split `test`" in page


def test_train_gives_the_same_model_from_the_arguments_of_a_point(sweep, tmp_path, run_main):
    folder, _ = sweep
    arguments = folder / "8x2" / "arguments.json"
    run_main("scripts/train.py", arguments, "--output_dir", tmp_path / "run")
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(folder / "8x2/metrics.json")


def test_flags_that_all_points_share_have_the_defaults_of_train():
    sweep, train = SweepArguments(), vars(TrainingArguments())
    own = {"output_dir", "num_train_epochs", "train_prior", "num_eval_samples", "resume_from_checkpoint"}
    assert {name for name in train if getattr(sweep, name) != train[name]} == own
    assert len(sweep.num_embeddings) * len(sweep.embedding_dim) > 1 and sweep.num_train_epochs == 3


def test_a_prior_of_each_point_gives_its_bits_without_labels(tmp_path, run_main, capsys):
    flags = [*TINY, "--num_train_epochs", 1, "--prior_num_train_epochs", 1, "--architecture", "plain", "--train_prior"]
    run_main("scripts/sweep.py", *flags, "--num_embeddings", 4, "--embedding_dim", 2, "--output_dir", tmp_path / "it")
    (point,) = read_json(tmp_path / "it" / "results.json")["points"]
    assert point["bits_per_image_prior"] == point["bits_per_image_marginal"] > 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|    4 |")]
    assert row.split("|")[-3].strip() == f"{point['bits_per_image_prior']:.1f}"
    with pytest.raises(SystemExit, match="--train_prior was True, not False"):
        run_main("scripts/sweep.py", *flags[:-1], *GRID, "--output_dir", tmp_path / "it")


# Going on


def test_a_longer_list_adds_points_and_keeps_the_finished_ones(sweep, tmp_path, run_main, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep[0], folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("?x2/*")}
    where = ("--output_dir", folder)
    grid = ["--num_embeddings", 4, 8, "--embedding_dim", 2, 3, "--checkpointing_steps", 5]
    run_main("scripts/sweep.py", *FEW, *grid, *where)
    output = capsys.readouterr().out
    assert f"The run in {folder / '4x2'} is finished" in output
    assert "Point 2 of 4 (4x3) took" in output and "Point 1 of 4 (4x2) took" not in output
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("?x2/*")}
    points = read_json(folder / "results.json")["points"]
    assert [point["folder"] for point in points] == ["4x2", "4x3", "8x2", "8x3"]
    assert points[::2] == read_json(sweep[0] / "results.json")["points"]

    # Nothing is left to train, and the same results come out.
    run_main("scripts/sweep.py", *FEW, *grid, *where)
    assert "took" not in capsys.readouterr().out
    assert read_json(folder / "results.json")["points"] == points


def test_an_interrupted_point_goes_on_and_ends_as_if_nothing_had_been(scripts, tmp_path, run_main):
    flags = [*TINY, "--num_train_epochs", 12, "--num_embeddings", 8, "--embedding_dim", 2]
    flags += ["--checkpointing_steps", 3]
    command = [SWEEP, *flags, "--output_dir", "sweep"]
    job = scripts.start(*command, folder=tmp_path)
    checkpoints = tmp_path / "sweep" / "8x2.partial" / "checkpoints"
    until = time.monotonic() + 60
    while not list(checkpoints.glob("vqvae-*")) and time.monotonic() < until:
        time.sleep(0.005)
    job.send(signal.SIGTERM)
    done = job.wait(120)
    errors = done.stderr
    assert done.returncode == 128 + signal.SIGTERM, done.stdout + errors[-3000:]
    words = " ".join(map(str, command))
    assert "stopped by SIGTERM" in errors and "Go on with:" in errors
    assert errors.rstrip().endswith(words)
    assert not (tmp_path / "sweep" / "8x2").exists()
    reached = max(int(path.name.split("-")[1]) for path in checkpoints.glob("vqvae-*"))
    assert reached < 36  # of 12 epochs of 3 steps: it was indeed stopped on the way

    done = scripts.succeed(*command, folder=tmp_path)
    # It begins where the checkpoint was: it was not trained anew.
    assert f"vqvae-{reached}, step {reached} of 36\n" in done.stderr

    run_main("scripts/sweep.py", *flags, "--output_dir", tmp_path / "whole")
    for name in ("history.json", "metrics.json"):
        whole, resumed = (read_json(tmp_path / run / "8x2" / name) for run in ("whole", "sweep"))
        assert whole == resumed


def test_two_processes_make_the_sweep_of_one(scripts, sweep, tmp_path):
    flags = [*FEW, "--num_embeddings", 8, "--embedding_dim", 2, "--output_dir", tmp_path / "two"]
    both = scripts.run_together(SWEEP, *flags)
    assert [done.returncode for done in both] == [0, 0], both[0].stderr[-3000:]
    output = "".join(done.stdout for done in both)
    assert output.count("Point 1 of 1") == 2  # begun and done: only one process speaks
    one = read_json(sweep[0] / "results.json")["points"][1]
    (two,) = read_json(tmp_path / "two" / "results.json")["points"]
    assert two["reconstruction_mse"] == pytest.approx(one["reconstruction_mse"], rel=1e-3)
    assert read_json(tmp_path / "two" / "8x2" / "run.json")["num_processes"] == 2


# What is refused, before any work


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image_size", 30], "`image_size` must be a multiple of 4"),
        (["--num_embeddings", 8, 1, 0], "`num_embeddings` must be .*, got 1."),
        (["--train_prior", "--kernel_size", 4], "`kernel_size` must be odd"),
        (["--num_train_epochs", 0], "--num_train_epochs must be at least 1, got 0"),
        (["--vqvae_name_or_path", "me/model"], "unknown argument --vqvae_name_or_path"),
        (["--overwrite_output_dir"], "unknown argument --overwrite_output_dir"),
    ],
)
def test_a_value_that_no_point_can_have_is_refused(flags, message, tmp_path, run_main, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_main("scripts/sweep.py", *TINY, *GRID, *flags, "--output_dir", tmp_path / "sweep")
    assert re.search(message, f"{stopped.value}\n{capsys.readouterr().err}")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--seed", 1], "4x2 holds a finished run with other flags: --seed was 0, not 1. Choose"),
        (["--num_embeddings", 5, 8, "--max_eval_samples", 8], "8x2 .* --max_eval_samples was 16"),
        (["--codebook_update", "gradient"], "--codebook_update was ema, not gradient"),
    ],
)
def test_a_sweep_with_other_flags_is_refused_before_any_training(flags, message, sweep, run_main):
    folder, _ = sweep
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(SystemExit, match=message):
        run_main("scripts/sweep.py", *FEW, *GRID, "--output_dir", folder, *flags)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_points_on_different_data_make_no_table(sweep, tmp_path, run_main):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep[0], folder)
    record = read_json(folder / "8x2" / "run.json")
    record["dataset"]["fingerprint"] = "another"
    (folder / "8x2" / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"8x2 was trained on other data than .*4x2: remove one"):
        run_main("scripts/sweep.py", *FEW, *GRID, "--output_dir", folder)


def test_points_are_kept_when_only_the_revision_of_their_data_differs(sweep, tmp_path, run_main, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep[0], folder)
    for point in ("4x2", "8x2"):
        record = read_json(folder / point / "run.json")
        record["dataset"]["revision"] = "another"
        (folder / point / "run.json").write_text(json.dumps(record))
    run_main("scripts/sweep.py", *FEW, *GRID, "--output_dir", folder)
    assert capsys.readouterr().out.count("is finished: there is nothing") == 2


def test_a_point_that_another_run_writes_is_refused(sweep, tmp_path, scripts):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep[0], folder)
    shutil.rmtree(folder / "8x2")
    with locked(folder / "8x2"):
        done = scripts.run("scripts/sweep.py", *FEW, *GRID, "--output_dir", folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"process {os.getpid()}" in done.stderr and "8x2: wait until" in done.stderr


def test_a_point_killed_as_it_was_finished_is_kept_and_tidied_up(tmp_path, scripts):
    folder = tmp_path / "sweep"
    flags = [*TINY, "--num_train_epochs", "1", "--num_embeddings", "4", "--embedding_dim", "2"]
    flags += ["--output_dir", folder]
    killed = scripts.run("scripts/sweep.py", *flags, dies_at=(f"{folder}/4x2/", 1))
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "4x2" / "run_id.json").exists()
    done = scripts.run("scripts/sweep.py", *flags)
    assert done.returncode == 0 and "is finished: there is nothing" in done.stdout, done.stderr
    left = {path.name for path in (folder / "4x2").iterdir()}
    assert not left & {"run_id.json", "checkpoints", "vqvae", "seconds.json"}


def test_a_folder_in_the_place_of_a_point_is_kept(tmp_path, run_main):
    (tmp_path / "sweep" / "4x2").mkdir(parents=True)
    (tmp_path / "sweep" / "4x2" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="4x2 exists and is not empty: choose another"):
        run_main("scripts/sweep.py", *FEW, *GRID, "--output_dir", tmp_path / "sweep")
    assert (tmp_path / "sweep" / "4x2" / "thesis.txt").exists()
