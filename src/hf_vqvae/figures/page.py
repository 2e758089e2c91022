"""The page that every figure is drawn on, and what is put on it at whole dots.

Every figure is 1280 dots wide on opaque white (legible on a phone and on a dark page), in the
colour-blind-safe colours of Okabe and Ito. Nothing here touches pyplot or the caller's backend.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

WIDTH, DPI = 1280, 200  # of every figure, in dots and dots an inch: 6.4 inches
MARGIN = 24  # dots around pictures
INK, PALE = "#1a1a1a", "#d0d0d0"
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
_STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    **{f"{name}color": INK for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
}


@contextmanager
def page(path: str | Path, height: int, layout: str | None = None) -> Iterator[Figure]:
    """A blank figure of `height` dots, written to `path` when the block ends."""
    # From matplotlib's defaults: a dark theme in the caller's rcParams would give dark on dark.
    with style.context(["default", _STYLE]):
        # Half a dot more: matplotlib cuts the size in dots down to whole numbers.
        size = ((WIDTH + 0.5) / DPI, (height + 0.5) / DPI)
        figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        if layout == "constrained":
            figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
        yield figure
        figure.savefig(path, format="png", dpi=DPI, facecolor="white")


def displayable(image: np.ndarray) -> np.ndarray:
    """(H, W, C) of any C to what can be shown: (H, W, 3)."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def check_images(images: np.ndarray, name: str = "images") -> np.ndarray:
    """`images` as an array; a ValueError unless they are uint8 (N, H, W, C), none of them 0."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"`{name}` must be uint8 of shape (N, H, W, C), none of them 0, got {images.dtype} "
            f"{images.shape}."
        )
    return images


def shown_size(height: int, width: int, room: int) -> tuple[int, int]:
    """Size in dots of a picture in `room` dots of width: whole dots a pixel, all pixels alike."""
    scale = room // width or room / width
    return max(1, round(height * scale)), max(1, round(width * scale))


def place_axes(figure: Figure, left: float, top: float, height: int, width: int) -> Axes:
    """Axes without ticks at whole dots, counted from the upper left corner."""
    full_width, full_height = figure.bbox.width, figure.bbox.height
    bottom = int(full_height) - round(top) - height
    box = (round(left) / full_width, bottom / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box, xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=PALE, linewidth=0.8)
    return axes


def show_picture(axes: Axes, picture: np.ndarray, **colors) -> None:
    """Fills `axes` with (H, W, 3), or with (H, W) in the `colors` of a colour map."""
    # Only a picture with more pixels than dots is smoothed: nearest would drop some of its pixels.
    enough_dots = axes.bbox.width >= picture.shape[1] - 0.5
    axes.imshow(
        picture, interpolation="nearest" if enough_dots else "antialiased", aspect="auto", **colors
    )


def write_text(figure: Figure, x: float, y: float, text: str, **options) -> None:
    """Text at dots counted from the upper left corner."""
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, **options)


def plain_log_axis(axes: Axes) -> None:
    """A logarithmic y axis in plain numbers (0.002, 5,000) and with at least two of them."""
    low, high = axes.get_ylim()
    wider = max(1, math.sqrt(4 / (high / low)))  # ticks lie at most a factor of 2.5 apart
    decades = math.log10(high / low)
    axes.set_ylim(low / wider, high * wider)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
