"""Lock a run directory, so that one run at a time writes it."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from ..distributed import run_on_main_process
from ..files import skip_unsupported


@contextmanager
def locked_together(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Holds the lock of `folder` on the main process; `ValueError` on all if another run holds it. Called by all."""
    with ExitStack() as held:
        run_on_main_process(accelerator, lambda: held.enter_context(locked(folder)))
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`, a hidden file beside it that names the process.

    The lock ends with the process, however that ends. On a file system without locks there is none.

    Raises:
        ValueError: if another process holds it.
    """
    place = Path(os.path.realpath(folder))  # one lock for all names of a folder
    path = place.parent / f".{place.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        with skip_unsupported():
            lock.acquire(blocking=False)
    except Timeout:
        holder = "another process"
        with suppress(OSError):  # Windows lets no other process read it
            holder = path.read_text("utf-8") or holder
        raise ValueError(
            f"{holder} is writing the run {folder}: wait until it has ended, or choose another --output_dir."
        ) from None
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        with suppress(OSError):  # while it is held, where the system can: a waiting process makes a new one
            path.unlink()
        lock.release()
