"""Getting a model from the Hub, over connections that break."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from .commit import WEIGHTS
from .errors import FAILURES, explain
from .requests import TIMEOUT, request_timeout, retry


def fetch_model(name_or_path: str, revision: str | None = None, *, timeout: float = TIMEOUT) -> str:
    """The folder of a model: the one that was named, or one in the cache with the files of a repo.

    `from_pretrained` on a name gives up when a connection is reset, and says that there is no such model. Here
    the files that are lacking are asked for again, and the message is the true one. Without the Hub, what the cache
    has is taken.

    Args:
        name_or_path: a folder, or `owner/name`.
        revision: branch, tag or commit of a repo.
        timeout: seconds to wait for an answer of the Hub.

    Raises:
        ValueError: if there is neither such a folder nor such a repo, or it cannot be downloaded.
    """
    if Path(name_or_path).is_dir():
        return str(name_or_path)
    name = str(name_or_path)
    wrong = f"cannot get the model {name!r}: there is no folder {name}, and"
    way_out = "Name a folder with config.json and model.safetensors, as training writes it, or owner/name on the Hub."
    if not _may_be_repo(name):
        raise ValueError(f"{wrong} it is no name of a repo. {way_out}")
    try:
        patterns = ["config.json", "preprocessor_config.json", *WEIGHTS]
        with request_timeout(timeout):
            return retry(snapshot_download, name, revision=revision, allow_patterns=patterns)
    except FAILURES as error:
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        # Of a repo or revision that there is not, nothing was downloaded.
        begun = cached.is_dir() and not isinstance(error, RevisionNotFoundError)
        kept = "What was downloaded is kept: the same command goes on. " if begun else ""
        raise ValueError(
            f"{wrong} getting it from the Hub failed: {explain(error)} {kept}{way_out}"
        ) from error


def _may_be_repo(name: str) -> bool:
    """Whether a repo of the Hub may have that name; a file that is there is none."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).is_file()
