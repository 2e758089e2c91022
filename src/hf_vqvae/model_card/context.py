"""Read the records of a run into the context of the card's template."""

import math
import re
from collections import Counter
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult

from .. import __version__
from ..arguments import RunArguments, TrainingArguments
from ..metrics.catalogue import GROUPS, METRICS, OTHER
from ..models import PixelCNNConfig, PixelCNNModel, VQVAEConfig, VQVAEForImageGenerationConfig, VQVAEModel
from ..models.configuration_utils import own_fields
from ..models.pipeline_image_generation import TASK
from .escaping import as_code, as_plain, as_string, clean, without_path

# Names of datasets whose ids are not their names.
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
NUM_CLASSES = 10  # the most classes of which samples are shown
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def gallery(run_folder: Path, prior: PixelCNNConfig | None) -> list[dict[str, Any]]:
    """Return the pictures of `<Gallery />`, the `widget` of the metadata: a sample of each class, by its name."""
    names = prior.id2label if prior and prior.num_classes else {}
    pictures = [f"figures/gallery/{number}.png" for number in range(NUM_CLASSES)]
    return [
        {"text": clean(names.get(number, "")) or f"sample {number + 1}", "output": {"url": picture}}
        for number, picture in enumerate(pictures)
        if (run_folder / picture).is_file()
    ]


def describe_package() -> dict[str, Any]:
    """Return the version of this package, its address if pyproject.toml has one, and what loading a model needs."""
    try:
        package = metadata("hf_vqvae")
    except PackageNotFoundError:  # a checkout that is on Python's path and not installed
        return {"version": __version__, "address": None, "needs": "torch transformers pillow"}
    urls = dict(url.split(", ", 1) for url in package.get_all("Project-URL") or [])
    needs = [need for need in package.get_all("Requires-Dist") or [] if ";" not in need]
    return {
        "version": package["Version"],
        "address": urls.get("Repository"),
        "needs": " ".join(f'"{need}"' for need in needs),
    }


def describe_model(config: VQVAEConfig | VQVAEForImageGenerationConfig) -> dict[str, Any]:
    """Return the sizes of the model and its parts."""
    prior = getattr(config, "prior_config", None)
    vqvae = config if prior is None else config.vqvae_config
    rows, columns = vqvae.grid_size
    side = vqvae.downsampling_factor
    bits = rows * columns * math.log2(vqvae.num_embeddings)
    pixel_bits = 8 * rows * columns * side * side * vqvae.num_channels
    colors = {1: "grey", 3: "RGB"}
    label = None
    if prior and prior.num_classes:
        # The first class in Python: its name, or 0 if that is not one line of text.
        name = prior.id2label[0]
        label = as_string(name) if clean(name) == name else "0"
    return {
        "vqvae": vqvae,
        "prior": prior,
        "label": label,
        "labels_only": bool(prior and prior.num_classes and prior.label_dropout == 0),
        "height": rows * side,
        "width": columns * side,
        "color": colors.get(vqvae.num_channels, f"{vqvae.num_channels}-channel"),
        "rows": rows,
        "columns": columns,
        "codes": rows * columns,
        "bits": f"{bits:,.0f}",
        "pixel_bits": f"{pixel_bits:,}",
        "uniform_nats": f"{math.log(vqvae.num_embeddings):.2f}",
        "vqvae_parameters": _count_parameters(VQVAEModel, vqvae),
        "prior_parameters": prior and _count_parameters(PixelCNNModel, prior),
    }


def _count_parameters(model_class: type, config: VQVAEConfig | PixelCNNConfig) -> str:
    with torch.device("meta"):  # shapes only
        return f"{model_class(config).num_parameters():,}"


def describe_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a dataset with its clean name, empty if it is unknown, and the code that loads it."""
    name, kind = clean(without_path(str(dataset.get("name") or ""))), dataset.get("kind")
    words = [as_string(name if kind == "hub" else f"./{name}")]
    words += [as_string(dataset["config"])] if dataset.get("config") else []
    words += [f"revision={as_string(dataset['revision'])}"] if dataset.get("revision") else []
    imports, function = {
        "digits": ("import hf_vqvae.digits", "hf_vqvae.digits.load_digits"),
        "arrays": ("from hf_vqvae.data.arrays import load_arrays", "load_arrays"),
    }.get(kind, ("from datasets import load_dataset", "load_dataset"))
    code = f"{imports}\n\ndataset = {function}({'' if kind == 'digits' else ', '.join(words)})"
    is_hub = kind == "hub" and HUB_ID.fullmatch(name) is not None
    return {**dataset, "name": name, "kind": kind, "is_hub": is_hub, "code": code}


def dashboard_tags(run: dict[str, Any]) -> list[str]:
    """Return the tags for which the Hub shows the run's Space of trackio under "Training metrics", if it has one."""
    space = str(run.get("dashboard"))
    return ["trackio", f"trackio:https://huggingface.co/spaces/{space}"] if HUB_ID.fullmatch(space) else []


def eval_results(metrics: dict[str, dict], dataset: dict[str, Any]) -> list[EvalResult]:
    """Return one result per finite metric, for the model-index of the metadata."""
    # A type with a space in it is no name that a dataset on the Hub could have.
    local_types = {"digits": "scikit-learn digits"}
    kind = dataset["name"] if dataset["is_hub"] else local_types.get(dataset["kind"], "local folder")
    protocol = ("count", "scale", "protocol")
    name, config = dataset["name"].split("/")[-1], dataset.get("config")
    return [
        EvalResult(
            task_type=TASK,
            task_name="Unconditional image generation",
            dataset_type=kind,
            dataset_name=DATASETS.get(name.lower(), name) or "evaluation data",
            dataset_config=None if config is None else clean(config),
            dataset_split=clean(metric["split"]),
            dataset_revision=dataset.get("revision") if dataset["is_hub"] else None,
            metric_type=METRICS.get(key, OTHER).hub_type or key,
            metric_name=metric["name"],
            metric_value=metric["value"],
            metric_args={name: metric[name] for name in protocol if metric.get(name) is not None},
        )
        for key, metric in metrics.items()
        if math.isfinite(metric["value"])
    ]


def results_table(metrics: dict[str, dict]) -> dict[str, Any]:
    """Return what the section of results says, escaped.

    Returns:
        `rows`, of which the first of each group also has its name, `group`; `notes`, to which the rows refer by number
        and which say every part of a protocol once; and `usual`, the images that most metrics are measured on.
    """
    facts = {key: METRICS.get(key, OTHER) for key in metrics}
    order = sorted(metrics, key=lambda key: GROUPS.index(facts[key].group))
    measured = {key: (metrics[key]["count"], metrics[key]["split"]) for key in order}
    (count, split), _ = Counter(measured.values()).most_common(1)[0]
    # Parts of protocols by the metrics that share them: these parts make one note.
    sharing: dict[str, list[str]] = {}
    for key in order:
        parts = as_plain(metrics[key].get("protocol") or "").split("; ")
        if measured[key] != (count, split):
            parts.append(_images(*measured[key], measured[key][1] != split))
        for part in dict.fromkeys(part for part in parts if part):
            sharing.setdefault(part, []).append(key)
    notes: dict[tuple[str, ...], list[str]] = {}
    for part, keys in sharing.items():
        notes.setdefault(tuple(keys), []).append(part)
    rows, before = [], None
    for key in order:
        metric, group = metrics[key], facts[key].group
        value = metric["value"]
        number = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        numbers = [str(number) for number, keys in enumerate(notes, start=1) if key in keys]
        rows.append(
            {
                "key": key,
                "group": group if group != before else None,
                "name": f"{as_plain(metric['name'])} {facts[key].better}".strip(),
                "value": number if math.isfinite(value) else "not finite",
                "scale": as_plain(metric["scale"]),
                "notes": ", ".join(numbers),
            }
        )
        before = group
    texts = ["; ".join(parts) for parts in notes.values()]
    return {"rows": rows, "notes": texts, "usual": _images(count, split, True)}


def _images(count: int, split: str, is_other_split: bool) -> str:
    return f"{count:,} images" + (f" of the split {as_code(split)}" if is_other_split else "")


def setting_tables(config, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tables of settings with their meaning: each model's config, and the training flags."""
    prior = getattr(config, "prior_config", None)
    parts = {"VQ-VAE": config} if prior is None else {"VQ-VAE": config.vqvae_config, "Prior": prior}
    tables = {
        title: [(one, getattr(part, one.name)) for one in own_fields(type(part))] for title, part in parts.items()
    }
    left_out = RunArguments.names("run")
    if prior is None:
        left_out |= {"train_prior", "class_conditional", "num_eval_samples", "prior_keep_best"}
        left_out |= RunArguments.names("prior")
    if arguments.get("vqvae_name_or_path") and not arguments.get("train_vqvae"):
        left_out |= RunArguments.names("vqvae")
    # Of a prior of the other architecture.
    unused = {"num_gated_layers", "gated_kernel_size"}
    if prior is not None and prior.architecture == "gated":
        unused = {"num_residual_blocks", "num_pixelcnn_layers"}
    if prior is not None and prior.num_classes is None:
        unused |= {"label_dropout"}
    unused |= {"class_frequencies"}  # one for each class, in config.json
    flags = [field for field in fields(TrainingArguments) if field.name not in left_out]
    tables["Training"] = [(field, arguments.get(field.name)) for field in flags]
    return [
        {
            "title": title,
            "rows": [
                (field.name, value, field.metadata["help"].replace("*", "\\*"))
                for field, value in settings
                if value is not None and value != "" and field.name not in unused
            ],
        }
        for title, settings in tables.items()
    ]
