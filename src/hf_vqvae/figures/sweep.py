"""The figure of a sweep: error against rate and perplexity, and reconstructions at every point."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .image_tables import Table
from .page import BLUE, GREEN, INK, MARGIN, ORANGE, PURPLE, VERMILION, WIDTH, page, plain_log_axis, write_text

COLORS, MARKERS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, INK), "osD^vP"
HEAD, PANEL, FOOT = 90, 500, 150  # dots above, of and below the axes of a panel
KEY = 50  # dots of a line of the legend

Curve = tuple[list[dict[str, Any]], dict[str, Any]]  # points by size of the codebook, and style


def plot_sweep(
    points: Sequence[dict[str, Any]], originals: np.ndarray, reconstructions: np.ndarray, path: str | Path
) -> None:
    """Draw reconstruction error against bits per image and against perplexity, and reconstructions of each point.

    Args:
        points: P points in the form of results.json.
        originals: uint8 (N, H, W, C).
        reconstructions: uint8 (P, N, H, W, C), of the same images in the same order.
    """
    names = ["Original"] + [
        f"K {point['num_embeddings']}, D {point['embedding_dim']}\nMSE {point['reconstruction_mse']:#.3g}"
        for point in points
    ]
    table = Table(np.stack([originals, *reconstructions]), row_names=names)
    curves = _curves(points)
    second = HEAD + KEY * math.ceil(len(curves) / 2 + 1) + PANEL + FOOT
    below = second + HEAD + PANEL + FOOT + 56
    with page(path, below + len(table.canvas)) as figure:
        axes = _panel(figure, 0, second, "Error against bits per image", "bits per image")
        _draw_rates(axes, curves)
        axes = _panel(figure, second, below - 56, "Error against perplexity", "codebook perplexity")
        _draw_perplexities(axes, curves)
        write_text(figure, MARGIN, below - 8, "Reconstructions", weight="bold", size=13)
        table.draw(figure)


def _panel(figure: Figure, top: int, bottom: int, title: str, label: str) -> Axes:
    """Add the axes of a panel from `top` to `bottom`, with its title."""
    left, right, dots = 190, 56, int(figure.bbox.height)
    box = (left, dots - bottom + FOOT, WIDTH - left - right, PANEL)
    write_text(figure, MARGIN, top + 56, title, weight="bold", size=13)
    fractions = [side / whole for side, whole in zip(box, (WIDTH, dots) * 2, strict=True)]
    return figure.add_axes(fractions, yscale="log", xlabel=label, ylabel="reconstruction MSE")


def _curves(points: Sequence[dict[str, Any]]) -> list[Curve]:
    """Return the curve of each dimension."""
    curves = []
    for index, dimension in enumerate(sorted({point["embedding_dim"] for point in points})):
        line = [point for point in points if point["embedding_dim"] == dimension]
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        style = {"color": color, "marker": marker, "markersize": 8, "label": f"D = {dimension:,}"}
        curves.append((sorted(line, key=lambda point: point["num_embeddings"]), style))
    return curves


def _draw_curves(axes: Axes, curves: list[Curve], key: str) -> None:
    """Draw errors against `points[key]`, with the codebook's sizes at the first and last curve."""
    for index, (points, style) in enumerate(curves):
        x, y = ([point[name] for point in points] for name in (key, "reconstruction_mse"))
        axes.plot(x, y, **style)
        # Curves fall: there is room above the first, and below the last.
        place = {"xytext": (6, 4), "ha": "left", "va": "bottom"}
        if index:
            place = {"xytext": (-6, -4), "ha": "right", "va": "top"}
        if index in (0, len(curves) - 1):
            for point, *end in zip(points, x, y, strict=True):
                options = {"textcoords": "offset points", "color": style["color"], "size": 10}
                axes.annotate(f"K {point['num_embeddings']:,}", end, **place, **options)


def _make_room(axes: Axes, curves: list[Curve]) -> None:
    """Widen both axes, for the text beside the outermost points."""
    axes.margins(x=0.12)
    errors = [point["reconstruction_mse"] for points, _ in curves for point in points]
    room = 1.1 * (max(errors) / min(errors)) ** 0.08
    axes.set_ylim(min(errors) / room, max(errors) * room)
    plain_log_axis(axes)


def _draw_rates(axes: Axes, curves: list[Curve]) -> None:
    _make_room(axes, curves)
    _draw_curves(axes, curves, "bits_per_image_at_most")
    for points, style in curves:
        keys = ("bits_per_image_entropy", "bits_per_image_at_most", "reconstruction_mse")
        entropies, most, errors = ([point[key] for point in points] for key in keys)
        # From the full to the hollow mark: the bits that entropy coding would save.
        axes.hlines(errors, entropies, most, color=style["color"], linewidth=1.2, linestyle=":")
        hollow = {"linestyle": "", "markerfacecolor": "white", "label": None}
        axes.plot(entropies, errors, **style | hollow)
    mark = {"color": INK, "marker": "o", "markersize": 8, "linestyle": ""}
    marks = [
        Line2D([], [], **mark, label="at most: log2 K per code"),
        Line2D([], [], **mark, markerfacecolor="white", label="by entropy: log2 perplexity"),
    ]
    handles = axes.get_legend_handles_labels()[0] + marks
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=11)


def _draw_perplexities(axes: Axes, curves: list[Curve]) -> None:
    _make_room(axes, curves)
    _draw_curves(axes, curves, "codebook_perplexity")
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1,) if high > 8 * low else (1, 1.5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
