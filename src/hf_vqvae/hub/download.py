"""Download a model from the Hub; load it, if its weights are complete, and its image processor; hash weights."""

import hashlib
import json
import os
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..models import (
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from ..models.configuration_vqvae import as_pair
from ..models.hub_mixin import list_shards
from .commit import WEIGHTS
from .errors import FAILURES, explain
from .requests import TIMEOUT, request_timeout, retry

Model = VQVAEModel | VQVAEForImageGeneration
FILES = ("config.json", "preprocessor_config.json", *WEIGHTS)
WAY_OUT = "Name a folder with config.json and model.safetensors, as training writes it, or owner/name on the Hub."


def fetch_model(
    name_or_path: str,
    revision: str | None = None,
    *,
    files: tuple[str, ...] = FILES,
    way_out: str = WAY_OUT,
    timeout: float = TIMEOUT,
) -> str:
    """Return the folder of a model: a local one, or the snapshot of a repo in the cache.

    Unlike `from_pretrained`, this retries after a lost connection, and its message names the true cause. If the Hub
    cannot be reached, a snapshot in the cache is used.

    Args:
        files: patterns of the files to download.
        way_out: the end of the message of an error.
        timeout: seconds to wait for an answer of the Hub.

    Raises:
        ValueError: if there is neither such a folder nor such a repo, or the download fails.
    """
    # Unlike `Path.expanduser`, this leaves the `~` of an unknown user.
    if os.path.isdir(folder := os.path.expanduser(name_or_path)):
        return str(folder)
    name = str(name_or_path)
    failed = f"cannot get the model {name!r}: there is no folder {name}, and"
    try:
        validate_repo_id(name)
        is_name = bool(name) and not Path(name).is_file()
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(f"{failed} it is no name of a repo. {way_out}")
    try:
        with request_timeout(timeout):
            return retry(snapshot_download, name, revision=revision, allow_patterns=list(files))
    except FAILURES as error:
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        begun = cached.is_dir() and not isinstance(error, RevisionNotFoundError)
        kept = "What was downloaded is kept: the same command goes on. " if begun else ""
        raise ValueError(
            f"{failed} getting it from the Hub failed: {explain(error, 'download')} {kept}{way_out}"
        ) from error


def load_model(name_or_path: str, revision: str | None = None) -> Model:
    """Load a VQ-VAE, with or without a prior, from a folder or from the Hub, in eval mode.

    Raises:
        ValueError: if there is no such model, it is of another kind, or its weights are not those of its config.
    """
    folder = fetch_model(name_or_path, revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if not isinstance(config, VQVAEConfig | VQVAEForImageGenerationConfig):
            raise ValueError(
                f"its `model_type` is {config.model_type!r}, and only 'vqvae' and "
                "'vqvae_image_generation' can be evaluated here"
            )
        return load_complete(AutoModel, folder, config=config)
    except (*FAILURES, SafetensorError) as error:
        raise ValueError(
            f"cannot load the model {name_or_path!r}: {str(error).rstrip('.')}. Name a folder that "
            "training wrote (with config.json and model.safetensors) or owner/name on the Hub."
        ) from error


def load_complete(auto_class: type, folder: str, **options) -> PreTrainedModel:
    """Load a model by `auto_class.from_pretrained`, from safetensors files, and run no code of its folder.

    Raises:
        ValueError: if a weight is missing, which transformers would initialize at random.
    """
    weight_files(folder)
    # With `trust_remote_code=None` transformers asks on the terminal whether to run code that comes along.
    options |= {"output_loading_info": True, "use_safetensors": True, "trust_remote_code": False}
    model, loading = auto_class.from_pretrained(folder, **options)
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(f"the weights lack {len(missing)} tensors, for example {missing[0]!r}")
    return model


def load_model_with_prior(name_or_path: str, revision: str | None = None) -> VQVAEForImageGeneration:
    """Load a model that can sample, as [`load_model`]; a ValueError for a VQ-VAE without a prior."""
    model = load_model(name_or_path, revision)
    if not isinstance(model, VQVAEForImageGeneration):
        raise ValueError(
            f"{name_or_path} is a VQ-VAE without a prior, which cannot sample images: train one with "
            f"scripts/train.py --vqvae_name_or_path {name_or_path}."
        )
    return model


def image_processor_for(config, folder=None, **settings) -> VQVAEImageProcessorPil:
    """Load the image processor beside a model, or make one, for images of the size and channels in `config`.

    `folder` is where the model was saved, by default what `config` was loaded from. `settings` are changed.
    """
    height, width = as_pair(config.image_size)
    settings |= {"size": {"height": height, "width": width}, "num_channels": config.num_channels}
    folder = folder or config.name_or_path
    if folder and Path(folder, "preprocessor_config.json").exists():
        return VQVAEImageProcessorPil.from_pretrained(folder, **settings)
    return VQVAEImageProcessorPil(**settings)


def weight_files(folder: str) -> list[Path]:
    """List the files of weights of a model: model.safetensors, or the shards that the index names.

    Raises:
        OSError: if there is neither, or it may not be read.
        ValueError: if the index names anything but safetensors files in `folder`.
    """
    whole, index = (Path(folder) / name for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if whole.is_file():
        with whole.open("rb"):  # safetensors says of a file that it may not read that there is none
            return [whole]
    if not index.is_file():
        raise OSError(f"there is no file {SAFE_WEIGHTS_NAME} in {folder}")
    try:
        return [index.with_name(name) for name in list_shards(index)]
    except (AttributeError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"the index {index.name} is damaged: download it again") from error


def hash_weights(weights: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, whatever files or devices the tensors are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_saved_weights(folder: Path) -> str:
    """Return [`hash_weights`] of the safetensors files of the model in `folder`."""
    return hash_weights({name: one for file in weight_files(folder) for name, one in load_file(file).items()})
