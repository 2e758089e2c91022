# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""The VQ-VAE: encoder, vector quantizer, decoder (van den Oord et al. 2017, section 3).

Shapes: B batch, C channels, H x W image, D dimension of a latent, h x w grid of codes, K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .autoencoder import VQVAEDecoder, VQVAEEncoder, VQVAEEncoderLevel
from .configuration_vqvae import VQVAEConfig, as_pair
from .hub_mixin import HubMixin
from .input_checks import as_tensor
from .quantization import VectorQuantizer


@dataclass
class VQVAEEncoderOutput(ModelOutput):
    """Output of [`VQVAEModel.encode`].

    Attributes:
        codes: (B, h, w) int64 in [0, K).
        latents: (B, D, h, w), before quantization.
    """

    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None


@dataclass
class VQVAEOutput(ModelOutput):
    """Output of [`VQVAEModel`].

    Attributes:
        loss: scalar, unless `return_loss=False`: `reconstruction_loss / data_variance + codebook_loss +
            commitment_cost * commitment_loss` (eq. 3; no codebook loss where the codebook learns by moving average).
        reconstruction: (B, C, H, W), on the scale of `pixel_values`; not clipped.
        reconstruction_loss: scalar mean squared error per pixel; the same on the [0, 1] scale.
        codebook_loss: scalar, or None where the codebook learns by moving average.
        commitment_loss: scalar, not yet times `commitment_cost`.
        codes: (B, h, w) int64.
        latents: (B, D, h, w), before quantization.
        quantized: (B, D, h, w), the codebook vectors of the codes.
        hidden_states: with `output_hidden_states=True`, the output of every encoder level, and the latents.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantized: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class VQVAEModel(HubMixin, PreTrainedModel):
    """VQ-VAE (van den Oord et al. 2017, "Neural Discrete Representation Learning").

    ```python
    >>> model = VQVAEModel.from_pretrained("outputs/quickstart")
    >>> codes = model.encode(pixel_values).codes  # (B, h, w)
    >>> images = model.decode(codes)  # (B, C, H, W) in [-0.5, 0.5]
    ```
    """

    config: VQVAEConfig
    base_model_prefix = "vqvae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VQVAEEncoderLevel", "VQVAEDecoderLevel", "VectorQuantizer"]
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(VQVAEEncoderLevel, capture_initial_hidden_state=False),
            OutputRecorder(nn.Conv2d, layer_name="encoder.conv_out", capture_initial_hidden_state=False),
        ]
    }
    _can_compile_fullgraph = True
    # A full repo holds the prior beside the autoencoder.
    _keys_to_ignore_on_load_unexpected = [r"^prior\."]

    def __init__(self, config: VQVAEConfig):
        super().__init__(config)
        self.encoder = VQVAEEncoder(config)
        self.quantizer = VectorQuantizer(config)
        self.decoder = VQVAEDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Glorot-uniform kernels and zero biases, as in the example; codebook uniform in [-1/K, 1/K]; empty averages."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1 / module.num_embeddings, 1 / module.num_embeddings)
        elif isinstance(module, VectorQuantizer):
            for _, buffer in module.named_buffers():
                init.zeros_(buffer)

    def encode(self, pixel_values: Tensor) -> VQVAEEncoderOutput:
        """Encode images (B, C, H, W) in [-0.5, 0.5] to codes (B, h, w) and latents (B, D, h, w), without learning.

        Raises `TypeError` or `ValueError` if dtype or shape do not fit the config, as `forward` does.
        """
        latents = self.encoder(self._checked_pixels(pixel_values))
        return VQVAEEncoderOutput(codes=self.quantizer.encode(latents), latents=latents)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w), of any integer dtype but uint64, to images (B, C, H, W) of about [-0.5, 0.5].

        Raises `TypeError` or `ValueError` if dtype, shape or values of the codes do not fit the config.
        """
        return self.decoder(self.quantizer.decode(codes, self.config.grid_size))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.FloatTensor, return_loss: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> VQVAEOutput:
        r"""
        Args:
            pixel_values: (B, C, H, W) in [-0.5, 0.5], from the image processor.
            return_loss: whether to compute `loss`. `transformers.Trainer` needs the default, and its `labels` have no effect.
        """
        pixel_values = self._checked_pixels(pixel_values)
        latents = self.encoder(pixel_values)
        quantized = self.quantizer(latents)
        reconstruction = self.decoder(quantized.quantized)
        error = nn.functional.mse_loss(reconstruction.float(), pixel_values.float())
        loss = None
        if return_loss:
            loss = error / self.config.data_variance + self.config.commitment_cost * quantized.commitment_loss
            if quantized.codebook_loss is not None:
                loss = loss + quantized.codebook_loss
        return VQVAEOutput(
            loss=loss,
            reconstruction=reconstruction,
            reconstruction_loss=error,
            codebook_loss=quantized.codebook_loss,
            commitment_loss=quantized.commitment_loss,
            codes=quantized.codes,
            latents=latents,
            quantized=quantized.quantized,
        )

    def _checked_pixels(self, pixel_values: Tensor) -> Tensor:
        pixel_values = as_tensor("pixel_values", pixel_values, "floating-point numbers")
        expected = (self.config.num_channels, *as_pair(self.config.image_size))
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, {', '.join(map(str, expected))}) of this model's config, "
                f"got {tuple(pixel_values.shape)}: the model's image processor resizes images to it."
            )
        return pixel_values
