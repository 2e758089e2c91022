"""Push a finished run to the Hub."""

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

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from .. import models
from ..arguments import HubTargetArguments
from ..files import handle_stop_signals
from ..hub.commit import WEIGHTS, EditedCardError, commit_folder, full_name
from ..hub.errors import FAILURES, PushError, explain
from ..hub.requests import TIMEOUT, request_timeout
from ..model_card.records import check_records, read_record
from .staging import add_code, copy_files, copy_run_files, update_card

RECORDS = ("metrics.json", "history.json", "arguments.json", "run.json")


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
    """Push the folder of a finished run in one commit, with the model code; return the URL of the commit or request.

    The folder is only read. A push that fails makes no commit, and can be repeated. The options are the flags of
    scripts/push_to_hub.py.

    Args:
        folder: as `scripts/train.py` leaves it; checkpoints and codes in it are never pushed.
        token: by default that of `HF_TOKEN` or `hf auth login`.
        timeout: seconds to wait for an answer of the Hub.

    Raises:
        ValueError: if the name is invalid.
        PushError: if the folder is not a finished run, or the push failed; the message has the command that repeats it.
    """
    validate_repo_id(repo_id)
    folder = Path(os.path.expanduser(folder))
    check_finished(folder)
    options = {"private": private or None, "revision": revision, "create_pr": create_pr}
    try:
        with request_timeout(timeout), tempfile.TemporaryDirectory() as staging:
            repo_id = full_name(HfApi(token=token), repo_id)
            _stage(folder, Path(staging), repo_id, license)
            commit = commit_folder(
                staging,
                repo_id,
                commit_message=commit_message or f"Upload {folder.resolve().name}",
                token=token,
                edited_card="overwrite" if overwrite_card else "refuse",
                **options,
            )
    except PushError:
        raise
    except FAILURES as error:
        if type(error) is ValueError:
            # Of an option or of the card's metadata: the same push would fail again.
            raise PushError(
                f"Cannot push {folder} to {repo_id}: {error}\nThe run is complete in {folder}: push it with other "
                "flags; --hub_license changes the license on the card."
            ) from error
        options |= {"commit_message": commit_message, "license": license}
        options["overwrite_card"] = overwrite_card or isinstance(error, EditedCardError)
        raise PushError(
            f"Pushing {folder} to {repo_id} failed: {explain(error)}\n"
            f"The run is complete in {folder}. This pushes it:\n\n"
            f"    {push_command(folder, repo_id, **options)}\n"
        ) from error
    if create_pr and commit.pr_url is None:
        raise PushError(f"{repo_id} has all files of {folder} already: no pull request was opened.")
    return commit.pr_url or commit.commit_url


def target_of(hub: HubTargetArguments) -> dict:
    """Return the options of `check_can_push` from a script's flags."""
    return {"private": hub.hub_private, "create_pr": hub.hub_create_pr, "license": hub.hub_license}


def options_of(hub: HubTargetArguments) -> dict:
    """Return the options of `push_folder` from a script's flags."""
    return target_of(hub) | {"revision": hub.hub_revision, "commit_message": hub.hub_commit_message}


def push_command(
    folder: str | Path, repo_id: str, *, overwrite_card: bool = False, **options: str | bool | None
) -> str:
    """Return the command line of a `push_folder`, for any folder; options that are None or False are left out."""
    flags = {f"hub_{name}": value for name, value in options.items()}
    flags["overwrite_card"] = overwrite_card
    script = Path(__file__).parents[3] / "scripts" / "push_to_hub.py"
    words = ["python", str(script), str(Path(folder).absolute()), "--hub_model_id", repo_id]
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, str):
            # A value that begins with a dash would be read as a flag.
            words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
    return shlex.join(words)


@contextmanager
def push_stopped_by_signals(command: str) -> Iterator[None]:
    """Exit with status 128 + the signal's number if one of [`handle_stop_signals`] stops the push, and print `command`.

    After the first signal, running uploads end and a repo that the push created is deleted. A second signal exits at
    once.
    """
    stopping = False

    def report(number: int) -> None:
        name = signal.Signals(number).name
        # Not `print`, which the signal may have interrupted.
        os.write(2, f"\nThe push was stopped by {name}. This tries again:\n\n    {command}\n\n".encode())

    def stop(number: int, _frame: Any) -> None:
        nonlocal stopping
        if stopping:
            report(number)
            os._exit(128 + number)
        stopping = True
        os.write(2, b"\nStopping when the uploads under way are through; once more stops at once.\n")
        raise KeyboardInterrupt(number)

    try:
        with handle_stop_signals(stop):
            yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        report(number)
        sys.exit(128 + number)


@contextmanager
def explained_push(command: str) -> Iterator[None]:
    """As [`push_stopped_by_signals`], with a time limit for requests; a [`PushError`] explains a push that fails."""
    with push_stopped_by_signals(command), request_timeout(TIMEOUT):
        try:
            yield
        except FAILURES as error:
            if isinstance(error, PushError) or type(error) is ValueError:
                raise
            raise PushError(f"{explain(error)}\nThis tries again:\n\n    {command}\n") from error


def check_finished(folder: Path) -> None:
    """Raise [`PushError`] with what is missing if `folder` is not that of a finished run; the Hub is not asked."""
    partial = folder if folder.name.endswith(".partial") else Path(f"{folder}.partial")
    if partial.is_dir() and (partial == folder or not folder.is_dir()):
        raise PushError(
            f"Cannot push {folder}: {partial} is a run that has not finished; resume it by scripts/train.py with "
            "--resume_from_checkpoint latest."
        )
    if not folder.is_dir():
        raise PushError(f"Cannot push {folder}: there is no such folder.")
    needed = ["config.json", "preprocessor_config.json", "README.md", *RECORDS]
    if (folder / "README.md").is_file():  # which shows figures
        text = (folder / "README.md").read_text("utf-8", errors="replace")
        needed += dict.fromkeys(re.findall(r"figures/[\w/-]+\.\w+|notebook\.ipynb", text))
    missing = [name for name in needed if not (folder / name).is_file()]
    missing += [] if any(folder.glob(WEIGHTS[0])) else ["model.safetensors"]
    if missing:
        raise PushError(
            f"Cannot push {folder}: it is not the folder of a finished run, as it lacks {', '.join(missing)}. A model "
            'without a run is pushed from Python: model.push_to_hub("owner/name").'
        )


def _stage(folder: Path, staging: Path, repo_id: str, license: str | None) -> None:
    """Copy the files to upload into `staging`, add the model code, and name `repo_id` in the card."""
    try:
        for name in RECORDS:
            read_record(folder, name)
        architectures = read_record(folder, "config.json").get("architectures")
        name = architectures[0] if architectures and isinstance(architectures, list) else "no name"
        if name not in ("VQVAEModel", "VQVAEForImageGeneration"):
            raise ValueError(f"its model is {name}, which is not a model of hf_vqvae.")
        check_records(folder)
        copy_files(folder, staging, ("config.json", "preprocessor_config.json", *WEIGHTS))
        copy_run_files(folder, staging)
        add_code(staging, getattr(models, name))
        update_card(staging, repo_id, license=license)
    except ValueError as error:
        raise PushError(f"Cannot push {folder}: {error}") from error
