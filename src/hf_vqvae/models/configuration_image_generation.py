# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Configuration of the VQ-VAE together with its prior."""

from .configuration_pixelcnn import PixelCNNConfig
from .configuration_utils import StrictConfig, setting, strict
from .configuration_vqvae import VQVAEConfig


@strict
class VQVAEForImageGenerationConfig(StrictConfig):
    r"""
    Configuration of a [`VQVAEForImageGeneration`].

    `from_pretrained` also reads the config of a VQ-VAE without a prior (stage 1): the prior's config is then the default
    for that codebook and grid.

    Raises:
        ValueError: if the prior's codes or grid are not those of the VQ-VAE.
    """

    model_type = "vqvae_image_generation"
    sub_configs_defaults = {"vqvae_config": VQVAEConfig, "prior_config": PixelCNNConfig}

    vqvae_config: dict | VQVAEConfig | None = setting(None, "Settings of the autoencoder.")
    prior_config: dict | PixelCNNConfig | None = setting(
        None, "Settings of the prior; codes and grid default to those of the autoencoder."
    )

    def __post_init__(self, **kwargs):
        if not isinstance(self.vqvae_config, VQVAEConfig):
            self.vqvae_config = VQVAEConfig(**(self.vqvae_config or {}))
        if not isinstance(self.prior_config, PixelCNNConfig):
            shared = {"num_embeddings": self.vqvae_config.num_embeddings, "grid_size": self.vqvae_config.grid_size}
            self.prior_config = PixelCNNConfig(**{**shared, **(self.prior_config or {})})
        super().__post_init__(**kwargs)

    @property
    def image_size(self):
        """Image size of the autoencoder."""
        return self.vqvae_config.image_size

    @property
    def num_channels(self) -> int:
        """Image channels of the autoencoder."""
        return self.vqvae_config.num_channels

    def validate_prior_fits(self):
        """Check that the prior's codes and grid are those of the VQ-VAE."""
        for name in ("num_embeddings", "grid_size"):
            ours, theirs = getattr(self.vqvae_config, name), getattr(self.prior_config, name)
            if ours != theirs:
                raise ValueError(
                    f"`prior_config.{name}` ({theirs}) must equal the VQ-VAE's ({ours}): "
                    "the prior draws the VQ-VAE's codes."
                )

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read a config as `PreTrainedConfig.get_config_dict` does; that of a VQ-VAE becomes the `vqvae_config`."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == VQVAEConfig.model_type:
            dtype = config_dict.get("dtype")
            config_dict = {"vqvae_config": config_dict, "model_type": cls.model_type, "dtype": dtype}
        return config_dict, kwargs
