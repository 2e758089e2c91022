"""The parts of the training loop: order of rows, averages, signals, devices."""

import os
import signal
import sys
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vqvae import PixelCNNConfig, PixelCNNModel, VQVAEConfig, VQVAEImageProcessorPil, VQVAEModel
from hf_vqvae.arguments import RunArguments, TrainingArguments, VQVAEArguments
from hf_vqvae.data.codes import CodesDataset
from hf_vqvae.data.decoding import DecodedImages, shift_images
from hf_vqvae.data.loaders import EpochShuffle, count_steps, make_loader
from hf_vqvae.hub.download import image_processor_for
from hf_vqvae.metrics.sums import Averages
from hf_vqvae.training.run_directory import Run, RunDirectory
from hf_vqvae.training.signals import same_command
from hf_vqvae.training.stages import draw_shifts, start_config
from hf_vqvae.training.trainer import Stage, StageTrainer


def make_run(arguments, accelerator, folder):
    return Run(RunArguments(training=arguments), accelerator, RunDirectory(folder / "run"))


# Order of rows


@settings(max_examples=50, deadline=None)
@given(
    batch_size=st.integers(1, 7),
    batches=st.integers(1, 6),
    rest=st.integers(0, 6),
    seed=st.integers(0, 5),
    start=st.integers(0, 6),
)
def test_an_epoch_resumed_at_a_batch_gives_the_rest_of_the_whole_epoch(batch_size, batches, rest, seed, start):
    rows = batch_size * batches + min(rest, batch_size - 1)
    sampler = EpochShuffle(rows, batch_size, seed)
    whole = list(sampler)
    assert len(whole) == len(sampler) == batch_size * batches
    assert len(set(whole)) == len(whole) and set(whole) <= set(range(rows))
    resumed = EpochShuffle(rows, batch_size, seed)
    resumed.start_at(0, start)
    assert list(resumed) == whole[start * batch_size :]


def test_every_row_is_left_out_of_some_epoch_and_seen_in_others():
    sampler = EpochShuffle(11, batch_size=4, seed=0)
    left_out = set()
    for epoch in range(50):
        sampler.start_at(epoch, 0)
        left_out |= set(range(11)) - set(sampler)
    assert left_out == set(range(11))


def test_epochs_and_seeds_differ_and_draw_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sampler = EpochShuffle(100, 10, seed=0)
    orders = []
    for epoch in (0, 1):
        sampler.start_at(epoch, 0)
        orders.append(list(sampler))
    orders.append(list(EpochShuffle(100, 10, seed=1)))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    images = DecodedImages(torch.zeros(32, 1, 8, 8, dtype=torch.uint8))
    loader, _ = make_loader(images, 2, TrainingArguments(train_batch_size=16))
    assert [batch["pixel_values"].shape for batch in loader] == [(16, 1, 8, 8)] * 2
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_are_whole_batches_and_too_few_rows_are_an_error():
    arguments = TrainingArguments(train_batch_size=16)
    assert [count_steps(rows, arguments) for rows in (16, 31, 32)] == [1, 1, 2]
    message = "there are 15 training rows beside --validation_samples 0, fewer than --train_batch_size 16: make one"
    with pytest.raises(ValueError, match=message):
        count_steps(15, arguments)
    with pytest.raises(ValueError, match="how many rows its stream has: say it with --max_train"):
        count_steps(None, arguments)


# Averages


def test_averages_are_those_of_all_steps_and_codes_are_counted_over_all_of_them(accelerator):
    averages = Averages(accelerator.device)
    for value, codes in ((1.0, [0, 0]), (2.0, [1, 1]), (6.0, [3, 3])):
        averages.add({"loss": torch.tensor(value)}, torch.tensor([codes]), num_codes=5)
    figures = averages.compute(accelerator)
    assert figures == {"loss": 3.0, "perplexity": pytest.approx(3.0), "codes_used": 3}


# Signals


BUSY = """
import signal, sys, time
from hf_vqvae.training.signals import catch_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
with catch_signals() as caught:
    print("ready", flush=True)
    while not caught:
        time.sleep(0.01)
    print(caught, flush=True)
    time.sleep(100 if sys.argv[1] == "busy" else 2)
print("left", flush=True)
time.sleep(100)
"""


@pytest.fixture
def busy(scripts, tmp_path):
    """Starts processes that run `BUSY`; one that a failed test has left is killed."""
    (tmp_path / "busy.py").write_text(BUSY)
    started = []

    def start(*words):
        started.append(scripts.start(tmp_path / "busy.py", *words))
        wait_for(started[-1], "ready\n")
        return started[-1]

    yield start
    for job in started:
        with suppress(ProcessLookupError):
            job.send(signal.SIGKILL)


def wait_for(job, printed):
    """Returns when the job has printed `printed`, and nothing else."""
    until = time.monotonic() + 60
    while (text := job.printed()) != printed:
        assert printed.startswith(text) and time.monotonic() < until, text
        time.sleep(0.01)


@pytest.mark.parametrize("first, second", [("INT", "INT"), ("HUP", "USR1")])
def test_the_first_signal_is_noted_and_a_later_one_ends_the_process(busy, first, second):
    first, second = (getattr(signal, f"SIG{name}") for name in (first, second))
    process = busy("busy")
    process.send(first)
    wait_for(process, f"ready\n[{int(first)}]\n")
    # What a launcher passes on comes at the same time.
    process.send(second)
    time.sleep(1.2)
    assert "ended" not in process.printed("stderr")
    process.send(second)
    done = process.wait(5)
    assert done.returncode == 128 + second
    assert f"{first.name}: saving a checkpoint" in done.stderr
    assert f"{second.name}: ended without a checkpoint" in done.stderr


def test_ignored_signals_stay_so_and_others_act_as_before_when_no_longer_caught(busy):
    process = busy("nohup")
    process.send(signal.SIGHUP)
    process.send(signal.SIGTERM)
    wait_for(process, f"ready\n[{int(signal.SIGTERM)}]\nleft\n")
    process.send(signal.SIGTERM)
    assert process.wait(5).returncode == -signal.SIGTERM


# The learning rate


@pytest.mark.parametrize(
    "schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"]
)
def test_the_recorded_learning_rate_is_that_of_the_step(accelerator, tmp_path, schedule):
    arguments = TrainingArguments(
        train_batch_size=4, lr_scheduler_type=schedule, checkpointing_steps=0, warmup_steps=3
    )
    images = DecodedImages(torch.arange(40 * 64).reshape(40, 1, 8, 8).byte())
    model = VQVAEModel(VQVAEConfig(image_size=8, hidden_sizes=(4, 8), num_embeddings=8))
    used = []
    stage = Stage("vqvae", 2, 0.01, {"pixel_values": "pixel_values"}, lambda output, batch: {}, dict, 8)
    trainer = StageTrainer(model, stage, images, 10, make_run(arguments, accelerator, tmp_path))
    group = trainer.optimizer.param_groups[0]
    trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: used.append(group["lr"]))
    history = trainer.train()
    assert [row["learning_rate"] for row in history] == [used[9], used[19]]
    assert used[0] == 0 and max(used) == pytest.approx(0.01)  # 2 steps of warm-up: a tenth of all
    accelerator.free_memory()


# Averaged weights


def test_what_is_evaluated_and_kept_is_the_moving_average_of_the_weights(accelerator, tmp_path):
    """Against an average written out here; it goes on over a checkpoint."""
    torch.manual_seed(0)
    codes = torch.randint(4, (24, 3, 3))
    labels = torch.randint(-1, 2, (24,))
    arguments = TrainingArguments(train_batch_size=4, checkpointing_steps=0, warmup_steps=0)
    settings = {"num_embeddings": 4, "grid_size": (3, 3), "hidden_size": 8, "num_classes": 2}
    evaluated, steps = [], []

    def make():
        torch.manual_seed(1)
        model = PixelCNNModel(PixelCNNConfig(architecture="gated", **settings))
        stage = Stage(
            "prior",
            2,
            0.01,
            {"codes": "codes", "class_labels": "labels"},
            lambda output, batch: {},
            lambda: evaluated.append(model.conv_out.weight.detach().clone()) or {},
            average_decay=0.9,
            weight_decay=0.1,
            max_grad_norm=1.0,
        )
        dataset = CodesDataset([codes.numpy()], labels.numpy())
        return model, StageTrainer(model, stage, dataset, 6, run)

    run = make_run(arguments, accelerator, tmp_path)
    folder = run.directory
    model, trainer = make()
    average = model.conv_out.weight.detach().clone()
    trainer.optimizer.optimizer.register_step_post_hook(
        lambda *_: steps.append(model.conv_out.weight.detach().clone())
    )
    trainer.train()
    for number, weight in enumerate(steps):
        # The first update copies.
        decay = min(0.9, (1 + number) / (10 + number)) if number else 0
        average = torch.lerp(average, weight, 1 - decay)
        if number == 5:
            torch.testing.assert_close(evaluated[0], average)
    torch.testing.assert_close(evaluated[1], average)
    assert torch.equal(model.conv_out.weight, evaluated[1])
    assert not torch.equal(model.conv_out.weight, steps[-1])
    accelerator.free_memory()
    accelerator._custom_objects.clear()

    again, resumed = make()
    resumed.train(folder.checkpoints_to_resume(str(folder.checkpoints / "prior-6"), "prior"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    accelerator.free_memory()
    accelerator._custom_objects.clear()


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_weights_of_the_best_epoch_are_kept_by_a_resumed_run_too(accelerator, tmp_path, decay):
    codes = torch.randint(4, (24, 3, 3), generator=torch.Generator().manual_seed(0))
    run = make_run(TrainingArguments(train_batch_size=4, checkpointing_steps=0), accelerator, tmp_path)
    settings = {"num_embeddings": 4, "grid_size": (3, 3), "hidden_size": 8}
    losses, evaluated = [3.0, 1.0, 1.0, 2.0], {}

    def train(checkpoint=None):
        torch.manual_seed(1)
        model = PixelCNNModel(PixelCNNConfig(**settings))

        def evaluate():
            evaluated[trainer.epoch] = model.conv_out.weight.detach().clone()
            return {"validation_loss": losses[trainer.epoch - 1]}

        stage = Stage("prior", 4, 0.01, {"codes": "codes"}, lambda output, batch: {}, evaluate, average_decay=decay)
        stage.best_by = "validation_loss"
        trainer = StageTrainer(model, stage, CodesDataset([codes.numpy()]), 6, run)
        history = trainer.train([] if checkpoint is None else [run.directory.checkpoints / checkpoint])
        assert [row["validation_loss"] for row in history] == losses
        accelerator.free_memory()
        accelerator._custom_objects.clear()
        return model.state_dict()

    whole = train()
    assert torch.equal(whole["conv_out.weight"], evaluated[2])
    assert not torch.equal(evaluated[2], evaluated[3])
    for checkpoint in ("prior-18", "prior-24"):  # the best epoch is in the past
        again = train(checkpoint)
        assert all(torch.equal(again[name], value) for name, value in whole.items())


# What is printed to go on with


@pytest.mark.parametrize(
    "variables, command",
    [
        ({}, "python train.py --seed 1"),
        ({"WORLD_SIZE": "2"}, "accelerate launch --num_processes 2 train.py --seed 1"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "accelerate launch --mixed_precision bf16 --dynamo_backend inductor train.py --seed 1",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, "python train.py --seed 1"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "accelerate launch [on each machine, as before] train.py --seed 1",
        ),
    ],
)
def test_the_command_to_go_on_with_is_the_one_that_was_given(monkeypatch, variables, command):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--seed", "1"])
    assert same_command("--resume", "latest") == f"{command} --resume latest"
    assert same_command("--seed", "1") == command


def test_a_prior_reads_images_as_its_trained_vqvae_did(tmp_path):
    VQVAEModel(VQVAEConfig(image_size=8, hidden_sizes=[4])).save_pretrained(tmp_path)
    VQVAEImageProcessorPil(resize_mode="crop", background="white").save_pretrained(tmp_path)
    processor = image_processor_for(start_config(VQVAEArguments(), str(tmp_path)))
    assert (processor.resize_mode, processor.background) == ("crop", "white")
    assert (processor.num_channels, dict(processor.size)) == (1, {"height": 8, "width": 8})


# Shifted images


@pytest.mark.parametrize("share", [-0.1, 0.0, 0.4, 1.0])
def test_a_share_of_images_is_shifted_evenly_each_way(share):
    torch.manual_seed(0)
    # A slope along each axis: no two moves look alike, also where edges are repeated.
    ramp = torch.linspace(-0.5, 0.5, 8)
    image = torch.stack([ramp[:, None] + 2 * ramp, ramp[:, None] - 2 * ramp]) / 3
    shifts = draw_shifts(3000, 1, share, image.device)
    shifted = shift_images(image.expand(3000, -1, -1, -1), shifts, 1)
    padded = torch.nn.functional.pad(image, [1] * 4, mode="replicate")
    moves = torch.stack([padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    found = (shifted[:, None] == moves).flatten(2).all(2)  # (images, moves)
    assert (found.sum(1) == 1).all()
    expected = torch.full((9,), max(0, share) / 9)
    expected[4] += 1 - max(0, share)  # the centre: not shifted
    torch.testing.assert_close(found.float().mean(0), expected, atol=0.03, rtol=0)
