# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Ancestral sampling from a PixelCNN prior.

Shapes: N grids, B batch, K codes, h x w grid.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from .input_checks import as_list, is_exported, is_integer, require
from .pixelcnn_cache import GatedCache, PlainCache

# Guided logits must stay finite in float32.
_MAX_SCALE = 1e6


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
        # Numbers of numpy would decide the dtype of what they are multiplied with.
        numbers = (self.temperature, self.top_k, self.top_p, self.guidance_scale)
        heat, k, p, scale = (as_list(number) for number in numbers)
        require(_within(heat, sys.float_info.max), "temperature", heat, "at least 0 and finite")
        require(k is None or (is_integer(k) and k >= 1), "top_k", k, "an integer of at least 1, or None")
        require(p is None or (_within(p, 1) and p > 0), "top_p", p, "above 0 and at most 1, or None")
        require(_within(scale, _MAX_SCALE), "guidance_scale", scale, f"from 0 to {_MAX_SCALE:g}")
        self.temperature, self.top_k, self.top_p, self.guidance_scale = heat, k, p, scale

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw codes (B,) from logits (B, K) by inverting the cumulative distribution at `noise` (B, 1) in [0, 1)."""
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


def sample_codes(prior, settings: DrawSettings, noise: Tensor, labels, known, batch_size) -> Tensor:
    """Draw codes (N, h, w) in batches, with a progress bar if there are several.

    Args:
        noise: (N, h, w) in [0, 1), on the device of the prior.
        labels: (N,) rows of the class embeddings; the last, -1, is the null label. None for a prior without classes.
        known: codes (N, h, w) and a mask (N, h, w) of those that are known, or None.
    """
    if is_exported():
        raise RuntimeError("`sample` cannot be exported or traced: export `forward` and `decode`.")
    starts = range(0, len(noise), batch_size)
    drawn, row, shape = [], None, None
    hidden = {"disable": True} if len(starts) == 1 else {}  # False would override TQDM_DISABLE
    bar = logging.tqdm(total=len(noise), desc="sample", unit=" grids", leave=False, **hidden)
    with torch.inference_mode(), torch.autocast(noise.device.type, enabled=False), bar:
        for start in starts:
            part = slice(start, start + batch_size)
            batch_labels = None if labels is None else labels[part].to(noise.device)
            batch_known = None if known is None else [values[part] for values in known]
            if shape != noise[part].shape or labels is not None:
                shape = noise[part].shape
                row = _Row(prior, settings, noise[part], batch_labels, batch_known)
            drawn.append(row.draw_grids(noise[part], batch_known))
            bar.update(len(noise[part]))
    return torch.cat(drawn)


class _Row:
    """Draw a row of codes for a batch; on CUDA by replaying a graph, which avoids the cost of kernel launches."""

    def __init__(self, prior, settings, noise, labels, known):
        # `noise` and `known` are those of `draw_grids`, for the first of several batches.
        batch, _, width = noise.shape
        device = noise.device
        self.settings, self.guided = settings, settings.guidance_scale != 1
        if self.guided:
            labels = torch.cat([labels, torch.full_like(labels, -1)])
        kind = PlainCache if prior.config.architecture == "plain" else GatedCache
        self.cache = kind(prior, batch * (1 + self.guided), labels, device)
        self.noise = torch.zeros(batch, width, dtype=torch.float32, device=device)
        self.noises = self.noise.split(1, dim=1)
        self.codes = torch.zeros(batch, width, dtype=torch.long, device=device)
        self.known = None
        if known is not None:
            self.known = (torch.zeros_like(self.codes), torch.zeros_like(self.codes).bool())
        self.draw_row = self._capture() if device.type == "cuda" else self._draw_row

    def draw_grids(self, noise: Tensor, known: tuple[Tensor, Tensor] | None) -> Tensor:
        """Draw codes (B, h, w) from noise (B, h, w), given known codes and their mask, (B, h, w) each."""
        self.cache.reset_()
        rows = []
        for row in range(noise.shape[1]):
            self.noise.copy_(noise[:, row])
            if known is not None:
                for buffer, values in zip(self.known, known, strict=True):
                    buffer.copy_(values[:, row])
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
        """Capture the row, some hundred small kernels, as a CUDA graph."""
        self.cache.reset_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Run once outside the graph, so that libraries allocate their workspaces.
        with torch.cuda.stream(stream):
            self._draw_row()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._draw_row()
        return self.graph.replay


def _within(value, most: float) -> bool:
    """Return whether `value` is a number, not a bool, in [0, most]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
