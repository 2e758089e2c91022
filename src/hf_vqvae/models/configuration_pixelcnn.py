# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the PixelCNN prior."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_strict import StrictConfig, setting


@strict
class PixelCNNConfig(StrictConfig):
    r"""
    Configuration of a [`PixelCNNModel`], an autoregressive prior over a grid of codes. `PixelCNNConfig()` is the
    network of the Keras example "Vector-Quantized Variational Autoencoders" (Sayak Paul): 1,049,728 parameters.

    Args:
        num_embeddings (`int`, *optional*, defaults to 128):
            Number K of different codes, at least 2.
        grid_size (`list[int]`, *optional*, defaults to `(7, 7)`):
            Rows and columns of the grid.
        architecture (`"plain"`, *optional*, defaults to `"plain"`):
            One stack of masked convolutions (van den Oord et al. 2016, "Pixel Recurrent Neural Networks").
        hidden_size (`int`, *optional*, defaults to 128):
            Channels of every hidden layer; even.
        kernel_size (`int`, *optional*, defaults to 7):
            Side of the first kernel (mask A); odd, at least 3.
        num_residual_blocks (`int`, *optional*, defaults to 2):
            Residual blocks: 1x1, 3x3 of mask B to half the channels, 1x1.
        num_pixelcnn_layers (`int`, *optional*, defaults to 2):
            1x1 layers before the logits.

    Raises:
        ValueError: if a setting is unknown or out of its range; the message names it and the rule.
    """

    model_type = "pixelcnn"
    base_config_key = "prior_config"

    num_embeddings: int = setting(128, "Number K of codes; train.py takes it from the VQ-VAE.")
    grid_size: list[int] | tuple[int, ...] = setting(
        (7, 7), "Rows and columns of codes; train.py takes them from the VQ-VAE."
    )
    architecture: Literal["plain"] = setting("plain", "Prior: one stack of masked convolutions.")
    hidden_size: int = setting(128, "Channels of the prior's hidden layers; even.")
    kernel_size: int = setting(7, "Side of the prior's first kernel; odd.")
    num_residual_blocks: int = setting(2, "Residual blocks of the prior.")
    num_pixelcnn_layers: int = setting(2, "1x1 layers of the prior before its logits.")

    def __post_init__(self, **kwargs):
        self.grid_size = tuple(self.grid_size)
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """`num_embeddings` under the name that transformers uses for it."""
        return self.num_embeddings

    def validate_sizes(self):
        """Counts, parity and the two sides of the grid."""
        minima = {"num_embeddings": 2, "hidden_size": 2, "kernel_size": 3}
        for name, minimum in {**minima, "num_residual_blocks": 0, "num_pixelcnn_layers": 0}.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {getattr(self, name)}.")
        if self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` must be even (residual blocks halve it), got {self.hidden_size}."
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(
                f"`kernel_size` must be odd (a kernel has a centre), got {self.kernel_size}."
            )
        if len(self.grid_size) != 2 or min(self.grid_size) < 1:
            raise ValueError(
                f"`grid_size` must be (rows, columns), each at least 1, got {list(self.grid_size)}."
            )


__all__ = ["PixelCNNConfig"]
