"""Getting a model from the Hub, over connections that break."""

from pathlib import Path

from huggingface_hub import snapshot_download

from .hub_errors import FAILURES, explain
from .models.hub_commit import TIMEOUT, WEIGHTS
from .models.hub_requests import answers_within, ask_again


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
        ValueError: if there is no such repo, or it cannot be downloaded.
    """
    if Path(name_or_path).is_dir():
        return str(name_or_path)
    try:
        patterns = ["config.json", "preprocessor_config.json", *WEIGHTS]
        with answers_within(timeout):
            return ask_again(
                snapshot_download, name_or_path, revision=revision, allow_patterns=patterns
            )
    except FAILURES as error:
        raise ValueError(
            f"cannot get the model {name_or_path!r}: {explain(error)} What was downloaded is kept: the same command "
            "goes on. Else name a folder that training wrote (with config.json and model.safetensors)."
        ) from error
