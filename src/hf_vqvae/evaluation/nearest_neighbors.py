"""Find the nearest images of a set, to see whether samples are copies of training images."""

import torch
from torch import Tensor

CHUNK = 2**24  # values held at a time
SPARE = 4  # more candidates than asked for: rounding may swap images at nearly equal distances


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
    best = torch.empty(len(flat), 0, device=flat.device)
    rows = torch.empty(len(flat), 0, dtype=torch.long, device=flat.device)
    step = max(1, CHUNK // max(flat.shape))
    for start in range(0, len(images), step):
        chunk = images[start : start + step].to(flat.device).flatten(1).float() / 255
        # |x|^2 of the queries does not change the order.
        squares = torch.addmm(chunk.square().sum(1), flat, chunk.T, alpha=-2)
        new = torch.arange(start, start + len(chunk), device=flat.device).expand(len(flat), -1)
        best, rows = torch.cat([best, squares], 1), torch.cat([rows, new], 1)
        best, order = best.topk(min(number + SPARE, best.shape[1]), largest=False)
        rows = rows.gather(1, order)
    # Recomputed from differences: |x|^2 - 2xy + |y|^2 of a copy is not exactly 0.
    found = [
        (images[nearest.to(images.device)].to(flat.device).flatten(1).float() / 255 - query).norm(dim=1)
        for nearest, query in zip(rows, flat, strict=True)
    ]
    distances, order = torch.stack(found).topk(number, largest=False)
    return distances, rows.gather(1, order)
