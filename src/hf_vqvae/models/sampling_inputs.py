# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""What a user may ask of sampling, checked and brought into tensors: how many, labels, seeds, what is known.

Shapes: N grids, h x w grid.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .codes import INTEGERS, check_codes, check_dense, check_integers, check_labels, check_range
from .configuration_utils import shown

if TYPE_CHECKING:
    from .configuration_pixelcnn import PixelCNNConfig

MAX_GRIDS = 2**24  # of one call, whose noise is drawn at once
ClassLabels = int | str | Sequence[int | str] | Tensor


def count_grids(name: str, number: int | None, **lengths: int | None) -> int:
    """How many to draw: `number`, or what labels, seeds or known codes say; 1 where nothing does.

    Args:
        name: of the argument `number`.
        lengths: of arguments with one entry for each grid; None where they have none, or one for all.

    Raises:
        ValueError: if `number` is no integer from 1 to `MAX_GRIDS`, or two of them do not agree.
    """
    if number is not None and (not is_integer(number) or number < 1):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {shown(number)}.")
    given = {key: length for key, length in lengths.items() if length is not None}
    if number is None and given:
        name, number = next(iter(given.items()))
    if number is not None and number > MAX_GRIDS:
        raise ValueError(
            f"one call draws at most {MAX_GRIDS}, and `{name}` asks for {shown(number)}: call it several times."
        )
    for key, length in given.items():
        if length == 0:
            raise ValueError(f"`{key}` must have at least one entry, got none.")
        if length != number:
            raise ValueError(
                f"`{key}` must have one entry for each of the {number} of `{name}`, got {length}."
            )
    return 1 if number is None else number


def count_labels(class_labels: ClassLabels | None) -> int | None:
    """How many labels there are; None for none, or one for all.

    Raises:
        TypeError: if they are of no type that labels can be of.
    """
    if class_labels is None or isinstance(class_labels, int | str):
        return None
    if isinstance(class_labels, Tensor):
        check_dense("class_labels", class_labels)
        if class_labels.dim() == 0:
            return None
    if not isinstance(class_labels, Tensor | Sequence) or isinstance(class_labels, bytes):
        raise TypeError(
            "`class_labels` must be a number, a name, a list of either or a tensor of integers, got "
            f"{type(class_labels).__name__}."
        )
    return _length(class_labels)


def count_known(values: Tensor | None, dimensions: int) -> int | None:
    """How many known grids or images there are; None for none, or one for all (fewer dimensions, or a batch of 1)."""
    if not isinstance(values, Tensor) or values.is_nested or values.dim() != dimensions:
        return None
    return len(values) if len(values) != 1 else None


def label_rows(
    class_labels: ClassLabels | None, config: PixelCNNConfig, number: int, guided: bool
) -> Tensor | None:
    """Rows (number,) of the class embeddings; None for a prior without classes.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    classes = config.num_classes
    if guided and (classes is None or class_labels is None):
        lacks = "a prior with classes" if classes is None else "`class_labels`"
        raise ValueError(
            f"`guidance_scale` other than 1 needs {lacks}: it moves samples towards a label. Leave it at 1, or "
            + ("train a conditional prior." if classes is None else "name the labels.")
        )
    if classes is None:
        check_labels(class_labels, classes, number)
        return None
    if config.label_dropout == 0 and (guided or class_labels is None):
        raise ValueError(
            "`class_labels` must be given, and `guidance_scale` be 1: this prior was trained with `label_dropout` 0, "
            "so it cannot draw without a label."
        )
    if class_labels is None:
        return torch.full((number,), classes)
    if isinstance(class_labels, Tensor):
        check_integers("class_labels", class_labels)
        if class_labels.dim() > 1:
            raise ValueError(
                f"`class_labels` must be a single label or of shape ({number},), got {tuple(class_labels.shape)}."
            )
        rows = class_labels.long()
    elif isinstance(class_labels, int | str):
        rows = torch.tensor(_label_row(class_labels, config))
    else:
        rows = torch.tensor([_label_row(label, config) for label in class_labels])
    check_range("class_labels", rows, 0, classes, "the classes of this prior")
    return rows.expand(number)


def _label_row(label: int | str, config: PixelCNNConfig) -> int:
    if isinstance(label, str):
        if label not in config.label2id:
            near = difflib.get_close_matches(label, config.label2id, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            names = ", ".join(list(config.label2id)[:20])
            more = ", ..." if len(config.label2id) > 20 else ""
            raise ValueError(
                f"`class_labels` has no label {label!r}{hint}; there are: {names}{more}."
            )
        return config.label2id[label]
    if (
        isinstance(label, Tensor)
        and label.dim() == 0
        and label.dtype in INTEGERS
        and not label.is_meta
    ):
        label = label.item()
    if not is_integer(label) or not -(2**63) <= label < 2**63:
        raise TypeError(f"`class_labels` must be numbers or names of classes, got {label!r}.")
    return int(label)


def known_codes(
    codes: Tensor | None, mask: Tensor | None, config: PixelCNNConfig, number: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Known codes and where they are, (number, h, w) each.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    if codes is None and mask is None:
        return None, None
    if codes is None or mask is None:
        raise ValueError(
            "`codes` and `mask` go together: the codes, and True where they are known and to be kept."
        )
    check_integers("codes", codes)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a tensor of bool, True where a code is known, got {kind}.")
    for name, one in (("codes", codes), ("mask", mask)):
        check_dense(name, one)
    height, width = config.grid_size
    codes, mask = (one[None] if one.dim() == 2 else one for one in (codes, mask))
    for name, one in (("codes", codes), ("mask", mask)):
        if one.dim() != 3 or one.shape[1:] != (height, width) or len(one) not in (1, number):
            raise ValueError(
                f"`{name}` must have the shape ({height}, {width}), or ({number}, {height}, {width}) with one grid "
                f"for each, got {tuple(one.shape)}."
            )
    codes, mask = codes.long().expand(number, -1, -1), mask.expand(number, -1, -1)
    # What is not known may be anything, also out of range.
    codes = codes.masked_fill(~mask.to(codes.device), 0)
    check_codes(codes, config.num_embeddings, config.grid_size)
    return codes, mask


def draw_noise(
    generator: torch.Generator | None,
    seeds: Sequence[int] | Tensor | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Tensor:
    """Uniform noise (N, h, w) in [0, 1) on `device`, all of it at once, so that batches change nothing.

    Raises:
        TypeError, ValueError: as `PixelCNNModel.sample`.
    """
    if seeds is None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator, got {type(generator).__name__}: make it with "
                f'torch.Generator("{device}").manual_seed(0).'
            )
        if generator is not None and generator.device.type != device.type:
            raise ValueError(
                f"`generator` must be on the model's device {device}, got one on {generator.device}: "
                f'make it with torch.Generator("{device}").'
            )
        return torch.rand(shape, generator=generator, device=device)
    if generator is not None:
        raise ValueError("`generator` and `seeds` exclude each other: name one of them.")
    noise = []
    for seed in seeds.tolist() if isinstance(seeds, Tensor) else seeds:
        if not is_integer(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"`seeds` must be integers from 0 to 2**63 - 1, got {seed!r}.")
        # On the CPU, whatever the model's device: a seed means the same noise everywhere.
        noise.append(torch.rand(shape[1:], generator=torch.Generator().manual_seed(int(seed))))
    return torch.stack(noise).to(device)


def count_seeds(seeds: Sequence[int] | Tensor | None) -> int | None:
    """How many seeds there are; None for none.

    Raises:
        TypeError: if they are no sequence.
    """
    if seeds is None:
        return None
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Sequence | Tensor | range):
        raise TypeError(f"`seeds` must be a list of integers, one an image, got {seeds!r}.")
    if isinstance(seeds, Tensor):
        check_dense("seeds", seeds)
        if seeds.dim() != 1:
            raise ValueError(f"`seeds` must be of shape (N,), got {tuple(seeds.shape)}.")
    return _length(seeds)


def _length(values: Sequence | Tensor) -> int:
    try:
        return len(values)
    except OverflowError:  # of a range of more than any list could have
        return sys.maxsize


def is_integer(value) -> bool:
    """Whether `value` is one of Python's integers, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["ClassLabels"]
