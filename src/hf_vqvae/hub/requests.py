"""Requests to the Hub that wait neither for ever nor give up at the first error that passes."""

import json
import threading
import time
from contextlib import contextmanager

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import _http, httpx
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Seconds before each repetition. The Hub's own `Retry-After` goes before them.
PAUSES = (1, 3, 9)
LONGEST_PAUSE = 300

# Seconds of each `request_timeout` that is open, in whatever thread: uploads have several.
_LIMITS: list[float] = []
_LOCK = threading.Lock()


def retry(call, *arguments, **options):
    """Calls the Hub, and up to three times more where the failure may pass by itself.

    That is a connection that breaks, an answer 429 or 5xx, or one that is no answer of the Hub at all. A time-out is
    not: it was long enough. The client repeats the requests of large files, and of nothing else that a push needs.
    """
    for pause in PAUSES:
        try:
            return call(*arguments, **options)
        except Exception as error:
            if not _is_transient(error):
                raise
            pause = _retry_after(error, pause)
            logger.warning(f"Asking the Hub again in {pause} s, after this: {_in_short(error)}")
            time.sleep(pause)
    return call(*arguments, **options)


def is_ambiguous(error: Exception) -> bool:
    """Whether the Hub may have done what it was asked, although it was answered with `error`."""
    return _is_transient(error) or isinstance(error, httpx.TimeoutException)


@contextmanager
def request_timeout(seconds: float):
    """Gives up on any request that hears nothing for so long: the client itself waits for ever.

    Raises:
        ValueError: if `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"`timeout` must be above 0 seconds, got {seconds!r}.")

    with _LOCK:
        if not _LIMITS:
            _limit_sessions()
        _LIMITS.append(seconds)
    try:
        yield
    finally:
        with _LOCK:
            _LIMITS.remove(seconds)
            if not _LIMITS:
                _free_sessions()


def _limit_sessions() -> None:
    """Has the client's session, and each that the client opens in its place after a lost connection, limit requests."""
    make_session = _http._GLOBAL_CLIENT_FACTORY

    def make_limited():
        session = make_session()
        session.event_hooks["request"].append(_limit)
        return session

    make_limited.make_session = make_session
    # Not by `set_client_factory`, which closes the session under the requests of other threads.
    _http._GLOBAL_CLIENT_FACTORY = make_limited
    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)


def _free_sessions() -> None:
    hooks = get_session().event_hooks["request"]
    if _limit in hooks:
        hooks.remove(_limit)
    # Unless somebody else has set another in the meantime.
    factory = _http._GLOBAL_CLIENT_FACTORY
    _http._GLOBAL_CLIENT_FACTORY = getattr(factory, "make_session", factory)


def _limit(request) -> None:
    # Here and not on the session: several calls set "no limit" for their own request.
    limits = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    seconds = min(_LIMITS, default=None)
    request.extensions["timeout"] = {kind: limits.get(kind) or seconds for kind in kinds}


def _is_transient(error: Exception) -> bool:
    if isinstance(error, LocalEntryNotFoundError):
        return False  # a download that the client has tried again by itself
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    # A proxy's or a gateway's page in place of JSON.
    passing = (httpx.NetworkError, httpx.RemoteProtocolError, json.JSONDecodeError)
    return isinstance(error, passing)


def _retry_after(error: Exception, pause: float) -> float:
    """Seconds that the Hub asks to wait, else `pause`."""
    if not isinstance(error, HfHubHTTPError):
        return pause
    asked = error.response.headers.get("Retry-After", "")
    return min(int(asked), LONGEST_PAUSE) if asked.isdecimal() else pause


def _in_short(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} to {error.response.request.url.path}"
    return f"{type(error).__name__} ({error})"
