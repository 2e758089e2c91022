"""N processes equal one: every step of both stages, in real processes; how they fail, and what they refuse.

On CPUs with gloo, and the same on GPUs with NCCL where there are two or more.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae import VQVAEConfig, VQVAEModel
from hf_vqvae.distributed import LONGEST_WAIT
from support.hub import HubServer
from support.scripts import ROOT, ScriptServer

WORKER, TRAIN = "tests/support/process_worker.py", str(ROOT / "scripts/train.py")
KILL = signal.SIGKILL
LONG = 500  # seconds
GPUS = torch.cuda.device_count() >= 2
# NCCL takes a GPU for each process.
TOGETHER = (2,) if torch.cuda.device_count() == 2 else (2, 3)
SIZES = {"image_size": 8, "hidden_sizes": [4, 6], "num_embeddings": 8, "embedding_dim": 4}
# Of 53 rows 4 are held out: 4 batches of 12 and a row more are left. 2 and 3 processes share 12, also in 2 parts.
TRAINING = {"num_train_epochs": 3, "prior_num_train_epochs": 3, "train_batch_size": 12}
TRAINING |= {"eval_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 3, "seed": 1}
STEPS = 12
# Of 6 latents that a code has on average; a part of a batch has half as many.
DEAD = 4.0
PRIORS = {
    "plain": {"architecture": "plain", "hidden_size": 8, "kernel_size": 3, "dropout": 0.1},
    "gated": {"architecture": "gated", "hidden_size": 8, "num_gated_layers": 2, "dropout": 0.3},
}
for settings in PRIORS.values():
    settings["label_dropout"] = 0.2


def stage_1(update, init, dead=0.0, parts=1, **training):
    codebook = {"codebook_update": update, "codebook_init": init}
    codebook["dead_code_threshold"] = dead / parts
    training = TRAINING | {"gradient_accumulation_steps": parts} | training
    return {"vqvae": SIZES | codebook, "prior": None, "training": training}


def stage_2(architecture, parts=1, **training):
    training = TRAINING | {"gradient_accumulation_steps": parts} | training
    return {"vqvae": None, "prior": PRIORS[architecture], "training": training}


QUICK = {
    "ema-kmeans-dead-parts": stage_1("ema", "kmeans", dead=DEAD, parts=2),
    "gradient-kmeans-dead-parts": stage_1("gradient", "kmeans", dead=DEAD, parts=2),
    "gradient-kmeans-at-once": stage_1("gradient", "kmeans", lr_scheduler_type="constant", warmup_steps=0),
    "gradient-uniform": stage_1("gradient", "uniform"),
    "plain": stage_2("plain"),
    "gated-parts": stage_2("gated", parts=2),
}
ALL = {
    f"{update}-{init}-{dead}-{parts}": stage_1(update, init, dead, parts)
    for update, init, dead, parts in itertools.product(("ema", "gradient"), ("kmeans", "uniform"), (0.0, DEAD), (1, 2))
} | {f"{name}-{parts}": stage_2(name, parts) for name in PRIORS for parts in (1, 2)}


@pytest.fixture(scope="module")
def scripts(scripts, tmp_path_factory):
    if not GPUS:
        yield scripts
        return
    with ScriptServer(tmp_path_factory.mktemp("scripts"), cpu=False) as server:
        yield server


def train(scripts: ScriptServer, cases, output, *processes):
    """The records of `cases` by number of processes, one of each process."""
    torch.manual_seed(0)
    vqvae = VQVAEModel(VQVAEConfig(**SIZES)).train()
    vqvae(torch.rand(16, 1, 8, 8) - 0.5)  # k-means: codes that are all in use
    vqvae.save_pretrained(output / "codes-of")
    (output / "cases.json").write_text(json.dumps(cases))
    records = {}
    for number in processes:
        command = [WORKER, output / "cases.json", output]
        # Compiling takes its time on a busy machine.
        if number == 1:
            ended = [scripts.run(*command, timeout=LONG)]
        else:
            ended = scripts.run_together(*command, processes=number, timeout=LONG)
        assert not any(done.returncode for done in ended), "".join(d.stderr[-3000:] for d in ended)
        records[number] = [torch.load(output / f"{number}-{rank}.pt", "cpu") for rank in range(number)]
    return records


def assert_close(here, there, where, rtol=1e-5, atol=0.0):
    torch.testing.assert_close(here, there, rtol=rtol, atol=atol, msg=lambda text: f"{where}: {text}")


def assert_same_batches(one, ranks):
    """Every forward pass of all processes together reads the rows of the single process, in their order."""
    for number, alone in enumerate(one["forwards"]):
        parts = [record["forwards"][number]["rows"] for record in ranks]
        assert len({len(part) for part in parts}) == 1
        assert list(itertools.chain(*parts)) == alone["rows"]
    assert all(len(record["forwards"]) == len(one["forwards"]) for record in ranks)


def assert_same_losses(one, ranks):
    for number, alone in enumerate(one["forwards"]):
        there = [record["forwards"][number] for record in ranks]
        for name, value in alone["scalars"].items():
            mean = torch.stack([part["scalars"][name] for part in there]).mean()
            assert_close(mean, value, f"{name} of forward pass {number}")
        if alone["codes"] is not None:
            assert torch.equal(torch.cat([part["codes"] for part in there]), alone["codes"])


def assert_same_states(one, ranks):
    """Bit for bit on all processes, and close to the single one; the codebook and its averages among them."""
    assert [len(record["steps"]) for record in (one, *ranks)] == [STEPS] * (1 + len(ranks))
    for number, alone in enumerate(one["steps"]):
        states = [record["steps"][number] for record in ranks]
        for name, value in alone.items():
            assert all(torch.equal(state[name], states[0][name]) for state in states), name
            assert_close(states[0][name], value, f"{name} after step {number + 1}", atol=1e-6)


def assert_same_training(records, cases):
    (one,) = records.pop(1)
    assert records
    for ranks, name in itertools.product(records.values(), cases):
        alone, together = one[name], [record[name] for record in ranks]
        assert_same_batches(alone, together)
        assert_same_losses(alone, together)
        assert_same_states(alone, together)
        for stage, rows in alone["history"].items():
            for row, there in zip(rows, together[0]["history"][stage], strict=True):
                assert there == pytest.approx(row, rel=1e-5), name


# The same training


def test_two_processes_take_every_step_as_one_does(scripts, tmp_path):
    records = train(scripts, QUICK, tmp_path, 1, 2)
    assert_same_training(records, QUICK)


@pytest.mark.long
def test_two_and_three_processes_take_every_step_as_one_does(scripts, tmp_path):
    records = train(scripts, ALL, tmp_path, 1, *TOGETHER)
    (one,) = records[1]
    for update, init, parts in itertools.product(("ema", "gradient"), ("kmeans", "uniform"), (1, 2)):
        with_dead, without = (one[f"{update}-{init}-{dead}-{parts}"] for dead in (DEAD, 0.0))
        assert with_dead["history"] != without["history"]  # some code was dead
    assert_same_training(records, ALL)


# Kinds of arithmetic


# Flags, the variables that `accelerate launch --dynamo_backend` sets, and how far the losses may be from those of the
# plain run, relative.
KINDS = {
    "plain": ({}, {}, 0.0),
    "clipped": ({"max_grad_norm": 0.1}, {}, None),
    "checkpointed": ({"gradient_checkpointing": True}, {}, 1e-6),
    "bf16": ({"mixed_precision": "bf16"}, {}, 1e-2),
    "fp16": ({"mixed_precision": "fp16"}, {}, 1e-2),
    "eager": ({}, {"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, 1e-5),
    "inductor": ({}, {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, 1e-4),
    "all": (
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "max_grad_norm": 1e6},
        {"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"},
        1e-2,
    ),
}
# The gradient scaler of fp16, and the precision itself, are the GPU's.
KINDS_HERE = [kind for kind in KINDS if GPUS or kind != "fp16"]


def kinds_of(stage, kinds, parts):
    cases = {}
    for kind in kinds:
        flags, variables, _ = KINDS[kind]
        one = stage_1("ema", "kmeans", DEAD, parts, **flags)
        case = one if stage == "vqvae" else stage_2("gated", parts, **flags)
        cases[f"{stage}-{kind}-{parts}"] = case | {"environment": variables}
    return cases


def assert_kinds(records, cases):
    """Losses as of the plain run, and each kind of arithmetic really in use."""
    for name in cases:
        stage, kind, parts = name.split("-")
        for ranks in records.values():
            record, plain = (ranks[0][f"{stage}-{which}-{parts}"] for which in (kind, "plain"))
            losses, expected = ([row["loss"] for row in one["history"][stage]] for one in (record, plain))
            flags, variables, tolerance = KINDS[kind]
            if tolerance is None:
                assert losses != expected and losses == pytest.approx(expected, rel=0.1)
            else:
                assert losses == pytest.approx(expected, rel=tolerance), name
            assert bool(record["graphs"]) == bool(variables), name
            if not variables:  # what is compiled is not recorded
                again = record["convolutions"] > plain["convolutions"] > 0
                assert again == ("gradient_checkpointing" in flags)
                low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)
                assert record["dtype"] == low


def exact(cases):
    return [name for name in cases if name.split("-")[1] in ("plain", "clipped", "checkpointed")]


def test_checkpointing_bf16_and_parts_go_together_with_processes(scripts, tmp_path):
    cases = kinds_of("vqvae", ("plain", "checkpointed", "bf16"), parts=2)
    assert_kinds(train(scripts, cases, tmp_path, 2), cases)


@pytest.mark.long
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("stage", ["vqvae", "prior"])
@pytest.mark.parametrize("parts", [1, 2])
def test_all_kinds_of_arithmetic_go_together_with_processes(scripts, tmp_path, stage, parts):
    cases = kinds_of(stage, KINDS_HERE, parts)
    records = train(scripts, cases, tmp_path, 1, 2)
    assert_kinds(records, cases)
    assert_same_training(records, exact(cases))


@pytest.mark.cuda
@pytest.mark.parametrize("stage", ["vqvae", "prior"])
def test_all_kinds_of_arithmetic_work_on_a_gpu(tmp_path, stage):
    cases = kinds_of(stage, KINDS, parts=1)
    with ScriptServer(tmp_path, cpu=False) as server:
        assert_kinds(train(server, cases, tmp_path, 1), cases)


# A process that fails, and what only the first one does


DATA = ["--dataset_name", "digits", "--max_train_samples", "53", "--max_eval_samples", "11"]
SMALL = ["--image_size", "8", "--hidden_sizes", "4", "6", "--num_embeddings", "8"]
SMALL += ["--hidden_size", "8", "--num_gated_layers", "1", "--train_batch_size", "12"]
SMALL += ["--num_eval_samples", "0", "--prior_num_train_epochs", "1"]
ONE = [*SMALL, "--num_train_epochs", "1", "--no_train_prior"]
LOST = "Error: another process of this run has ended or does not answer; its own output says why."
LOST = "" if GPUS else LOST  # NCCL ends the process before it can say so
# Runs a script as one of several processes, each after some lines of its own.
EACH = """
import os, runpy, sys, time
from datetime import timedelta
rank = os.environ["RANK"]
{code}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Prints what a process changes on the disk beneath the folder `watched`, but for its random numbers in a checkpoint.
WATCH = """
def watch(event, arguments):
    if event == "open":
        changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
        changes = changes or event == "os.mkdir" and not os.path.exists(arguments[0])
    if changes and str(arguments[0]).startswith({watched!r}) and "random_states" not in str(arguments[0]):
        print(event, arguments[0])

if rank != "0":
    sys.addaudithook(watch)
"""


@pytest.fixture
def each(tmp_path):
    """A function from lines of code to a script that runs them before another script."""

    def write(code):
        path = tmp_path / "each.py"
        path.write_text(EACH.format(code=code))
        return path

    return write


def assert_clear(done, *words):
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[-1]


def test_a_process_that_is_killed_ends_the_other_at_once(scripts, tmp_path):
    started = time.monotonic()
    flags = [*DATA, *ONE, "--num_train_epochs", "500", "--output_dir", tmp_path / "run"]
    first, second = scripts.run_together(TRAIN, *flags, signals={1: [(3, KILL)]})
    assert second.returncode == -KILL
    assert first.returncode not in (0, -KILL)
    assert LOST in first.stderr
    assert time.monotonic() - started < 60  # of a training that takes minutes
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_folders(tmp_path):
    """For each of two processes a folder of its own with a dataset `pictures`; in the second's an image is damaged."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        folder = tmp_path / "0" / "pictures" / split
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    damaged = tmp_path / "1" / "pictures" / "train" / "7.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    return tmp_path


def test_a_file_damaged_for_one_process_ends_both_with_its_message(scripts, two_folders, each):
    start = each(f"os.chdir({str(two_folders)!r} + '/' + rank)")
    flags = ["--dataset_name", "pictures", *ONE, "--output_dir", two_folders / "run"]
    first, second = scripts.run_together(start, TRAIN, *flags)
    assert_clear(second, "Error: ", "7.png", "cannot be decoded")
    assert first.returncode == 1 and LOST in first.stderr
    assert not list(two_folders.glob("run*"))


def test_other_images_for_one_process_end_all(scripts, two_folders, each):
    pictures = two_folders / "1" / "pictures" / "train"
    shutil.copy(pictures / "6.png", pictures / "7.png")
    start = each(f"os.chdir({str(two_folders)!r} + '/' + rank)")
    flags = ["--dataset_name", "pictures", *ONE, "--output_dir", two_folders / "run"]
    first, second = scripts.run_together(start, TRAIN, *flags)
    assert_clear(second, "Error: ", "run.partial/data.json", "the same dataset")
    assert first.returncode == 1 and LOST in first.stderr
    assert not (two_folders / "run").exists()


def test_an_output_folder_that_is_not_shared_ends_all_before_training(scripts, tmp_path, each):
    for rank in "01":
        (tmp_path / rank).mkdir()
    start = each(f"""
import hf_vqvae.distributed
hf_vqvae.distributed.SHARED_FOLDER_SECONDS = 1.0
os.chdir({str(tmp_path)!r} + "/" + rank)
""")
    first, second = scripts.run_together(start, TRAIN, *DATA, *ONE, "--output_dir", "run")
    assert_clear(second, f"{tmp_path}/1/run.partial/data.json", "--output_dir", "share")
    assert first.returncode == 1 and LOST in first.stderr
    assert not list((tmp_path / "1").iterdir())


@pytest.mark.long
def test_a_folder_that_shows_late_what_others_wrote_is_waited_for(scripts, tmp_path, each):
    real, linked = tmp_path / "real", tmp_path / "late"
    real.mkdir()
    start = each(f"""
import threading
if rank == "1":
    threading.Timer(6, os.symlink, ({str(real)!r}, {str(linked)!r})).start()
sys.argv[-1] = {{"0": {str(real)!r}, "1": {str(linked)!r}}}[rank] + "/run"
""")
    for done in scripts.run_together(start, TRAIN, *DATA, *ONE, "--output_dir", "-"):
        assert done.returncode == 0, done.stderr
    assert (real / "run" / "metrics.json").is_file()


def test_what_the_first_process_finds_in_the_way_ends_all_with_its_message(scripts, tmp_path, each):
    (tmp_path / "0" / "run").mkdir(parents=True)
    (tmp_path / "1").mkdir()
    (tmp_path / "0" / "run" / "notes").touch()
    start = each(f"os.chdir({str(tmp_path)!r} + '/' + rank)")
    flags = [*DATA, *ONE, "--output_dir", "run"]
    for done in scripts.run_together(start, TRAIN, *flags, timeout=60):
        assert_clear(done, "Error: run exists and is not empty")
    for done in scripts.run_together(start, TRAIN, *flags, "--resume_from_checkpoint", "vqvae-3", timeout=60):
        assert_clear(done, "there is no unfinished run run.partial")


@pytest.mark.long
def test_samples_are_measured_where_each_process_has_a_cache_of_its_own(scripts, tmp_path, each):
    start = each(f"""
import huggingface_hub.constants
huggingface_hub.constants.HF_ASSETS_CACHE = {str(tmp_path)!r} + "/cache" + rank
""")
    flags = [*DATA, *SMALL, "--num_train_epochs", "1", "--num_eval_samples", "4"]
    flags += ["--output_dir", tmp_path / "run"]
    for done in scripts.run_together(start, TRAIN, *flags, timeout=100):
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "frechet_distance" in metrics
    assert (tmp_path / "cache0").exists() and not (tmp_path / "cache1").exists()


def test_only_the_first_process_writes_and_logs(scripts, tmp_path, each):
    folder = tmp_path / "run"
    flags = [*DATA, *SMALL, "--num_train_epochs", "1", "--log_with", "tensorboard"]
    flags += ["--checkpointing_steps", "2", "--logging_steps", "1", "--output_dir", folder]
    start = each(WATCH.format(watched=str(folder)))
    first, second = scripts.run_together(start, TRAIN, *flags)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == ""
    assert "Done. Look at:" in first.stdout and "vqvae:" in first.stderr
    assert not any(word in second.stderr for word in ("vqvae:", "prior:", "encode", "Decoding"))
    # The watch itself would have seen it: the first process's changes are the same events.
    alone = scripts.run(
        each(WATCH.format(watched=str(folder)).replace('!= "0"', '== "0"')),
        TRAIN,
        *flags,
        "--overwrite_output_dir",
        environment={"RANK": "0"},
    )
    assert alone.returncode == 0 and "os.rename" in alone.stdout


@pytest.mark.long
def test_others_wait_for_the_first_process_as_long_as_it_takes(scripts, tmp_path, each):
    """The time is that of `LONGEST_WAIT`, and no wait is outside of it."""
    assert timedelta(hours=1) < LONGEST_WAIT  # the default is 10 minutes with NCCL
    slow = """
import hf_vqvae.training.run
load = hf_vqvae.training.run.load_images
def load_slowly(*arguments):
    if rank == "0":
        time.sleep(4)
    return load(*arguments)
hf_vqvae.training.run.load_images = load_slowly
"""
    short = slow + "import hf_vqvae.distributed\nhf_vqvae.distributed.LONGEST_WAIT = timedelta(seconds=2)\n"
    flags = [TRAIN, *DATA, *ONE, "--output_dir", tmp_path / "run"]
    assert not any(done.returncode for done in scripts.run_together(each(slow), *flags))
    ended = scripts.run_together(each(short), *flags, "--overwrite_output_dir")
    assert all(done.returncode for done in ended)
    assert "Timed out" in ended[1].stderr


# What is refused


@pytest.fixture
def evaluation(tmp_path):
    """The command that evaluates a tiny model."""
    config = VQVAEConfig(image_size=8, hidden_sizes=(4, 6), num_embeddings=8)
    VQVAEModel(config).save_pretrained(tmp_path / "model")
    script = ROOT / "scripts/evaluate.py"
    flags = ["--dataset_name", "digits", "--max_eval_samples", "11", "--num_samples", "0"]
    return [script, tmp_path / "model", *flags]


def test_a_process_that_the_evaluation_loses_is_named(scripts, evaluation, each):
    start = each("""
import hf_vqvae.evaluation.model_metrics
if rank == "1":
    hf_vqvae.evaluation.model_metrics.evaluate_model = lambda *_, **__: os._exit(3)
""")
    first, second = scripts.run_together(start, *evaluation, timeout=60)
    assert second.returncode == 3
    assert first.returncode == 1 and LOST in first.stderr


@pytest.mark.skipif(GPUS, reason="with GPUs they find each other")
def test_processes_that_do_not_know_of_each_other_do_not_evaluate(scripts, evaluation, each):
    start = each("os.environ['ACCELERATE_USE_CPU'] = 'false'")
    for done in scripts.run_together(start, *evaluation, timeout=60):
        assert_clear(done, "WORLD_SIZE=2", "ACCELERATE_USE_CPU=true")


@pytest.mark.skipif(GPUS, reason="with GPUs they find each other")
def test_processes_that_do_not_know_of_each_other_are_refused(scripts, tmp_path, each):
    flags = [*DATA, *ONE, "--output_dir", tmp_path / "run"]
    start = each("os.environ['ACCELERATE_USE_CPU'] = 'false'")
    for done in scripts.run_together(start, TRAIN, *flags):
        assert_clear(done, "WORLD_SIZE=2", "ACCELERATE_USE_CPU=true")
    assert not list(tmp_path.glob("run*"))


# As a launcher starts them


def launch(hub, home, *words, processes=2):
    """`python -m torch.distributed.run`: how it ended, and stdout and stderr of each process."""
    logs = home / "logs"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += ["--standalone", "--redirects", "3", "--log-dir", str(logs)]
    environment = hub.environment(home, token="hf_write")
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if not GPUS:
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words)], env=environment, capture_output=True, text=True, timeout=240
    )
    texts = {(path.parent.name, path.stem): path.read_text() for path in logs.rglob("std*.log")}
    return done, texts


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add_token("hf_write", user="me")
        yield server


@pytest.mark.long
def test_only_the_first_process_pushes_and_one_commit_is_made(hub, tmp_path):
    flags = [*DATA, *ONE, "--push_to_hub", "--hub_model_id", "me/tiny", "--output_dir"]
    done, texts = launch(hub, tmp_path, TRAIN, *flags, tmp_path / "run")
    assert done.returncode == 0, texts
    assert texts["1", "stdout"] == "" and "Pushed: " in texts["0", "stdout"]
    assert len(hub.repo("me/tiny").history()) == 2  # the repo's own, and that of the push


@pytest.mark.long
def test_a_launcher_ends_at_once_when_a_process_fails_and_leaves_none(hub, tmp_path, each):
    start = each("""
from torch.optim.optimizer import register_optimizer_step_post_hook
def fail(*_):
    raise ArithmeticError("this process alone cannot go on")
if rank == "1":
    register_optimizer_step_post_hook(fail)
open(os.path.dirname(__file__) + "/pid" + rank, "w").write(str(os.getpid()))
""")
    flags = [*DATA, *ONE, "--num_train_epochs", "500", "--output_dir", tmp_path / "run"]
    started = time.monotonic()
    done, texts = launch(hub, tmp_path, start, TRAIN, *flags)
    assert time.monotonic() - started < 90
    assert done.returncode == 1
    assert "this process alone cannot go on" in texts["1", "stderr"]
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid{rank}").read_text()), 0)
