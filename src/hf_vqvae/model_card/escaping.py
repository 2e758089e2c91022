"""How the card writes what a run brings along.

Names that a run brings along (datasets, labels, columns, versions) may hold anything. They are
escaped, so that none can break a table or bring HTML, and of paths only the last part is shown.
"""

import json
import re

# How a path begins that means nothing on another machine, of whatever system.
_PATH = re.compile(r"/|~|\.{1,2}[\\/]|\\|[A-Za-z]:[\\/]|file:", re.IGNORECASE)


def without_path(text: str) -> str:
    """Of a path on this machine the last part, anything else as it is."""
    parts = re.split(r"[\\/]", text.rstrip("\\/"))
    return parts[-1] if _PATH.match(text) or ".." in parts else text


def clean(value: object) -> str:
    """One line of printable characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return " ".join(text.split())


def as_code(value: object) -> str:
    """`value` in the font of code, whatever is in it."""
    text = clean(without_path(str(value)))
    if re.fullmatch(r"[\w .,:;/+=()\[\]@%\"'-]+", text):
        return f"`{text}`"
    # Markdown and HTML have no power over character references, not even in a table.
    escaped = "".join(
        letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text
    )
    return f"<code>{escaped}</code>"


def as_setting(value: object) -> str:
    """A setting as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(as_setting(item) for item in value)
    return str(value) if isinstance(value, int) else as_code(value)


def as_duration(seconds: float) -> str:
    """Seconds as hours and minutes, or as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def as_string(value: str) -> str:
    """`value` as a string in Python, in characters that mean nothing to Markdown and HTML."""
    text = json.dumps(clean(value), ensure_ascii=False)
    return re.sub(r"[`<>{}]", lambda match: f"\\x{ord(match[0]):02x}", text)


def as_plain(text: object) -> str:
    """Words for a cell of a table; markup in them shows as what it is, and addresses become no links."""
    markup = r"[|<>&*`{}\\]|\](?=[\[(])|\b_|_\b"
    markup += r"|:(?=//)|(?<=www)\.|(?<=WWW)\.|@"  # of addresses, also of mail
    return re.sub(markup, lambda match: f"&#{ord(match[0])};", clean(text))
