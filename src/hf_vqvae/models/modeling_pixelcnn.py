# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""PixelCNN, an autoregressive prior over a grid of codes (van den Oord et al. 2016, arXiv 1601.06759, section 3).

Codes are drawn row by row, from left to right; a code sees those above it and those left of it in its row.
Shapes: B batch, K codes, h x w grid, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .codes import check_codes
from .configuration_pixelcnn import PixelCNNConfig
from .publishing import PublishMixin


@dataclass
class PixelCNNOutput(ModelOutput):
    """Output of [`PixelCNNModel`].

    Attributes:
        loss: scalar, with `return_loss=True`: mean negative log-likelihood in nats per code.
        logits: (B, K, h, w); `logits[:, :, i, j]` sees only the codes before (i, j).
        hidden_states: with `output_hidden_states=True`, the input and the output of every residual block.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class CodeConv2d(nn.Embedding):
    """Convolution of mask A over the one-hot planes of codes, computed without the planes.

    A one-hot plane holds a single 1, so the sum over K planes and the causal taps of the kernel is a sum of one table
    row per tap: an embedding with a table for every tap. The parameters are those of the masked convolution, `weight`
    (C, K, k, k) and `bias` (C,); the taps at and after the centre are never read.
    """

    def __init__(self, num_embeddings: int, out_channels: int, kernel_size: int):
        super().__init__(num_embeddings, out_channels)
        self.kernel_size = kernel_size
        kernel = torch.empty(out_channels, num_embeddings, kernel_size, kernel_size)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, kernel_size={self.kernel_size}"

    def forward(self, codes: Tensor) -> Tensor:  # (B, h, w) -> (B, C, h, w)
        batch, height, width = codes.shape
        reach = self.kernel_size // 2
        # Whole rows above, then the left half of the centre's.
        taps = reach * self.kernel_size + reach
        planes = self.num_embeddings
        # Row t * K + k of the table is what code k adds at tap t; the last row, of zeros, is the world outside.
        table = self.weight.flatten(2)[:, :, :taps].permute(2, 1, 0).reshape(taps * planes, -1)
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        outside = taps * planes
        padded = nn.functional.pad(codes.long(), (reach, reach, reach, 0), value=-1)
        neighbours = padded.unfold(1, reach + 1, 1).unfold(2, 2 * reach + 1, 1)
        neighbours = neighbours[:, :height].flatten(3)[..., :taps]
        offsets = torch.arange(taps, device=codes.device) * planes
        rows = torch.where(neighbours < 0, outside, neighbours + offsets).reshape(-1, taps)
        summed = nn.functional.embedding_bag(rows, table, mode="sum", padding_idx=outside)
        summed = summed + self.bias
        return summed.view(batch, height, width, -1).permute(0, 3, 1, 2)


class MaskedConv2d(nn.Conv2d):
    """Convolution of mask B: sees rows above, and the same row up to and including the centre.

    There is no mask to store or to reload: taps after the centre are never read (they stay parameters, as in a masked
    convolution, and get no gradient), and rows below are not computed.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, hidden: Tensor) -> Tensor:  # (B, C_in, h, w) -> (B, C_out, h, w)
        reach = self.kernel_size[0] // 2
        centre_row = nn.functional.pad(
            self.weight[:, :, reach : reach + 1, : reach + 1], (0, reach)
        )
        causal = torch.cat([self.weight[:, :, :reach], centre_row], dim=2)
        hidden = nn.functional.pad(hidden, (reach, reach, reach, 0))
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


class PixelCNNPreTrainedModel(PublishMixin, PreTrainedModel):
    """Weight initialisation, saving and loading."""

    config: PixelCNNConfig
    base_model_prefix = "prior"
    main_input_name = "codes"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PixelCNNResidualBlock"]
    _can_record_outputs = {"hidden_states": PixelCNNResidualBlock}
    _can_compile_fullgraph = True
    # A full repo holds the autoencoder beside the prior.
    _keys_to_ignore_on_load_unexpected = [r"^vqvae\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Glorot-uniform kernels and zero biases, as in the example."""
        if isinstance(module, nn.Conv2d | CodeConv2d):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)


class PixelCNNModel(PixelCNNPreTrainedModel):
    """Prior over grids of codes (h, w); `PixelCNNConfig()` is the network of the Keras VQ-VAE example.

    ```python
    >>> prior = PixelCNNModel(PixelCNNConfig(num_embeddings=128, grid_size=(7, 7)))
    >>> prior(codes, return_loss=True).loss  # nats per code
    >>> prior.sample(16)  # codes (16, 7, 7)
    ```
    """

    def __init__(self, config: PixelCNNConfig):
        super().__init__(config)
        channels = config.hidden_size
        self.conv_in = CodeConv2d(config.num_embeddings, channels, config.kernel_size)
        self.blocks = nn.ModuleList(
            PixelCNNResidualBlock(channels) for _ in range(config.num_residual_blocks)
        )
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=1) for _ in range(config.num_pixelcnn_layers)
        )
        self.conv_out = nn.Conv2d(channels, config.num_embeddings, kernel_size=1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads the codes."""
        return self.conv_in

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the layer that reads the codes."""
        self.conv_in = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        codes: torch.LongTensor,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixelCNNOutput:
        r"""
        Args:
            codes: (B, h, w) integers in [0, K).
            return_loss: whether to compute `loss`, in nats per code.

        Raises:
            TypeError: if `codes` are no integers.
            ValueError: if their shape is not the grid's, or one is outside [0, K).
        """
        check_codes(codes, self.config.num_embeddings, self.config.grid_size)
        hidden = nn.functional.relu(self.conv_in(codes))
        for block in self.blocks:
            hidden = block(hidden)
        for layer in self.layers:
            hidden = nn.functional.relu(layer(hidden))
        logits = self.conv_out(hidden)
        loss = nn.functional.cross_entropy(logits.float(), codes.long()) if return_loss else None
        return PixelCNNOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def sample(
        self,
        num_grids: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws grids of codes, one code after the other, each from the distribution given those before it.

        Args:
            num_grids: how many, at least 1.
            temperature: divides the logits; 1 draws from the model's distribution, 0 takes the likeliest code.
            generator: source of randomness, on the model's device; the default generator if None.

        Returns:
            Codes (num_grids, h, w), int64.

        Raises:
            ValueError: if an argument is out of its range, or the generator on another device.
        """
        if not isinstance(num_grids, int) or num_grids < 1:
            raise ValueError(f"`num_grids` must be an integer of at least 1, got {num_grids!r}.")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"`temperature` must be at least 0 and finite, got {temperature}.")
        # Weights offloaded by Accelerate are on "meta"; its hooks take inputs from anywhere.
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        if generator is not None and generator.device.type != device.type:
            raise ValueError(
                f"`generator` must be on the model's device {device}, got one on {generator.device}: "
                f'make it with torch.Generator("{device}").'
            )
        height, width = self.config.grid_size
        codes = torch.zeros(num_grids, height, width, dtype=torch.long, device=device)
        for row in range(height):
            for column in range(width):
                logits = self(codes, return_dict=True).logits[:, :, row, column].float()
                if temperature == 0:
                    codes[:, row, column] = logits.argmax(1)
                    continue
                # Largest logit at 0: a tiny temperature may make all others infinite, but not that one.
                logits = logits - logits.amax(1, keepdim=True)
                tiny = torch.finfo(logits.dtype).tiny
                probabilities = (logits / max(temperature, tiny)).softmax(1)
                drawn = torch.multinomial(probabilities, 1, generator=generator)
                codes[:, row, column] = drawn[:, 0]
        return codes


__all__ = ["PixelCNNModel", "PixelCNNOutput", "PixelCNNPreTrainedModel"]
