"""The figure of a sweep: error against rate and perplexity, and reconstructions at every point."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .image_tables import Table, check_images
from .page import (
    BLUE,
    GREEN,
    INK,
    MARGIN,
    ORANGE,
    PURPLE,
    VERMILION,
    WIDTH,
    page,
    plain_log_axis,
    write_text,
)

HOLLOW = {"linestyle": "", "markerfacecolor": "white"}
COLORS, MARKERS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, INK), "osD^vP"
HEAD, PANEL, FOOT = 104, 470, 150  # dots above, of and below the axes of a panel
KEY, KEY_COLUMNS = 50, 4  # dots of a line of the legend, and what stands in one


def plot_sweep(
    points: Sequence[dict[str, Any]],
    originals: np.ndarray,
    reconstructions: np.ndarray,
    path: str | Path,
) -> None:
    """Draw reconstruction error against bits per image and against perplexity, and reconstructions of each point.

    Args:
        points: P points in the form of results.json: `num_embeddings`, `embedding_dim`, `reconstruction_mse` above
            0, `codebook_perplexity`, `bits_per_image_at_most` and `bits_per_image_entropy`.
        originals: uint8 (N, H, W, C).
        reconstructions: uint8 (P, N, H, W, C), of the same images in the same order.

    Raises:
        ValueError: if there are no points, or not a strip of reconstructions for each.
    """
    originals = check_images(originals, "originals")
    expected = (len(points), *originals.shape)
    if not points or np.shape(reconstructions) != expected:
        raise ValueError(
            f"`reconstructions` must be of shape {expected}, a strip for each of 1 point or more, got "
            f"{np.shape(reconstructions)}."
        )
    names = ["Original"] + [
        f"K {point['num_embeddings']}, D {point['embedding_dim']}\n"
        f"MSE {point['reconstruction_mse']:#.3g}"
        for point in points
    ]
    table = Table(np.stack([originals, *reconstructions]), row_names=names)
    curves = list(_curves(points))
    # Below the first title: a line for the marks, lines for the dimensions, and the codebooks' sizes.
    key = KEY * (1 + math.ceil(len(curves) / KEY_COLUMNS)) + 60
    panel = HEAD + PANEL + FOOT
    below = key + 2 * panel + 56
    with page(path, below + len(table.canvas)) as figure:
        axes = _panel(figure, 0, key, "Error against bits per image", "bits per image")
        _draw_rates(axes, curves)
        _draw_key(figure, curves)
        axes = _panel(figure, key + panel, 0, "Error against perplexity", "codebook perplexity")
        _draw_perplexities(axes, curves)
        write_text(figure, MARGIN, below - 8, "Reconstructions", weight="bold", size=13)
        table.draw(figure)


def _panel(figure: Figure, top: int, key: int, title: str, label: str) -> Axes:
    """Add axes to the page from `top` on, below their title and `key` dots for the legend."""
    left, right, dots = 190, 56, int(figure.bbox.height)
    bottom = dots - top - HEAD - key - PANEL
    box = (left / WIDTH, bottom / dots, (WIDTH - left - right) / WIDTH, PANEL / dots)
    write_text(figure, MARGIN, top + 56, title, weight="bold", size=13)
    return figure.add_axes(box, yscale="log", xlabel=label, ylabel="reconstruction MSE")


def _curves(points: Sequence[dict[str, Any]]) -> Iterator[tuple[int, list[dict], dict[str, Any]]]:
    """Yield each dimension, its points by size of the codebook, and the style of its curve."""
    for index, dimension in enumerate(sorted({point["embedding_dim"] for point in points})):
        own = [point for point in points if point["embedding_dim"] == dimension]
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        style = {"color": color, "marker": marker, "markersize": 8}
        yield dimension, sorted(own, key=lambda point: point["num_embeddings"]), style


def _values(points: list[dict[str, Any]], key: str) -> list[float]:
    return [point[key] for point in points]


def _draw_rates(axes: Axes, curves: list[tuple[int, list[dict], dict[str, Any]]]) -> None:
    for _, own, style in curves:
        errors = _values(own, "reconstruction_mse")
        entropies, most = (_values(own, f"bits_per_image_{key}") for key in ("entropy", "at_most"))
        # From the full to the hollow mark: the bits that entropy coding would save.
        axes.hlines(errors, entropies, most, color=style["color"], linewidth=1.2, linestyle=":")
        axes.plot(most, errors, **style)
        axes.plot(entropies, errors, **style | HOLLOW)
    plain_log_axis(axes)
    axes.margins(x=0.08)
    _label_sizes(axes, [point for _, own, _ in curves for point in own])


def _draw_key(figure: Figure, curves: list[tuple[int, list[dict], dict[str, Any]]]) -> None:
    mark = {"color": INK, "marker": "o", "markersize": 8, "linestyle": ""}
    marks = [
        Line2D([], [], **mark, label="at most: log2 K per code"),
        Line2D([], [], **mark | HOLLOW, label="by entropy: log2 perplexity"),
    ]
    lines = [Line2D([], [], **style, label=f"D = {size:,}") for size, _, style in curves]
    for top, handles in ((HEAD - 8, marks), (HEAD - 8 + KEY, lines)):
        place = (MARGIN / WIDTH, 1 - top / figure.bbox.height)
        options = {"ncols": KEY_COLUMNS, "fontsize": 11, "borderpad": 0, "borderaxespad": 0}
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, **options)


def _label_sizes(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    """Write the sizes of the codebook above their rates, as far as there is room."""
    sizes = {point["num_embeddings"]: point["bits_per_image_at_most"] for point in points}
    low, high = axes.get_xlim()
    last = -float("inf")
    for size, bits in sorted(sizes.items()):
        place = (bits - low) / (high - low)
        if place - last > 0.03 * (1 + len(f"K {size:,}")) / 2:
            last = place
            axes.axvline(bits, color="#b0b0b0", linewidth=0.8, zorder=0)
            axes.text(
                place,
                1.02,
                f"K {size:,}",
                transform=axes.transAxes,
                ha="center",
                va="bottom",
                size=10,
            )


def _draw_perplexities(axes: Axes, curves: list[tuple[int, list[dict], dict[str, Any]]]) -> None:
    for index, (_, own, style) in enumerate(curves):
        errors = _values(own, "reconstruction_mse")
        perplexities = _values(own, "codebook_perplexity")
        axes.plot(perplexities, errors, **style)
        # Curves fall: there is room above the first, and below the last.
        first, last = index == 0, index == len(curves) - 1
        if not first and not last:
            continue
        place = {"xytext": (6, 4), "ha": "left", "va": "bottom"}
        if not first:
            place = {"xytext": (-6, -4), "ha": "right", "va": "top"}
        for point, x, y in zip(own, perplexities, errors, strict=True):
            options = {"textcoords": "offset points", "color": style["color"], "size": 10}
            axes.annotate(f"K {point['num_embeddings']:,}", (x, y), **place, **options)
    axes.set_xscale("log", base=2)
    plain_log_axis(axes)
    axes.margins(x=0.12, y=0.12)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1,) if high > 8 * low else (1, 1.5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
