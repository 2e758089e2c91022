"""Figures of images and codes: plain functions from arrays and a path to a PNG.

Images are uint8 arrays (N, H, W, C); where C is neither 1 nor 3, the first three channels are shown
(of two, the first).

Shapes: N images, H x W pixels, C channels, h x w codes, K codes in the codebook.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from .page import (
    DPI,
    INK,
    MARGIN,
    WIDTH,
    check_images,
    displayable,
    page,
    place_axes,
    show_picture,
    shown_size,
    write_text,
)

CODE_COLORS = "viridis"


def _columns(number: int, width: int, at_most: int) -> int:
    """How many images of this width stand in a row: many, but so that whole dots fill it."""
    at_most = min(number, at_most, max(4, (WIDTH - 2 * MARGIN) // (width + 8)))
    choices = range(at_most, min(at_most, 4) - 1, -1)
    filled = {
        columns: shown_size(1, width, _pitch(columns) - 8)[1] * columns for columns in choices
    }
    good = (columns for columns in choices if filled[columns] > 0.75 * WIDTH)
    return next(good, max(choices, key=filled.get))


def _pitch(columns: int) -> int:
    """From one picture in a row to the next."""
    return (WIDTH - 2 * MARGIN) // max(columns, 4)


def image_grid(images: np.ndarray, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """One picture of many, row by row, on white: for a tracker or a figure.

    Args:
        images: uint8 (N, H, W, C), N at least 1.
        columns: Images in a row; by default as many as make the picture about square.
        padding: White pixels around each image.

    Returns:
        uint8 (rows * (H + padding) + padding, columns * (W + padding) + padding, C).

    Raises:
        ValueError: if `images` is no such array or `columns` is below 1.
    """
    images = check_images(images)
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    rows = math.ceil(number / columns)
    step_y, step_x = height + padding, width + padding
    grid = np.full((rows * step_y + padding, columns * step_x + padding, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * step_y + padding, index % columns * step_x + padding
        grid[top : top + height, left : left + width] = image
    return grid


def color_codes(codes: np.ndarray, num_embeddings: int, cell: int = 1) -> np.ndarray:
    """Codes (N, h, w) as pictures, uint8 (N, h * cell, w * cell, 3): one colour a code.

    The colours are those of `plot_codes`. With `cell` the VQ-VAE's downsampling factor the pictures
    are as large as the images they stand for.
    """
    levels = np.asarray(codes) / max(num_embeddings - 1, 1)
    colors = matplotlib.colormaps[CODE_COLORS](levels, bytes=True)[..., :3]
    return colors.repeat(cell, axis=1).repeat(cell, axis=2)


def plot_reconstructions(
    images: np.ndarray, reconstructions: np.ndarray, path: str | Path, num_columns: int = 10
) -> None:
    """Images above what the VQ-VAE makes of them, at most `num_columns` side by side.

    Args:
        images: uint8 (N, H, W, C).
        reconstructions: uint8 (N, H, W, C), in the same order.
    """
    images = check_images(images)
    reconstructions = check_images(reconstructions, "reconstructions")
    columns = _columns(len(images), images.shape[2], num_columns)
    room = _pitch(columns)
    height, width = shown_size(*images.shape[1:3], room - 8)
    label, row = 56, height + 20
    with page(path, 2 * (label + row) + MARGIN) as figure:
        for index, (name, pictures) in enumerate(
            (("Input", images), ("Reconstruction", reconstructions))
        ):
            top = index * (label + row) + label
            write_text(figure, MARGIN, top - 12, name, weight="bold", va="bottom")
            for column in range(columns):
                axes = place_axes(figure, MARGIN + column * room, top, height, width)
                show_picture(axes, displayable(pictures[column]))


def _draw_codes(axes: Axes, codes: np.ndarray, num_embeddings: int) -> None:
    """A grid of codes (h, w) as a heat map, with the codes' numbers where cells have room."""
    show_picture(axes, codes, cmap=CODE_COLORS, vmin=0, vmax=num_embeddings - 1)
    characters = len(str(num_embeddings - 1))
    points = axes.bbox.width / codes.shape[1] / (0.78 * max(characters, 2)) * 72 / DPI
    if points < 6:
        return
    for (row, column), code in np.ndenumerate(codes):
        # The upper part of viridis is light.
        color = INK if code > 0.6 * (num_embeddings - 1) else "white"
        font = {"size": min(points, 12), "color": color, "ha": "center", "va": "center"}
        axes.text(column, row, str(code), **font)


def plot_codes(
    images: np.ndarray,
    codes: np.ndarray,
    reconstructions: np.ndarray,
    num_embeddings: int,
    path: str | Path,
    num_rows: int = 3,
) -> None:
    """Each row an image, the codes it becomes and the reconstruction from these codes alone.

    Args:
        images: uint8 (N, H, W, C).
        codes: Integers (N, h, w) in [0, num_embeddings).
        reconstructions: uint8 (N, H, W, C).
    """
    images = check_images(images)
    reconstructions = check_images(reconstructions, "reconstructions")
    codes = np.asarray(codes)
    rows = min(num_rows, len(images))
    highest = int(720 * images.shape[2] / images.shape[1])
    height, width = shown_size(*images.shape[1:3], min(344, highest))
    middle_size = shown_size(*codes.shape[1:], min(508, highest))
    pitch, head, foot = max(middle_size[0], height) + 28, 64, 108
    centers = [MARGIN + 344 / 2, WIDTH / 2, WIDTH - MARGIN - 344 / 2]
    with page(path, head + rows * pitch + foot) as figure:
        for center, name in zip(centers, ("Image", "Codes", "Reconstruction"), strict=True):
            write_text(figure, center, head - 14, name, weight="bold", ha="center", va="bottom")
        for row in range(rows):
            sizes = [(height, width), middle_size, (height, width)]
            left, middle, right = (
                place_axes(
                    figure, x - size[1] / 2, head + (row + 0.5) * pitch - 14 - size[0] / 2, *size
                )
                for x, size in zip(centers, sizes, strict=True)
            )
            show_picture(left, displayable(images[row]))
            _draw_codes(middle, codes[row], num_embeddings)
            show_picture(right, displayable(reconstructions[row]))
        scale = place_axes(figure, WIDTH / 2 - 254, head + rows * pitch + 4, 28, 508)
        show_picture(scale, np.arange(num_embeddings)[None], cmap=CODE_COLORS)
        last = num_embeddings - 1
        scale.set_xticks([0, last], ["code 0", f"code {last:,}"])


def plot_samples(samples: np.ndarray, path: str | Path, num_columns: int = 8) -> None:
    """Images drawn from the prior, uint8 (N, H, W, C), in rows of at most `num_columns`."""
    samples = check_images(samples, "samples")
    columns = _columns(len(samples), samples.shape[2], num_columns)
    room = _pitch(columns)
    height, width = shown_size(*samples.shape[1:3], room - 8)
    rows = len(samples) // columns  # only full rows
    with page(path, rows * (height + 8) + 2 * MARGIN) as figure:
        for index in range(rows * columns):
            left = MARGIN + index % columns * room + (room - width) / 2
            axes = place_axes(figure, left, MARGIN + index // columns * (height + 8), height, width)
            show_picture(axes, displayable(samples[index]))
