"""Pushing a finished run to the Hub.

What can go wrong is found out before training, and nothing is lost when it goes wrong all the same.
"""

import json
import re
import shlex
import tempfile
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from . import models
from .card import build_card
from .models.hub_commit import WEIGHTS, EditedCardError, commit_folder, is_as_signed, sign_card
from .models.publishing import add_code, copy_files, copy_run_files

REQUIRED_FILES = (
    "config.json",
    "README.md",
    "metrics.json",
    "history.json",
    "arguments.json",
    "run.json",
)
# All that a push may fail with. `HfHubHTTPError` and `ConnectionError` are `OSError`s, failures of
# large files are `RuntimeError`s, metadata that the Hub refuses is a `ValueError`.
FAILURES = (OSError, RuntimeError, ValueError, httpx2.TransportError)


class PushError(RuntimeError):
    """A push that failed or would fail; the message says why and what to do."""


def check_repo_id(repo_id: str) -> None:
    """Checks the form of `name` or `owner/name`.

    Raises:
        ValueError: if the Hub allows no such name; the message names the rule.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`hub_model_id` {repo_id!r} is no name for a repo: {error}") from None
    if not repo_id:
        raise ValueError("`hub_model_id` must be name or owner/name, got an empty string.")


def check_can_push(
    repo_id: str,
    token: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Finds out, without changing anything on the Hub, whether a push to `repo_id` would be let in.

    Args:
        token: that of `HF_TOKEN` or `hf auth login` where it is None.
        private, revision, create_pr: as of `push_folder`.

    Returns:
        The full name `owner/name`.

    Raises:
        ValueError: if the name is invalid.
        PushError: if there is no token, the Hub does not accept it, it may not write there, the Hub
            cannot be reached, or the options contradict each other or the repo.
    """
    check_repo_id(repo_id)
    if create_pr and revision not in (None, "main"):
        raise PushError(
            f"A pull request goes to main: leave out --hub_revision {revision} or --hub_create_pr."
        )
    token = token or get_token()
    if not token:
        raise PushError(
            "There is no token to push with: set HF_TOKEN or run `hf auth login`. Tokens with the "
            f"right to write are made at {constants.ENDPOINT}/settings/tokens."
        )
    api = HfApi(token=token)
    try:
        user = api.whoami()
        full_name = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        _check_role(user, full_name)
        _check_repo(api, user, full_name, private, create_pr)
    except FAILURES as error:
        if isinstance(error, PushError):
            raise
        raise PushError(f"Cannot push to {repo_id}: {explain(error)}") from error
    return full_name


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
) -> str:
    """Pushes the folder of a finished run in one commit, with the model code. Only reads it.

    Args:
        folder: as `scripts/train.py` leaves it; checkpoints and codes in it are never pushed.
        repo_id: `name` or `owner/name`; created where it is missing.
        private: create the repo as a private one.
        revision: branch to push to, created where it is missing.
        create_pr: open a pull request instead.
        license: put into the card's metadata, as an identifier of the Hub ("mit").
        token: that of `HF_TOKEN` or `hf auth login` where it is None.
        overwrite_card: overwrite a README.md that was written or edited by hand on the Hub.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ValueError: if the name is invalid.
        PushError: if the folder is not a finished run, or the push failed; the message then has the
            command that tries again.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    _check_finished(folder)
    try:
        with tempfile.TemporaryDirectory() as staging:
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
    words = ["python", "scripts/push_to_hub.py", str(folder), "--hub_model_id", repo_id]
    for name, value in flags.items():
        if value:
            words += [f"--{name}"] if value is True else [f"--{name}", value]
    return shlex.join(words)


def explain(error: BaseException) -> str:
    """One or two sentences on an error of the Hub's clients."""
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token: set HF_TOKEN or run `hf auth login`."
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error)
    if isinstance(error, (httpx2.TransportError, ConnectionError)):
        reason = f"no connection to {constants.ENDPOINT}: {error or type(error).__name__}"
        return f"{reason}. Is there a network, and is HF_HUB_OFFLINE unset?"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return f"{error} {explain(error.__cause__)}"
    return f"{error or type(error).__name__}"


def _explain_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = (error.server_message or "").strip().replace("\n", " ")
    meanings = {
        401: "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew",
        403: "the token has no right to do this; it needs the right to write there",
        404: "the repo does not exist, or the token may not see it",
        409: "the name is taken",
        412: "somebody else has pushed in the meantime; look at the repo and push again",
        429: "too many requests; wait and push again",
    }
    meaning = meanings.get(
        status, "the Hub has a problem; push again later" if status >= 500 else ""
    )
    return f"the Hub answered {status}" + (f" ({said})" if said else "") + f": {meaning or error}."


def _check_role(user: dict, repo_id: str) -> None:
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError(
            f"The token of {user['name']} can only read, and pushing to {repo_id} needs one that "
            f"can write: make one at {constants.ENDPOINT}/settings/tokens and set HF_TOKEN or run "
            "`hf auth login`."
        )


def _check_repo(api: HfApi, user: dict, repo_id: str, private: bool, create_pr: bool) -> None:
    try:
        repo = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        if create_pr:
            raise PushError(f"There is no repo {repo_id} to open a pull request in.") from None
        _check_namespace(user, repo_id)
        return
    if private and not repo.private:
        raise PushError(
            f"{repo_id} exists and is public, but a private repo was asked for: make it private in "
            "its settings, or choose another name."
        )
    # The step at which the Hub refuses who may not write. Of a small text file it stores nothing.
    probe = CommitOperationAdd("README.md", b"# May this be pushed?\n")
    try:
        api.preupload_lfs_files(repo_id, additions=[probe], create_pr=create_pr)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PushError(
            f"{user['name']} may not write to {repo_id}: {explain(error)} Use another token or "
            "name, or --hub_create_pr to propose the model to the owner of the repo."
        ) from error


def _check_namespace(user: dict, repo_id: str) -> None:
    """Whether a new repo may be made there, by what whoami tells: the Hub has no way to ask."""
    namespace, name = repo_id.split("/")
    roles = {group["name"]: group.get("roleInOrg") for group in user.get("orgs", [])}
    writable = [user["name"], *(group for group, role in roles.items() if role != "read")]
    if namespace not in writable:
        raise PushError(
            f"{user['name']} may not make repos under {namespace}. Possible are: "
            f"{', '.join(f'{owner}/{name}' for owner in writable)}."
        )
    token = user.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped", [])
    if token.get("role") == "fineGrained" and not any(
        scope.get("entity", {}).get("name") == namespace
        and "repo.write" in scope.get("permissions", [])
        for scope in scopes
    ):
        raise PushError(
            f"The token of {user['name']} is fine-grained and may not write to the repos of "
            f"{namespace}: tick that at {constants.ENDPOINT}/settings/tokens."
        )


def _check_finished(folder: Path) -> None:
    going = folder if folder.name.endswith(".partial") else Path(f"{folder}.partial")
    if going.is_dir() and (going == folder or not folder.is_dir()):
        hint = "scripts/train.py with --resume_from_checkpoint latest goes on with it"
        raise PushError(f"Cannot push {folder}: {going} is a run that has not finished; {hint}.")
    if not folder.is_dir():
        raise PushError(f"Cannot push {folder}: there is no such folder.")
    needed = list(REQUIRED_FILES)
    if (folder / "config.json").is_file():
        pixels = _model_class(folder).main_input_name == "pixel_values"
        needed += ["preprocessor_config.json"] if pixels else []
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text("utf-8")
        needed += dict.fromkeys(re.findall(r"figures/[\w/-]+\.\w+", text))
    missing = [name for name in needed if not (folder / name).is_file()]
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        missing.append("model.safetensors")
    if missing:
        raise PushError(
            f"Cannot push {folder}: it is not the folder of a finished run, as it lacks "
            f"{', '.join(missing)}. A model without a run is pushed from Python: "
            'model.push_to_hub("owner/name").'
        )


def _model_class(folder: Path) -> type:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise PushError(f"Cannot push {folder}: its config.json is damaged ({error}).") from error
    name = (config.get("architectures") or ["model without a name"])[0]
    if name not in models.__all__:
        raise PushError(f"Cannot push {folder}: it holds a {name}, which is no model of hf_vqvae.")
    return getattr(models, name)


def _stage(folder: Path, staging: Path, repo_id: str, license: str | None) -> None:
    """Copies what is to be pushed, with the code and a card that names `repo_id`."""
    copy_files(folder, staging, ("config.json", "preprocessor_config.json", *WEIGHTS))
    copy_run_files(folder, staging)
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
