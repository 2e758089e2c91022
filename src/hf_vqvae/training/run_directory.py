"""Layout of a run directory: `<output_dir>.partial` while training, renamed to `output_dir` when complete."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..arguments import RunArguments
from ..files import atomic_remove, atomic_replace, read_json, remove, write_json
from .checkpoints import list_checkpoints

UNFINISHED = ".partial"
# End of the message of an error about a full disk.
KEPT = "What was saved is whole: make room, and go on with --resume_from_checkpoint latest."
# Flags without a value take that of the run that is resumed, which found it in its data.
FOUND = ("image_size", "num_channels", "validation_samples")
# Files that only resuming needs.
LEFTOVERS = ("checkpoints", "vqvae", "full", "seconds.json", "data.json", "run_id.json")
# Files that a killed process may have left.
LEFTOVERS += ("*.writing", "codes/*.writing")


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run: `<output_dir>.partial` until the run is complete, then `output_dir`."""

    output_dir: Path

    @property
    def partial(self) -> Path:
        """Directory of the unfinished run."""
        return self.output_dir.with_name(self.output_dir.name + UNFINISHED)

    @property
    def checkpoints(self) -> Path:
        """Directory of the unfinished run's checkpoints."""
        return self.partial / "checkpoints"

    def check_name(self) -> None:
        """Raises ValueError if `output_dir` cannot be the name of a finished run."""
        name = self.output_dir.name
        if name in ("", "..") or name.endswith(UNFINISHED):
            raise ValueError(
                f"--output_dir {self.output_dir} must name the folder that the finished run is to have, which cannot "
                f"end in `..` or `{UNFINISHED}`: for example outputs/mnist."
            )

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Checks, before any work, that a run may be written here.

        Args:
            overwrite: an existing run may be replaced; an unfinished one only if it is not to be resumed.

        Raises:
            ValueError: if the name is not usable, another run is in the way, or there is none to resume.
        """
        self.check_name()
        for place in (self.output_dir, self.partial):
            if place.is_symlink():
                raise ValueError(
                    f"{place} is a link, whose place the run would take: remove it, and name the folder itself as "
                    f"--output_dir, {str(place.resolve()).removesuffix(UNFINISHED)}, or another."
                )
        if resume and not self.partial.is_dir():
            raise ValueError(
                f"there is no unfinished run {self.partial} to resume: leave out --resume_from_checkpoint."
            )
        if overwrite:
            return
        if self.output_dir.exists() and (not self.output_dir.is_dir() or any(self.output_dir.iterdir())):
            raise ValueError(
                f"{self.output_dir} exists and is not empty: choose another --output_dir, or replace it with "
                "--overwrite_output_dir."
            )
        if not resume and self.partial.exists():
            raise ValueError(
                f"{self.partial} holds an unfinished run: go on with --resume_from_checkpoint latest, choose another "
                "--output_dir, or discard it with --overwrite_output_dir."
            )

    def check_same_run(self, wanted: str, flags: dict[str, Any], *, with_changes: bool) -> list[str]:
        """Checks that the unfinished run can be resumed from `wanted` ("latest" or a checkpoint folder) with `flags`.

        Returns the flags that differ, as text; `with_changes` allows those that no finished stage depends on.

        Raises:
            ValueError: if `wanted` is not a checkpoint of this run, or a flag differs that may not.
        """
        saved = list_checkpoints(self.checkpoints)
        if wanted != "latest" and Path(wanted).resolve() not in [path.resolve() for path in saved]:
            raise ValueError(
                f"--resume_from_checkpoint {wanted}: no checkpoint of the run {self.partial} is there. Use "
                f"{' or '.join(['`latest`', *map(str, saved)])}."
            )
        record = self.partial / "arguments.json"
        if not record.exists():  # the run was stopped before its first step
            return []
        other = _other_flags(record, flags)
        fixed = ["model", "vqvae"] if (self.partial / "vqvae").exists() else ["model"]
        fixed += ["prior", "stages"] if (self.partial / "full").exists() else []
        wrong = [text for name, text in other.items() if name in RunArguments.names(*fixed)]
        if wrong or (other and not with_changes):
            way_out = "choose another --output_dir" if wrong else "add --resume_with_changes"
            raise ValueError(
                f"{self.partial} is a run with other flags: {', '.join(wrong or other.values())}. Give the original "
                f"values to resume it, or {way_out}."
            )
        return list(other.values())

    def restore_found(self, arguments: RunArguments) -> None:
        """Sets flags of `FOUND` without a value to those that the unfinished run began with, if it did."""
        record = self.partial / "arguments.json"
        # Older runs held out no rows.
        before = {"validation_samples": 0} | read_json(record) if record.exists() else {}
        for part in (arguments.vqvae, arguments.training):
            for name in FOUND:
                if getattr(part, name, ...) is None:
                    setattr(part, name, before.get(name))

    def has_finished(self, flags: dict[str, Any], *, overwrite: bool) -> bool:
        """Returns whether the finished run has these `flags`; `ValueError` if not and it may not be overwritten."""
        record = self.output_dir / "arguments.json"
        other = _other_flags(record, flags) if record.exists() else {}
        if other and not overwrite:
            raise ValueError(
                f"{self.output_dir} holds a finished run with other flags: {', '.join(other.values())}. Choose another "
                "--output_dir, or replace that run with --overwrite_output_dir."
            )
        return not other

    def check_same_data(self, info: dict[str, Any], *, with_changes: bool) -> list[str]:
        """Returns, as text, how the data of the unfinished run differ from `info`; `ValueError` if they may not."""
        record = self.partial / "data.json"
        if not record.exists():  # stopped before its first step
            return []
        # The same pixels and labels may come from elsewhere, such as a cache without the Hub.
        if read_json(record)["fingerprint"] == info["fingerprint"]:
            return []
        other = list(_differences(record, info, "{} was {}, is {}").values())
        if not with_changes:
            raise ValueError(
                f"{self.partial} was trained on other data: {', '.join(other)}. Give it back the data it had "
                "(--dataset_revision for a dataset on the Hub), or add --resume_with_changes."
            )
        return other

    @property
    def run_id(self) -> str | None:
        """Id of the unfinished run, which its checkpoints carry."""
        record = self.partial / "run_id.json"
        return read_json(record) if record.exists() else None

    def start(self, *, resume: bool) -> None:
        """Creates the directory of the unfinished run, empty unless resuming."""
        if not resume or not self.partial.exists():  # also what an earlier session was removing
            atomic_remove(self.partial, self._aside("discarded"))
        self.partial.mkdir(parents=True, exist_ok=True)
        if self.run_id is None:
            write_json(self.partial / "run_id.json", uuid.uuid4().hex)

    def finish(self) -> None:
        """Renames the complete run to `output_dir`, then removes what it replaces and what only resuming needs."""
        old = self._aside("replaced")
        if self.output_dir.exists():
            remove(old)  # of a session that was killed just here
            os.rename(self.output_dir, old)
        atomic_replace(self.partial, self.output_dir)
        self.tidy()

    def tidy(self) -> None:
        """Removes what a finished run does not need; run again, it also cleans up after a killed process."""
        left = [path for name in LEFTOVERS for path in self.output_dir.glob(name)]
        for path in (self._aside("replaced"), self._aside("discarded"), *left):
            remove(path)

    def _aside(self, name: str) -> Path:
        """Hidden path to which something is renamed before it is removed."""
        return self.output_dir.with_name(f".{self.output_dir.name}.{name}")

    def checkpoints_to_resume(self, wanted: str, stage: str) -> list[Path]:
        """Lists the checkpoints of `stage` up to `wanted` ("latest" or a folder), by step."""
        saved = list_checkpoints(self.checkpoints, stage)
        if wanted == "latest":
            return saved
        places, place = [path.resolve() for path in saved], Path(wanted).resolve()
        return saved[: places.index(place) + 1] if place in places else []


@dataclass(frozen=True)
class Run:
    """A run in progress: its flags, the processes that work on it and its directory."""

    arguments: RunArguments
    accelerator: Accelerator
    directory: RunDirectory


def _other_flags(record: Path, flags: dict[str, Any]) -> dict[str, str]:
    """Describes, by name, the flags that differ from those in the file `record` and that the result depends on."""
    harmless = RunArguments.names("run", "evaluation")
    harmless |= {name for name in FOUND if flags.get(name) is None}
    other = _differences(record, flags, "--{} was {}, not {}")
    return {name: text for name, text in other.items() if name not in harmless}


def _differences(record: Path, values: dict[str, Any], text: str) -> dict[str, str]:
    before = read_json(record)
    return {
        name: text.format(name, _spelled(before[name]), _spelled(value))
        for name, value in values.items()
        if name in before and json.dumps(before[name]) != json.dumps(value)
    }


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
