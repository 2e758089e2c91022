"""What a run has to do with its process: devices, memory, trackers, signals, and how to go on."""

import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.tracking import get_available_trackers

from .arguments import TrainingArguments
from .run_folder import RunFolder


class Interrupted(Exception):
    """A signal ended training after a checkpoint; `signal_number` says which signal."""

    def __init__(self, signal_number: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; saved {checkpoint}")
        self.signal_number = signal_number


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of a step's large tensors for the next step.

    Given back to the system, as it does by default, it costs thousands of page faults a step: measured, a quarter of
    the time of a step of the default VQ-VAE in float32.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def make_accelerator(arguments: TrainingArguments, folder: RunFolder) -> Accelerator:
    """The `Accelerator` of a run.

    Raises:
        ValueError: if a tracker is not installed, the device has no such precision, or the processes cannot share a
            batch evenly.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in arguments.log_with:
        if name not in installed:  # Accelerate would go on without a word
            raise ValueError(
                f"--log_with {name}: the package is not installed: `pip install {name}`, or leave the flag out."
            )
    accelerator = Accelerator(
        # "no" leaves the choice to `accelerate launch`, whose own default is "no".
        mixed_precision=None if arguments.mixed_precision == "no" else arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        # `--train_batch_size` is that of all processes together.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=arguments.log_with or None,
        project_dir=str(folder.partial / "trackers"),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    precision = accelerator.mixed_precision
    if precision != "no" and not accelerator.native_amp:  # Accelerate would train in float32
        raise ValueError(
            f"--mixed_precision {precision} does not work on {accelerator.device.type}: take bf16, or no."
        )
    parts, processes = arguments.gradient_accumulation_steps, accelerator.num_processes
    if accelerator.gradient_accumulation_steps != parts:
        raise ValueError(
            f"accelerate is told to accumulate {accelerator.gradient_accumulation_steps} gradients a step, but "
            f"--gradient_accumulation_steps is {parts}: give that flag to the script alone."
        )
    if arguments.train_batch_size // parts % processes:
        raise ValueError(
            f"--train_batch_size {arguments.train_batch_size} in {parts} part(s) cannot be shared by {processes} "
            f"processes: make it a multiple of {parts * processes}."
        )
    return accelerator


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM in the list it yields; a second one acts as usual."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, _frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_by_signals(written: Path, command: str) -> Iterator[None]:
    """Ends the process in good order where SIGINT or SIGTERM stops what is done within, with a line on how to go on.

    The exit status is 128 and the number of the signal.

    Args:
        written: what exists once there is something to go on with.
        command: what goes on with it.
    """

    def interrupt(number: int, _frame: Any) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        if isinstance(error, Interrupted):
            number, stopped = error.signal_number, f"{error}"
        else:
            number = error.args[0] if error.args else signal.SIGINT
            stopped = f"stopped by {signal.Signals(number).name}"
        if is_first_process():
            way_out = "Nothing had been written yet."
            if written.exists():
                way_out = f"Go on with:\n  {command}"
            print(f"\nThe run was {stopped}. {way_out}", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before)


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def same_command(*more: str, without: str = "") -> str:
    """The command line of this process without the word `without`, and with `more` at its end."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    words = list(sys.orig_argv)  # as typed, with the interpreter
    if processes > 1:
        words = ["accelerate", "launch", "--num_processes", str(processes), *sys.argv]
    words = [word for word in words if word != without]
    # The last flag of a name counts.
    return shlex.join(words if words[len(words) - len(more) :] == list(more) else [*words, *more])
