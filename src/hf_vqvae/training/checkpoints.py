"""Checkpoints of a run: whole or absent, and recognised when they are not what they should be."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, load
from safetensors.torch import load_model, save_model
from torch import nn

from ..files import atomic_remove, atomic_replace, read_json, write_json, writing_errors

AVERAGE = "average.safetensors"
READ = (".safetensors", ".bin", ".pkl", ".pt")
NO_MATTER = ("transformers_version", "_name_or_path")


def list_checkpoints(folder: Path, stage: str = "") -> list[Path]:
    """Checkpoints in `folder`, of `stage` or of any, in the order of saving.

    Their names are `stage-step`, or `stage-step+` of one that was to replace another when the run was killed.
    """
    # What is not whole has a dot before its name.
    name = re.compile(rf"{stage or '[a-z]+'}-[0-9]+\+?")
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if name.fullmatch(path.name)), key=_order)


def discard_checkpoints(checkpoints: Iterable[Path]) -> None:
    """Deletes checkpoints, or what has their names, in such a way that they are never seen in part."""
    for path in checkpoints:
        atomic_remove(path, path.with_name(f".discarded-{path.name}"))


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    state: dict[str, Any],
    limit: int,
    average: nn.Module | None = None,
) -> Path:
    """Writes what `accelerator` has prepared, `state` and `average` as `folder/stage-step`; keeps `limit`.

    Called by all processes. The folder is written under another name and renamed when the disk has it.

    Args:
        average: the moving average of the weights, if there is one.

    Raises:
        OSError: on all processes, if one of them cannot write; the checkpoints before it stay.
    """
    name = f"{state['stage']}-{state['step']}"
    writing, place = folder / f".writing-{name}", folder / name

    def make_folder() -> None:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)

    def complete() -> None:
        if average is not None:
            # Not by Accelerate, which would read it back as any pickle.
            save_model(average, str(writing / AVERAGE))
        numbers = [_number(path) for path in list_checkpoints(folder)]
        state["number"] = 1 + max((n for n in numbers if n is not None), default=0)
        state["files"] = _digests(writing)
        write_json(writing / "state.json", state | {"digest": _digest_of(state)})
        if place.exists():  # which goes when the new one is in sight
            beside = place.with_name(f"{name}+")
            discard_checkpoints([beside])
            atomic_replace(writing, beside)
            discard_checkpoints([place])
            beside.rename(place)
        else:
            atomic_replace(writing, place)
        # One that cannot be read takes no other's place.
        readable = [path for path in list_checkpoints(folder) if _number(path) is not None]
        discard_checkpoints(readable[:-limit])

    main = accelerator.is_main_process
    try:
        _run_on_all_processes(accelerator, place, make_folder if main else None)
        _run_on_all_processes(accelerator, place, lambda: accelerator.save_state(str(writing)))
        _run_on_all_processes(accelerator, place, complete if main else None)
    except OSError:
        if main:
            shutil.rmtree(writing, ignore_errors=True)  # it takes room that may be what lacks
        raise
    return place


def _run_on_all_processes(accelerator: Accelerator, place: Path, action: Any) -> None:
    """Runs `action` and waits for the other processes; what fails on one of them fails on all."""
    error = None
    try:
        if action is not None:
            saved = list_checkpoints(place.parent)
            kept = f"The last checkpoint is {saved[-1]}" if saved else "There is no checkpoint yet"
            way_out = f"{kept}. Make room, and go on with --resume_from_checkpoint latest."
            with writing_errors(place, way_out):
                action()
    except OSError as failure:
        error = failure
    reasons = [reason for reason in gather_object([error and str(error)]) if reason]
    if reasons:
        raise OSError(reasons[0]) from error


def choose_checkpoint(
    accelerator: Accelerator,
    candidates: list[Path],
    identity: dict[str, Any],
    changeable: Collection[str],
    *,
    with_changes: bool,
) -> Path | None:
    """The last of `candidates` that is whole and of this run; those passed over are named. Called by all processes.

    Args:
        identity: what a checkpoint has to have in common with the stage that goes on from it.
        changeable: keys of `identity` that may differ with `with_changes`.

    Returns:
        None if there are none, or only damaged ones: the stage then starts anew.

    Raises:
        ValueError: if there are whole ones, but of another run or made with others of those.
    """
    chosen, faults = None, []
    if accelerator.is_main_process:
        for place in reversed(candidates):
            fault, is_whole = _examine(place, identity, changeable, with_changes)
            if fault is None:
                chosen = place
                break
            faults.append((place, fault, is_whole))
    chosen, faults = broadcast_object_list([chosen, faults])
    others = [(place, fault) for place, fault, is_whole in faults if is_whole]
    if chosen is None and others:
        raise ValueError("cannot resume from the checkpoint {}: {}.".format(*others[0]))
    for place, fault, _ in faults:
        accelerator.print(f"The checkpoint {place} is passed over: {fault}.")
    if faults:
        going_on = (
            f"going on from {chosen}" if chosen else "there is no other: the stage starts anew"
        )
        accelerator.print(f"{going_on[0].upper()}{going_on[1:]}.")
    return chosen


def load_checkpoint(
    accelerator: Accelerator, folder: Path, average: nn.Module | None = None
) -> dict[str, Any]:
    """Loads a whole checkpoint into what `accelerator` has prepared and into `average`; returns its `state`.

    Raises:
        ValueError: if something in it does not fit.
    """
    try:
        accelerator.load_state(str(folder))
        _load_random_state(folder, accelerator.process_index)
        # Without one in it, it starts with the weights.
        if average is not None and (folder / AVERAGE).exists():
            load_model(average, str(folder / AVERAGE))
    except Exception as error:  # whatever its readers raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(
            f"cannot resume from the checkpoint {folder}: {reason}. Remove that folder to go on from the one before "
            "it, or start anew with --overwrite_output_dir."
        ) from error
    return read_json(folder / "state.json")


def _load_random_state(folder: Path, process: int) -> None:
    """Accelerate has done so, but goes on without a word where it could not."""
    own = folder / f"random_states_{process}.pkl"
    # All processes draw the same numbers: one that was not there goes on as the first.
    states = load(own if own.exists() else folder / "random_states_0.pkl")
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])


def _examine(
    checkpoint: Path, identity: dict[str, Any], changeable: Collection[str], with_changes: bool
) -> tuple[str | None, bool]:
    """Why it cannot be gone on from, if so, and whether it is whole."""
    try:
        state = read_json(checkpoint / "state.json")
        digest = state.pop("digest")
        there, files, _ = dict(state["identity"]), dict(state["files"]), int(state["number"])
    except Exception as error:  # any content that is not what was saved
        return f"its state.json cannot be read ({type(error).__name__})", False
    if digest != _digest_of(state):
        return "its state.json is damaged", False
    try:
        found = _digests(checkpoint)
    except OSError as error:
        return f"its files cannot be read ({error})", False
    damaged = [name for name in files if found.get(name) != files[name]]
    if damaged:
        return f"{', '.join(damaged)} damaged or missing", False
    # Accelerate takes what it finds by its name.
    foreign = [name for name in sorted(found.keys() - files.keys()) if name.endswith(READ)]
    if foreign:
        return f"{', '.join(foreign)} not saved with it", False
    here = json.loads(json.dumps(identity))
    other = [
        key
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in NO_MATTER
    ]
    fixed = [key for key in other if key not in changeable]
    if not other or (with_changes and not fixed):
        return None, True
    listed = ", ".join(f"{key} {there.get(key)} there, {here.get(key)} here" for key in other)
    if fixed:
        return f"it is of another model or run ({listed})", True
    return (
        f"it was made with others ({listed}), so that the run would not end with the same bits; "
        "--resume_with_changes goes on all the same",
        True,
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2].rstrip("+"))


def _number(checkpoint: Path) -> int | None:
    """How many were saved before it; None if its record cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return int(read_json(checkpoint / "state.json")["number"])
    return None


def _order(checkpoint: Path) -> tuple[float, int]:
    """One that cannot be read comes last, so that it is not passed over without a word."""
    number = _number(checkpoint)
    return (float("inf") if number is None else number, _step(checkpoint))


def _digest_of(state: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's record."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files but `state.json`, by their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    names.pop("state.json", None)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}
