"""The nearest images of a set: are samples copies of training images?"""

import torch
from torch import Tensor

CHUNK = 2**24  # numbers that are held at a time
SPARE = (
    4  # more candidates than asked for: rounding may exchange images at nearly the same distance
)


@torch.inference_mode()
def nearest_images(queries: Tensor, images: Tensor, number: int = 1) -> tuple[Tensor, Tensor]:
    """The `number` nearest of `images` of each query, by the Euclidean (L2) distance of all pixels on [0, 1].

    Args:
        queries: uint8 (N, C, H, W), on the device to compute on.
        images: uint8 (M, C, H, W), anywhere.

    Returns:
        Distances, float32 (N, number), nearest first, 0 for a copy; and rows of `images`, int64 (N, number).

    Raises:
        ValueError: if types or shapes do not fit, or there are fewer than `number` images.
    """
    for name, value in (("queries", queries), ("images", images)):
        if value.dtype != torch.uint8 or value.dim() != 4 or 0 in value.shape:
            raise ValueError(
                f"`{name}` must be uint8 of shape (N, C, H, W), none of them 0, got {value.dtype} "
                f"{tuple(value.shape)}."
            )
    if queries.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"`queries` and `images` must be of one size, got {tuple(queries.shape[1:])} and "
            f"{tuple(images.shape[1:])}."
        )
    if not 1 <= number <= len(images):
        raise ValueError(f"`number` must be from 1 to the {len(images)} images, got {number}.")
    flat = queries.flatten(1).float() / 255
    best = torch.empty(len(flat), 0, device=flat.device)
    rows = torch.empty(len(flat), 0, dtype=torch.long, device=flat.device)
    step = max(1, CHUNK // max(flat.shape))
    for start in range(0, len(images), step):
        chunk = images[start : start + step].to(flat.device).flatten(1).float() / 255
        # Squares without those of the queries, which change no order.
        squares = torch.addmm(chunk.square().sum(1), flat, chunk.T, alpha=-2)
        new = torch.arange(start, start + len(chunk), device=flat.device).expand(len(flat), -1)
        best, rows = torch.cat([best, squares], 1), torch.cat([rows, new], 1)
        best, order = best.topk(min(number + SPARE, best.shape[1]), largest=False)
        rows = rows.gather(1, order)
    # Again from the differences: |x|^2 - 2xy + |y|^2 of a copy is not quite 0.
    found = [
        (images[own.to(images.device)].to(flat.device).flatten(1).float() / 255 - one).norm(dim=1)
        for own, one in zip(rows, flat, strict=True)
    ]
    distances, order = torch.stack(found).topk(number, largest=False)
    return distances, rows.gather(1, order)
