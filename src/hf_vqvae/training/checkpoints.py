"""Write, validate and load checkpoints atomically."""

import hashlib
import json
import math
import random
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, load
from safetensors.torch import load_model, save_model
from torch import nn

from ..files import atomic_remove, atomic_replace, read_json, write_json, writing_errors
from ..models.hub_mixin import follow_umask

# Keys of a config on which no weight depends.
IGNORED = {"transformers_version", "_name_or_path", "class_frequencies"}


def list_checkpoints(folder: Path, stage: str = "") -> list[Path]:
    """Lists the checkpoints `<stage>-<step>` in `folder`, of one stage or of all, in the order of saving.

    That is not the order of their steps if a run was resumed from an earlier one, or with larger batches.
    """
    # An incomplete one has a dot before its name.
    name = re.compile(rf"{stage or '[a-z]+'}-[0-9]+")
    found = folder.iterdir() if folder.is_dir() else ()
    saved = (path for path in found if name.fullmatch(path.name))
    return sorted(saved, key=lambda path: (_number(path), int(path.name.rpartition("-")[2])))


def discard_checkpoints(checkpoints: Iterable[Path]) -> None:
    """Deletes checkpoints atomically."""
    for path in checkpoints:
        atomic_remove(path, path.with_name(f".discarded-{path.name}"))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, state: dict[str, Any], limit: int, models: Mapping[str, nn.Module] = {}
) -> Path:
    """Saves what `accelerator` has prepared, `state` and `models` as `folder/<stage>-<step>`.

    Called by all processes. The last `limit` checkpoints are kept.

    Args:
        models: copies of the model with other weights, such as the moving average, by name.

    Raises:
        OSError: on all processes, if one of them cannot write; the checkpoints before it stay.
    """
    name = f"{state['stage']}-{state['step']}"
    writing, place = folder / f".writing-{name}", folder / name

    def make_folder() -> None:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)

    def complete() -> None:
        for name, model in models.items():  # not by Accelerate, which would read it back as any pickle
            save_model(model, str(writing / f"{name}.safetensors"))
        follow_umask(writing)
        saved = [_number(path) for path in list_checkpoints(folder)]
        state["number"] = 1 + int(max(filter(math.isfinite, saved), default=0))
        state["files"] = _digests(writing)
        write_json(writing / "state.json", state | {"digest": _digest_of(state)})
        discard_checkpoints([place])
        atomic_replace(writing, place)
        # Those with a damaged record are not counted.
        kept = [path for path in list_checkpoints(folder) if math.isfinite(_number(path))]
        discard_checkpoints(kept[:-limit])

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
    """Runs `action`, if any, and waits for the other processes; a failure of one is raised on all."""
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
    """Chooses the last of `candidates` that is undamaged and of this run, and prints why others are not taken.

    Called by all processes.

    Args:
        identity: what a checkpoint must have in common with the stage that resumes from it.
        changeable: keys of `identity` that may differ with `with_changes`.

    Returns:
        None if there is none, or only damaged ones: the stage then starts from the beginning.

    Raises:
        ValueError: if all undamaged ones are of another run or were made with other settings.
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
        accelerator.print(f"The checkpoint {place} is skipped: {fault}.")
    if faults:
        start = f"Resuming from {chosen}" if chosen else "The stage starts from the beginning"
        accelerator.print(f"{start}.")
    return chosen


def load_checkpoint(accelerator: Accelerator, folder: Path, models: Mapping[str, nn.Module] = {}) -> dict[str, Any]:
    """Loads a checkpoint into what `accelerator` has prepared and into `models`; returns its `state`.

    Raises `ValueError` if its content does not fit.
    """
    try:
        accelerator.load_state(str(folder))
        _load_random_state(folder, accelerator.process_index)
        for name, model in models.items():
            if (folder / f"{name}.safetensors").exists():  # an average that is new starts with the weights
                load_model(model, str(folder / f"{name}.safetensors"))
    except Exception as error:  # whatever its readers raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(
            f"cannot resume from the checkpoint {folder}: {reason}. Remove that folder to resume from the one before "
            "it, or start again with --overwrite_output_dir."
        ) from error
    return read_json(folder / "state.json")


def _load_random_state(folder: Path, process: int) -> None:
    """Restores the random number generators; Accelerate only logs where it could not."""
    own = folder / f"random_states_{process}.pkl"
    # All processes draw the same numbers: a process without a file takes that of the first.
    states = load(own if own.exists() else folder / "random_states_0.pkl")
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])


def _examine(
    checkpoint: Path, identity: dict[str, Any], changeable: Collection[str], with_changes: bool
) -> tuple[str | None, bool]:
    """Returns why a checkpoint cannot be resumed from (None if it can), and whether it is undamaged."""
    try:
        state = read_json(checkpoint / "state.json")
        digest = state.pop("digest")
        saved, files = dict(state["identity"]), dict(state["files"])
        found = _digests(checkpoint)
    except Exception as error:  # whatever a damaged record makes Python raise
        return f"its files cannot be read ({type(error).__name__})", False
    if digest != _digest_of(state):
        return "its state.json is damaged", False
    damaged = [name for name in files if found.get(name) != files[name]]
    if damaged:
        return f"{', '.join(damaged)} damaged or missing", False
    current = json.loads(json.dumps(identity))
    keys = sorted((saved.keys() | current.keys()) - IGNORED)
    other = [key for key in keys if saved.get(key) != current.get(key)]
    fixed = [key for key in other if key not in changeable]
    if not other or (with_changes and not fixed):
        return None, True
    listed = ", ".join(f"{key} {saved.get(key)} there, {current.get(key)} here" for key in other)
    if fixed:
        return f"it is of another model or run ({listed})", True
    way_out = "so the result would differ; --resume_with_changes resumes it"
    return f"it was made with other settings ({listed}), {way_out}", True


def _number(checkpoint: Path) -> float:
    """Returns how many checkpoints were saved before; infinity if the record cannot be read."""
    try:
        return float(read_json(checkpoint / "state.json")["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf


def _digest_of(state: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's state.json without the digest itself."""
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files except `state.json`, by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    names.pop("state.json", None)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}
