# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Ancestral sampling from a PixelCNN prior, and all that a user may ask of it.

Shapes: N grids, B batch, K codes, h x w grid.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.utils import logging

from .codes import check_codes, check_integers, check_labels, check_range
from .pixelcnn_cache import PixelCNNCache, make_cache

if TYPE_CHECKING:
    from .configuration_pixelcnn import PixelCNNConfig
    from .modeling_pixelcnn import PixelCNNModel

# Guided logits are to stay finite in float32.
_MAX_SCALE = 1e6

ClassLabels = int | str | Sequence[int | str] | Tensor


@dataclass
class DrawSettings:
    """How a code is drawn from its logits; see `PixelCNNModel.sample`.

    Raises:
        ValueError: if a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 1.0

    def __post_init__(self):
        if not _is_number(self.temperature) or not 0 <= self.temperature <= sys.float_info.max:
            raise ValueError(
                f"`temperature` must be at least 0 and finite, got {self.temperature!r}: 1 draws from the model's "
                "distribution, 0 takes the likeliest code."
            )
        if self.top_k is not None and (not _is_integer(self.top_k) or self.top_k < 1):
            raise ValueError(
                f"`top_k` must be an integer of at least 1, or None for all codes, got {self.top_k!r}."
            )
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(
                f"`top_p` must be above 0 and at most 1, or None for all codes, got {self.top_p!r}."
            )
        if not _is_number(self.guidance_scale) or not 0 <= self.guidance_scale <= _MAX_SCALE:
            raise ValueError(
                f"`guidance_scale` must be from 0 to {_MAX_SCALE:g} (1: no guidance), got {self.guidance_scale!r}."
            )

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Codes (B,) from logits (B, K), by inverting their cumulative distribution at `noise` (B, 1) in [0, 1)."""
        logits = logits.float()
        if self.temperature == 0:
            return logits.argmax(1)
        if self.temperature != 1:
            # Largest logit at 0: a tiny temperature may make all others infinite, but not that one.
            tiny = torch.finfo(logits.dtype).tiny
            logits = (logits - logits.amax(1, keepdim=True)) / max(float(self.temperature), tiny)
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, 1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        probabilities = logits.softmax(1)
        if self.top_p is not None and self.top_p < 1:
            # The smallest set of likeliest codes whose probabilities reach top_p (Holtzman et al. 2020, section 3.1).
            ordered = probabilities.sort(1, descending=True).values
            before = ordered.cumsum(1) - ordered
            # The likeliest has 0 before it, and stays; float32 would take a smaller top_p for 0.
            reached = before >= max(self.top_p, torch.finfo(before.dtype).tiny)
            least = ordered.masked_fill(reached, math.inf).amin(1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        cumulative = probabilities.cumsum(1)
        # Below the total also where that is not quite 1, so that no code of probability 0 is ever drawn.
        threshold = cumulative[:, -1:] * noise
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def sample_codes(
    prior: PixelCNNModel,
    settings: DrawSettings,
    noise: Tensor,
    labels: Tensor | None,
    codes: Tensor | None,
    mask: Tensor | None,
    batch_size: int,
) -> Tensor:
    """Codes (N, h, w), drawn in batches with a progress bar where there are several.

    Args:
        noise: (N, h, w) in [0, 1).
        labels: (N,) rows of the class embeddings; the last stands for no label. None for a prior without classes.
        codes, mask: (N, h, w), what is known and where, or None.
        batch_size: grids that are drawn at a time.
    """
    device = noise.device
    starts = range(0, len(noise), batch_size)
    drawn, row, shape = [], None, None
    bar = logging.tqdm(
        total=len(noise), desc="sample", unit=" grids", leave=False, disable=len(starts) == 1
    )
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), bar:
        for start in starts:
            part = slice(start, start + batch_size)
            own_labels = None if labels is None else labels[part]
            known = None if mask is None else (codes[part], mask[part])
            if shape != noise[part].shape or labels is not None:
                shape = noise[part].shape
                row = _Row(prior, settings, len(noise[part]), own_labels, known is not None, device)
            drawn.append(row.draw_grids(noise[part], known))
            bar.update(len(noise[part]))
    return torch.cat(drawn)


class _Row:
    """Draws a row of codes for a batch; on CUDA from a captured graph, so that launches do not dominate."""

    def __init__(
        self,
        prior: PixelCNNModel,
        settings: DrawSettings,
        batch: int,
        labels: Tensor | None,
        has_known: bool,
        device: torch.device,
    ):
        self.settings, self.guided = settings, settings.guidance_scale != 1
        width = prior.config.grid_size[1]
        if self.guided:
            without = torch.full_like(labels, prior.config.num_classes)
            labels = torch.cat([labels, without])
        self.cache: PixelCNNCache = make_cache(prior, batch * (1 + self.guided), labels, device)
        self.noise = torch.zeros(batch, width, device=device)
        self.noises = self.noise.split(1, dim=1)
        self.codes = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.known = None
        if has_known:
            self.known = (torch.zeros_like(self.codes), torch.zeros_like(self.codes).bool())
        self.draw_row = self._capture() if device.type == "cuda" else self._draw_row

    def draw_grids(self, noise: Tensor, known: tuple[Tensor, Tensor] | None) -> Tensor:
        """Codes (B, h, w) from noise (B, h, w) and what is known of them: codes and mask, (B, h, w) each."""
        self.cache.reset_()
        rows = []
        for row in range(noise.shape[1]):
            self.noise.copy_(noise[:, row])
            if known is not None:
                for here, there in zip(self.known, known, strict=True):
                    here.copy_(there[:, row])
            self.draw_row()
            rows.append(self.codes.clone())
        return torch.stack(rows, dim=1)

    def _draw_row(self) -> None:
        cache, scale, width = self.cache, self.settings.guidance_scale, self.codes.shape[1]
        cache.start_row()
        for column in range(width):
            logits = cache.logits(column)
            if self.guided:
                # Ho and Salimans 2022, equation 6, with their 1 + w as the scale.
                with_label, without = logits.float().chunk(2)
                logits = without + scale * (with_label - without)
            drawn = self.settings.draw(logits, self.noises[column])
            if self.known is not None:
                drawn = torch.where(self.known[1][:, column], self.known[0][:, column], drawn)
            self.codes[:, column] = drawn
            if column + 1 < width:
                cache.put(column, drawn.repeat(2) if self.guided else drawn)
        cache.end_row(self.codes.repeat(2, 1) if self.guided else self.codes)

    def _capture(self):
        """The row as a CUDA graph: some hundred small kernels, launched at once."""
        self.cache.reset_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Once outside of the graph, so that libraries set up what they need.
        with torch.cuda.stream(stream):
            self._draw_row()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._draw_row()
        return self.graph.replay


def count_grids(name: str, number: int | None, **lengths: int | None) -> int:
    """How many to draw: `number`, or what labels, seeds or known codes say; 1 where nothing does.

    Args:
        name: of the argument `number`.
        lengths: of arguments with one entry for each grid; None where they have none, or one for all.

    Raises:
        ValueError: if `number` is no integer of at least 1, or two of them do not agree.
    """
    if number is not None and (not _is_integer(number) or number < 1):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {number!r}.")
    given = {key: length for key, length in lengths.items() if length is not None}
    if number is None and given:
        name, number = next(iter(given.items()))
    for key, length in given.items():
        if length == 0:
            raise ValueError(f"`{key}` must have at least one entry, got none.")
        if length != number:
            raise ValueError(
                f"`{key}` must have one entry for each of the {number} of `{name}`, got {length}."
            )
    return 1 if number is None else number


def count_labels(class_labels: ClassLabels | None) -> int | None:
    """How many labels there are; None for none, or one for all."""
    if class_labels is None or isinstance(class_labels, int | str):
        return None
    if isinstance(class_labels, Tensor) and class_labels.dim() == 0:
        return None
    if not isinstance(class_labels, Tensor | Sequence) or isinstance(class_labels, bytes):
        raise TypeError(
            "`class_labels` must be a number, a name, a list of either or a tensor of integers, got "
            f"{type(class_labels).__name__}."
        )
    return len(class_labels)


def count_known(values: Tensor | None, dimensions: int) -> int | None:
    """How many known grids or images there are; None for none, or one for all (fewer dimensions, or a batch of 1)."""
    if isinstance(values, Tensor) and values.dim() == dimensions and len(values) != 1:
        return len(values)
    return None


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
    if isinstance(label, Tensor) and label.dim() == 0 and not label.is_floating_point():
        label = label.item()
    if not _is_integer(label) or not -(2**63) <= label < 2**63:
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
        if not _is_integer(seed) or not 0 <= seed < 2**63:
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
    if isinstance(seeds, Tensor) and seeds.dim() != 1:
        raise ValueError(f"`seeds` must be of shape (N,), got {tuple(seeds.shape)}.")
    return len(seeds)


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["ClassLabels", "DrawSettings", "sample_codes"]
