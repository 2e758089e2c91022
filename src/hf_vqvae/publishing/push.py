"""Pushing a finished run to the Hub.

What can go wrong is found out before training, and nothing is lost when it goes wrong all the same.
"""

import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedModel

from .. import models
from ..hub.card_signature import is_as_signed, sign_card
from ..hub.commit import WEIGHTS, EditedCardError, commit_folder, full_name
from ..hub.errors import FAILURES, PushError, explain
from ..hub.preflight import check_can_push, check_repo_id
from ..hub.requests import TIMEOUT, request_timeout
from ..model_card.card import build_card
from .staging import add_code, copy_files, copy_run_files

__all__ = [
    "PushError",
    "check_can_push",
    "check_finished",
    "check_repo_id",
    "push_command",
    "push_folder",
    "push_stopped_by_signals",
]

# What reading JSON and cards raises where they are not what a run writes.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
REQUIRED_FILES = (
    "config.json",
    "README.md",
    "metrics.json",
    "history.json",
    "arguments.json",
    "run.json",
)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    token: str | None = None,
    overwrite_card: bool = False,
    timeout: float = TIMEOUT,
) -> str:
    """Pushes the folder of a finished run in one commit, with the model code. Only reads it.

    On the Hub there is that commit afterwards or nothing new, whatever fails; pushing again is safe.

    Args:
        folder: as `scripts/train.py` leaves it; checkpoints and codes in it are never pushed.
        repo_id: `name` or `owner/name`; created where it is missing.
        private: create the repo as a private one.
        revision: branch to push to, created where it is missing.
        create_pr: open a pull request instead.
        license: put into the card's metadata, as an identifier of the Hub ("mit").
        token: that of `HF_TOKEN` or `hf auth login` where it is None.
        overwrite_card: overwrite a README.md that was written or edited by hand on the Hub.
        timeout: seconds to wait for an answer of the Hub.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ValueError: if the name is invalid.
        PushError: if the folder is not a finished run, or the push failed; the message then has the
            command that tries again.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    check_finished(folder)
    try:
        with request_timeout(timeout), tempfile.TemporaryDirectory() as staging:
            repo_id = full_name(HfApi(token=token), repo_id)
            _stage(folder, Path(staging), repo_id, license)
            commit = commit_folder(
                staging,
                repo_id,
                commit_message=commit_message or f"Upload {folder.resolve().name}",
                private=private or None,
                token=token,
                revision=revision,
                create_pr=create_pr,
                edited_card="overwrite" if overwrite_card else "refuse",
            )
    except PushError:
        raise
    except FAILURES as error:
        command = push_command(
            folder,
            repo_id,
            hub_private=private,
            hub_revision=revision,
            hub_create_pr=create_pr,
            hub_commit_message=commit_message,
            hub_license=license,
            overwrite_card=overwrite_card or isinstance(error, EditedCardError),
        )
        raise PushError(
            f"Pushing {folder} to {repo_id} failed: {explain(error)}\n"
            f"The run is complete in {folder}. This pushes it:\n\n    {command}\n"
        ) from error
    return commit.pr_url or commit.commit_url


def push_command(folder: str | Path, repo_id: str, **flags: str | bool | None) -> str:
    """The command line that pushes `folder`; flags that are None or False are left out."""
    folder = f"./{folder}" if str(folder).startswith("-") else str(folder)
    words = ["python", "scripts/push_to_hub.py", folder, "--hub_model_id", repo_id]
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, str):
            # One that begins with a dash would be read as a flag of its own.
            words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
    return shlex.join(words)


@contextmanager
def push_stopped_by_signals(command: str) -> Iterator[None]:
    """Ends the process in good order where SIGINT or SIGTERM stops the push within, with the command that tries again.

    A repo that the push created is deleted first, which has to wait for the uploads under way; after a second signal
    nothing is waited for. The exit status is 128 and the number of the signal.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def tell(number: int) -> None:
        name = signal.Signals(number).name
        # Not by `print`, which a signal may have interrupted.
        os.write(
            2, f"\nThe push was stopped by {name}. This tries again:\n\n    {command}\n\n".encode()
        )

    def stop(number: int, _frame: Any) -> None:
        for one in before:
            signal.signal(one, leave)
        os.write(
            2, b"\nStopping when the uploads under way are through; once more stops at once.\n"
        )
        raise KeyboardInterrupt(number)

    def leave(number: int, _frame: Any) -> None:
        tell(number)
        os._exit(128 + number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        tell(number)
        sys.exit(128 + number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_finished(folder: Path) -> None:
    """Checks, without the Hub, that `folder` is that of a finished run.

    Raises:
        PushError: if it is not; the message says what it lacks.
    """
    going = folder if folder.name.endswith(".partial") else Path(f"{folder}.partial")
    if going.is_dir() and (going == folder or not folder.is_dir()):
        hint = "scripts/train.py with --resume_from_checkpoint latest goes on with it"
        raise PushError(f"Cannot push {folder}: {going} is a run that has not finished; {hint}.")
    if not folder.is_dir():
        raise PushError(f"Cannot push {folder}: there is no such folder.")
    missing = _missing(folder, _needed(folder))
    if missing:
        raise PushError(
            f"Cannot push {folder}: it is not the folder of a finished run, as it lacks "
            f"{', '.join(missing)}. A model without a run is pushed from Python: "
            'model.push_to_hub("owner/name").'
        )


def _needed(folder: Path) -> list[str]:
    """The files that a push of `folder` must have, but for weights where there are none."""
    needed = list(REQUIRED_FILES)
    if (folder / "config.json").is_file():
        pixels = _model_class(folder).main_input_name == "pixel_values"
        needed += ["preprocessor_config.json"] if pixels else []
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text("utf-8", errors="replace")
        needed += dict.fromkeys(re.findall(r"figures/[\w/-]+\.\w+", text))
    return needed + [path.name for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]


def _missing(folder: Path, needed: list[str]) -> list[str]:
    missing = [name for name in needed if not (folder / name).is_file()]
    weights = [name for name in needed if name.endswith(".safetensors")]
    return missing if weights else [*missing, "model.safetensors"]


def _model_class(folder: Path) -> type:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        name = (config.get("architectures") or ["model without a name"])[0]
    except DAMAGED as error:
        raise PushError(f"Cannot push {folder}: its config.json is damaged ({error}).") from error
    model_class = getattr(models, name) if name in models.__all__ else None
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        raise PushError(f"Cannot push {folder}: it holds a {name}, which is no model of hf_vqvae.")
    return model_class


def _stage(folder: Path, staging: Path, repo_id: str, license: str | None) -> None:
    """Copies what is to be pushed, with the code and a card that names `repo_id`."""
    try:
        _write_staged(folder, staging, repo_id, license)
    except DAMAGED as error:
        raise PushError(
            f"Cannot push {folder}: its JSON files or its README.md are damaged, no card can be made of them "
            f"({type(error).__name__}: {error})."
        ) from error


def _write_staged(folder: Path, staging: Path, repo_id: str, license: str | None) -> None:
    copy_files(folder, staging, ("config.json", "preprocessor_config.json", *WEIGHTS))
    copy_run_files(folder, staging)
    left_out = _missing(staging, _needed(folder))
    if left_out:
        raise PushError(
            f"Cannot push {folder}: {', '.join(left_out)} {'is a link' if len(left_out) == 1 else 'are links'} "
            "out of the folder. Put the files themselves there."
        )
    add_code(staging, _model_class(folder))
    readme = staging / "README.md"
    text = readme.read_text("utf-8")
    if is_as_signed(text):
        readme.write_text(sign_card(str(build_card(staging, repo_id, license))), "utf-8")
    elif license is not None:
        # Written or edited by hand: it stays as it is, and unsigned, but for the license asked for.
        card = ModelCard(text)
        card.data.license = license
        readme.write_text(str(card), "utf-8")
