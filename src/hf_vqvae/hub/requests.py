"""Retry transient Hub errors, and limit how long a request waits for an answer."""

import json
import time
from contextlib import contextmanager

from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import _http
from transformers.utils import logging

from .errors import httpx

logger = logging.get_logger(__name__)

# Seconds to wait for an answer of the Hub.
TIMEOUT = 120.0
# Seconds before each retry, unless the Hub's `Retry-After` header says how many.
PAUSES = (1, 3, 9)
LONGEST_PAUSE = 300


def retry(call, *arguments, **options):
    """Call the Hub, with up to three retries after transient errors.

    Transient are a lost connection, an answer 429 or 5xx, and a page that is not JSON. A timeout is not: it was long
    enough. The client itself retries only the requests for large files.
    """
    for pause in PAUSES:
        try:
            return call(*arguments, **options)
        except Exception as error:
            if not _is_transient(error):
                raise
            pause = _retry_after(error, pause)
            logger.warning(f"Request to the Hub failed ({_describe(error)}): retry in {pause} s.")
            time.sleep(pause)
    return call(*arguments, **options)


def is_ambiguous(error: Exception) -> bool:
    """Return whether the Hub may have carried out the request that raised `error`."""
    return _is_transient(error) or isinstance(error, httpx.TimeoutException)


@contextmanager
def request_timeout(seconds: float):
    """Let requests to the Hub fail that get no answer within `seconds`; the client alone waits without limit.

    It replaces the client of the whole process, which interrupts requests of other threads, and puts the caller's
    client factory back at the end.

    Raises:
        ValueError: if `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"`timeout` must be above 0 seconds, got {seconds!r}.")
    factory = _http._GLOBAL_CLIENT_FACTORY  # no public function returns it

    def limit(request) -> None:
        # Per request: many functions of the client pass `timeout=None`, which overrides the client's own timeout.
        given = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: given.get(kind) or seconds for kind in kinds}

    def make_client():
        client = factory()
        client.event_hooks["request"].insert(0, limit)
        return client

    set_client_factory(make_client)
    try:
        yield
    finally:
        set_client_factory(factory)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, LocalEntryNotFoundError):
        return False  # a download, which the client has retried
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    # JSONDecodeError: the page of a proxy or gateway.
    return isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError, json.JSONDecodeError))


def _retry_after(error: Exception, pause: float) -> float:
    """Return the seconds in the Hub's `Retry-After` header, or else `pause`."""
    if not isinstance(error, HfHubHTTPError):
        return pause
    seconds = error.response.headers.get("Retry-After", "")
    return min(int(seconds), LONGEST_PAUSE) if seconds.isdecimal() else pause


def _describe(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} from {error.response.request.url.path}"
    return f"{type(error).__name__}: {error}"
