"""Explain errors of the Hub's clients, and say what to do about them."""

import json
import re

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

# Errors of a push or download. `HfHubHTTPError` and `ConnectionError` are `OSError`s, failed uploads of large
# files `RuntimeError`s, refused metadata is a `ValueError`. The answer of a proxy in place of the Hub's raises
# `ValueError` if it is not JSON, else one of `NOT_OF_THE_HUB`.
NOT_OF_THE_HUB = (AttributeError, LookupError, TypeError)
FAILURES = (OSError, RuntimeError, ValueError, *NOT_OF_THE_HUB, httpx.HTTPError)

# `hf_xet` gives the status of an answer only in the text of its error.
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) .*, domain: (\S*)")
# Of the storage of large files, these do not mean what they mean of the Hub.
_OTHER_OF_STORAGE = (403, 404, 409, 412)


class PushError(RuntimeError):
    """A push failed or would fail; the message says why and what to do."""


def is_xet_error(error: BaseException) -> bool:
    """Return whether a request of Xet, the Hub's storage of large files, raised `error`."""
    return isinstance(error, ConnectionError) and not isinstance(error, OfflineModeIsEnabled)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that raised `error`, or None."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    found = _XET_STATUS.search(str(error)) if is_xet_error(error) else None
    return int(found[1]) if found else None


def explain(error: BaseException, action: str = "push") -> str:
    """Return a sentence or two on an error of the Hub's clients, with advice on an `action`, "push" or "download"."""
    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError) and cause is not None:
        return explain(cause, action)  # why the file could not be downloaded
    if status_of(error) is not None:
        return _explain_answer(error, action)
    if isinstance(error, httpx.TimeoutException):
        return f"no answer from {constants.ENDPOINT} in time. Try again later."
    if isinstance(error, (json.JSONDecodeError, *NOT_OF_THE_HUB)):
        return (
            f"what {constants.ENDPOINT} answered is not of the Hub ({error}). Is there a proxy or the login page of a "
            "network between?"
        )
    said = _text(error)
    if is_xet_error(error):
        return (
            f"no answer from the Hub's storage: {said}. Is there a network? {action.capitalize()} again; over a slow "
            "connection, with HF_HUB_DISABLE_XET=1."
        )
    if isinstance(error, (httpx.HTTPError, ConnectionError)):
        return f"no connection to {constants.ENDPOINT}: {said}. Is there a network, and is HF_HUB_OFFLINE unset?"
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):
        # A large file, or a commit whose answer was lost.
        if status_of(cause) in _OTHER_OF_STORAGE:
            return f"{error} Its storage answered {status_of(cause)}: {action} again."
        return f"{error} {explain(cause, action)}"
    return f"{error or type(error).__name__}"


def _text(error: BaseException) -> str:
    """Return the text of an error without the signatures in the addresses of storage."""
    text = re.sub(r"(https?://[^\s?]+)\?[^\s)]*", r"\1", str(error))
    return text.rstrip(".") or type(error).__name__


def _explain_answer(error: BaseException, action: str) -> str:
    status, said, has_token = status_of(error), "", True
    if isinstance(error, HfHubHTTPError):
        said = (error.server_message or "").strip().replace("\n", " ")
        has_token = "authorization" in error.response.request.headers
    elif status in _OTHER_OF_STORAGE and "/api/" not in _XET_STATUS.search(str(error))[2]:
        return f"a large file was not {action}ed. Its storage answered {status}: {action} again."
    meanings = {
        401: "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew",
        403: "the token has no right to do this; it needs the right to write there",
        404: "there is no such repo or revision, or the token may not see it",
        409: "it clashes with what is there, or with a push at the same time; look and push again",
        412: "somebody else has pushed in the meantime; look at the repo and push again",
        413: "the Hub, or a proxy between, does not accept so large a file",
        429: f"too many requests; wait and {action} again",
    }
    if action == "download":
        meanings[403] = "the token may not read this; ask for access on the repo's page"
        if not has_token:
            meanings[401] = "there is no such repo, or it needs a token: set HF_TOKEN or run `hf auth login`"
    other = f"the Hub has a problem; {action} again later" if status >= 500 else _text(error)
    said = f" ({said})" if said else ""
    return f"the Hub answered {status}{said}: {meanings.get(status, other)}."
