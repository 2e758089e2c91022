"""Read an image to complete, and make masks of its known part."""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..models import VQVAEConfig, VQVAEImageProcessorPil
from .image_files import MODES, read_image
from .sources import DataError

HALVES = ("upper", "lower", "left", "right")


def half_mask(half: str, config: VQVAEConfig) -> Tensor:
    """Make a mask, bool (H, W), that is True in one of `HALVES` of the grid of codes, rounded down.

    Raises:
        ValueError: if there is a single row or column.
    """
    axis = 0 if half in ("upper", "lower") else 1
    number = config.grid_size[axis]
    if number < 2:
        kind = "row" if axis == 0 else "column"
        raise ValueError(f"`half` {half!r} needs 2 {kind}s of codes, and this model has 1.")
    kept = torch.arange(number) < number // 2
    kept = kept if half in ("upper", "left") else kept.flip(0)
    cells = kept[:, None] if axis == 0 else kept[None, :]
    return _to_pixels(cells.expand(config.grid_size), config)


def box_mask(
    box: tuple[int, int, int, int], file_size: tuple[int, int], config: VQVAEConfig
) -> Tensor:
    """Make a mask, bool (H, W), that is True in the cells of the code grid that lie entirely in a box.

    Args:
        box: x0, y0, x1, y1 in pixels of the file, from its upper left corner; x1 and y1 are exclusive.
        file_size: width and height of the file's image.

    Raises:
        ValueError: if the box is not within the image, or contains no cell or all cells.
    """
    x0, y0, x1, y1 = box
    width, height = file_size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"the box {x0} {y0} {x1} {y1} must be in the image: 0 <= X0 < X1 <= {width} and "
            f"0 <= Y0 < Y1 <= {height}."
        )
    rows, columns = config.grid_size
    # Cell i covers [i, i + 1) / number of the side; compared as integers, without rounding.
    down, across = torch.arange(rows), torch.arange(columns)
    in_rows = (down * height >= y0 * rows) & ((down + 1) * height <= y1 * rows)
    in_columns = (across * width >= x0 * columns) & ((across + 1) * width <= x1 * columns)
    cells = in_rows[:, None] & in_columns
    if cells.all() or not cells.any():
        kept = "all" if cells.all() else "none"
        raise ValueError(
            f"the box {x0} {y0} {x1} {y1} holds {kept} of the {rows} x {columns} cells of codes "
            f"entirely (each {width / columns:g} x {height / rows:g} pixels): it must hold some, not all."
        )
    return _to_pixels(cells, config)


def _to_pixels(cells: Tensor, config: VQVAEConfig) -> Tensor:
    side = config.downsampling_factor
    return cells.repeat_interleave(side, 0).repeat_interleave(side, 1)


def open_image(path: str | Path) -> Image.Image:
    """Read an image file and apply its EXIF orientation.

    Raises:
        ValueError: if it cannot be read, or has several frames or more than 8 bits a channel.
    """
    try:
        return read_image(path)
    except DataError as error:
        raise ValueError(f"the image {path} {error}") from error
    except Exception as error:  # decoders raise errors of any type for a broken file
        raise ValueError(f"cannot read the image {path}: {error}.") from error


def to_pixel_values(image: Image.Image, config: VQVAEConfig) -> Tensor:
    """Resize and scale an image to (1, C, H, W) in [-0.5, 0.5]; print a line if its channels are converted.

    Raises:
        ValueError: if image files cannot have the model's number of channels.
    """
    mode = MODES.get(config.num_channels)
    if mode is None:
        raise ValueError(f"the model's images have {config.num_channels} channels, no file's has.")
    if image.mode != mode:
        print(f"The image is converted from {image.mode} to {mode}.", file=sys.stderr)
        image = image.convert(mode)
    height, width = (side * config.downsampling_factor for side in config.grid_size)
    processor = VQVAEImageProcessorPil(size={"height": height, "width": width})
    return processor(image, return_tensors="pt").pixel_values
