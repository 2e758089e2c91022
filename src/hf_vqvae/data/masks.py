"""Make masks of the known part of an image to complete."""

import torch
from torch import Tensor

from ..models import VQVAEConfig
from ..models.configuration_vqvae import as_pair

HALVES = ("upper", "lower", "left", "right")


def half_mask(half: str, config: VQVAEConfig) -> Tensor:
    """Make a mask, bool (H, W), True in one of `HALVES` of the grid of codes, rounded down."""
    axis = 0 if half in ("upper", "lower") else 1
    number = config.grid_size[axis]
    if number < 2:
        kind = "row" if axis == 0 else "column"
        raise ValueError(f"`half` {half!r} needs 2 {kind}s of codes, and this model has 1.")
    kept = torch.arange(number) < number // 2
    kept = kept if half in ("upper", "left") else kept.flip(0)
    pixels = kept.repeat_interleave(config.downsampling_factor)
    return (pixels[:, None] if axis == 0 else pixels).expand(as_pair(config.image_size))


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int], config: VQVAEConfig) -> Tensor:
    """Make a mask, bool (H, W), that is True in the pixels that lie entirely in a box of an image that is resized.

    Args:
        box: x0, y0, x1, y1 in pixels of the image, from its upper left corner; x1 and y1 are exclusive.
        size: width and height of the image before it is resized to (H, W).
    """
    (x0, y0, x1, y1), (width, height) = box, size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"the box {x0} {y0} {x1} {y1} must be in the image: 0 <= X0 < X1 <= {width} and 0 <= Y0 < Y1 <= {height}."
        )
    rows, columns = as_pair(config.image_size)
    # Row i covers [i, i + 1) / rows of the height; compared as integers, without rounding.
    down, across = torch.arange(rows)[:, None], torch.arange(columns)
    in_rows = (down * height >= y0 * rows) & ((down + 1) * height <= y1 * rows)
    return in_rows & (across * width >= x0 * columns) & ((across + 1) * width <= x1 * columns)
