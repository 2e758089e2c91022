"""What scripts/benchmark.py times: the PixelCNN and its sampling as usually written, and steps of training.

Shapes: N grids, K codes, h x w grid, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarking import PriorArguments, VQVAEArguments
from hf_vqvae.distributed import keep_freed_memory
from hf_vqvae.models import PixelCNNConfig, PixelCNNModel, VQVAEConfig, VQVAEModel
from hf_vqvae.models.modeling_pixelcnn import PixelCNNOutput
from hf_vqvae.models.sampling_pixelcnn import DrawSettings

LEARNING_RATE = 1e-3  # of scripts/train.py for the plain prior


class OrdinaryPixelCNN(nn.Module):
    """The plain prior as it is usually written: masked float32 convolutions over one-hot planes.

    So do the Keras example (its `PixelConvLayer` multiplies kernel and mask at every call) and pythae. It takes the
    state dict of a [`PixelCNNModel`], and gives the same logits.

    Raises:
        ValueError: if the config is not of a plain prior without classes and dropout.
    """

    def __init__(self, config: PixelCNNConfig):
        super().__init__()
        if config.architecture != "plain" or config.num_classes is not None or config.dropout:
            raise ValueError(
                "the ordinary PixelCNN stands beside a plain prior without classes and dropout, got `architecture` "
                f"{config.architecture!r}, `num_classes` {config.num_classes}, `dropout` {config.dropout}."
            )
        channels, self.num_codes = config.hidden_size, config.num_embeddings
        self.conv_in = _MaskedConv2d(
            self.num_codes, channels, config.kernel_size, sees_centre=False
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv1": nn.Conv2d(channels, channels, kernel_size=1),
                    "masked_conv": _MaskedConv2d(channels, channels // 2, 3, sees_centre=True),
                    "conv2": nn.Conv2d(channels // 2, channels, kernel_size=1),
                }
            )
            for _ in range(config.num_residual_blocks)
        )
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=1) for _ in range(config.num_pixelcnn_layers)
        )
        self.conv_out = nn.Conv2d(channels, self.num_codes, kernel_size=1)

    def forward(self, codes: Tensor, return_loss: bool = False) -> PixelCNNOutput:
        """From codes (N, h, w) in [0, K) to logits (N, K, h, w), and the loss in nats per code if asked for."""
        planes = nn.functional.one_hot(codes, self.num_codes).permute(0, 3, 1, 2)
        hidden = self.conv_in(planes.to(self.conv_in.weight.dtype)).relu()
        for block in self.blocks:
            update = hidden
            for name in ("conv1", "masked_conv", "conv2"):
                update = block[name](update).relu()
            hidden = hidden + update
        for layer in self.layers:
            hidden = layer(hidden).relu()
        logits = self.conv_out(hidden)
        loss = nn.functional.cross_entropy(logits, codes) if return_loss else None
        return PixelCNNOutput(loss=loss, logits=logits)


class _MaskedConv2d(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, size: int, *, sees_centre: bool):
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        mask = torch.zeros(size * size)
        mask[: size * size // 2 + sees_centre] = 1
        self.register_buffer("mask", mask.view(size, size), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:  # (N, C_in, h, w) -> (N, C_out, h, w)
        return self._conv_forward(hidden, self.weight * self.mask, self.bias)


@torch.inference_mode()
def plain_loop(
    network: PixelCNNModel | OrdinaryPixelCNN, noise: Tensor, num_steps: int | None = None
) -> Tensor:
    """Draws grids by one full forward pass for each code: the same codes as `PixelCNNModel.sample` from the same noise.

    Args:
        noise: (N, h, w) in [0, 1).
        num_steps: draw only so many codes of a grid, spread over it, to time them; None for all.

    Returns:
        Codes (N, h, w), int64; 0 where none was drawn.
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


def patterned_codes(config: PixelCNNConfig, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes (N, h, w) that a prior can learn, and labels (N,): ten patterns, a fifth of the codes replaced."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    size = tuple(config.grid_size)
    patterns = torch.randint(config.num_embeddings, (10, *size), generator=fixed)
    labels = torch.randint(10, (number,), generator=generator)
    other = torch.randint(config.num_embeddings, (number, *size), generator=generator)
    replaced = torch.rand(other.shape, generator=generator) < 0.2
    return torch.where(replaced, other, patterns[labels]), labels


def make_step(
    model: nn.Module, batches: list[dict[str, Tensor]], learning_rate: float, *, bf16: bool
) -> Callable[[], Tensor]:
    """A function that takes one step of Adam on the next of `batches`, in turn, and returns its loss (a scalar).

    Args:
        model: whose forward returns `loss` with `return_loss=True`.
        batches: arguments of the model, on its device.
        bf16: under autocast, as `--mixed_precision bf16` trains.
    """
    optimizer = torch.optim.Adam(model.train().parameters(), lr=learning_rate)
    device, taken = next(model.parameters()).device.type, 0

    def step() -> Tensor:
        nonlocal taken
        batch = batches[taken % len(batches)]
        taken += 1
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


@dataclass
class Trained:
    """A line of the table of `prior`."""

    name: str
    architecture: str = "plain"
    ordinary: bool = False
    bf16: bool = False


REFERENCE = Trained("ordinary, float32", ordinary=True)
TRAINED = (
    REFERENCE,
    Trained("ours, float32"),
    Trained("ours, bf16", bf16=True),
    Trained("gated by class, float32", "gated"),
    Trained("gated by class, bf16", "gated", bf16=True),
)


def make_prior_step(line: Trained, arguments: PriorArguments, num_batches: int = 8):
    """See `make_step`; weights and batches are the same for lines of one architecture."""
    classes = 10 if line.architecture == "gated" else None
    config = PixelCNNConfig(
        num_embeddings=arguments.num_embeddings,
        grid_size=arguments.grid_size,
        architecture=line.architecture,
        hidden_size=arguments.hidden_size,
        num_classes=classes,
    )
    keep_freed_memory()  # as scripts/train.py does; the reference gains by it too
    torch.manual_seed(0)
    model = PixelCNNModel(config)
    if line.ordinary:
        weights = model.state_dict()
        model = OrdinaryPixelCNN(config)
        model.load_state_dict(weights)
    else:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(arguments.device)
    batches = []
    for seed in range(num_batches):
        codes, labels = patterned_codes(config, arguments.batch_size, seed)
        batch = {"codes": codes} | ({} if classes is None else {"class_labels": labels})
        batches.append({name: value.to(arguments.device) for name, value in batch.items()})
    return make_step(model, batches, LEARNING_RATE, bf16=line.bf16)


def loss_curve(line: Trained, arguments: PriorArguments) -> Tensor:
    """Losses (steps,) from the first weights on, each batch new."""
    step = make_prior_step(line, arguments, num_batches=arguments.loss_steps)
    return torch.stack([step() for _ in range(arguments.loss_steps)]).double().cpu()


def make_vqvae_step(arguments: VQVAEArguments, bf16: bool):
    """See `make_step`."""
    keep_freed_memory()  # as scripts/train.py does
    torch.manual_seed(0)
    size = arguments.image_size
    model = VQVAEModel(VQVAEConfig(image_size=size)).to(memory_format=torch.channels_last)
    images = torch.rand(8, arguments.batch_size, 1, size, size, device=arguments.device) - 0.5
    batches = [{"pixel_values": batch} for batch in images]
    return make_step(model.to(arguments.device), batches, LEARNING_RATE, bf16=bf16)
