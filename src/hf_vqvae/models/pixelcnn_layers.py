# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Layers of the PixelCNN priors. None of them computes values that a mask would discard.

Shapes: B batch, K codes, h x w grid, C channels, k side of a kernel, r = k // 2 its radius.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_pixelcnn import PixelCNNConfig
from .input_checks import is_exported


class CodeLookup(nn.Embedding):
    """Convolution over the one-hot planes of codes at the causal taps of a kernel, computed without the planes.

    Each position of the one-hot planes has a single 1, so the sum over K planes is one table row per tap. `weight`
    (taps * K, C) is that table: row t * K + k is what code k adds at tap t.

    Args:
        num_codes: K.
        channels: C.
        kernel_size: k, odd.
        rows: which of them are seen: "above", "left" (in the same row), or both.
    """

    def __init__(self, num_codes: int, channels: int, kernel_size: int, rows: str = "above, left"):
        radius = kernel_size // 2
        # Taps in reading order, as the rows of a kernel: those above, then those left of the centre.
        above = range(radius * kernel_size if "above" in rows else 0)
        self.taps = [divmod(tap, kernel_size) for tap in above]
        self.taps += [(radius, tap) for tap in range(radius if "left" in rows else 0)]
        super().__init__(len(self.taps) * num_codes, channels)
        self.num_codes, self.kernel_size = num_codes, kernel_size
        self.bias = nn.Parameter(torch.zeros(channels))

    def table(self) -> Tensor:
        """Return the table (taps * K, C) of what each code adds at each tap."""
        return self.weight

    def forward(self, codes: Tensor) -> Tensor:  # (B, h, w) -> (B, C, h, w)
        batch, height, width = codes.shape
        radius = self.kernel_size // 2
        table = self.table()
        # The last row, of zeros, stands for positions outside the grid.
        outside = len(table)
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        padded = nn.functional.pad(codes.long(), (radius, radius, radius, 0), value=-1)
        neighbours = torch.stack([padded[:, y : y + height, x : x + width] for y, x in self.taps], dim=-1)
        offsets = torch.arange(len(self.taps), device=codes.device) * self.num_codes
        rows = torch.where(neighbours < 0, outside, neighbours + offsets)
        rows = rows.reshape(-1, len(self.taps))
        if is_exported():  # in ONNX, `embedding_bag` is a loop over the rows
            summed = nn.functional.embedding(rows, table).sum(1)
        else:
            summed = nn.functional.embedding_bag(rows, table, mode="sum")
        hidden = (summed + self.bias).view(batch, height, width, len(self.bias)).permute(0, 3, 1, 2)
        # Return the autocast dtype, as a convolution does.
        device = hidden.device.type
        low = torch.is_autocast_enabled(device)
        return hidden.to(torch.get_autocast_dtype(device)) if low else hidden


class CodeConv2d(CodeLookup):
    """[`CodeLookup`] with the parameters of a convolution of mask A: `weight` (C, K, k, k) and `bias` (C,).

    The taps at and after the centre are never read.
    """

    def __init__(self, num_codes: int, channels: int, kernel_size: int):
        super().__init__(num_codes, channels, kernel_size)
        kernel = torch.empty(channels, num_codes, kernel_size, kernel_size)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(kernel))

    def table(self) -> Tensor:
        causal = self.weight.flatten(2)[:, :, : len(self.taps)]
        return causal.permute(2, 1, 0).reshape(-1, self.weight.shape[0])


class MaskedConv2d(nn.Conv2d):
    """Convolution of mask B: sees rows above, and the same row up to and including the centre.

    No mask is stored: taps after the centre are never read (they stay parameters, as in a masked convolution, and get
    no gradient), and rows below are not computed.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_out, h, w)
        radius = self.kernel_size[0] // 2
        row = self.weight[:, :, radius : radius + 1]
        # Not by `pad`, of which the exporter to ONNX without dynamo does not know the shape.
        centre_row = torch.cat([row[..., : radius + 1], torch.zeros_like(row[..., 1 : radius + 1])], 3)
        causal = torch.cat([self.weight[:, :, :radius], centre_row], dim=2)
        hidden = nn.functional.pad(hidden, (radius, radius, radius, 0))
        return nn.functional.conv2d(hidden, causal, self.bias)


class PixelCNNResidualBlock(GradientCheckpointingLayer):
    """1x1, 3x3 of mask B to half the channels, 1x1, each with ReLU, added to the input (the example's block)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=1)
        self.masked_conv = MaskedConv2d(channels, channels // 2, kernel_size=3)
        self.conv2 = nn.Conv2d(channels // 2, channels, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C, h, w)
        update = hidden
        for layer in (self.conv1, self.masked_conv, self.conv2):
            update = nn.functional.relu(layer(update))
        return hidden + update


def gate(hidden: Tensor, dim: int = 1) -> Tensor:
    """Multiply tanh of the first half by sigmoid of the second (Conditional PixelCNN, equation 2)."""
    values, gates = hidden.chunk(2, dim)
    return values.tanh() * gates.sigmoid()


class GatedPixelCNNLayer(GradientCheckpointingLayer):
    """Both stacks of one layer (van den Oord et al. 2016, arXiv 1606.05328, figure 2).

    The vertical stack sees all rows up to its own, the horizontal one its row up to the centre, and what the vertical
    stack knows of the rows above. Together they see every earlier code within the radius, without a blind spot. The
    vertical stack's input is one row behind (its first layer sees only rows above), so neither sees the centre's code.

    Kernels hold the causal taps alone: `vertical` (2C, C, r + 1, k), `horizontal` (2C, C, 1, r + 1). Class labels, and
    one more for no label, bias the gates (equation 4). Of the last layer only the skip connection reads the output.
    """

    def __init__(self, config: PixelCNNConfig, is_last: bool):
        super().__init__()
        channels, kernel_size = config.hidden_size, config.gated_kernel_size
        self.radius, self.dropout = kernel_size // 2, config.dropout
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.radius + 1, kernel_size))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.radius + 1), bias=False)
        self.link = nn.Conv2d(channels, 2 * channels, kernel_size=1)
        # DistributedDataParallel fails on parameters without a gradient.
        self.residual = None if is_last else nn.Conv2d(channels, channels, 1, bias=False)
        if config.num_classes is not None:
            self.class_embedding = nn.Embedding(config.num_classes + 1, 4 * channels)

    def forward(self, horizontal: Tensor, vertical: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return both stacks and the gated features for the skip connection, (B, C, h, w) each."""
        radius = self.radius
        above = self.vertical(nn.functional.pad(vertical, (radius, radius, radius, 0)))
        vertical_bias, horizontal_bias = 0, 0
        if labels is not None:  # (B, 2C, 1, 1) each
            biases = self.class_embedding(labels)[:, :, None, None].to(above.dtype)
            vertical_bias, horizontal_bias = biases.chunk(2, 1)
        above = gate(above + vertical_bias)
        before = self.horizontal(nn.functional.pad(horizontal, (radius, 0, 0, 0)))
        gated = gate(before + self.link(above) + horizontal_bias)
        if self.training:
            gated = dropout(gated, self.dropout)
        if self.residual is not None:
            horizontal = horizontal + self.residual(gated)
        return horizontal, vertical + above, gated


def dropout(x: Tensor, p: float) -> Tensor:
    """Apply dropout (Srivastava et al. 2014) to `x` (B, ...), with the same mask on several processes as on one."""
    if p == 0:
        return x
    keep = draw_uniform(x.shape, x.device) >= p
    return x * (keep.to(x.dtype) / (1 - p))


def draw_uniform(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw numbers (B, ...) in [0, 1), float32, for a batch.

    The numbers are drawn for the batches of all processes, and each process takes its own rows. Processes with equal
    seeds, as in `scripts/train.py`, thus draw what a single process would draw, instead of the same in every batch.
    """
    batch, *others = shape
    rank, processes = 0, 1
    if dist.is_available() and dist.is_initialized():
        rank, processes = dist.get_rank(), dist.get_world_size()
    # `bernoulli_` gave NaN where it was compiled (torch 2.13, inductor for CPUs).
    drawn = torch.rand(processes * batch, *others, dtype=torch.float32, device=device)
    return drawn[rank * batch : (rank + 1) * batch]
