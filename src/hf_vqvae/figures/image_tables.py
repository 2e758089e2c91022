"""Tables of pictures with names and captions: samples by class, completions, nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from .page import (
    MARGIN,
    WIDTH,
    check_images,
    displayable,
    page,
    place_axes,
    show_picture,
    shown_size,
)

SPACE, GAP = 4, 16  # dots between pictures, and between groups of columns
NAMES = 280  # the most dots that the names of rows take
SMALLEST = 7  # points
LINE = 38  # dots for a line of a heading or a caption


def hide_unknown(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C), uint8, with grey stripes where `known`, bool (H, W), is False."""
    height, width = known.shape
    stripe = max(1, min(height, width) // 14)
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // stripe
    stripes = np.where(diagonal % 2, 150, 205).astype(np.uint8)
    return np.where(known[..., None], images, stripes[..., None])


def plot_samples_by_class(samples: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Images drawn with a label: rows of one class each, with its name at their left.

    Args:
        samples: uint8 (R, Q, H, W, C), Q of them a row.
        names: R names; of rows in succession with the same name the first shows it.
    """
    firsts = [
        name if name != before else "" for name, before in zip(names, ["", *names], strict=False)
    ]
    _plot_table(samples, path, row_names=firsts)


def plot_completions(
    images: np.ndarray,
    known: np.ndarray,
    completions: np.ndarray,
    reconstructions: np.ndarray,
    path: str | Path,
) -> None:
    """A row an image: the image, its known part, several completions of that, its reconstruction.

    Args:
        images: uint8 (N, H, W, C).
        known: bool (H, W), the pixels whose codes were kept.
        completions: uint8 (N, Q, H, W, C).
        reconstructions: uint8 (N, H, W, C), from all codes of the image itself.
    """
    images = check_images(images)
    beside = [one[:, None] for one in (images, hide_unknown(images, known), reconstructions)]
    pictures = np.concatenate([*beside[:2], completions, beside[2]], axis=1)
    groups = [("Image", 1), ("Known", 1), ("Completions", completions.shape[1])]
    _plot_table(pictures, path, groups=[*groups, ("Recon-\nstruction", 1)])


def plot_neighbours(
    samples: np.ndarray, neighbours: np.ndarray, distances: np.ndarray, path: str | Path
) -> None:
    """Samples, each with its nearest training images and their distances beneath; two in a row.

    Args:
        samples: uint8 (N, H, W, C).
        neighbours: uint8 (N, Q, H, W, C), nearest first.
        distances: (N, Q).
    """
    samples = check_images(samples, "samples")
    pictures = np.concatenate([samples[:, None], neighbours], axis=1)
    captions = [["", *(f"{value:.2f}" for value in row)] for row in distances]
    groups = [("Sample", 1), ("Nearest training images", neighbours.shape[1])]
    if len(samples) % 2 == 0:
        pictures = pictures.reshape(len(samples) // 2, -1, *samples.shape[1:])
        captions = [left + right for left, right in zip(captions[::2], captions[1::2], strict=True)]
        groups *= 2
    _plot_table(pictures, path, groups=groups, captions=captions)


def _plot_table(
    pictures: np.ndarray,
    path: str | Path,
    *,
    groups: Sequence[tuple[str, int]] | None = None,
    row_names: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> None:
    """Pictures, uint8 (R, Q, H, W, C), with headings over `groups` of so many columns."""
    rows, columns, height, width = pictures.shape[:4]
    check_images(pictures.reshape(-1, *pictures.shape[2:]), "pictures")
    # About as wide as its characters; what is wider shrinks.
    names_room = min(NAMES, 26 * max(len(name) for name in row_names)) if row_names else 0
    names_width = names_room + GAP if row_names else 0
    groups = groups or [("", columns)]
    gaps = GAP * (len(groups) - 1)
    room = (WIDTH - 2 * MARGIN - names_width - gaps) // max(columns, 4) - SPACE
    # A page of pictures much higher than wide would be endless.
    height, width = shown_size(height, width, max(1, min(room, 2 * room * width // height)))
    lines = max(name.count("\n") + 1 if name else 0 for name, _ in groups)
    head = MARGIN + (LINE * lines + 12 if lines else 0)
    pitch = height + (LINE + SPACE if captions else SPACE)
    wide = columns * (width + SPACE) - SPACE + gaps + names_width
    start = (WIDTH - wide) / 2 + names_width
    lefts = []
    for number, (_, count) in enumerate(groups):
        lefts += [start + number * GAP + (len(lefts) + i) * (width + SPACE) for i in range(count)]
    with page(path, head + rows * pitch + MARGIN) as figure:
        first = 0
        for name, count in groups:
            middle = (lefts[first] + lefts[first + count - 1] + width) / 2
            across = count * (width + SPACE)
            _write(figure, middle, head - 12, name, across, weight="bold", size=10, va="bottom")
            first += count
        for row in range(rows):
            top = head + row * pitch
            if row_names:
                _write(
                    figure, start - GAP, top + height / 2, row_names[row], names_room, ha="right"
                )
            for column, left in enumerate(lefts):
                axes = place_axes(figure, left, top, height, width)
                show_picture(axes, displayable(pictures[row, column]))
                if captions:
                    text, below = captions[row][column], top + height + 6
                    _write(figure, left + width / 2, below, text, width + SPACE, size=9, va="top")


def _write(figure: Figure, x: float, y: float, text: str, room: float, **options) -> None:
    """Text that shrinks until it fits into `room` dots, and is cut short where it would be too small."""
    options = {"ha": "center", "va": "center", "size": 12, "parse_math": False, **options}
    label = figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, **options)
    size = options["size"]
    needed = _width(label)
    if needed > room:
        label.set_fontsize(max(SMALLEST, 0.97 * size * room / needed))
    while len(text) > 1 and _width(label) > room:
        text = text[:-1]
        label.set_text(f"{text.rstrip()}…")


def _width(label: Text) -> float:
    return label.get_window_extent(label.figure.canvas.get_renderer()).width


def printable(name: str, otherwise: str) -> str:
    """A name on one line, or something else in place of one that is empty or that the font lacks."""
    name = " ".join(name.split())
    with_glyphs = get_font(findfont(FontProperties(family="DejaVu Sans")))
    whole = name and all(with_glyphs.get_char_index(ord(character)) for character in name)
    return name if whole else otherwise
