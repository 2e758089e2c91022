"""The folder of a run: unfinished under one name, complete under another, with checkpoints that are whole or absent."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNFINISHED = ".partial"
# Flags that may be others when a run is resumed: these change no number of it,
HARMLESS = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "cache_dir"}
HARMLESS |= {"checkpointing_steps", "checkpoints_total_limit", "logging_steps", "log_with"}
HARMLESS |= {"push_to_hub", "hub_model_id", "hub_private", "hub_revision", "hub_create_pr"}
HARMLESS |= {"hub_commit_message", "hub_license", "eval_batch_size", "num_eval_samples"}
# and these are what a run that diverged needs.
CHANGEABLE = {"learning_rate", "prior_learning_rate", "max_grad_norm", "mixed_precision"}


@dataclass(frozen=True)
class RunFolder:
    """`output_dir` of a run.

    All work is done in `output_dir.partial`, which is renamed to `output_dir` when the run is complete: a folder of
    that name holds a whole run.

    Args:
        output_dir: where the finished run is to be.
    """

    output_dir: Path

    @property
    def partial(self) -> Path:
        """Folder of the unfinished run."""
        return self.output_dir.with_name(self.output_dir.name + UNFINISHED)

    @property
    def checkpoints(self) -> Path:
        """Folder of the unfinished run's checkpoints."""
        return self.partial / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Whether a complete run lies in `output_dir`."""
        return (self.output_dir / "metrics.json").is_file()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Finds out, before any work, whether a run may be written here.

        Args:
            resume: go on with the unfinished run.
            overwrite: what is in the way may be replaced; an unfinished run only if it is not to be resumed.

        Raises:
            ValueError: if the folder has no fit name, another run is in the way, or there is none to resume; with the
                ways out.
        """
        name = self.output_dir.name
        if name in ("", "..") or name.endswith(UNFINISHED):
            raise ValueError(
                f"--output_dir {self.output_dir} must name the folder that the finished run is to have, which cannot "
                f"end in `..` or `{UNFINISHED}`: for example outputs/mnist."
            )
        if resume and not self.partial.is_dir():
            raise ValueError(
                f"there is no unfinished run {self.partial} to resume: leave out --resume_from_checkpoint."
            )
        if overwrite:
            return
        if self.output_dir.exists() and (
            not self.output_dir.is_dir() or any(self.output_dir.iterdir())
        ):
            raise ValueError(
                f"{self.output_dir} exists and is not empty: choose another --output_dir, or replace it with "
                "--overwrite_output_dir."
            )
        if not resume and self.partial.exists():
            raise ValueError(
                f"{self.partial} holds an unfinished run: go on with --resume_from_checkpoint latest, choose another "
                "--output_dir, or discard it with --overwrite_output_dir."
            )

    def check_same_run(self, wanted: str, flags: dict[str, Any]) -> list[str]:
        """Finds out whether the unfinished run can go on from `wanted` ("latest" or a checkpoint folder) with `flags`.

        Returns:
            The flags that are other than before and will act from here on, in words.

        Raises:
            ValueError: if `wanted` is no checkpoint of this run, or another flag than those differs.
        """
        saved = list_checkpoints(self.checkpoints)
        if wanted != "latest" and Path(wanted).resolve() not in [path.resolve() for path in saved]:
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: no whole checkpoint of the run {self.partial} is there. Use "
                f"`latest`{f', or one of {_listed(saved)}' if saved else ''}."
            )
        record = self.partial / "arguments.json"
        if not record.exists():  # the run was stopped before its first step
            return []
        before = read_json(record)
        free = HARMLESS | CHANGEABLE
        if (self.partial / "vqvae").exists():
            free = free - {"learning_rate"}
        other = {
            name: f"--{name} was {_spelled(before[name])}, not {_spelled(value)}"
            for name, value in flags.items()
            if name in before and json.dumps(before[name]) != json.dumps(value)
        }
        wrong = [text for name, text in other.items() if name not in free]
        if wrong:
            raise ValueError(
                f"{self.partial} is a run with other flags: {', '.join(wrong)}. Give the same as then to go on with "
                "it, or choose another --output_dir."
            )
        return [text for name, text in other.items() if name in CHANGEABLE]

    def check_same_data(self, info: dict[str, Any]) -> None:
        """Finds out whether the unfinished run was on the data that `info`, of [`ImageSplits`], describes.

        Raises:
            ValueError: if something is other than then.
        """
        record = self.partial / "data.json"
        if not record.exists():  # stopped before its first step
            return
        before = read_json(record)
        # The same pixels and labels may have come another way, as out of a cache without the Hub.
        if before["fingerprint"] != info["fingerprint"]:
            other = [
                f"{name} was {_spelled(before.get(name))}, is {_spelled(value)}"
                for name, value in info.items()
                if before.get(name) != value
            ]
            raise ValueError(
                f"{self.partial} was trained on other data: {', '.join(other)}. Give it back the data it had "
                "(--dataset_revision for a dataset on the Hub), or choose another --output_dir."
            )

    def start(self, *, resume: bool) -> None:
        """Makes the working folder, empty unless resuming."""
        if not resume and self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)

    def finish(self) -> None:
        """Gives the complete run its name; what it replaces, and what only resuming needed, goes only then."""
        old = self.output_dir.with_name(self.output_dir.name + ".replaced")
        if self.output_dir.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a session that was killed just here
            os.rename(self.output_dir, old)
        os.rename(self.partial, self.output_dir)
        for path in (old, *(self.output_dir / name for name in ("checkpoints", "vqvae", "full"))):
            shutil.rmtree(path, ignore_errors=True)
        for name in ("seconds.json", "data.json"):
            (self.output_dir / name).unlink(missing_ok=True)

    def checkpoint_to_resume(self, wanted: str, stage: str) -> Path | None:
        """The checkpoint of `stage` that `wanted` ("latest" or a folder) means; None where the stage has none yet."""
        saved = list_checkpoints(self.checkpoints, stage)
        if wanted == "latest":
            return saved[-1] if saved else None
        named = [path for path in saved if path.resolve() == Path(wanted).resolve()]
        return named[0] if named else None


def list_checkpoints(folder: Path, stage: str = "") -> list[Path]:
    """Whole checkpoints in `folder`, of `stage` or of any, in the order of saving. Their names are `stage-step`."""
    # Not by a glob: its `*` matches the dot that marks what is not whole.
    name = re.compile(rf"{stage or '[a-z]+'}-[0-9]+")
    found = [path.parent for path in folder.glob("*/state.json")]
    found = sorted(path for path in found if name.fullmatch(path.name))
    return sorted(found, key=_number)


def discard_checkpoints(folder: Path, stage: str, from_step: int = 0) -> None:
    """Deletes the checkpoints of `stage` from a step on."""
    for path in list_checkpoints(folder, stage):
        if int(path.name.rpartition("-")[2]) >= from_step:
            _discard(path)


def save_checkpoint(accelerator, folder: Path, state: dict[str, Any], limit: int) -> Path:
    """Writes what `accelerator` has prepared and registered, and `state`, as `folder/stage-step`; keeps `limit`.

    Called by all processes. The folder is written under another name and renamed when whole.
    """
    name = f"{state['stage']}-{state['step']}"
    writing = folder / f".writing-{name}"
    if accelerator.is_main_process:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(writing))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        numbers = [_number(path) for path in list_checkpoints(folder)]
        state["number"] = 1 + max(
            (number for number in numbers if number < float("inf")), default=0
        )
        state["files"] = _digests(writing)
        write_json(writing / "state.json", state)
        for path in writing.rglob("*"):
            if path.is_file():
                _sync(path)
        replaced = _hide(folder / name) if (folder / name).exists() else None
        os.rename(writing, folder / name)
        if replaced:
            shutil.rmtree(replaced, ignore_errors=True)
        for old in list_checkpoints(folder)[:-limit]:
            _discard(old)
    accelerator.wait_for_everyone()
    return folder / name


def load_checkpoint(accelerator, folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint into what `accelerator` has prepared and registered; returns its `state`.

    Raises:
        ValueError: if its files are damaged, or it is of a model or run with another `identity`.
    """
    try:
        state = read_json(folder / "state.json")
        there, here = (json.loads(json.dumps(value)) for value in (state["identity"], identity))
        other = [
            f"{key} {there.get(key)} there, {here.get(key)} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
            and key not in ("transformers_version", "_name_or_path")
        ]
        if other:
            raise ValueError(f"it is of another model or run ({', '.join(other)})")
        digests = _digests(folder)
        damaged = [name for name in state["files"] if digests.get(name) != state["files"][name]]
        if damaged:
            raise ValueError(f"{', '.join(damaged)} are damaged or missing")
        accelerator.load_state(str(folder))
    except Exception as error:  # whatever a damaged file makes its reader raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot resume from the checkpoint {folder}: {reason}. Remove that folder to go on from the one before "
            "it, or start anew with --overwrite_output_dir."
        ) from error
    return state


def _number(checkpoint: Path) -> float:
    """How many were saved before it; one that cannot be read is the last, so that it is not passed over silently."""
    try:
        return read_json(checkpoint / "state.json")["number"]
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


def _discard(checkpoint: Path) -> None:
    """Deletes a checkpoint in such a way that it is never seen in part."""
    shutil.rmtree(_hide(checkpoint), ignore_errors=True)


def _hide(checkpoint: Path) -> Path:
    hidden = checkpoint.with_name(f".discarded-{checkpoint.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    return checkpoint.rename(hidden)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files but `state.json`, by their names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    names.pop("state.json", None)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file beside its place and renames it, so that it is never half a file."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(writing)
    os.replace(writing, path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
