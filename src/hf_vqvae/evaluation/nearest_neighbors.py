"""Find the nearest images of a set, to see whether samples are copies of training images."""

import torch
from torch import Tensor

CHUNK = 2**24  # values of images compared at a time


@torch.inference_mode()
def nearest_images(queries: Tensor, images: Tensor, number: int = 1) -> tuple[Tensor, Tensor]:
    """Find the `number` nearest of `images` to each query by Euclidean (L2) distance of pixels on [0, 1].

    Args:
        queries: uint8 (N, C, H, W), on the device to compute on.
        images: uint8 (M, C, H, W) on any device, at least `number`.

    Returns:
        Distances, float32 (N, number), nearest first, 0 for a copy; and rows of `images`, int64 (N, number).
    """
    flat = queries.flatten(1).float() / 255
    # From differences: |x|^2 - 2xy + |y|^2 of a copy is not exactly 0.
    exactly = "donot_use_mm_for_euclid_dist"
    parts = images.split(max(1, CHUNK // flat.shape[1]))
    chunks = (part.to(flat.device).flatten(1).float() / 255 for part in parts)
    distances = torch.cat([torch.cdist(flat, chunk, compute_mode=exactly) for chunk in chunks], dim=1)
    return tuple(distances.topk(number, largest=False))
