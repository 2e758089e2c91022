"""Retry transient Hub errors, and limit how long a request waits for an answer."""

import json
import os
import time
from contextlib import contextmanager

from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import _http
from transformers.utils import logging

from .errors import httpx, is_xet_error, status_of

logger = logging.get_logger(__name__)

# Seconds to wait for an answer of the Hub.
TIMEOUT = 120.0
# Seconds before each retry, unless the Hub's `Retry-After` header says how many.
PAUSES = (1, 3, 9)
LONGEST_PAUSE = 300


def retry(call, *arguments, only: type[Exception] = Exception, **options):
    """Call the Hub, with up to three retries after transient errors.

    Transient are a lost connection, an answer 429 or 5xx, and a page that is not JSON. A timeout is not: it was long
    enough. The client itself retries only the requests for large files.

    Args:
        only: the class of the errors to retry.
    """
    for pause in PAUSES:
        try:
            return call(*arguments, **options)
        except only as error:
            if not _is_transient(error):
                raise
            pause = _retry_after(error, pause)
            logger.warning(f"Request to the Hub failed ({_describe(error)}): retry in {pause} s.")
            time.sleep(pause)
    return call(*arguments, **options)


def is_ambiguous(error: Exception) -> bool:
    """Return whether the Hub may have carried out the request that raised `error`."""
    return _is_transient(error) or isinstance(error, httpx.TimeoutException) or is_xet_error(error)


@contextmanager
def request_timeout(seconds: float):
    """Let requests to the Hub fail that get no answer within `seconds`; the client alone waits without limit.

    It replaces the client of the whole process, which interrupts requests of other threads, and puts the caller's
    client factory back at the end. Xet repeats a request once, and reads its limits from environment variables when
    a process first uses it: the caller's, or else these.
    """
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

    milliseconds = f"{round(1000 * seconds)}ms"
    limits = {"READ_TIMEOUT": milliseconds, "CONNECT_TIMEOUT": milliseconds}
    limits |= {"RETRY_MAX_ATTEMPTS": "1", "RETRY_BASE_DELAY": "1s"}
    limits = {f"HF_XET_CLIENT_{name}": value for name, value in limits.items()}
    limits = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(limits)
    set_client_factory(make_client)
    try:
        yield
    finally:
        set_client_factory(factory)
        for name in limits:
            del os.environ[name]


def _is_transient(error: Exception) -> bool:
    if isinstance(error, LocalEntryNotFoundError):
        return False  # a download, which the client has retried
    if status_of(error) is not None:
        return status_of(error) == 429 or status_of(error) >= 500
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
