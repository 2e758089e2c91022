"""Download a model from the Hub, with retries."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from .commit import WEIGHTS
from .errors import FAILURES, explain
from .requests import TIMEOUT, request_timeout, retry


def fetch_model(name_or_path: str, revision: str | None = None, *, timeout: float = TIMEOUT) -> str:
    """Return the folder of a model: a local one, or the snapshot of a repo in the cache.

    Unlike `from_pretrained`, this retries after a lost connection, and its message names the true cause. If the Hub
    cannot be reached, a snapshot in the cache is used.

    Args:
        name_or_path: a folder, or `owner/name`.
        revision: branch, tag or commit of a repo.
        timeout: seconds to wait for an answer of the Hub.

    Raises:
        ValueError: if there is neither such a folder nor such a repo, or the download fails.
    """
    if Path(name_or_path).is_dir():
        return str(name_or_path)
    name = str(name_or_path)
    failed = f"cannot get the model {name!r}: there is no folder {name}, and"
    way_out = "Name a folder with config.json and model.safetensors, as training writes it, or owner/name on the Hub."
    if not _may_be_repo(name):
        raise ValueError(f"{failed} it is no name of a repo. {way_out}")
    try:
        patterns = ["config.json", "preprocessor_config.json", *WEIGHTS]
        with request_timeout(timeout):
            return retry(snapshot_download, name, revision=revision, allow_patterns=patterns)
    except FAILURES as error:
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        begun = cached.is_dir() and not isinstance(error, RevisionNotFoundError)
        kept = "What was downloaded is kept: the same command goes on. " if begun else ""
        raise ValueError(
            f"{failed} getting it from the Hub failed: {explain(error)} {kept}{way_out}"
        ) from error


def _may_be_repo(name: str) -> bool:
    """Return whether `name` is a valid repo name and not a local file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).is_file()
