# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""What every model that takes codes or class labels demands of them."""

import torch
from torch import Tensor

from .configuration_utils import shown

# All whose values int64 has too, so not uint64.
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS += (torch.uint16, torch.uint32)


def check_codes(codes: Tensor, num_embeddings: int, grid_size: tuple[int, int]) -> None:
    """Checks that codes are integers of shape (B, h, w) in [0, K).

    The range is not looked at while tracing (torch.compile, torch.export), where there are no values.

    Raises:
        TypeError: if the codes are no integer tensor.
        ValueError: if the shape is not (B, *grid_size) or a code is out of range; the message names it.
    """
    check_integers("codes", codes)
    if codes.dim() != 3 or tuple(codes.shape[1:]) != tuple(grid_size):
        raise ValueError(
            f"`codes` must have the shape (batch, {grid_size[0]}, {grid_size[1]}) of this model's grid, "
            f"got {tuple(codes.shape)}."
        )
    check_range("codes", codes, 0, num_embeddings, "the codebook's range")


def check_labels(class_labels: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Checks that class labels are integers (B,) in [0, num_classes), or -1 where the class is not known.

    Raises:
        TypeError: if they are no integer tensor.
        ValueError: if the model is unconditional, the shape is not (B,) or one is out of range; the message names it.
    """
    if class_labels is None:
        return
    if num_classes is None:
        raise ValueError(
            "`class_labels` were given to a prior without classes (`num_classes` is None): leave them out, or train one "
            "on a dataset with labels."
        )
    check_integers("class_labels", class_labels)
    if class_labels.shape != (batch,):
        raise ValueError(
            f"`class_labels` must have the shape ({batch},), one for each grid of codes, got {tuple(class_labels.shape)}."
        )
    check_range("class_labels", class_labels, -1, num_classes, "the labels, and -1 for unknown")


def check_integers(name: str, values: Tensor) -> None:
    """TypeError, with the name of the argument, unless `values` is a tensor of integers of one of `INTEGERS`."""
    if not isinstance(values, Tensor) or values.dtype not in INTEGERS:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`{name}` must be a tensor of integers, got {kind}.")
    _check_strided(name, values)


def check_dense(name: str, values: Tensor) -> None:
    """TypeError, with the name of the argument, unless the tensor is dense and holds values."""
    _check_strided(name, values)
    if values.is_meta:
        raise TypeError(f"`{name}` must hold values, got a tensor on the device meta.")


def _check_strided(name: str, values: Tensor) -> None:
    if values.layout != torch.strided or values.is_nested or values.is_quantized:
        kind = (
            "nested" if values.is_nested else "quantized" if values.is_quantized else values.layout
        )
        raise TypeError(f"`{name}` must be a dense tensor, got one that is {kind}.")


def check_return_loss(return_loss: bool | None) -> None:
    """TypeError unless `return_loss` is True, False or None."""
    if not isinstance(return_loss, bool | None):
        raise TypeError(f"`return_loss` must be True, False or None, got {shown(return_loss)}.")


def check_range(name: str, values: Tensor, low: int, high: int, meaning: str) -> None:
    """ValueError, with name and value, unless all values are in [low, high).

    Not looked at while tracing (torch.compile, torch.export), where there are no values.
    """
    if torch.compiler.is_compiling() or values.device.type == "meta" or not values.numel():
        return
    values = values.long()  # torch compares no unsigned integers
    least, most = values.min().item(), values.max().item()
    if least < low or most >= high:
        wrong = least if least < low else most
        raise ValueError(f"`{name}` must be in [{low}, {high}), {meaning}, got {wrong}.")


__all__ = [
    "INTEGERS",
    "check_codes",
    "check_dense",
    "check_integers",
    "check_labels",
    "check_range",
    "check_return_loss",
]
