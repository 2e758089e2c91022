"""What a push to the Hub may fail with, in words that say what to do."""

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

# All that a push may fail with. `HfHubHTTPError` and `ConnectionError` are `OSError`s, failures of
# large files are `RuntimeError`s, metadata that the Hub refuses is a `ValueError`.
FAILURES = (OSError, RuntimeError, ValueError, httpx2.TransportError)


class PushError(RuntimeError):
    """A push that failed or would fail; the message says why and what to do."""


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
