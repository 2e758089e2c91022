"""A lock on the folder of a run: two runs that write it at the same time would mix."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator

from ..distributed import run_on_main_process

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


@contextmanager
def locked_together(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Lets the main process hold the lock of `folder` while all processes do what is within.

    Raises:
        ValueError: on all processes, if a process of another run holds it.
    """
    with ExitStack() as held:
        run_on_main_process(accelerator, lambda: held.enter_context(locked(folder)))
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`, which is that of a hidden file beside it, and removes the file at the end.

    It ends with the process, whatever ends that: the file that a killed one leaves is in nobody's way. On file systems
    without such locks nothing is held.

    Raises:
        ValueError: if another process holds it.
    """
    place = Path(os.path.realpath(folder))  # one lock for all names of a folder
    path = place.parent / f".{place.name}.lock"
    made = [parent for parent in path.parents if not parent.exists()]
    descriptor = None if fcntl is None else _open_locked(path, folder)
    try:
        yield
    finally:
        if descriptor is not None:
            if _is_at(descriptor, path):
                path.unlink()  # while it is locked: who waits for it finds out that it is gone
            os.close(descriptor)
        for parent in made:
            with suppress(OSError):  # there may be a run in it now
                parent.rmdir()


def _open_locked(path: Path, folder: Path) -> int | None:
    """A descriptor of the file `path`, locked; None where there are no locks."""
    for _ in range(1000):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process removed the empty folder between the two
            continue
        except OSError:
            return None  # what the run is to write cannot be written either, and says so better
        try:
            # Not `flock`, whose locks are inherited by the processes that decode a stream, and outlive this one.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ValueError(
                f"{holder} is writing the run {folder}: wait until it has ended, or choose another --output_dir."
            ) from None
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        if _is_at(descriptor, path):
            with suppress(OSError):  # the disk is full: it is locked all the same
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # of a run that ended just now
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
