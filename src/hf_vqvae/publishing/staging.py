"""Prepare the folder that is uploaded: weights, configs, image processor, model code and card."""

import json
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .. import models
from ..arguments import HubArguments
from ..files import write_json
from ..hub.card_signature import CARD_DAMAGE, is_as_signed, sign_card, unsigned
from ..hub.commit import RUN_FILES, WEIGHTS, commit_folder, full_name
from ..hub.download import hash_saved_weights, hash_weights, image_processor_for
from ..hub.errors import httpx
from ..hub.requests import TIMEOUT, is_ambiguous, request_timeout, retry
from ..model_card.context import describe_package
from ..model_card.escaping import as_string, without_path
from ..model_card.records import read_record, training_alone
from ..models.image_processing_vqvae import VQVAEImageProcessorPil
from ..models.pipeline_image_generation import TASK, ImageGenerationPipeline

logger = logging.get_logger(__name__)

NO_RESULTS = "No record of a training run came with it, so this card has no results."
# Lines of code in a card and in a notebook that name the model to load.
_MODEL_ID = re.compile(r'^(model_id = )".*"$', re.MULTILINE)
_NOTEBOOK_ID = re.compile(r'^(\s*)"model_id = .*",$', re.MULTILINE)


def save_for_hub(
    model,
    folder,
    repo_id: str = "",
    *,
    max_shard_size: int | str = "50GB",
    tags: list[str] | str | None = None,
    token: bool | str | None = None,
) -> None:
    """Write everything that a repo needs into `folder`: the files of `save_pretrained`, the image processor, the
    model code with its `auto_map`, and the card.

    Card, figures and metrics of a run are copied if the model was loaded from the run's folder or repo and still has
    its weights. Any other model gets a card without results.

    Args:
        folder: an empty or new folder.
        repo_id: the name that a generated card tells readers to load; by default that of the folder.
        max_shard_size, tags, token: as of `PreTrainedModel.push_to_hub`.

    Raises:
        ValueError: if `repo_id` is not a valid repo name, or a file of the run is damaged.
    """
    if not isinstance(repo_id, str) or repo_id:
        validate_repo_id(repo_id)  # the card's code contains it
    folder = Path(folder)
    repo_id = repo_id or folder.resolve().name
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    weights = hash_weights(model.state_dict())
    source = _find_source(model.config.name_or_path, token)
    if model.main_input_name == "pixel_values":  # not a prior, which is given codes
        image_processor_for(model.config, source).save_pretrained(folder)
    add_code(folder, type(model))
    if source is not None and _is_described_by_card_in(source, weights):
        copy_run_files(source, folder)
    else:
        card = _build_card(model, _license_of(source))
        (folder / "README.md").write_text(sign_card(card), "utf-8")
    tags = [tags] if isinstance(tags, str) else tags or []
    update_card(folder, repo_id, tags=[*(model.model_tags or []), *tags])


def push_model(
    model,
    repo_id: str,
    *,
    commit_message: str | None = None,
    token: bool | str | None = None,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
    **options,
) -> str:
    """Upload the model to the Hub in one commit, with its image processor, its code and its card.

    Arguments and return value are those of `PreTrainedModel.push_to_hub`, with `commit_description`, `private`,
    `revision` and `create_pr` among the `options`; `save_for_hub` writes the files. A README.md of the repo that was
    written or edited by hand is kept with a warning.

    Raises:
        ValueError: if `repo_id` is not a valid repo name, or `private` is asked of a repo that is public.
    """
    validate_repo_id(repo_id)
    with request_timeout(TIMEOUT), tempfile.TemporaryDirectory() as folder:
        repo_id = full_name(HfApi(token=token), repo_id)
        save_for_hub(model, folder, repo_id, max_shard_size=max_shard_size, tags=tags, token=token)
        message = commit_message or "Upload model"
        return commit_folder(folder, repo_id, commit_message=message, token=token, edited_card="keep", **options)


def add_code(folder: Path, model_class: type) -> None:
    """Copy the model code into `folder` and write `auto_map` into its JSON files, for `trust_remote_code=True`."""
    if model_class.__module__.startswith("transformers_modules."):
        # Loaded with the code of a repo: upload this package's code instead.
        model_class = getattr(models, model_class.__name__, model_class)
    classes = {"AutoConfig": model_class.config_class, "AutoModel": model_class}
    for cls in (*classes.values(), VQVAEImageProcessorPil, ImageGenerationPipeline):
        if cls.__module__ == "__main__":
            raise ValueError(f"{cls.__name__} is defined in __main__; move it into a file that can be published.")
        file = sys.modules[cls.__module__].__file__
        for needed in (file, *get_relative_import_files(file)):
            shutil.copyfile(needed, folder / Path(needed).name)

    settings = {"auto_map": {name: _reference(cls) for name, cls in classes.items()}}
    if model_class.main_input_name == "pixel_values" and hasattr(model_class, "sample"):
        pipeline = {"impl": _reference(ImageGenerationPipeline), "pt": ["AutoModel"], "type": "image"}
        settings["custom_pipelines"] = {TASK: pipeline}
    _update_json(folder / "config.json", settings)
    if (folder / "preprocessor_config.json").exists():
        auto_map = {"AutoImageProcessor": _reference(VQVAEImageProcessorPil)}
        _update_json(folder / "preprocessor_config.json", {"auto_map": auto_map})


def copy_files(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of `source` that match one of `patterns` to the same places in `folder`.

    Raises `ValueError` if a file is a link that leads out of `source`.
    """
    roots = [source.resolve()]
    if source.parent.name == "snapshots":  # in the Hub's cache, whose files are links
        roots.append(source.resolve().parents[1] / "blobs")
    for pattern in patterns:
        for path in sorted(path for path in source.glob(pattern) if path.is_file()):
            if not any(path.resolve().is_relative_to(root) for root in roots):
                raise ValueError(
                    f"{path.relative_to(source)} is a link out of the folder. Put the files themselves in {source}."
                )
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def copy_run_files(source: Path, folder: Path) -> None:
    """Copy the files of a run beside its model; arguments.json repeats the training alone, without paths to folders."""
    copy_files(source, folder, RUN_FILES)
    if (folder / "arguments.json").exists():
        dataset = read_record(folder, "run.json").get("dataset") or {}
        values = training_alone(read_record(folder, "arguments.json"), dataset)
        write_json(folder / "arguments.json", without_paths(values))


def without_paths(value):
    """Return a value of JSON, with the last part alone of every path on this machine."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return without_path(value) if isinstance(value, str) else value


def _reference(cls: type) -> str:
    return f"{cls.__module__.split('.')[-1]}.{cls.__name__}"


def _update_json(path: Path, settings: dict) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**content, **settings}, indent=2, sort_keys=True) + "\n", "utf-8")


def _find_source(name: str, token) -> Path | None:
    """Return the folder that a model was loaded from; the files of the newest commit of a repo are downloaded."""
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    patterns = ["config.json", "preprocessor_config.json", *WEIGHTS, *RUN_FILES]
    try:
        return Path(retry(snapshot_download, name, allow_patterns=patterns, token=token))
    except Exception as error:
        reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if is_ambiguous(reason) and not isinstance(reason, httpx.ConnectError):
            raise  # otherwise a card without results would overwrite one with results
        logger.warning(f"The card of {name}, which this model comes from, could not be read: {error}")
        return None


def _is_described_by_card_in(source: Path, weights: str) -> bool:
    """Return whether `source` has the card of a run with weights of this hash."""
    card = source / "README.md"
    text = card.read_text("utf-8", "replace") if card.exists() else ""
    if not text or (NO_RESULTS in text and is_as_signed(text)):
        return False
    recorded = read_record(source, "run.json").get("weights_sha256")
    if weights == (recorded or hash_saved_weights(source)):
        return True
    logger.warning(f"The model is not the one in {source}: its card will have no results.")
    return False


def update_card(folder: Path, repo_id: str, *, license: str | None = None, tags: list[str] | None = None) -> None:
    """Set the license and add tags in README.md; a generated card also gets the repo id, and is signed again.

    The notebook of a run gets the repo id, too.

    A card that was written or edited by hand stays unsigned, so that no later push overwrites it.

    Raises:
        ValueError: if README.md is damaged.
    """
    path, notebook = folder / "README.md", folder / "notebook.ipynb"
    if notebook.exists():
        line = json.dumps(f"model_id = {as_string(repo_id)}\n") + ","
        named = _NOTEBOOK_ID.sub(lambda match: match[1] + line, notebook.read_text("utf-8"))
        notebook.write_text(named, "utf-8", newline="\n")
    try:
        text = path.read_text("utf-8")
        generated = is_as_signed(text)
        if generated:
            text = _MODEL_ID.sub(lambda match: match[1] + as_string(repo_id), text)
        card = ModelCard(unsigned(text))
    except CARD_DAMAGE as error:
        raise ValueError(
            f"README.md is damaged ({' '.join(str(error).split())}): repair it, or delete it for a new one."
        ) from error
    if not (generated or license or tags):
        return
    if license:
        card.data.license = license
    if generated and card.data.model_name:
        card.data.model_name = repo_id.split("/")[-1]
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or [])])) or None
    path.write_text(sign_card(str(card)) if generated else str(card), "utf-8")


def _license_of(source: Path | None) -> str:
    """Return the license on the card in `source`, or else that of a run by default."""
    license = None
    if source is not None and (source / "README.md").exists():
        with suppress(*CARD_DAMAGE):
            license = ModelCard.load(source / "README.md").data.license
    return license or HubArguments.hub_license


def _build_card(model, license: str) -> str:
    """Return a card without results. Jinja2 is not a dependency of the models, so there is no template."""
    tags = ["vq-vae", "pixelcnn", "hf_vqvae"]
    data = ModelCardData(license=license, library_name="transformers", pipeline_tag=TASK, tags=tags)
    name = type(model).__name__
    titles = {"VQVAEModel": "VQ-VAE", "PixelCNNModel": "PixelCNN prior of a VQ-VAE"}
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {titles.get(name, 'VQ-VAE with a PixelCNN prior')}\n\n"
        f"A `{name}` of {model.num_parameters():,} parameters: part of a VQ-VAE (van den Oord et al. 2017, "
        "[Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937)) with a PixelCNN prior. "
        "Its settings are in [config.json](config.json).\n\n"
        f"{NO_RESULTS}\n\n```bash\npip install {describe_package()['needs']}\n```\n\n"
        '```python\nfrom transformers import AutoModel\n\nmodel_id = ""\n'
        "model = AutoModel.from_pretrained(model_id, trust_remote_code=True)\n```\n"
    )
