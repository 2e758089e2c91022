"""Distributed setup and cross-process consistency checks."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from .arguments import TrainingArguments
from .files import keep_freed_memory, read_json

# Timeout of collective operations. While the main process downloads a dataset or writes the card, the others wait, and
# the default of 10 minutes on GPUs would end them. A process that dies ends the waiting at once.
LONGEST_WAIT = timedelta(hours=12)
# A network file system may show late what another machine wrote: NFS refreshes its cache after 30 to 60 seconds.
SHARED_FOLDER_SECONDS = 60.0


def available_memory(of_process: str = "/proc/self/cgroup", groups: str = "/sys/fs/cgroup") -> int:
    """Returns the bytes that can still be taken on this machine, or in its container, pod or SLURM job if that is less.

    Linux shows the control groups of this process in the file `of_process`, and those of all in the folder `groups`.
    """
    kinds = {  # cgroup v2 and v1: where, limit and use
        "": (groups, "memory.max", "memory.current"),
        "memory": (f"{groups}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    }
    available = psutil.virtual_memory().available
    lines = Path(of_process).read_text().splitlines() if Path(of_process).exists() else ()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in kinds:
            continue
        root, limit, used = kinds[kind]
        # A container may see its name outside; then the limit is that of the root.
        for group in (Path(root + name), *Path(root + name).parents):
            with suppress(OSError, ValueError):  # no such group, or no limit
                free = int((group / limit).read_text()) - int((group / used).read_text())
                rows = (group / "memory.stat").read_text().splitlines()
                stat = dict(row.split() for row in rows)
                for cache in ("active_file", "inactive_file"):  # can be dropped
                    free += int(stat.get(f"total_{cache}", stat.get(cache, 0)))
                available = min(available, free)
    return max(0, available)


def make_accelerator(arguments: TrainingArguments, folder: Path) -> Accelerator:
    """Makes the `Accelerator` of a run.

    Raises:
        ValueError: if a tracker is not installed, the device does not support the precision, the processes cannot
            share a batch evenly, or the kind of launch is not supported.
    """
    accelerator = init_distributed(
        # "no" leaves the choice to `accelerate launch`, whose own default is "no".
        mixed_precision=None if arguments.mixed_precision == "no" else arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        # `--train_batch_size` is that of all processes together.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=arguments.log_with or None,
        project_dir=str(folder / "trackers"),
    )
    for name in set(arguments.log_with) - {str(one) for one in get_available_trackers()}:
        # Accelerate would only log it.
        raise ValueError(
            f"--log_with {name}: the package is not installed: `pip install {name}`, or leave the flag out."
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


def init_distributed(**options: Any) -> Accelerator:
    """Makes the `Accelerator` of this process and those launched with it, with a long timeout; `options` are its own.

    Raises `ValueError` if the kind of launch is not supported.
    """
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    waiting = InitProcessGroupKwargs(backend=None, timeout=LONGEST_WAIT)
    accelerator = Accelerator(kwargs_handlers=[waiting], **options)
    # With `--dynamo_backend` Accelerate allows TF32, which can change which codebook vector is nearest.
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    kind, launched = accelerator.distributed_type, os.environ.get("WORLD_SIZE", "1")
    # A codebook is updated in place: with two processes, FSDP 1 fails at that, and FSDP 2 silently drops the update.
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"training through Accelerate's {kind.value} does not work here: the codebook would differ from process "
            "to process. DistributedDataParallel does (`accelerate launch --multi_gpu`); without a TPU, "
            "USE_TORCH_XLA=0 keeps Accelerate from taking torch_xla."
        )
    # Processes that do not form one group would all write the same folder.
    if launched != str(accelerator.num_processes):
        raise ValueError(
            f"WORLD_SIZE={launched} processes were launched, but Accelerate found no device for them to work "
            f"together on, and each would do all of the work alone: ACCELERATE_USE_CPU=true takes CPUs."
        )
    return accelerator


def check_shared(record: Path, info: dict[str, Any]) -> None:
    """Raises `ValueError` if the main process's `record` of its data is not visible, or of other data than `info`."""
    until = time.monotonic() + SHARED_FOLDER_SECONDS
    while not record.exists() and time.monotonic() < until:
        time.sleep(0.1)
    if not record.exists() or read_json(record)["fingerprint"] != info["fingerprint"]:
        raise ValueError(
            f"{socket.gethostname()} does not find in {record.absolute()} the data that it has read itself. All "
            "machines need the same dataset, of the Hub at one --dataset_revision, and an --output_dir that they share."
        )


def run_on_main_process(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Runs `action` on the main process and returns its result on all processes. Called by all.

    An exception of `action` is a `ValueError` with its message on the other processes.
    """
    result, error, message = None, None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as failure:  # of any kind, or the others would wait forever
            error, message = failure, str(failure) or type(failure).__name__
    with named_distributed_errors():
        result, message = broadcast_object_list([result, message])
    if error is not None:
        raise error
    if message is not None:
        raise ValueError(message)
    return result


@contextmanager
def named_distributed_errors() -> Iterator[None]:
    """Raises one `ConnectionError` for the errors by which libraries report that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        # NCCL has a class for it; gloo names its own source file.
        of_gloo = "gloo/transport" in str(error)
        if not of_gloo and not isinstance(error, torch.distributed.DistError):
            raise
        raise ConnectionError(
            f"another process of this run has ended or does not answer; its own output says why. ({error})"
        ) from error
