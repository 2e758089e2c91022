"""Catch signals, and print the command that resumes a run."""

import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..command_line import is_first_process
from ..distributed import named_distributed_errors
from ..files import handle_stop_signals
from .run_directory import KEPT


class Interrupted(Exception):
    """A signal stopped training after a checkpoint was saved; of the number of the signal, and the checkpoint."""


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects the signals of [`handle_stop_signals`] in the list it yields; a second one ends the process at once.

    Signals within a second of the first count as one: a launcher forwards a signal that its processes receive too.
    """
    caught: list[int] = []
    first = 0.0

    def catch(number: int, _frame: Any) -> None:
        nonlocal first
        name = signal.Signals(number).name
        if not caught:
            caught.append(number)
            first = time.monotonic()
            say(f"{name}: saving a checkpoint after this step. A second signal ends the run at once.")
        elif time.monotonic() - first > 1:
            say(f"{name}: ended without a checkpoint.")
            os._exit(128 + number)

    def say(text: str) -> None:
        if is_first_process():
            os.write(2, f"\n{text}\n".encode())  # not `print`, which the signal may have interrupted

    with handle_stop_signals(catch):
        yield caught


@contextmanager
def exit_on_signals(written: Path, command: str) -> Iterator[None]:
    """Exits with status 128 + number when one of [`handle_stop_signals`] stops the block, and prints how to resume.

    Args:
        written: a path that exists once there is something to resume.
        command: the command that resumes it.

    Raises:
        OSError: with the way out, if the disk is full or another process has ended.
    """

    def interrupt(number: int, _frame: Any) -> None:
        raise KeyboardInterrupt(number)

    try:
        with handle_stop_signals(interrupt), named_distributed_errors():
            yield
    except (Interrupted, KeyboardInterrupt) as error:
        number, *checkpoints = error.args or (signal.SIGINT,)
        saved = "".join(f"; saved {path}" for path in checkpoints)
        if is_first_process():
            way_out = f"Go on with:\n  {command}" if written.exists() else "Nothing had been written yet."
            print(f"\nThe run was stopped by {signal.Signals(number).name}{saved}. {way_out}", file=sys.stderr)
        sys.exit(128 + number)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"{error}. {KEPT}") from error


def same_command(*more: str) -> str:
    """Returns the command line of this process, with the launcher's flags that matter, and `more` at its end."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    # The last flag of a name counts.
    words = sys.argv if sys.argv[len(sys.argv) - len(more) :] == list(more) else [*sys.argv, *more]
    if int(os.environ.get("LOCAL_WORLD_SIZE", processes)) != processes:
        return f"accelerate launch [on each machine, as before] {shlex.join(words)}"
    launched = ["--num_processes", str(processes)] if processes > 1 else []
    for flag in ("mixed_precision", "dynamo_backend"):
        value = os.environ.get(f"ACCELERATE_{flag.upper()}", "no").lower()
        launched += [f"--{flag}", value] if value != "no" else []
    if launched:
        return shlex.join(["accelerate", "launch", *launched, *words])
    python = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv)]  # as typed
    return shlex.join([*python, *words])
