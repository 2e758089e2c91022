"""The name by which cards that were pushed earlier import `load_digits`."""

from .data.digits import load_digits

__all__ = ["load_digits"]
