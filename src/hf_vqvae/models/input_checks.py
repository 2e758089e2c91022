# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Validate codes, class labels and sampling arguments, and convert them to tensors.

Numbers and arrays may be those of Python, numpy or torch. Shapes: N grids, h x w grid.
"""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .configuration_pixelcnn import PixelCNNConfig
from .configuration_utils import did_you_mean, shown

# Dtypes whose values int64 has too, so not uint64.
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
INTEGERS += (torch.uint16, torch.uint32)
# Dtypes of a tensor of what messages call "integers", "floating-point numbers" or "bool".
_DTYPES = {
    "integers": INTEGERS,
    "floating-point numbers": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "bool": (torch.bool,),
}
# Arguments with one entry for each grid or image, and how many dimensions they have then.
_DIMENSIONS = {"codes": 3, "mask": 3, "pixel_values": 4, "pixel_mask": 3}
ClassLabels = int | str | Sequence[int | str] | np.ndarray | Tensor
Seeds = Sequence[int] | np.ndarray | Tensor


def is_integer(value) -> bool:
    """Return whether `value` is an integer of Python or numpy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def require(is_valid: bool, name: str, value, rule: str) -> None:
    """Raise a `ValueError` that tells the value of argument `name` and the rule for it, unless `is_valid`."""
    if not is_valid:
        raise ValueError(f"`{name}` must be {rule}, got {shown(value)}.")


def as_list(value):
    """Convert a sequence, an array or a tensor to a list of Python numbers; a single number or name to itself."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [one.tolist() if hasattr(one, "tolist") else one for one in value]
    return value


def as_tensor(name: str, values, kind: str) -> Tensor:
    """Return an array or tensor of `kind`, a key of `_DTYPES`, as a tensor; `TypeError` for all else."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    if not isinstance(values, Tensor) or values.dtype not in _DTYPES[kind]:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`{name}` must be a tensor of {kind}, got {got}.")
    return values


def is_traced() -> bool:
    """Return whether the model is compiled, exported or traced: tensors then have no values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exported() -> bool:
    """Return whether the model is exported or traced, and not compiled."""
    return is_traced() and not torch.compiler.is_dynamo_compiling()


def check_range(name: str, values: Tensor, low: int, high: int, meaning: str) -> None:
    """Raise `ValueError` unless all values are in [low, high); those of a traced tensor are not checked."""
    if is_traced() or values.is_meta or not values.numel():
        return
    values = values.long()  # torch compares no unsigned integers
    least, most = values.min().item(), values.max().item()
    if least < low or most >= high:
        wrong = least if least < low else most
        raise ValueError(f"`{name}` must be in [{low}, {high}), {meaning}, got {wrong}.")


def check_codes(codes, num_embeddings: int, grid_size: tuple[int, int] | None = None) -> Tensor:
    """Return codes as a tensor, after checking that they are integers (B, *grid_size) in [0, K)."""
    codes = as_tensor("codes", codes, "integers")
    if codes.dim() != 3 or (grid_size and tuple(codes.shape[1:]) != tuple(grid_size)):
        rows, columns = grid_size or ("rows", "columns")
        raise ValueError(f"`codes` must have the shape (batch, {rows}, {columns}), got {tuple(codes.shape)}.")
    check_range("codes", codes, 0, num_embeddings, "the codebook's range")
    return codes


def check_labels(class_labels, num_classes: int | None, batch: int) -> Tensor | None:
    """Return class labels as a tensor, after checking that they are integers (B,) in [0, num_classes), or -1 for unknown."""
    if class_labels is None:
        return None
    if num_classes is None:
        raise ValueError("`class_labels` were given to a prior without classes (`num_classes` is None): omit them.")
    labels = as_tensor("class_labels", class_labels, "integers")
    if labels.shape != (batch,):
        raise ValueError(f"`class_labels` must have the shape ({batch},), one per grid, got {tuple(labels.shape)}.")
    check_range("class_labels", labels, -1, num_classes, "the labels, and -1 for unknown")
    return labels


def count_grids(name: str, number: int | None, **arguments: ClassLabels | Seeds | None) -> int:
    """Return how many grids to draw: `number`, which is called `name`, or as many as an argument has entries, or 1."""
    require(number is None or (is_integer(number) and number >= 1), name, number, "an integer of at least 1")
    for key, value in arguments.items():
        length = _count_entries(key, value)
        if length == 0:
            raise ValueError(f"`{key}` must have at least one entry, got none.")
        if number is None:
            name, number = key, length
        if length is not None and length != number:
            raise ValueError(f"`{key}` must have one entry for each of the {number} of `{name}`, got {length}.")
    return int(number or 1)


def _count_entries(name: str, value: ClassLabels | Seeds | None) -> int | None:
    """Count the entries of an argument; None where it is not given, or has one entry for all grids."""
    if name in _DIMENSIONS:
        batched = getattr(value, "ndim", None) == _DIMENSIONS[name]
        return len(value) if batched and len(value) != 1 else None
    value = as_list(value)
    return len(value) if isinstance(value, list) else None


def as_labels(class_labels: ClassLabels | None, config: PixelCNNConfig, number: int) -> Tensor | None:
    """Convert labels to numbers of classes (number,), of which -1 is the null label; None if there are none."""
    if class_labels is None or config.num_classes is None:
        return check_labels(class_labels, config.num_classes, number)
    labels = as_list(class_labels)
    labels = labels if isinstance(labels, list) else [labels]
    numbers = torch.tensor([_label_number(label, config) for label in labels], device="cpu")
    check_range("class_labels", numbers, -1, config.num_classes, "the classes, and -1 for the null label")
    return numbers.expand(number)


def _label_number(label: int | str, config: PixelCNNConfig) -> int:
    if isinstance(label, str):
        if label not in config.label2id:
            names = list(config.label2id)
            raise ValueError(
                f"`class_labels` has no label {label!r}{did_you_mean(label, names)}; there are: {shown(names)}."
            )
        return config.label2id[label]
    if not is_integer(label):
        raise TypeError(f"`class_labels` must be numbers or names of classes, got {shown(label)}.")
    return label


def known_codes(
    codes: Tensor | None, mask: Tensor | None, config: PixelCNNConfig, number: int
) -> tuple[Tensor, Tensor] | None:
    """Expand known codes and their mask to (number, h, w) each; None if nothing is known."""
    if codes is None and mask is None:
        return None
    if codes is None or mask is None:
        raise ValueError("`codes` and `mask` go together: name both, or neither.")
    codes = as_batch("codes", codes, "integers", config.grid_size, number).long()
    mask = as_batch("mask", mask, "bool", config.grid_size, number)
    # Unknown codes may have any value, also out of range.
    codes = codes.masked_fill(~mask.to(codes.device), 0)
    check_codes(codes, config.num_embeddings)
    return codes.expand(number, -1, -1), mask.expand(number, -1, -1)


def as_batch(name: str, values, kind: str, shape: tuple[int, ...], number: int) -> Tensor:
    """Convert known values of `shape`, for all images or for each, to a tensor with a batch dimension of 1 or `number`."""
    values = as_tensor(name, values, kind)
    values = values[None] if values.dim() == len(shape) else values
    if tuple(values.shape[1:]) != tuple(shape) or len(values) not in (1, number):
        raise ValueError(
            f"`{name}` must have the shape {tuple(shape)}, or {(number, *shape)} with one for each, "
            f"got {tuple(values.shape)}."
        )
    return values


def draw_noise(
    generator: torch.Generator | None, seeds: Seeds | None, number: int, shapes: list[tuple], device: torch.device
) -> list[Tensor]:
    """Draw uniform noise (number, *shape) in [0, 1) for each shape, all at once: the batch size does not change it."""
    # Named dtypes and devices: torch's global defaults would change the numbers.
    shapes = [(number, *shape) for shape in shapes]
    if seeds is None:
        return [torch.rand(shape, generator=generator, dtype=torch.float32, device=device) for shape in shapes]
    if generator is not None:
        raise ValueError("`generator` and `seeds` exclude each other: name one of them.")
    seeds = as_list(seeds)
    if not isinstance(seeds, list):
        raise TypeError(f"`seeds` must be a list or tensor of integers, got {shown(seeds)}.")
    noises = [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes]
    for index, seed in enumerate(seeds):
        require(is_integer(seed) and 0 <= seed < 2**63, "seeds", seed, "integers from 0 to 2**63 - 1")
        # On the CPU, so that a seed means the same noise on every device.
        own = torch.Generator("cpu").manual_seed(seed)
        for noise in noises:
            noise[index].uniform_(generator=own)
    return [noise.to(device) for noise in noises]
