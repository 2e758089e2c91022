"""Make masks of the known part of an image to complete."""

import torch
from torch import Tensor

from ..models import VQVAEConfig

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


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int], config: VQVAEConfig) -> Tensor:
    """Make a mask, bool (H, W), that is True in the cells of the code grid that lie entirely in a box.

    Args:
        box: x0, y0, x1, y1 in pixels of the image, from its upper left corner; x1 and y1 are exclusive.
        size: width and height of the image.

    Raises:
        ValueError: if the box is not within the image, or contains no cell or all cells.
    """
    x0, y0, x1, y1 = box
    width, height = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"the box {x0} {y0} {x1} {y1} must be in the image: 0 <= X0 < X1 <= {width} and 0 <= Y0 < Y1 <= {height}."
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
