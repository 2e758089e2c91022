# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Push models with the installed package `hf_vqvae`, which the Hub's copy of this code does not contain."""

from transformers.utils import logging

from .loading import LoadMixin

logger = logging.get_logger(__name__)


class PublishMixin(LoadMixin):
    """`push_to_hub` for the models of this package; comes before `PreTrainedModel` among the bases."""

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


__all__ = ["PublishMixin"]
