# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Load safetensors weights only; push with the installed package `hf_vqvae`.

The package is not among the files of a repo. Where it is not installed, `push_to_hub` is that of transformers.
"""

from safetensors import SafetensorError
from transformers.utils import logging

logger = logging.get_logger(__name__)


class HubMixin:
    """`from_pretrained` and `push_to_hub` for the models of this package; precedes `PreTrainedModel` among the bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model as `PreTrainedModel.from_pretrained` does, from safetensors files only.

        Raises:
            ValueError: if the weights are damaged or not finite, or a setting of the config is out of its range.
            OSError: if there is no config, or no safetensors file.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("`use_safetensors` must be True, got False: a pickle can run code.")
        try:
            loaded = super().from_pretrained(
                pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path!r} are damaged ({error}): download or save them again."
            ) from error
        # With `output_loading_info=True` a pair.
        check_finite(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_for_hub(self, folder, repo_id: str = "", **options) -> None:
        """Write the model, its image processor, its code and its card into `folder`.

        Arguments and errors are those of `hf_vqvae.publishing.staging.save_for_hub`.

        Raises:
            ImportError: if the package `hf_vqvae` is not installed.
        """
        # Inside `try`, since the Hub's loader demands every package that is imported outside of one.
        try:
            from hf_vqvae.publishing.staging import save_for_hub
        except ModuleNotFoundError as error:
            raise ImportError(
                f"`save_for_hub` needs the package hf_vqvae ({error}): install it, or use `save_pretrained`."
            ) from error
        save_for_hub(self, folder, repo_id, **options)

    def push_to_hub(self, repo_id: str, **options):
        """Upload the model in one commit, with its image processor, its code and its card.

        Arguments, return value and errors are those of `hf_vqvae.publishing.staging.push_model`. Without the package
        `hf_vqvae`, this is `PreTrainedModel.push_to_hub`, which uploads the model alone.
        """
        try:
            from hf_vqvae.publishing.staging import push_model
        except ModuleNotFoundError as error:
            logger.warning(f"Uploading without image processor, code and card: {error}.")
            return super().push_to_hub(repo_id, **options)
        return push_model(self, repo_id, **options)


def check_finite(model) -> None:
    """Raise `ValueError` if a weight is NaN or infinite; the message names it."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta and tensor.is_floating_point() and not tensor.isfinite().all():
            bad = tensor[~tensor.isfinite()]
            raise ValueError(
                f"the weight {name!r} has {len(bad)} values that are not finite, for example {bad[0].item()}: "
                "training diverged, or the file is damaged."
            )
