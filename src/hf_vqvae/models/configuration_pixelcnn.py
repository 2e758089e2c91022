# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Configuration of the PixelCNN prior."""

from typing import Literal

from .configuration_utils import CLASSES, CODES, KERNEL, LAYERS, SHARE, SIZE, StrictConfig, setting, shown, strict

# Defaults of settings that are None.
_BY_ARCHITECTURE = {"plain": {"hidden_size": 128, "dropout": 0.0}, "gated": {"hidden_size": 64, "dropout": 0.2}}


@strict
class PixelCNNConfig(StrictConfig):
    r"""
    Configuration of a [`PixelCNNModel`], an autoregressive prior over a grid of codes. `PixelCNNConfig()` is the
    network of the Keras example "Vector-Quantized Variational Autoencoders" (Sayak Paul): 1,049,728 parameters.

    A plain prior is one stack of masked convolutions (van den Oord et al. 2016, "Pixel Recurrent Neural Networks"), which
    does not see some of the codes above to the right. A gated prior has a vertical and a horizontal stack, which miss
    none (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders"). Hidden labels train the null
    label, which guidance needs (Ho and Salimans 2022, arXiv 2207.12598, algorithm 1). The names of the classes are
    `id2label`, by default their numbers.

    Raises:
        ValueError: if a setting is unknown or out of its range; the message names it and the rule.
    """

    model_type = "pixelcnn"
    base_config_key = "prior_config"

    num_embeddings: int = setting(128, "Number K of codes.", **CODES)
    grid_size: list[int] | tuple[int, ...] = setting((7, 7), "Rows and columns of codes.", **SIZE)
    architecture: Literal["plain", "gated"] = setting(
        "plain", "`plain`: one stack of masked convolutions; `gated`: two without a blind spot."
    )
    hidden_size: int | None = setting(
        None,
        "Channels of the prior's hidden layers, even if plain (default: 128 plain, 64 gated).",
        **SIZE | {"at_least": 2},
    )
    kernel_size: int = setting(7, "Side of the prior's first kernel (mask A); odd.", **KERNEL)
    num_residual_blocks: int = setting(2, "Residual blocks of a plain prior.", **LAYERS)
    num_pixelcnn_layers: int = setting(2, "1x1 layers of a plain prior at its end.", **LAYERS)
    num_gated_layers: int = setting(5, "Layers of a gated prior.", at_least=1, at_most=LAYERS["at_most"])
    gated_kernel_size: int = setting(3, "Side of the kernels of a gated prior's layers; odd.", **KERNEL)
    dropout: float | int | None = setting(
        None, "Dropout probability of the prior (default: 0 plain, 0.2 gated).", **SHARE
    )
    num_classes: int | None = setting(None, "Classes that the prior is conditioned on.", **CLASSES)
    label_dropout: float | int = setting(
        0.1, "Share of labels hidden in training, for guidance.", at_least=0, at_most=1
    )
    class_frequencies: list[float | int] | tuple[float | int, ...] | None = setting(
        None, "Share of each class in the training set, for draws without a label (default: all equal)."
    )

    def __post_init__(self, **kwargs):
        self.grid_size = tuple(self.grid_size)
        for name, value in _BY_ARCHITECTURE.get(self.architecture, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.validate_bounds()  # before there are as many names as classes
        if self.num_classes is not None and self.id2label is None:
            self.id2label = {number: str(number) for number in range(self.num_classes)}
        if self.id2label is not None:
            self.label2id = {name: int(number) for number, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """`num_embeddings`, under the name that transformers gives it."""
        return self.num_embeddings

    def validate_sizes(self):
        """Check the parity of kernels and channels, and that the grid has two sides."""
        if self.architecture == "plain" and self.hidden_size % 2:
            raise ValueError(f"`hidden_size` must be even (residual blocks halve it), got {self.hidden_size}.")
        for name in ("kernel_size", "gated_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"`{name}` must be odd (a kernel has a centre), got {getattr(self, name)}.")
        if len(self.grid_size) != 2:
            raise ValueError(f"`grid_size` must be (rows, columns), got {shown(self.grid_size)}.")

    def validate_class_frequencies(self):
        """Check that there is one frequency for each class, and that they are not negative and sum to 1."""
        values, number = self.class_frequencies, self.num_classes or 0
        # NaN fits no comparison.
        fits = values is None or (len(values) == number > 0 <= min(values) and abs(sum(values) - 1) <= 1e-6)
        if not fits:
            raise ValueError(
                f"`class_frequencies` must have a number of at least 0 for each of the {number} classes, and sum to 1, "
                f"got {len(values)} with the sum {shown(sum(values))}: {shown(values)}."
            )

    def validate_label_names(self):
        """Check that every class has one name, and that all names differ."""
        if self.num_classes is None:
            return
        numbers = sorted(self.id2label)
        if numbers != list(range(self.num_classes)):
            raise ValueError(
                f"`id2label` must name the classes 0 to {self.num_classes - 1} (`num_classes` is {self.num_classes}), "
                f"got names for {shown(numbers)}."
            )
        if len(self.label2id) != self.num_classes:
            names = list(self.id2label.values())
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"`id2label` must give each class its own name, got {twice!r} twice.")
