"""Files that are whole or absent, whatever stops the process that writes them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: if it is damaged; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore that file, or start what it belongs to anew with "
            "--overwrite_output_dir."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file beside its place and renames it, so that it is never half a file."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    atomic_replace(writing, path)


def atomic_replace(writing: Path, place: Path) -> None:
    """Gives what was written under another name its own, once the disk has all of it, and waits for that too.

    Args:
        writing: a file, or a folder with all that is in it.
        place: a file there is replaced; a folder must not be there.
    """
    sync(writing)
    os.replace(writing, place)
    _sync_one(place.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, as far as it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def atomic_remove(path: Path, aside: Path) -> None:
    """Removes `path` in such a way that it is never seen in part, as `aside`; also what was left there earlier."""
    remove(aside)
    if os.path.lexists(path):
        os.rename(path, aside)
    remove(aside)


def sync(path: Path) -> None:
    """Waits until the disk has a file, or a folder with all that is in it."""
    if path.is_dir():
        for child in path.rglob("*"):
            _sync_one(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders, and needs no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_file_errors(path: Path) -> Iterator[None]:
    """Makes an `OSError` that names the flag of every one that says that its file cannot be written."""
    try:
        yield
    except OSError as error:
        # Without the name that the file has while it is written.
        reason = error.strerror or error
        raise OSError(f"cannot write `--output_file` {path}: {reason}.") from error


@contextmanager
def writing_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Makes one clear `OSError` of the many errors by which libraries say that `path` cannot be written.

    Args:
        kept: what is safe, for the message.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch's and safetensors' own errors do not say why; the room that is left often does.
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"cannot write {path}: {reason}. {free:,.0f} MiB are free there. {kept}".rstrip()
        ) from error
