"""Dataset rows to batches, and to codes."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `load_images` when it is used: it takes seconds, which reading flags does not need."""
    if name != "load_images":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .splits import load_images

    return load_images
