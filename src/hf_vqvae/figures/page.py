"""The page that every figure is drawn on: its size, its colours, and text that fits its place.

Every figure is 1280 dots wide on opaque white (legible on a phone and in dark mode), in the
colour-blind-safe palette of Okabe and Ito. Nothing here touches pyplot or the caller's backend.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter

WIDTH, DPI = 1280, 200  # width of every figure in dots, and dots per inch: 6.4 inches
MARGIN = 24  # dots at the border of the page
SMALLEST = 7  # points; smaller text is not legible on a phone
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
    """Yield a blank figure of `height` dots and write it to `path` when the block ends."""
    # From matplotlib's defaults: a dark theme in the caller's rcParams would give dark on dark.
    with style.context(["default", _STYLE]):
        figure = Figure(dpi=DPI, facecolor="white", layout=layout)
        set_height(figure, height)
        FigureCanvasAgg(figure)
        if layout == "constrained":
            figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
        yield figure
        figure.savefig(path, format="png", dpi=DPI, facecolor="white")


def set_height(figure: Figure, height: int) -> None:
    """Set the height of a page in dots."""
    # Half a dot more: matplotlib cuts the size in dots down to whole numbers.
    figure.set_size_inches((WIDTH + 0.5) / DPI, (height + 0.5) / DPI)


def write_text(figure: Figure, x: float, y: float, text: str, **options) -> Text:
    """Write text at dots counted from the upper left corner."""
    place = (x / figure.bbox.width, 1 - y / figure.bbox.height)
    return figure.text(*place, text, parse_math=False, **options)


def fit_text(label: Text, room: float) -> None:
    """Shrink text until it is at most `room` dots wide; cut it where it would be illegible."""

    def width() -> float:
        return label.get_window_extent(label.figure.canvas.get_renderer()).width

    while width() > room and label.get_fontsize() > SMALLEST:
        label.set_fontsize(max(SMALLEST, label.get_fontsize() - 0.25))
    text = label.get_text()
    while len(text) > 1 and width() > room:
        text = text[:-1]
        label.set_text(f"{text.rstrip()}…")


def plain_log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic with plain numbers (0.002, 5,000), at least two of them."""
    low, high = axes.get_ylim()
    wider = max(1, math.sqrt(4 / (high / low)))  # ticks lie at most a factor of 2.5 apart
    decades = math.log10(high / low)
    axes.set_ylim(low / wider, high * wider)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
