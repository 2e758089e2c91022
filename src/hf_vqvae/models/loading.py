# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Loading weights that come from anywhere: from safetensors only, and only what config and file agree on."""

import json
import os

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_strict import check_source

# What a file may leave out and have drawn at random: room for any prior that starts anew.
MAX_NEW_VALUES = 2**30
# What reading JSON raises where it is not what it should be.
DAMAGE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


class LoadMixin:
    """`from_pretrained` that trusts no file; comes before `PreTrainedModel` among the bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but pickles are never read.

        The shapes in the header of the weights are compared with the config's before any memory is taken for them.

        Raises:
            ValueError: if the weights are damaged, not finite, of other shapes than the config says or in no
                safetensors file, or one of its settings is out of its range.
            OSError: if there is no config, or no file of weights.
            TypeError: if the first argument is neither a name nor a path.
        """
        if pretrained_model_name_or_path is not None or kwargs.get("state_dict") is None:
            check_source(pretrained_model_name_or_path)
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError(
                "`use_safetensors` must be True, got False: a pickle can run code. Save the model with "
                "`save_pretrained`, which writes safetensors."
            )
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path!r} are damaged ({error}): download or save them again."
            ) from error
        except DAMAGE:
            if pretrained_model_name_or_path is not None:
                _blame_index(pretrained_model_name_or_path, kwargs)
            raise

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        # The one step of loading that has the model, on "meta" still, and its files.
        if checkpoint_files is not None and state_dict is None:
            check_files(checkpoint_files, load_config.pretrained_model_name_or_path)
            shapes = read_shapes(checkpoint_files)
            check_shapes(model, shapes, load_config.ignore_mismatched_sizes)
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )
        check_finite(model)
        return loaded


def _blame_index(name_or_path, options: dict) -> None:
    """Raises `ValueError` if what loading failed at is the index of parts, which transformers takes at its word."""
    options = {
        key: options[key] for key in ("cache_dir", "revision", "subfolder") if key in options
    }
    missing = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(
        name_or_path, SAFE_WEIGHTS_INDEX_NAME, local_files_only=True, **missing, **options
    )
    if index is not None:
        read_parts(index)


def check_index(folder: str) -> None:
    """Refuses an index of parts in `folder` that is damaged or names anything but safetensors files there."""
    index = os.path.join(folder, SAFE_WEIGHTS_INDEX_NAME)
    if os.path.isfile(index) and not os.path.isfile(os.path.join(folder, SAFE_WEIGHTS_NAME)):
        check_files([os.path.join(folder, part) for part in read_parts(index)], folder)


def read_parts(index: str) -> list[str]:
    """The files that an index of parts names; `ValueError` if it is damaged."""
    try:
        with open(index, encoding="utf-8") as file:
            content = json.load(file)
        parts = set(content["weight_map"].values())
        if parts and isinstance(content["metadata"], dict):
            return sorted(parts, key=os.fspath)
        cause = None
    except DAMAGE as error:
        cause = error
    raise ValueError(
        f"the index of parts {index} is damaged: download it again, or save the model again with `save_pretrained`."
    ) from cause


def check_files(files: list[str], name_or_path: str | None) -> None:
    """Refuses files of weights that are no safetensors, or that an index of parts names in another folder."""
    folder = str(name_or_path)
    for file in files:
        within = ".." not in os.path.normpath(file).split(os.sep)
        if os.path.isdir(folder):
            within = os.path.abspath(file).startswith(os.path.join(os.path.abspath(folder), ""))
        if not within or not file.endswith(".safetensors"):
            raise ValueError(
                f"the weights of {folder!r} must be safetensors files in that folder, got {file!r} from its index of "
                "parts: save the model again with `save_pretrained`."
            )


def read_shapes(files: list[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, from the headers of safetensors files."""
    shapes = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def check_shapes(model, shapes: dict[str, tuple[int, ...]], ignore_mismatched: bool) -> None:
    """Refuses a config whose weights are not those of the file, before any of them takes memory."""
    prefix = f"{model.base_model_prefix}."
    new = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        meant = tuple(
            getattr(tensor, "ds_shape", tensor.shape)
        )  # as DeepSpeed keeps what it cuts up
        # A part finds itself in the whole's file, and the whole its part in the part's.
        names = (name, prefix + name, name.removeprefix(prefix))
        stored = [shapes[one] for one in names if one in shapes]
        wrong = [shape for shape in stored if shape != meant]
        if not stored or (wrong and ignore_mismatched):
            new += tensor.numel()
        elif wrong:
            raise ValueError(
                f"the config means {list(meant)} for the weight {name!r}, but the file has {list(wrong[0])}: they are of "
                "different models. Load the weights with their own config, or draw those anew with "
                "`ignore_mismatched_sizes=True`."
            )
    if new > MAX_NEW_VALUES:
        raise ValueError(
            f"the config means {new:,} values that the file of weights does not have, more than the {MAX_NEW_VALUES:,} "
            "that may start anew: they are of different models."
        )


def check_finite(model) -> None:
    """Refuses weights that are NaN or infinite: everything made with them would be."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta and tensor.is_floating_point() and not tensor.isfinite().all():
            bad = tensor[~tensor.isfinite()]
            raise ValueError(
                f"the weight {name!r} has {len(bad)} values that are not finite, for example {bad[0].item()}: training "
                "diverged, or the file is damaged. Take an earlier checkpoint."
            )


__all__ = ["LoadMixin"]
