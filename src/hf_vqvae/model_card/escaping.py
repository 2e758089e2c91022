"""Escape untrusted strings for Markdown and HTML.

Names of datasets, labels, columns and versions may contain anything. They are escaped, so that they
cannot break a table or add HTML. Of a path on this machine only the last part is shown.
"""

import json
import re

# Beginnings of paths that mean nothing on another machine.
_PATH = re.compile(r"/|~|\.{1,2}[\\/]|\\|[A-Za-z]:[\\/]|file:", re.IGNORECASE)


def without_path(text: str) -> str:
    """Return the last part of a path on this machine; return any other text unchanged."""
    parts = re.split(r"[\\/]", text.rstrip("\\/"))
    return parts[-1] if _PATH.match(text) or ".." in parts else text


def clean(value: object) -> str:
    """Return `value` as one line of printable characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return " ".join(text.split())


def as_code(value: object) -> str:
    """Write `value` as inline code."""
    text = clean(without_path(str(value)))
    if re.fullmatch(r"[\w .,:;/+=()\[\]@%\"'-]+", text):
        return f"`{text}`"
    # Markdown and HTML leave character references alone, even in a table.
    escaped = "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)
    return f"<code>{escaped}</code>"


def as_setting(value: object) -> str:
    """Write a setting for a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(as_setting(item) for item in value)
    return str(value) if isinstance(value, int) else as_code(value)


def as_duration(seconds: float) -> str:
    """Write seconds as hours and minutes, or as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_string(value: str) -> str:
    """Write `value` as a Python string without characters that Markdown or HTML interpret."""
    text = json.dumps(clean(value), ensure_ascii=False)
    return re.sub(r"[`<>{}]", lambda match: f"\\x{ord(match[0]):02x}", text)


def as_plain(text: object) -> str:
    """Write text for a cell of a table: markup is shown as text, addresses do not become links."""
    markup = r"[|<>&*`{}\\]|\](?=[\[(])|\b_|_\b"
    markup += r"|:(?=//)|(?<=www)\.|(?<=WWW)\.|@"  # of addresses, also of mail
    return re.sub(markup, lambda match: f"&#{ord(match[0])};", clean(text))
