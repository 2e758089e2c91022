# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Configuration of the VQ-VAE."""

import math
from typing import Literal

from .configuration_utils import CODES, FINITE, LAYERS, SHARE, SIZE, StrictConfig, setting, strict


def as_pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Convert an image size to (height, width): `28 -> (28, 28)`."""
    return (size, size) if isinstance(size, int) else tuple(size)


@strict
class VQVAEConfig(StrictConfig):
    r"""
    Configuration of a [`VQVAEModel`]. `VQVAEConfig()` is the network of the Keras example "Vector-Quantized
    Variational Autoencoders" (Sayak Paul, keras.io/examples/generative/vq_vae) as on the page keras-io/vq-vae: MNIST,
    latent dimension 16, 128 embeddings.

    Raises:
        ValueError: if a setting is unknown or out of its range; the message names it and the rule.
    """

    model_type = "vqvae"
    base_config_key = "vqvae_config"

    image_size: int | list[int] | tuple[int, ...] = setting(
        28, "Image height and width in pixels; multiples of 2 ** len(hidden_sizes).", **SIZE
    )
    num_channels: int = setting(1, "Image channels: 1 grey, 3 RGB.", **SIZE)
    hidden_sizes: list[int] | tuple[int, ...] = setting(
        (32, 64), "Channels of each encoder level, which halves the size.", **SIZE
    )
    num_residual_layers: int = setting(0, "Residual blocks after each level.", **LAYERS)
    embedding_dim: int = setting(16, "Dimension D of latents and codebook vectors.", **SIZE)
    num_embeddings: int = setting(128, "Codebook size K (the paper: 512).", **CODES)
    commitment_cost: float | int = setting(0.25, "Weight beta of the commitment loss (paper, eq. 3: 0.25).", **FINITE)
    codebook_update: Literal["ema", "gradient"] = setting(
        "ema", "Codebook learns by moving averages (paper, A.1) or by gradient (eq. 3)."
    )
    ema_decay: float | int = setting(0.9, "Decay gamma of the codebook's moving averages (paper, A.1: 0.99).", **SHARE)
    codebook_init: Literal["kmeans", "uniform"] = setting(
        "kmeans", "First codebook: k-means on the first training batch, or uniform in [-1/K, 1/K]."
    )
    dead_code_threshold: float | int = setting(
        0.0, "Replace codes chosen for fewer latents a step than this; 0: never.", **FINITE
    )
    data_variance: float | int = setting(
        1.0,
        "Variance of the training pixels on [0, 1], which divides the MSE in the loss; train.py measures it.",
        above=0,
        below=math.inf,
    )

    def __post_init__(self, **kwargs):
        # JSON has no tuples.
        self.hidden_sizes = tuple(self.hidden_sizes)
        if not isinstance(self.image_size, int):
            self.image_size = tuple(self.image_size)
        super().__post_init__(**kwargs)

    @property
    def downsampling_factor(self) -> int:
        """Pixels per code along each axis."""
        return 2 ** len(self.hidden_sizes)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid of codes."""
        height, width = as_pair(self.image_size)
        return height // self.downsampling_factor, width // self.downsampling_factor

    def validate_image_size(self):
        """Check that both sides are multiples of the downsampling factor, since every level halves them."""
        if not self.hidden_sizes:
            raise ValueError("`hidden_sizes` must have at least one level, got none.")
        sides, factor = as_pair(self.image_size), self.downsampling_factor
        if len(sides) != 2:
            raise ValueError(f"`image_size` must be one number or (height, width), got {sides}.")
        for side in sides:
            if side % factor:
                below = side - side % factor
                raise ValueError(
                    f"`image_size` must be a multiple of {factor} (2 ** {len(self.hidden_sizes)} levels of "
                    f"`hidden_sizes`), such as {below} or {below + factor}, got {side}."
                )
