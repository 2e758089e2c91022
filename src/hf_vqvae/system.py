"""Calls that differ between operating systems and file systems."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Signals that ask a process to stop. Of a closed terminal and of SLURM are the last two, which Windows lacks.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
# Errors of calls that a file system does not have, as many a network share.
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


def stop_signals() -> list[signal.Signals]:
    """Returns those of `STOP_SIGNALS` that are not ignored, as SIGHUP is under `nohup`."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def skip_unsupported() -> Iterator[None]:
    """Suppresses an `OSError` of a call that the file system does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


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


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of a step's large tensors for the next step.

    Returning it to the system, the default, costs page faults: a quarter of the time of a step of the default VQ-VAE.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
