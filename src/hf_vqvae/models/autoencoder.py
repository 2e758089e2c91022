# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Encoder and decoder of the VQ-VAE.

Shapes: B batch, C channels, H x W image, D dimension of a latent, h x w grid of codes.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_vqvae import VQVAEConfig
from .input_checks import is_traced


class ResidualBlock(nn.Module):
    """ReLU, 3x3 to half the channels, ReLU, 1x1 back, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, max(1, channels // 2), kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(max(1, channels // 2), channels, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:
        update = self.conv1(nn.functional.relu(hidden))
        return hidden + self.conv2(nn.functional.relu(update))


class VQVAEEncoderLevel(GradientCheckpointingLayer):
    """Halve the size: 3x3 convolution of stride 2, ReLU, residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, num_residual_layers: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2)
        self.residual = nn.Sequential(*[ResidualBlock(out_channels) for _ in range(num_residual_layers)])

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, H, W) -> (B, C_out, H / 2, W / 2)
        # TensorFlow's "same" padding of an even size, the example's: one row below, one column to the right.
        hidden = nn.functional.pad(hidden, (0, 1, 0, 1))
        return self.residual(nn.functional.relu(self.conv(hidden), inplace=True))


class _Upsample(torch.autograd.Function):
    """[`UpsamplingConv2d`] in training on a CPU, in half the time of `conv_transpose2d` and its gradient."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        # The padding crops an added zero row above and zero column to the left: one more row and column are computed,
        # instead of the 16 products of a 4x4 kernel where 9 suffice.
        padded = nn.functional.pad(hidden, (1, 0, 1, 0))
        return nn.functional.conv_transpose2d(padded, weight, bias, stride=2, padding=2, output_padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        # The adjoint of a transposed convolution is the convolution; its kernels are the faster ones.
        padded = nn.functional.pad(grad, (0, 1, 0, 1))
        to_hidden, to_weight, to_bias = ctx.needs_input_grad
        return (
            nn.functional.conv2d(padded, weight, stride=2) if to_hidden else None,
            nn.grad.conv2d_weight(padded, weight.shape, hidden, stride=2) if to_weight else None,
            grad.sum((0, 2, 3)) if to_bias else None,
        )


class UpsamplingConv2d(nn.ConvTranspose2d):
    """Transposed 3x3 convolution of stride 2 that doubles the size by cropping the last row and column of its output.

    The crop mirrors the encoder's padding. No padding of `conv_transpose2d` crops on one side only, but a 4x4 kernel
    with a zero row above and a zero column left of the 3x3 one crops just that with padding 1, and without a copy.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_out, 2 h, 2 w)
        # Without a gradient, the result for an image must not depend on the batch, to the last digit.
        if _is_eager_on_cpu(hidden) and torch.is_grad_enabled():
            return _Upsample.apply(*_autocast(hidden, self.weight, self.bias))
        # Zeros by `cat`, since the exporter to ONNX without dynamo does not know the shape of a padded kernel.
        kernel = torch.cat([torch.zeros_like(self.weight[..., :1]), self.weight], dim=3)
        kernel = torch.cat([torch.zeros_like(kernel[:, :, :1]), kernel], dim=2)
        return nn.functional.conv_transpose2d(hidden, kernel, self.bias, stride=2, padding=1)


class _SumShifted(torch.autograd.Function):
    """[`ToPixelsConv2d`] on a CPU, in half the time of `conv_transpose2d`.

    `conv_transpose2d` computes 16 output channels, of which an image needs 1 or 3. Here one matrix product gives the
    contribution of every position to its neighbours, a plane for each of the kernel's 9 taps; the planes are shifted
    and summed.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        batch, channels, height, width = hidden.shape
        rows = hidden.permute(0, 2, 3, 1).reshape(-1, channels)
        planes = weight.permute(2, 3, 1, 0).reshape(-1, channels) @ rows.t()
        planes = planes.view(3, 3, weight.shape[1], batch, height, width)
        exact = torch.promote_types(planes.dtype, torch.float32)
        total = planes.new_zeros(planes.shape[2], batch, height + 2, width + 2, dtype=exact)
        for row in range(3):
            for column in range(3):
                total[:, :, row : row + height, column : column + width] += planes[row, column]
        pixels = total[:, :, 1:-1, 1:-1].transpose(0, 1) + bias.view(-1, 1, 1)
        return pixels.to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        ones, zeros = (1, 1), (0, 0)
        return torch.ops.aten.convolution_backward(
            grad, hidden, weight, weight.shape[1:2], ones, ones, ones, True, zeros, 1, ctx.needs_input_grad
        )


class ToPixelsConv2d(nn.ConvTranspose2d):
    """Transposed 3x3 convolution that keeps the size, to the few channels of an image."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, H, W) -> (B, C_out, H, W)
        if _is_eager_on_cpu(hidden) and self.out_channels <= 4:
            return _SumShifted.apply(*_autocast(hidden, self.weight, self.bias))
        return super().forward(hidden)


def _is_eager_on_cpu(hidden: Tensor) -> bool:
    """Return whether to use the functions above; compiling them took over four minutes."""
    return hidden.device.type == "cpu" and not is_traced()


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors as autocast does for a convolution on a CPU; it does not cast for custom functions."""
    if torch.is_autocast_enabled("cpu"):
        return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)
    return tensors


class VQVAEDecoderLevel(GradientCheckpointingLayer):
    """Double the size: residual blocks, transposed 3x3 convolution of stride 2, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, num_residual_layers: int):
        super().__init__()
        self.residual = nn.Sequential(*[ResidualBlock(in_channels) for _ in range(num_residual_layers)])
        self.conv = UpsamplingConv2d(in_channels, out_channels)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_out, 2 h, 2 w)
        return nn.functional.relu(self.conv(self.residual(hidden)), inplace=True)


class VQVAEEncoder(nn.Module):
    """Encode images (B, C, H, W) to latents (B, D, h, w)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        channels = [config.num_channels, *config.hidden_sizes]
        self.levels = nn.ModuleList(
            VQVAEEncoderLevel(wide, narrow, config.num_residual_layers) for wide, narrow in pairwise(channels)
        )
        self.conv_out = nn.Conv2d(channels[-1], config.embedding_dim, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.conv_out.weight.dtype)
        checkpointing = self.training and self.levels[0].gradient_checkpointing
        if checkpointing and not hidden.requires_grad and not torch.compiler.is_compiling():
            # Reentrant checkpointing gives a level no gradient where its input takes none.
            hidden = hidden.detach().requires_grad_()
        for level in self.levels:
            hidden = level(hidden)
        return self.conv_out(hidden)


class VQVAEDecoder(nn.Module):
    """Decode quantized latents (B, D, h, w) to images (B, C, H, W)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        sizes = tuple(reversed(config.hidden_sizes))
        # The example's decoder widens in its first transposed layer, so there is no 1x1 that mirrors the encoder's.
        channels = [config.embedding_dim, *sizes]
        self.levels = nn.ModuleList(
            VQVAEDecoderLevel(narrow, wide, config.num_residual_layers) for narrow, wide in pairwise(channels)
        )
        self.conv_out = ToPixelsConv2d(sizes[-1], config.num_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        for level in self.levels:
            hidden = level(hidden)
        return self.conv_out(hidden)
