"""Networks, sampling loops and training steps that scripts/benchmark.py times.

Shapes: N grids, K codes, h x w grid, C channels.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from hf_vqvae.files import keep_freed_memory
from hf_vqvae.models import PixelCNNConfig, PixelCNNModel
from hf_vqvae.models.pixelcnn_layers import CodeConv2d, MaskedConv2d
from hf_vqvae.models.sampling_pixelcnn import DrawSettings

LEARNING_RATE = 1e-3  # of scripts/train.py for the plain prior


class _MaskedConv2d(nn.Conv2d):
    """Convolution that multiplies its kernel by a mask, with the parameters of a layer of a plain prior."""

    def __init__(self, layer: CodeConv2d | MaskedConv2d):
        out_channels, in_channels, size, _ = layer.weight.shape
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        self.load_state_dict(layer.state_dict())
        mask = torch.zeros(size * size)
        mask[: size * size // 2 + isinstance(layer, MaskedConv2d)] = 1
        self.register_buffer("mask", mask.view(size, size), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:  # codes (N, h, w) or (N, C_in, h, w) -> (N, C_out, h, w)
        if not hidden.is_floating_point():
            planes = nn.functional.one_hot(hidden, self.in_channels).permute(0, 3, 1, 2)
            hidden = planes.to(self.weight.dtype)
        return self._conv_forward(hidden, self.weight * self.mask, self.bias)


def make_reference(model: PixelCNNModel) -> PixelCNNModel:
    """Copy a plain prior with masked float32 convolutions over one-hot planes, which give the same logits.

    The Keras example (whose `PixelConvLayer` multiplies kernel and mask at every call) and pythae write it like this.
    """
    reference = deepcopy(model)
    reference.conv_in = _MaskedConv2d(reference.conv_in)
    for block in reference.blocks:
        block.masked_conv = _MaskedConv2d(block.masked_conv)
    return reference


@torch.inference_mode()
def uncached_sample(network: PixelCNNModel, noise: Tensor, num_steps: int | None = None) -> Tensor:
    """Sample codes (N, h, w), int64, with one full forward pass per code.

    The same noise (N, h, w) in [0, 1) gives the codes of `PixelCNNModel.sample`. With `num_steps`, only so many codes
    are drawn, spread over the grid, and the others are 0.
    """
    codes, settings = torch.zeros_like(noise, dtype=torch.long), DrawSettings()
    height, width = noise.shape[1:]
    cells = height * width
    steps = min(num_steps or cells, cells)
    for step in range(steps):
        row, column = divmod(step * cells // steps, width)
        logits = network(codes).logits[:, :, row, column]
        codes[:, row, column] = settings.draw(logits, noise[:, row, column, None])
    return codes


def make_samplers(
    architecture: str, grid: tuple[int, int], num_embeddings: int, number: int, loop_steps: int, device: str
) -> dict[str, Callable[[], Any]]:
    """Make functions that sample `number` grids from random weights, and single forward passes."""
    torch.manual_seed(0)
    config = PixelCNNConfig(num_embeddings=num_embeddings, grid_size=grid, architecture=architecture)
    model = PixelCNNModel(config).to(device).eval()
    noise = torch.rand(number, *grid, device=device)
    codes = torch.randint(num_embeddings, noise.shape, device=device)
    networks = {"own": model}
    if architecture == "plain":
        networks["reference"] = make_reference(model).to(device)
    samplers = {"cached": lambda: model.sample(number, batch_size=number)}
    for name, network in networks.items():
        samplers[f"{name} loop"] = partial(uncached_sample, network, noise, loop_steps)
        samplers[f"{name} forward"] = torch.inference_mode()(partial(network, codes))
    return samplers


def make_step(model: nn.Module, batches: Iterator[dict[str, Tensor]], *, bf16: bool) -> Callable[[], Tensor]:
    """Make a function that takes one Adam step on the next of `batches` (arguments of the model), and returns its loss.

    With `bf16` under autocast, as `--mixed_precision bf16` trains.
    """
    optimizer = torch.optim.Adam(model.train().parameters(), lr=LEARNING_RATE)
    device = next(model.parameters()).device.type

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**next(batches), return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


REFERENCE = "reference, float32"
# Architecture of each row of the table of `prior`.
VARIANTS = {
    REFERENCE: "plain",
    "ours, float32": "plain",
    "ours, bf16": "plain",
    "gated by class, float32": "gated",
    "gated by class, bf16": "gated",
}


def make_prior_step(variant: str, arguments: Any):
    """Make a training step of one of `VARIANTS` with the flags of `benchmark.py prior`.

    Weights and batches are equal for all of one architecture.
    """
    architecture = VARIANTS[variant]
    config = PixelCNNConfig(
        num_embeddings=arguments.num_embeddings,
        grid_size=arguments.grid_size,
        architecture=architecture,
        num_classes=10 if architecture == "gated" else None,
    )
    torch.manual_seed(0)
    # Eight batches of ten patterns: something to learn.
    patterns = torch.randint(config.num_embeddings, (10, *config.grid_size), device=arguments.device)
    batches = [
        {"codes": patterns[labels]} | ({} if config.num_classes is None else {"class_labels": labels})
        for labels in torch.randint(10, (8, arguments.batch_size), device=arguments.device)
    ]
    keep_freed_memory()  # as scripts/train.py does; the reference gains from it too
    model = PixelCNNModel(config).to(memory_format=torch.channels_last)
    model = (make_reference(model) if variant == REFERENCE else model).to(arguments.device)
    return make_step(model, cycle(batches), bf16=variant.endswith("bf16"))
