# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Validate codes, class labels and sampling arguments, and convert them to tensors.

Shapes: N grids, h x w grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_pixelcnn import PixelCNNConfig
from .configuration_utils import did_you_mean, shown

# Dtypes whose values int64 has too, so not uint64.
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS += (torch.uint16, torch.uint32)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ClassLabels = int | str | Sequence[int | str] | Tensor


def is_integer(value) -> bool:
    """Return whether `value` is an `int` and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_dtype(name: str, values: Tensor, kind: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise `TypeError` unless `values` is a tensor of one of the dtypes, which the message calls `kind`."""
    if not isinstance(values, Tensor) or values.dtype not in dtypes:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`{name}` must be a tensor of {kind}, got {got}.")


def check_range(name: str, values: Tensor, low: int, high: int, meaning: str) -> None:
    """Raise `ValueError` unless all values are in [low, high).

    While tracing (torch.compile, torch.export) tensors have no values, and nothing is checked.
    """
    if torch.compiler.is_compiling() or values.is_meta or not values.numel():
        return
    values = values.long()  # torch compares no unsigned integers
    least, most = values.min().item(), values.max().item()
    if least < low or most >= high:
        wrong = least if least < low else most
        raise ValueError(f"`{name}` must be in [{low}, {high}), {meaning}, got {wrong}.")


def check_codes(codes: Tensor, num_embeddings: int, grid_size: tuple[int, int]) -> None:
    """Check that codes are integers of shape (B, h, w) in [0, K).

    Raises:
        TypeError: if the codes are not a tensor of integers.
        ValueError: if the shape is not (B, *grid_size) or a code is out of range.
    """
    check_dtype("codes", codes, "integers", INTEGERS)
    if codes.dim() != 3 or tuple(codes.shape[1:]) != tuple(grid_size):
        raise ValueError(
            f"`codes` must have the shape (batch, {grid_size[0]}, {grid_size[1]}), got {tuple(codes.shape)}."
        )
    check_range("codes", codes, 0, num_embeddings, "the codebook's range")


def check_labels(class_labels: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Check that class labels are integers (B,) in [0, num_classes), or -1 for unknown.

    Raises:
        TypeError: if they are not a tensor of integers.
        ValueError: if the model is unconditional, the shape is not (B,) or a label is out of range.
    """
    if class_labels is None:
        return
    if num_classes is None:
        raise ValueError(
            "`class_labels` were given to a prior without classes (`num_classes` is None): leave them out."
        )
    check_dtype("class_labels", class_labels, "integers", INTEGERS)
    if class_labels.shape != (batch,):
        raise ValueError(
            f"`class_labels` must have the shape ({batch},), one for each grid of codes, got {tuple(class_labels.shape)}."
        )
    check_range("class_labels", class_labels, -1, num_classes, "the labels, and -1 for unknown")


def count_grids(name: str, number: int | None, **arguments: ClassLabels | Sequence | None) -> int:
    """Return how many grids to draw: `number`, or as many as labels, seeds or known grids, or 1.

    Args:
        name: of the argument `number`.
        arguments: those that may have one entry for each grid.

    Raises:
        ValueError: if `number` is not an integer of at least 1, or two of the arguments disagree.
    """
    if number is not None and (not is_integer(number) or number < 1):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {shown(number)}.")
    for key, value in arguments.items():
        length = _count_entries(key, value)
        if length == 0:
            raise ValueError(f"`{key}` must have at least one entry, got none.")
        if number is None:
            name, number = key, length
        if length is not None and length != number:
            raise ValueError(
                f"`{key}` must have one entry for each of the {number} of `{name}`, got {length}."
            )
    return number or 1


# Dimensions of arguments with one entry for each grid or image.
_DIMENSIONS = {"codes": 3, "mask": 3, "pixel_values": 4, "pixel_mask": 3}


def _count_entries(name: str, value: ClassLabels | Sequence | None) -> int | None:
    """Count the entries of an argument; None where it is not given, or has one entry for all grids."""
    if name in _DIMENSIONS:
        batched = isinstance(value, Tensor) and value.dim() == _DIMENSIONS[name]
        return len(value) if batched and len(value) != 1 else None
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, Sequence) and not isinstance(value, str) else None


def label_rows(
    class_labels: ClassLabels | None, config: PixelCNNConfig, number: int, guided: bool
) -> Tensor | None:
    """Convert labels to rows (number,) of the class embeddings; None for a prior without classes.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    classes = config.num_classes
    if guided and (classes is None or class_labels is None):
        raise ValueError(
            "`guidance_scale` other than 1 needs a prior with classes, and `class_labels`."
        )
    if classes is None:
        check_labels(class_labels, classes, number)
        return None
    if config.label_dropout == 0 and (guided or class_labels is None):
        raise ValueError(
            "`class_labels` must be given, and `guidance_scale` be 1: this prior was trained with `label_dropout` 0."
        )
    if class_labels is None:
        return torch.full((number,), classes)
    labels = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        labels = [labels]
    rows = torch.tensor([_label_row(label, config) for label in labels])
    check_range("class_labels", rows, 0, classes, "the classes of this prior")
    return rows.expand(number)


def _label_row(label: int | str, config: PixelCNNConfig) -> int:
    if isinstance(label, str):
        if label not in config.label2id:
            names = list(config.label2id)
            raise ValueError(
                f"`class_labels` has no label {label!r}{did_you_mean(label, names)}; there are: {shown(names)}."
            )
        return config.label2id[label]
    if isinstance(label, Tensor) and label.dim() == 0:
        label = label.item()
    if not is_integer(label):
        raise TypeError(f"`class_labels` must be numbers or names of classes, got {shown(label)}.")
    return label


def known_codes(
    codes: Tensor | None, mask: Tensor | None, config: PixelCNNConfig, number: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Expand known codes and their mask to (number, h, w) each.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    if codes is None and mask is None:
        return None, None
    if codes is None or mask is None:
        raise ValueError("`codes` and `mask` go together: name both, or neither.")
    check_dtype("codes", codes, "integers", INTEGERS)
    check_dtype("mask", mask, "bool", (torch.bool,))
    codes = add_batch("codes", codes.long(), config.grid_size, number).expand(number, -1, -1)
    mask = add_batch("mask", mask, config.grid_size, number).expand(number, -1, -1)
    # Unknown codes may have any value, also out of range.
    codes = codes.masked_fill(~mask.to(codes.device), 0)
    check_codes(codes, config.num_embeddings, config.grid_size)
    return codes, mask


def add_batch(name: str, values: Tensor, shape: tuple[int, ...], number: int) -> Tensor:
    """Add the batch dimension to known values of `shape`; `ValueError` unless they are one, or one for each image."""
    values = values[None] if values.dim() == len(shape) else values
    if tuple(values.shape[1:]) != tuple(shape) or len(values) not in (1, number):
        raise ValueError(
            f"`{name}` must have the shape {tuple(shape)}, or {(number, *shape)} with one for each, "
            f"got {tuple(values.shape)}."
        )
    return values


def draw_noise(
    generator: torch.Generator | None,
    seeds: Sequence[int] | Tensor | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Tensor:
    """Draw uniform noise (N, h, w) in [0, 1) on `device`, all at once, so that the batch size does not change it.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    if seeds is None:
        return torch.rand(shape, generator=generator, device=device)
    if generator is not None:
        raise ValueError("`generator` and `seeds` exclude each other: name one of them.")
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    if not isinstance(seeds, Sequence) or isinstance(seeds, str):
        raise TypeError(f"`seeds` must be a list or tensor of integers, got {shown(seeds)}.")
    noise = []
    for seed in seeds:
        if not is_integer(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"`seeds` must be integers from 0 to 2**63 - 1, got {seed!r}.")
        # On the CPU, so that a seed means the same noise on every device.
        noise.append(torch.rand(shape[1:], generator=torch.Generator().manual_seed(seed)))
    return torch.stack(noise).to(device)
