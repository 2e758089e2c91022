"""Explain errors of the Hub's clients, and say what to do about them."""

import json

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx

# Errors of a push or download. `HfHubHTTPError` and `ConnectionError` are `OSError`s, failed uploads of large
# files `RuntimeError`s, refused metadata is a `ValueError`. The answer of a proxy in place of the Hub's raises
# `ValueError` if it is not JSON, else one of `NOT_OF_THE_HUB`.
NOT_OF_THE_HUB = (AttributeError, LookupError, TypeError)
FAILURES = (OSError, RuntimeError, ValueError, *NOT_OF_THE_HUB, httpx.HTTPError)


class PushError(RuntimeError):
    """A push failed or would fail; the message says why and what to do."""


def explain(error: BaseException) -> str:
    """Return one or two sentences on an error of the Hub's clients."""
    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError) and cause is not None:
        return explain(cause)  # why the file could not be downloaded
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token: set HF_TOKEN or run `hf auth login`."
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error)
    if isinstance(error, httpx.TimeoutException):
        return f"no answer from {constants.ENDPOINT} in time. Try again later."
    if isinstance(error, (json.JSONDecodeError, *NOT_OF_THE_HUB)):
        return (
            f"what {constants.ENDPOINT} answered is not of the Hub ({error}). Is there a proxy or the login page of a "
            "network between?"
        )
    if isinstance(error, (httpx.HTTPError, ConnectionError)):
        said = str(error).rstrip(".") or type(error).__name__
        return f"no connection to {constants.ENDPOINT}: {said}. Is there a network, and is HF_HUB_OFFLINE unset?"
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):
        # A large file, or a commit whose answer was lost. Permissions are the Hub's, not its storage's.
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (403, 404, 409, 412):
            return f"{error} Its storage answered {cause.response.status_code}: push again."
        return f"{error} {explain(cause)}"
    return f"{error or type(error).__name__}"


def _explain_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = (error.server_message or "").strip().replace("\n", " ")
    meanings = {
        401: "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew",
        403: "the token has no right to do this; it needs the right to write there",
        404: "the repo does not exist, or the token may not see it",
        409: "it clashes with what is there, or with a push at the same time; look and push again",
        412: "somebody else has pushed in the meantime; look at the repo and push again",
        429: "too many requests; wait and push again",
    }
    other = "the Hub has a problem; push again later" if status >= 500 else str(error).rstrip(".")
    said = f" ({said})" if said else ""
    return f"the Hub answered {status}{said}: {meanings.get(status, other)}."
