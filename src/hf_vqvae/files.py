"""Atomic writes: a file is complete or absent, whatever stops the process; and what differs between systems."""

import ctypes
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# Errors of calls that a file system does not have, as many a network share.
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `ValueError` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore that file, or start again with --overwrite_output_dir."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    atomic_replace(writing, path)


def atomic_replace(writing: Path, place: Path) -> None:
    """Flushes a file or folder to disk and renames it to `place`, which may be an existing file, but no folder."""
    for path in (*writing.rglob("*"), writing):
        sync(path)
    os.replace(writing, place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Flushes a file or folder to disk, where the system and the file system can."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        with skip_unsupported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def skip_unsupported() -> Iterator[None]:
    """Suppresses an `OSError` of a call that the file system does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def remove(path: Path) -> None:
    """Removes a file, link or folder; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def atomic_remove(path: Path, aside: Path) -> None:
    """Removes `path` atomically by renaming it to `aside` first; also removes what an earlier call left there."""
    remove(aside)
    if os.path.lexists(path):
        os.rename(path, aside)
    remove(aside)


@contextmanager
def writing_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Raises one `OSError`, with the free space and `kept`, for any error of a library that cannot write `path`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch's and safetensors' own errors do not say why; the free space often does.
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(f"cannot write {path}: {reason}. {free:,.0f} MiB are free there. {kept}".rstrip()) from error


@contextmanager
def handle_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Lets `handler` handle the signals that ask a process to stop, except ignored ones, as SIGHUP is under `nohup`."""
    # Of a closed terminal and of SLURM are the last two, which Windows lacks.
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of a step's large tensors for the next step.

    Returning it to the system, the default, costs page faults: a quarter of the time of a step of the default VQ-VAE.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
