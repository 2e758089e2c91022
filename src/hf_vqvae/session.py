"""What a run has to do with its process: devices, memory, trackers, signals, and how to go on."""

import ctypes
import errno
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object

from .arguments import TrainingArguments
from .run_folder import RunFolder

# How long processes wait for each other: while the first downloads a dataset and fills the cache, or makes the card,
# the others do nothing but wait, and the default, 10 minutes on GPUs, would end them. A process that dies ends the
# waiting at once; only one that hangs is found out this late.
LONGEST_WAIT = timedelta(hours=12)
# How long a file system over the network may take to show what another machine wrote: NFS looks again after 30 to 60.
SHARED_FOLDER_SECONDS = 60.0
# What `accelerate launch` asks for by these variables splits a model too large for a device. The models here have some
# thousand to some million parameters, and write their codebook in place: tried with two processes, FSDP 1 ends with an
# error at that, and FSDP 2 drops what was written without a word.
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
NO_SIGNAL = 0  # the number of none


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
        ValueError: if a tracker is not installed, the device has no such precision, the processes cannot share a
            batch evenly, or they were launched in a way that does not work here.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise ValueError(
                f"{name} ({variable}={os.environ[variable]}) does not work here, and splits models far larger than "
                "these: launch with --multi_gpu (DistributedDataParallel), or unset the variable."
            )
    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in arguments.log_with:
        if name not in installed:  # Accelerate would go on without a word
            raise ValueError(
                f"--log_with {name}: the package is not installed: `pip install {name}`, or leave the flag out."
            )
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    accelerator = Accelerator(
        # "no" leaves the choice to `accelerate launch`, whose own default is "no".
        mixed_precision=None if arguments.mixed_precision == "no" else arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        # `--train_batch_size` is that of all processes together.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=arguments.log_with or None,
        project_dir=str(folder.partial / "trackers"),
        kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=LONGEST_WAIT)],
    )
    # With `--dynamo_backend` Accelerate allows TF32, in which the nearest code may be another one.
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    _check_launch(accelerator)
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


def _check_launch(accelerator: Accelerator) -> None:
    """Refuses processes that do not know of each other: all would write the same folder."""
    kind, launched = accelerator.distributed_type, os.environ.get("WORLD_SIZE", "1")
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"training through Accelerate's {kind.value} does not work here: the codebook would differ from process "
            "to process. DistributedDataParallel does (`accelerate launch --multi_gpu`); without a TPU, "
            "USE_TORCH_XLA=0 keeps Accelerate from taking torch_xla."
        )
    if launched != str(accelerator.num_processes):
        raise ValueError(
            f"WORLD_SIZE={launched} processes were launched, but Accelerate found no device for them to train "
            f"together on and would train {launched} times alone: ACCELERATE_USE_CPU=true trains on CPUs."
        )


def check_shared_folder(accelerator: Accelerator, folder: RunFolder) -> None:
    """Finds out whether all processes see the folder that the first one writes; called by all, once it exists.

    Raises:
        ValueError: on all processes, if one does not, as on a machine that has no share of the file system.
    """
    # A name that nobody can have looked up before: what a file system over the network remembers cannot be wrong of it.
    (name,) = broadcast_object_list([f".seen-by-all-{secrets.token_hex(8)}"])
    record = folder.partial / name
    if accelerator.is_main_process:
        record.touch()
    accelerator.wait_for_everyone()
    until = time.monotonic() + SHARED_FOLDER_SECONDS
    while not record.exists() and time.monotonic() < until:
        time.sleep(0.1)
    here = f"{socket.gethostname()}:{record.parent.absolute()}"
    places = gather_object([(here, record.exists())])
    if accelerator.is_main_process:
        record.unlink()
    blind = [
        f"process {number} in {place}" for number, (place, sees) in enumerate(places) if not sees
    ]
    if blind:
        raise ValueError(
            f"--output_dir {folder.output_dir} is not one folder for all processes: what process 0 wrote in "
            f"{places[0][0]} is not to be seen for {', '.join(blind)}. Give a path on a file system that all machines "
            "share."
        )


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM in the list it yields; a later one ends the process at once.

    What comes within a second of the first counts as the same: launchers pass on what their processes got as well.
    """
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda n, _frame: caught.append(n)) for number in numbers
    }
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_on_second, args=(reading, numbers), daemon=True)
    watcher.start()
    try:
        yield caught
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.set_blocking(writing, True)  # no handler writes any more, and the watcher makes room
        os.write(writing, bytes([NO_SIGNAL]))  # closing ends no pipe that forked workers have too
        watcher.join()
        os.close(writing)
        os.close(reading)


def _end_on_second(reading: int, numbers: tuple[int, ...]) -> None:
    """Ends the process at the second of the signals whose numbers arrive in a pipe; in a thread of its own.

    A handler would have to wait for the main thread, which may wait for another process.
    """
    first = None
    while (number := os.read(reading, 1)[0]) != NO_SIGNAL:
        now = time.monotonic()
        if number not in numbers:
            continue
        name = signal.Signals(number).name
        if first is None:
            first = now
            if is_first_process():
                line = f"\n{name}: saving a checkpoint after this step. A second signal ends the run at once."
                print(line, file=sys.stderr, flush=True)
        elif now - first > 1:
            if is_first_process():
                print(f"\n{name}: ended without a checkpoint.", file=sys.stderr, flush=True)
            os._exit(128 + number)


@contextmanager
def stopped_by_signals(written: Path, command: str) -> Iterator[None]:
    """Ends the process in good order where SIGINT or SIGTERM stops what is done within, with a line on how to go on.

    What it does where a disk is full or another process is gone is an `OSError` that says so. The exit status after a
    signal is 128 and its number.

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
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{error}. What was saved is whole: make room, and go on with --resume_from_checkpoint latest."
        ) from error
    except RuntimeError as error:
        # NCCL has a class for it; gloo names its own source file.
        of_gloo = "gloo/transport" in str(error)
        if not of_gloo and not isinstance(error, torch.distributed.DistError):
            raise
        raise ConnectionError(
            f"another process of this run has ended or does not answer; its own output says why. ({error})"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def message_of(error: Exception) -> str:
    """What an error says; without the traceback where torch hands on that of a process which decodes a stream."""
    text, name = str(error), type(error).__name__
    if not text.startswith(f"Caught {name} in DataLoader worker process"):
        return text
    return text.rpartition(f"{name}: ")[2].strip()


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
