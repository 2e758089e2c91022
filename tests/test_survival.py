"""Runs that are killed at any moment, and end as if they had not been."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_from_disk
from transformers import AutoModel

import hf_vqvae  # noqa: F401  (its classes are those of AutoModel)
from support.runs import DATA, KILL, LATEST, MODEL, STEPS, TINY, TRAIN, assert_refused, assert_same_run
from support.scripts import ScriptServer

# Everything that a run can have: dead codes replaced, labels, dropout, averaged weights, and measured samples.
FLAGS = [*DATA, *MODEL, *STEPS, "--dead_code_threshold", "0.5", "--checkpointing_steps", "3"]
FLAGS += ["--num_eval_samples", "8"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def whole(scripts, outputs):
    """A run that nobody stopped, and how long it took."""
    folder = outputs / "whole"
    started = time.monotonic()
    done = scripts.run(TRAIN, *FLAGS, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, time.monotonic() - started


@pytest.fixture(scope="module")
def whole_of_two(scripts, outputs):
    """The same on two processes."""
    folder = outputs / "whole-of-two"
    for done in scripts.run_together(TRAIN, *FLAGS, "--output_dir", folder):
        assert done.returncode == 0, done.stderr
    return folder


def go_on(folder):
    """What a user adds to the command after a kill: nothing if nothing was begun."""
    return LATEST if Path(f"{folder}.partial").exists() or folder.exists() else []


def assert_whole_or_absent(folder):
    """Every checkpoint in sight, every model and every table of codes is complete."""
    partial = Path(f"{folder}.partial")
    for checkpoint in partial.glob("checkpoints/[a-z]*"):
        state = json.loads((checkpoint / "state.json").read_text())
        files = {name: (checkpoint / name).read_bytes() for name in state["files"]}
        assert {n: hashlib.sha256(c).hexdigest() for n, c in files.items()} == state["files"]
    for name in ("vqvae", "full"):
        if (partial / name).exists():
            AutoModel.from_pretrained(partial / name)
    for name in ("train", "eval"):
        if (partial / "codes" / name).exists():
            assert len(load_from_disk(str(partial / "codes" / name))) == {"train": 70, "eval": 32}[name]


def assert_ends_the_same(folder, whole):
    """Bit for bit, with all files and nothing left beside them."""
    assert_same_run(folder, whole)
    trees = [{path.relative_to(f) for path in f.rglob("*")} for f in (folder, whole)]
    assert trees[0] == trees[1]
    for path in sorted((whole / "figures").glob("*.png")):
        assert (folder / "figures" / path.name).read_bytes() == path.read_bytes(), path.name
    for name in ("train", "eval"):
        codes = [load_from_disk(str(f / "codes" / name)).to_dict() for f in (folder, whole)]
        assert codes[0] == codes[1]
    assert [path.name for path in folder.parent.glob(f"{folder.name}*")] == [folder.name]


PLACES = [
    ("{run}.partial/run_id.json", 1),  # nothing but the folder is there
    ("{run}.partial/arguments.json", 1),
    ("{run}.partial/checkpoints", 2),  # as the first checkpoint begins
    ("{run}.partial/checkpoints/.writing-vqvae-6/optimizer", 1),
    ("{run}.partial/checkpoints/.writing-vqvae-6/state.json", 2),  # its record is written, not renamed
    ("{run}.partial/checkpoints/vqvae-3", 1),  # as the oldest is removed
    ("{run}.partial/history.json", 1),  # trained, and nothing of it saved
    ("{run}.partial/vqvae.writing", 2),  # in the middle of the model
    ("{run}.partial/checkpoints/vqvae-6", 1),  # between the stages
    ("{run}.partial/codes/train", 3),
    ("{run}.partial/codes/eval", 2),
    ("{run}.partial/checkpoints/.writing-prior-3/", 4),
    ("{run}.partial/full.writing", 1),
    ("{run}.partial/metrics.json", 1),
    ("{run}.partial/figures", 2),  # in the middle of the figures
    ("{run}.partial/README.md", 1),  # as the card is written
    ("{run}/", 1),  # the run has its name, and is not tidied up
]


@pytest.mark.long
def test_a_run_killed_in_every_kind_of_place_ends_the_same(scripts, whole, outputs):
    folder = outputs / "places"
    for place, number in PLACES:
        dies_at = (place.format(run=folder), number)
        done = scripts.run(TRAIN, *FLAGS, *go_on(folder), "--output_dir", folder, dies_at=dies_at)
        assert done.returncode == -KILL, (place, done.stderr[-2000:])
        assert_whole_or_absent(folder)
    done = scripts.run(TRAIN, *FLAGS, *LATEST, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    assert "is finished: there is nothing to resume" in done.stdout
    assert_ends_the_same(folder, whole[0])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["changes of the disk", "moments"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_a_dozen_times_at_random_ends_the_same(scripts, whole, outputs, kind, seed):
    folder, draw = outputs / f"{kind[:7]}-{seed}", random.Random(seed)

    def session():
        words = [TRAIN, *FLAGS, *go_on(folder), "--output_dir", folder]
        if kind == "moments":
            return scripts.run_for(draw.uniform(0, 0.7 * whole[1]), *words)
        return scripts.run(*words, dies_at=(folder, draw.randint(1, 60)))

    killed = 0
    while killed < 12:
        done = session()
        if done.returncode == 0:  # before the dozen was full: again
            shutil.rmtree(folder)
            continue
        assert done.returncode == -KILL, done.stderr
        assert_whole_or_absent(folder)
        killed += 1
    done = scripts.run(TRAIN, *FLAGS, *go_on(folder), "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    assert_ends_the_same(folder, whole[0])


@pytest.mark.long
def test_two_processes_of_which_one_is_killed_end_the_same(scripts, whole_of_two, outputs):
    folder = outputs / "one-of-two"
    # Of this process, after this many steps of this session: in stage 1, then in stage 2.
    for process, step in ((1, 5), (0, 2), (1, 4), (0, 7)):
        signals = {process: [(step, KILL)]}
        ended = scripts.run_together(
            TRAIN, *FLAGS, *go_on(folder), "--output_dir", folder, signals=signals, timeout=60
        )
        assert ended[process].returncode == -KILL
        # The other does not wait for it: a time-out of this test would have killed it.
        assert ended[1 - process].returncode not in (0, -KILL)
        assert_whole_or_absent(folder)
    for done in scripts.run_together(TRAIN, *FLAGS, *LATEST, "--output_dir", folder):
        assert done.returncode == 0, done.stderr
    assert_ends_the_same(folder, whole_of_two)


# Going on from other places, and in other ways


def stop(scripts, folder, *flags, signals=(), environment=None):
    """A session of training that ends by the last of `signals`."""
    words = [TRAIN, *TINY, "--no_train_prior", *flags, "--output_dir", folder]
    done = scripts.run(*words, signals=signals, environment=environment)
    number = signals[-1][1]
    assert done.returncode == (-KILL if number == KILL else 128 + number), done.stderr
    return words


STREAM = ["--streaming", "--dead_code_threshold", "1", "--checkpointing_steps", "4"]


def test_a_stream_goes_on_anywhere_in_an_epoch_and_at_its_end(scripts, tmp_path):
    flags = [*STREAM, "--dataloader_num_workers", 2]
    whole = tmp_path / "whole"
    done = scripts.run(TRAIN, *TINY, "--no_train_prior", *flags, "--output_dir", whole)
    assert done.returncode == 0, done.stderr
    for step in (1, 4):  # of 4 an epoch
        folder = tmp_path / f"step-{step}"
        words = stop(scripts, folder, *flags, signals=[(step, signal.SIGTERM)])
        done = scripts.run(*words, *LATEST)
        assert done.returncode == 0, done.stderr
        assert_same_run(folder, whole)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_stream_saves_a_checkpoint(scripts, tmp_path, number):
    """As from many a launcher and from Ctrl-C."""
    flags = [*TINY, *STREAM, "--dataloader_num_workers", "2", "--num_train_epochs", "10000"]
    run = subprocess.Popen(
        [sys.executable, TRAIN, *flags, "--output_dir", str(tmp_path / "run")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        line = ""
        while "images/s" not in line:
            line = run.stderr.read(200)
            assert line
        os.killpg(run.pid, number)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + number, errors
    assert "Traceback" not in errors and "saved" in errors
    assert list((tmp_path / "run.partial" / "checkpoints").glob("vqvae-*"))


def test_a_change_is_not_forgotten_where_a_kill_came_before_its_first_checkpoint(scripts, tmp_path):
    folder = tmp_path / "run"
    stop(scripts, folder, signals=[(3, signal.SIGTERM)])
    changed = [*LATEST, "--learning_rate", "1e-3"]
    words = stop(scripts, folder, *changed, "--resume_with_changes", signals=[(1, KILL)])
    words.remove("--resume_with_changes")
    done = scripts.run(*words)
    assert_refused(done, "vqvae-3", "learning_rate 0.008 there, 0.001 here", "resume_with_changes")
    done = scripts.run(*words, "--resume_with_changes")
    assert done.returncode == 0, done.stderr
    history = json.loads((folder / "history.json").read_text())["vqvae"]
    assert all(row["learning_rate"] <= 1e-3 for row in history)


def test_what_the_launcher_said_is_not_forgotten_either(scripts, tmp_path):
    low = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    signals = [(3, signal.SIGTERM)]
    words = stop(scripts, tmp_path / "run", signals=signals, environment=low)
    assert_refused(scripts.run(*words, *LATEST), "mixed_precision bf16 there, no here")
    done = scripts.run(*words, *LATEST, environment=low)
    assert done.returncode == 0, done.stderr


def test_fewer_epochs_than_are_done_are_refused(scripts, tmp_path):
    words = stop(scripts, tmp_path / "run", signals=[(6, signal.SIGTERM)])
    done = scripts.run(*words, *LATEST, "--resume_with_changes", "--num_train_epochs", "1")
    assert_refused(done, "6 steps into stage vqvae, which is to have 4", "more epochs")


def test_a_run_that_diverges_after_a_change_keeps_what_it_went_on_from(scripts, tmp_path):
    """With larger batches the steps are counted anew, and fewer."""
    words = stop(scripts, tmp_path / "run", signals=[(7, signal.SIGTERM)])
    changes = ["--train_batch_size", "32", "--num_train_epochs", "4", "--learning_rate", "1e30"]
    changes += ["--lr_scheduler_type", "constant", "--checkpointing_steps", "1"]
    changes += ["--checkpoints_total_limit", "9"]
    done = scripts.run(*words, *LATEST, "--resume_with_changes", *changes)
    assert_refused(done, "NaN or infinite at step", "The last good checkpoint is", "vqvae-7.")
    assert (tmp_path / "run.partial" / "checkpoints" / "vqvae-7").exists()


@pytest.mark.parametrize(
    "first, environment, change",
    [
        (["--prior_average_decay", "0"], {}, ["--prior_average_decay", "0.9"]),
        ([], {"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, []),
    ],
)
def test_a_prior_goes_on_with_an_average_begun_or_left_compiled(scripts, tmp_path, first, environment, change):
    words = [TRAIN, *TINY, *first, "--output_dir", tmp_path / "run"]
    # Of 8 steps of each stage.
    done = scripts.run(*words, environment=environment, signals=[(11, signal.SIGTERM)])
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    done = scripts.run(*words, *LATEST, "--resume_with_changes", *change)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())["prior"]) == 2


# Runs a script that gets a signal as it calls a function.
SIGNALLED = """
import os, runpy, signal, sys
import {module} as module
call = module.{name}
def signalled(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return call(*arguments, **options)
module.{name} = signalled
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_signal_between_the_steps_of_a_stage_stops_the_run_too(scripts, tmp_path):
    """While the last epoch is evaluated, and while that checkpoint, which has nothing left to train, is loaded."""
    folder, script = tmp_path / "run", tmp_path / "signalled.py"
    words = [TRAIN, *TINY, "--no_train_prior", "--num_train_epochs", "1", "--output_dir", folder]
    for resume, module, name in (
        ([], "hf_vqvae.training.stages", "mean_over_split"),
        (LATEST, "hf_vqvae.training.trainer", "load_checkpoint"),
    ):
        script.write_text(SIGNALLED.format(module=module, name=name))
        done = scripts.run(script, *words, *resume)
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
        assert_whole_or_absent(folder)
        assert Path(f"{folder}.partial/checkpoints/vqvae-4").exists()
    done = scripts.run(*words, *LATEST)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MiB: a server of scripts that has it, its place there, and its place as seen from here."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("this system lets no user mount a disk of his own")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=40m none "$0" && exec "$@"'
    with ScriptServer(tmp_path, ["unshare", "-rm", "sh", "-c", mount, str(disk)]) as server:
        server.run("scripts/train.py", "--help")  # the disk is there
        yield server, disk, Path(f"/proc/{server.process.pid}/root{disk}")


@pytest.mark.long
def test_a_full_disk_is_a_clear_error_at_every_point_and_loses_nothing(small_disk, scripts, whole):
    """The disk has room for ever more of the run; each session goes on where the last ended for want of room."""
    server, disk, seen = small_disk
    # The classifier, which is kept elsewhere, was trained for the whole run.
    cache = {"HF_HOME": str(scripts.home / "home")}
    room, ended = 1, []
    while not ended or ended[-1].returncode:
        assert len(ended) < 60
        filler = seen / "filler"
        filler.unlink(missing_ok=True)
        free = shutil.disk_usage(seen).free - room * 2**10
        filler.write_bytes(bytes(free))
        run = seen / "run"
        flags = [*FLAGS, *go_on(run), "--output_dir", disk / "run"]
        ended.append(server.run(TRAIN, *flags, environment=cache))
        if ended[-1].returncode:
            assert_refused(ended[-1], "ake room, and go on with --resume_from_checkpoint latest")
            assert_whole_or_absent(run)
        room += 16
    lines = [done.stderr.strip().splitlines()[-1] for done in ended[:-1]]
    places = {re.sub(r".*?(\w[\w.-]*)['.:]* .*", r"\1", line.split("run.partial")[-1]) for line in lines}
    assert len(places) >= 5, "\n".join(lines)
    assert len(ended) > 20
    filler.unlink()
    assert_ends_the_same(run, whole[0])
