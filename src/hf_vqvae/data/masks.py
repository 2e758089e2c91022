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
