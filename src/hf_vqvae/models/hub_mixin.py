# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Load and save safetensors weights; push with the package `hf_vqvae`, which is not in a repo; train with `Trainer`."""

import inspect
import json
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file, logging

logger = logging.get_logger(__name__)

# Arguments that say where the files are.
PLACE = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def hide_labels(forward: Callable) -> Callable:
    """Leave labels out of the signature of a `forward`: for `transformers.Trainer`, rows need all labels that it names.

    The Trainer then evaluates a loss for rows without labels, too, and passes those of a column `label` on as `labels`.
    """
    signature = inspect.signature(forward)
    shown = [argument for name, argument in signature.parameters.items() if "label" not in name]
    forward.__signature__ = signature.replace(parameters=shown)
    return forward


class HubMixin:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` for the models of this package; precedes `PreTrainedModel` among the bases."""

    accepts_loss_kwargs = False  # the losses are means: `Trainer` divides them where it accumulates gradients

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model as `PreTrainedModel.from_pretrained` does, from safetensors files only.

        Raises:
            ValueError: if the weights are damaged or not finite, or a setting of the config is out of its range.
            OSError: if there is no config, or no safetensors file.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("`use_safetensors` must be True, got False: a pickle can run code.")
        if pretrained_model_name_or_path is not None:  # else the weights are in `state_dict`
            place = {key: kwargs[key] for key in PLACE if key in kwargs}
            with suppress(OSError):  # where the weights are in one file
                list_shards(cached_file(pretrained_model_name_or_path, SAFE_WEIGHTS_INDEX_NAME, **place))
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path!r} are damaged ({error}): download or save them again."
            ) from error
        check_finite(loaded[0] if kwargs.get("output_loading_info") else loaded)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save the model as `PreTrainedModel.save_pretrained` does; the files of weights get the umask's permissions."""
        super().save_pretrained(save_directory, *args, **kwargs)
        follow_umask(save_directory)

    def save_for_hub(self, folder, repo_id: str = "", **options) -> None:
        """Write model, image processor, code and card, as `hf_vqvae.publishing.staging.save_for_hub` of the package."""
        # No `import` statement: the Hub's loader demands every package that is imported outside of `try`.
        import_module("hf_vqvae.publishing.staging").save_for_hub(self, folder, repo_id, **options)

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


def follow_umask(folder: str | Path) -> None:
    """Give the weights in `folder` the permissions of other new files; safetensors lets only their owner read them."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in Path(folder).glob("*.safetensors"):
        with suppress(OSError):  # a file system without permissions, or another user's file
            path.chmod(0o666 & ~mask)


def list_shards(index: str | Path) -> list[str]:
    """List the files of an index; `ValueError` for any but safetensors beside it: torch would read it as a pickle."""
    names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"the index must name safetensors files in the same folder, got {name!r}")
    return names


def check_finite(model) -> None:
    """Raise `ValueError` if a weight is NaN or infinite; the message names it."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta and tensor.is_floating_point() and not tensor.isfinite().all():
            bad = tensor[~tensor.isfinite()]
            raise ValueError(
                f"the weight {name!r} has {len(bad)} values that are not finite, for example {bad[0].item()}: "
                "training diverged, or the file is damaged."
            )
