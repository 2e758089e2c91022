# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""A frozen VQ-VAE with a prior over its codes: images from nothing (van den Oord et al. 2017, section 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_image_generation import VQVAEForImageGenerationConfig
from .modeling_pixelcnn import PixelCNNModel
from .modeling_vqvae import VQVAEModel
from .publishing import PublishMixin


@dataclass
class VQVAEForImageGenerationOutput(ModelOutput):
    """Output of [`VQVAEForImageGeneration`].

    Attributes:
        loss: scalar, with `return_loss=True`: the prior's negative log-likelihood in nats per code.
        logits: (B, K, h, w), the prior's.
        codes: (B, h, w), the image's codes.
        hidden_states: with `output_hidden_states=True`, the prior's.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class VQVAEForImageGeneration(PublishMixin, PreTrainedModel):
    """VQ-VAE and prior. The VQ-VAE is frozen: its weights take no gradient and its codebook never moves.

    ```python
    >>> model = VQVAEForImageGeneration.from_pretrained("outputs/quickstart")
    >>> processor = VQVAEImageProcessorPil.from_pretrained("outputs/quickstart")
    >>> processor.postprocess(model.sample(16))  # 16 PIL images
    ```

    `from_pretrained` of a folder that holds only a VQ-VAE (stage 1) loads it and starts a new prior.
    """

    config: VQVAEForImageGenerationConfig
    base_model_prefix = "vqvae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "VQVAEEncoderLevel",
        "VQVAEDecoderLevel",
        "VectorQuantizer",
        "PixelCNNResidualBlock",
    ]
    _can_compile_fullgraph = True

    def __init__(self, config: VQVAEForImageGenerationConfig):
        super().__init__(config)
        self.vqvae = VQVAEModel._from_config(config.vqvae_config)
        self.prior = PixelCNNModel._from_config(config.prior_config)
        self.vqvae.requires_grad_(False)
        self.vqvae.eval()
        self.post_init()

    def train(self, mode: bool = True) -> "VQVAEForImageGeneration":
        """Puts the prior into training mode; the VQ-VAE stays in eval, or its codebook would move."""
        super().train(mode)
        self.vqvae.eval()
        # Again: `from_pretrained` makes new parameters, all of which take gradients, and ends with `eval()`.
        self.vqvae.requires_grad_(False)
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQVAEForImageGenerationOutput:
        r"""
        Args:
            pixel_values: (B, C, H, W) in [-0.5, 0.5], from the image processor.
            return_loss: whether to compute `loss`, in nats per code.

        Raises:
            ValueError: if shape or dtype of `pixel_values` do not fit the config.
        """
        if self.config.output_hidden_states:
            kwargs.setdefault("output_hidden_states", True)
        with torch.no_grad():
            codes = self.vqvae.encode(pixel_values).codes
        prior = self.prior(codes, return_loss=return_loss, return_dict=True, **kwargs)
        return VQVAEForImageGenerationOutput(
            loss=prior.loss, logits=prior.logits, codes=codes, hidden_states=prior.hidden_states
        )

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws images: codes from the prior, decoded.

        Args:
            num_images: how many, at least 1.
            temperature: divides the prior's logits; 1 draws from its distribution, 0 takes the likeliest codes.
            generator: source of randomness, on the model's device.

        Returns:
            Images (num_images, C, H, W), about in [-0.5, 0.5]; the image processor's `postprocess` makes PIL images.

        Raises:
            ValueError: if an argument is out of its range, or the generator on another device.
        """
        if not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"`num_images` must be an integer of at least 1, got {num_images!r}.")
        codes = self.prior.sample(num_images, temperature=temperature, generator=generator)
        return self.vqvae.decode(codes)

    def _init_weights(self, module: nn.Module) -> None:
        """The parts initialise their own weights."""


__all__ = ["VQVAEForImageGeneration", "VQVAEForImageGenerationOutput"]
