"""Boxes, arrows and cells, of which the figure of the network is made."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from .page import INK

PLAIN = ("#ffffff", "#707070")  # fill and edge of a box that holds data
GAP, LINE = 48, 42  # between boxes, where the arrows are; between lines of text in a box


def size_text(*numbers: int) -> str:
    """Sides as they are read: 7 x 7 x 64, with the sign for times."""
    return " × ".join(str(number) for number in numbers)  # noqa: RUF001


def blocks_text(number: int, before: str) -> list[str]:
    """A line on so many residual blocks; none where there are none."""
    return [f"{before} {number} residual block{'s' if number > 1 else ''}"] if number else []


def box_height(*boxes: Sequence[str]) -> int:
    """Dots that the highest of boxes with these lines of text needs."""
    return 22 + LINE * max(len(lines) for lines in boxes)


class Canvas:
    """Boxes, arrows and text on one page, in dots counted from the upper left corner."""

    def __init__(self, figure: Figure):
        self.figure = figure
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, figure.bbox.width), ylim=(figure.bbox.height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, room: float, **options) -> None:
        """Text that shrinks until it fits into `room` dots."""
        options = {"ha": "center", "va": "center", "size": 12, **options}
        label = self.axes.text(x, y, text, **options)
        needed = label.get_window_extent(self.figure.canvas.get_renderer()).width
        if needed > room:
            label.set_fontsize(options["size"] * room / needed)

    def box(
        self, x: float, top: float, width: float, height: float, lines: Sequence[str], colors: tuple
    ) -> None:
        """A box around `x` with lines of text, the first one bold."""
        fill, edge = colors
        shape = "round,pad=0,rounding_size=14"
        corner = (x - width / 2, top)
        self.axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=fill, ec=edge, lw=1.6))
        for index, line in enumerate(lines):
            y = top + height / 2 + LINE * (index - (len(lines) - 1) / 2)
            self.text(x, y, line, width - 24, weight="normal" if index else "bold")

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        options = {"arrowstyle": "-|>,head_width=0.35,head_length=0.55", "color": INK, "lw": 1.6}
        self.axes.annotate("", end, start, arrowprops={**options, "shrinkA": 0, "shrinkB": 0})

    def cells(self, left: float, top: float, cell: float, fills: Sequence[Sequence[str]]) -> None:
        """A table of coloured cells."""
        for row, colors in enumerate(fills):
            for column, color in enumerate(colors):
                corner = (left + column * cell, top + row * cell)
                self.axes.add_patch(Rectangle(corner, cell, cell, fc=color, ec="#606060", lw=0.8))
