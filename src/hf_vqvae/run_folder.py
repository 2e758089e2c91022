"""The folder of a run: unfinished under one name, complete under another, with checkpoints that are whole or absent."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNFINISHED = ".partial"


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

        Raises:
            ValueError: if another run is in the way, or there is none to resume; with the ways out.
        """
        if overwrite:
            return
        if self.output_dir.exists() and (
            not self.output_dir.is_dir() or any(self.output_dir.iterdir())
        ):
            raise ValueError(
                f"{self.output_dir} exists and is not empty: choose another --output_dir, or replace it with "
                "--overwrite_output_dir."
            )
        if resume and not self.partial.is_dir():
            raise ValueError(
                f"there is no unfinished run {self.partial} to resume: leave out --resume_from_checkpoint."
            )
        if not resume and self.partial.exists():
            raise ValueError(
                f"{self.partial} holds an unfinished run: go on with --resume_from_checkpoint latest, choose another "
                "--output_dir, or discard it with --overwrite_output_dir."
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
            os.rename(self.output_dir, old)
        os.rename(self.partial, self.output_dir)
        for path in (old, *(self.output_dir / name for name in ("checkpoints", "vqvae", "full"))):
            shutil.rmtree(path, ignore_errors=True)
        (self.output_dir / "seconds.json").unlink(missing_ok=True)

    def checkpoint_to_resume(self, wanted: str, stage: str) -> Path | None:
        """The checkpoint of `stage` that `wanted` ("latest" or a folder) means; None where the stage has none yet.

        Raises:
            ValueError: if a named folder is no whole checkpoint of this run.
        """
        if wanted == "latest":
            saved = list_checkpoints(self.checkpoints, stage)
            return saved[-1] if saved else None
        folder = Path(wanted)
        if not (folder / "state.json").is_file():
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: no whole checkpoint is there (no state.json). "
                f"Use `latest`, or one of {', '.join(map(str, list_checkpoints(self.checkpoints)))}."
            )
        return folder if read_json(folder / "state.json")["stage"] == stage else None


def list_checkpoints(folder: Path, stage: str = "") -> list[Path]:
    """Whole checkpoints in `folder`, of `stage` or of any, the oldest first. Their names are `stage-step`."""
    found = [path for path in folder.glob(f"{stage}*-*") if (path / "state.json").is_file()]
    return sorted(
        found, key=lambda path: (path.stat().st_mtime_ns, int(path.name.rsplit("-", 1)[1]))
    )


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
        write_json(writing / "state.json", state)
        for path in writing.rglob("*"):
            if path.is_file():
                _sync(path)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.rename(writing, folder / name)
        for old in list_checkpoints(folder)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder / name


def load_checkpoint(accelerator, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint into what `accelerator` has prepared and registered; returns its `state`.

    Raises:
        ValueError: if it is of a model with another config, or its files are damaged.
    """
    try:
        state = read_json(folder / "state.json")
        saved = state["config"]
        other = [key for key in config if json.dumps(config[key]) != json.dumps(saved.get(key))]
        if other:
            differences = ", ".join(
                f"{key} {saved.get(key)} there, {config[key]} here" for key in other
            )
            raise ValueError(f"it is of another model ({differences})")
        accelerator.load_state(str(folder))
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(
            f"cannot resume from the checkpoint {folder}: {error}. Remove that folder to go on from the one before it, "
            "or start anew with --overwrite_output_dir."
        ) from error
    return state


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
