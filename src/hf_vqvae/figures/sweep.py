"""The figure of a sweep: error against rate, and reconstructions at every point."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .image_tables import Table
from .page import BLUE, GREEN, INK, MARGIN, ORANGE, PURPLE, VERMILION, WIDTH, page, plain_log_axis, write_text

COLORS, MARKERS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, INK), "osD^vP"
LEFT, RIGHT, HEAD, PANEL, FOOT = 190, 56, 90, 620, 150  # dots around and of the axes
KEY = 50  # dots of a line of the legend
# Bits per image and MSE of the Keras example on MNIST as it runs on Keras 3, with 30 + 30 epochs, from the losses that
# its page prints (https://keras.io/examples/generative/vq_vae/); its prior has no labels.
KERAS_EXAMPLE = (73.7, 0.0041)


def plot_sweep(
    points: Sequence[dict[str, Any]],
    originals: np.ndarray,
    reconstructions: np.ndarray,
    path: str | Path,
    *,
    dataset: str = "",
) -> None:
    """Draw reconstruction error against bits per image, and reconstructions of each point.

    Args:
        points: P points in the form of results.json.
        originals: uint8 (N, H, W, C).
        reconstructions: uint8 (P, N, H, W, C), of the same images in the same order.
        dataset: its name; if it is MNIST and the points have priors, the point of the Keras example is drawn too.
    """
    names = ["Original"] + [
        f"K {point['num_embeddings']}, D {point['embedding_dim']}\nMSE {point['reconstruction_mse']:#.3g}"
        for point in points
    ]
    table = Table(np.stack([originals, *reconstructions]), row_names=names)
    dimensions = sorted({point["embedding_dim"] for point in points})
    top = HEAD + KEY * math.ceil((len(dimensions) + 4) / 2)
    below = top + PANEL + FOOT + 56
    with page(path, below + len(table.canvas)) as figure:
        write_text(figure, MARGIN, 56, "Error against bits per image", weight="bold", size=13)
        height = figure.bbox.height
        box = (LEFT / WIDTH, 1 - (top + PANEL) / height, 1 - (LEFT + RIGHT) / WIDTH, PANEL / height)
        axes = figure.add_axes(box, yscale="log", xlabel="bits per image", ylabel="reconstruction MSE")
        _draw_rates(axes, points, dimensions, Path(dataset).name.lower() == "mnist")
        write_text(figure, MARGIN, below - 8, "Reconstructions", weight="bold", size=13)
        table.draw(figure)


def _draw_rates(axes: Axes, points: Sequence[dict[str, Any]], dimensions: list[int], is_mnist: bool) -> None:
    """Draw a curve of errors against each rate for each dimension, with the codebook's sizes at the first and last."""
    rates = {
        "bits_per_image_at_most": ({}, "at most: log2 K per code"),
        "bits_per_image_entropy": ({"markerfacecolor": "white"}, "by entropy: log2 perplexity"),
    }
    drawn = "bits_per_image_at_most"  # the rate that lines join
    errors = [point["reconstruction_mse"] for point in points]
    if all("bits_per_image_prior" in point for point in points):
        drawn = "bits_per_image_prior"
        rates["bits_per_image_at_most"][0].update(marker="|")
        rates = {drawn: ({}, "by the prior, no labels"), **rates}
        if is_mnist:
            errors.append(KERAS_EXAMPLE[1])
            axes.plot(*KERAS_EXAMPLE, "*", color=INK, markersize=14, label="the Keras example")
    axes.margins(x=0.12)
    room = 1.1 * (max(errors) / min(errors)) ** 0.08  # for the text beside the outermost points
    axes.set_ylim(min(errors) / room, max(errors) * room)
    plain_log_axis(axes)
    for index, dimension in enumerate(dimensions):
        line = [point for point in points if point["embedding_dim"] == dimension]
        line.sort(key=lambda point: point["num_embeddings"])
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        style = {"color": color, "marker": marker, "markersize": 8, "label": f"D = {dimension:,}"}
        y = [point["reconstruction_mse"] for point in line]
        bits = {key: [point[key] for point in line] for key in rates}
        axes.hlines(y, *(list(map(end, *bits.values())) for end in (min, max)), color, ":", linewidth=1.2)
        for key, (look, _) in rates.items():
            hidden = {} if key == drawn else {"linestyle": "", "label": None}
            axes.plot(bits[key], y, **style | look | hidden)
        # Curves fall: there is room above the first, and below the last.
        place = {"xytext": (6, 4), "ha": "left", "va": "bottom"}
        if index:
            place = {"xytext": (-6, -4), "ha": "right", "va": "top"}
        if index in (0, len(dimensions) - 1):
            for point, *end in zip(line, bits[drawn], y, strict=True):
                options = {"textcoords": "offset points", "color": color, "size": 10}
                axes.annotate(f"K {point['num_embeddings']:,}", end, **place, **options)
    mark = {"color": INK, "marker": "o", "markersize": 8, "linestyle": ""}
    marks = [Line2D([], [], label=label, **mark | look) for look, label in rates.values()]
    handles = axes.get_legend_handles_labels()[0] + marks
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10)
