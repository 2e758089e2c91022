"""The figure of a sweep, in the style of `plotting`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from .plotting import (
    BLUE,
    GREEN,
    INK,
    MARGIN,
    ORANGE,
    PURPLE,
    VERMILION,
    WIDTH,
    _check_images,
    _displayable,
    _page,
    _place,
    _plain_log_axis,
    _show,
    _shown_size,
    _write,
)

COLORS, MARKERS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, INK), "osD^vP"
LABELS = 304  # dots for what stands beside a strip: leaves 4 dots a pixel to 8 images of 28
LEFT = 170  # dots of a panel's own labels


def plot_sweep(
    points: Sequence[dict[str, Any]],
    originals: np.ndarray,
    reconstructions: np.ndarray,
    path: str | Path,
) -> None:
    """Reconstruction error against bits an image and against perplexity, and what it looks like at every point.

    Args:
        points: P of them, in the form of results.json: `num_embeddings`, `embedding_dim`, `reconstruction_mse` above
            0, `codebook_perplexity`, `bits_per_image_at_most` and `bits_per_image_entropy`.
        originals: uint8 (N, H, W, C).
        reconstructions: uint8 (P, N, H, W, C), of the same images in the same order.

    Raises:
        ValueError: if there are no points, or not a strip of reconstructions for each.
    """
    originals = _check_images(originals, "originals")
    expected = (len(points), *originals.shape)
    if not points or np.shape(reconstructions) != expected:
        raise ValueError(
            f"`reconstructions` must be of shape {expected}, a strip for each of 1 point or more, got "
            f"{np.shape(reconstructions)}."
        )
    number = len(originals)
    pitch = (WIDTH - 2 * MARGIN - LABELS) // number
    height, width = _shown_size(*originals.shape[1:3], min(pitch - 4, 240))
    row = max(height, 92) + 12
    below = 1560
    with _page(path, below + (len(points) + 1) * row + MARGIN) as figure:
        _draw_rates(figure, points, 150)
        _draw_perplexities(figure, points, 900)
        strips = [("Original", "", originals)]
        for point, pictures in zip(points, reconstructions, strict=True):
            name = f"K {point['num_embeddings']}, D {point['embedding_dim']}"
            strips.append((name, f"MSE {point['reconstruction_mse']:.4g}", pictures))
        for index, (name, error, pictures) in enumerate(strips):
            top = below + index * row
            lift = 24 if error else 0
            _write(figure, MARGIN, top + height / 2 - lift, name, weight="bold", va="center")
            _write(figure, MARGIN, top + height / 2 + lift, error, va="center")
            for column, picture in enumerate(_check_images(pictures)):
                axes = _place(figure, MARGIN + LABELS + column * pitch, top, height, width)
                _show(axes, _displayable(picture))


def _panel(figure: Figure, top: int, title: str, label: str) -> Axes:
    """Axes of a panel whose title stands at `top`."""
    height, dots = 470, figure.bbox.height
    box = (LEFT / WIDTH, 1 - (top + height) / dots, 1 - (LEFT + 40) / WIDTH, height / dots)
    axes = figure.add_axes(box, yscale="log", xlabel=label, ylabel="reconstruction MSE")
    return axes
