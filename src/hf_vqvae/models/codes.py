# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""What every model that takes codes demands of them."""

import torch
from torch import Tensor


def check_codes(codes: Tensor, num_embeddings: int, grid_size: tuple[int, int]) -> None:
    """Checks that codes are integers of shape (B, h, w) in [0, K).

    The range is not looked at while tracing (torch.compile, torch.export), where there are no values.

    Raises:
        TypeError: if the codes are no integer tensor.
        ValueError: if the shape is not (B, *grid_size) or a code is out of range; the message names it.
    """
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
        kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
        raise TypeError(f"`codes` must be a tensor of integers, got {kind}.")
    if codes.dim() != 3 or tuple(codes.shape[1:]) != tuple(grid_size):
        raise ValueError(
            f"`codes` must have the shape (batch, {grid_size[0]}, {grid_size[1]}) of this model's grid, "
            f"got {tuple(codes.shape)}."
        )
    if torch.compiler.is_compiling() or codes.device.type == "meta" or not codes.numel():
        return
    low, high = codes.min().item(), codes.max().item()
    if low < 0 or high >= num_embeddings:
        wrong = low if low < 0 else high
        raise ValueError(
            f"`codes` must be in [0, {num_embeddings}), the codebook's range, got {wrong}."
        )


__all__ = ["check_codes"]
