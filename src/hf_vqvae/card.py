"""The model card of a run and its figures, made from nothing but the files in the run's folder.

Names that a run brings along (datasets, labels, columns, versions) may hold anything. They are
escaped, so that none can break a table or bring HTML, and of paths only the last part is shown.
"""

import ast
import json
import logging
import math
import os
import re
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .arguments import TrainingArguments
from .models import (
    PixelCNNConfig,
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from .models.configuration_strict import own_fields
from .models.hub_commit import is_as_signed, sign_card
from .models.publishing import TASK

if TYPE_CHECKING:
    from .decoding import DecodedImages

logger = logging.getLogger(__name__)

NUM_IMAGES, NUM_SAMPLES = 10, 64
METRIC_TYPES = {"reconstruction_mse": "mse", "code_accuracy": "accuracy"}  # names that the Hub has
BETTER = {"reconstruction_mse": "↓", "psnr": "↑", "ssim": "↑", "nll": "↓", "code_accuracy": "↑"}
BETTER |= {"bits_per_code": "↓", "bits_per_image": "↓"}
# Flags that say where and how a run worked, not what it learned.
HOUSEKEEPING = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "eval_batch_size"}
HOUSEKEEPING |= {"checkpointing_steps", "checkpoints_total_limit", "logging_steps", "log_with"}
PATH = re.compile(r"(/|~|\.{1,2}[\\/]|\\|[A-Za-z]:[\\/]|file:)")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def template_path() -> Path:
    """The card's template, in the installed package or in a checkout."""
    packaged = Path(str(files("hf_vqvae"))) / "model_card" / "template.md"
    if packaged.is_file():
        return packaged
    return Path(__file__).parents[2] / "model_card" / "template.md"


@torch.inference_mode()
def write_figures(
    run_folder: str | Path,
    model: VQVAEModel | VQVAEForImageGeneration,
    images: "DecodedImages",
    generator: torch.Generator | None = None,
) -> list[Path]:
    """Draws all figures of the card into `run_folder/figures`.

    Curves and codebook usage come from `history.json` and `run.json`, where these are there.

    Args:
        model: a VQ-VAE, with samples drawn too if it has a prior; left in the mode it was in.
        images: the evaluation split; shown are the first image of each label, or the first ten.
        generator: source of the samples, on the model's device.

    Returns:
        The files written.

    Raises:
        ValueError: if there are no images.
    """
    from . import plotting  # not at the top: a card can be built without matplotlib

    if not len(images):
        raise ValueError("`images` must hold at least 1 image to draw, got 0.")
    run_folder = Path(run_folder)
    folder = run_folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    vqvae, prior = model.base_model, getattr(model, "prior", None)
    chosen = choose_images(images.labels, len(images))
    was_training = model.training
    model.eval()
    try:
        pixel_values = images.__getitems__(chosen)["pixel_values"].to(model.device)
        codes = vqvae.encode(pixel_values).codes
        inputs, outputs = _to_8_bits(pixel_values), _to_8_bits(vqvae.decode(codes))
        samples = None if prior is None else model.sample(NUM_SAMPLES, generator=generator)
    finally:
        model.train(was_training)
    codes = codes.cpu().numpy()
    plotting.plot_architecture(
        vqvae.config, folder / "architecture.png", None if prior is None else prior.config
    )
    plotting.plot_reconstructions(inputs, outputs, folder / "reconstructions.png")
    plotting.plot_codes(inputs, codes, outputs, vqvae.config.num_embeddings, folder / "codes.png")
    if samples is not None:
        plotting.plot_samples(_to_8_bits(samples), folder / "samples.png")
    history = _read(run_folder, "history.json")
    if any(history.values()):
        plotting.plot_training_curves(history, folder / "training_curves.png")
    counts = _read(run_folder, "run.json").get("codebook_counts")
    if counts:
        plotting.plot_codebook_usage(counts, folder / "codebook_usage.png")
    return sorted(folder.glob("*.png"))


def choose_images(labels: torch.Tensor | None, number: int) -> list[int]:
    """Indices of the images to show: the first of each label, filled up to ten with the first ones.

    Args:
        labels: int64 (number,), -1 where unknown, or None.
        number: how many images there are.
    """
    first: dict[int, int] = {}
    for index, label in enumerate([] if labels is None else labels.tolist()):
        if label >= 0:
            first.setdefault(label, index)
    chosen = [first[label] for label in sorted(first)][:NUM_IMAGES]
    others = [index for index in range(min(number, 2 * NUM_IMAGES)) if index not in chosen]
    return chosen + others[: NUM_IMAGES - len(chosen)]


def build_card(
    run_folder: str | Path, repo_id: str | None = None, license: str | None = None
) -> ModelCard:
    """The card of a run, not signed and not written anywhere.

    Args:
        run_folder: with config.json and, as far as there are any, metrics.json, history.json,
            arguments.json, run.json and figures; what is missing leaves its section out.
        repo_id: the name that the card's code loads; by default that of the folder. With it, or
            where config.json has an `auto_map`, the card also tells how to load without hf_vqvae.
        license: identifier of the Hub; by default that of arguments.json, or else "apache-2.0".

    Raises:
        FileNotFoundError: without config.json.
        ValueError: if config.json is of another kind of model.
        ImportError: without Jinja2 (extra `train`).
    """
    run_folder = Path(run_folder).resolve()
    config, settings = _read_config(run_folder)
    metrics, run = _read(run_folder, "metrics.json"), _read(run_folder, "run.json")
    arguments = _read(run_folder, "arguments.json")
    name = repo_id or _clean(run_folder.name.removesuffix(".partial"))
    dataset = _describe_dataset(run.get("dataset") or {})
    has_prior = isinstance(config, VQVAEForImageGenerationConfig)
    data = ModelCardData(
        license=license or arguments.get("hub_license") or "apache-2.0",
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["vq-vae", *(["pixelcnn"] if has_prior else []), "hf_vqvae"],
        datasets=[dataset["name"]] if dataset["is_hub"] else None,
        metrics=[METRIC_TYPES.get(key, key) for key in metrics] or None,
        model_name=name.split("/")[-1],
        eval_results=_eval_results(metrics, dataset) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template_path()),
        model=_describe_model(config),
        dataset=dataset,
        results=_result_rows(metrics),
        metrics=metrics,
        stages=_setting_tables(config, arguments),
        has_arguments=bool(arguments),
        figures={path.stem for path in (run_folder / "figures").glob("*.png")},
        model_id=_string(name),
        has_code=repo_id is not None or "auto_map" in settings,
        run=_describe_run(run),
    )
    # Sections that are left out leave empty lines behind.
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def write_card(
    run_folder: str | Path, repo_id: str | None = None, license: str | None = None
) -> Path:
    """Writes the card of a run as its README.md, unless that was written or edited by hand.

    Arguments and errors are those of `build_card`.

    Returns:
        The file written: README.md, or README.generated.md (and a warning) to spare a README.md
        that is not as a run left it.
    """
    path = Path(run_folder) / "README.md"
    text = sign_card(str(build_card(run_folder, repo_id, license)))
    if path.exists() and not is_as_signed(path.read_text("utf-8")):
        path = path.with_name("README.generated.md")
        logger.warning(
            f"{path.parent.name}/README.md was edited by hand and is kept; the new card is in "
            f"{path.name} beside it. Delete README.md to have it generated again."
        )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8", newline="\n")
    os.replace(partial, path)
    return path


def _to_8_bits(images: torch.Tensor):
    """(N, C, H, W) in [-0.5, 0.5] to uint8 (N, H, W, C)."""
    return (VQVAEImageProcessorPil().postprocess(images, "np") * 255).round().astype("uint8")


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _read_config(folder: Path) -> tuple[VQVAEConfig | VQVAEForImageGenerationConfig, dict]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder.name} has no config.json: a card is built in the folder of a finished run."
        )
    settings = _read(folder, "config.json")
    kinds = {one.model_type: one for one in (VQVAEConfig, VQVAEForImageGenerationConfig)}
    if settings.get("model_type") not in kinds:
        raise ValueError(
            f"`model_type` in {folder.name}/config.json must be {' or '.join(map(repr, kinds))}, "
            f"got {settings.get('model_type')!r}."
        )
    return kinds[settings["model_type"]].from_pretrained(folder), settings


def _clean(value: object) -> str:
    """One line of printable characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return " ".join(text.split())


def _without_path(text: str) -> str:
    """Of a path on this machine the last part, anything else as it is."""
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if PATH.match(text) else text


def _code(value: object) -> str:
    """`value` in the font of code, whatever is in it."""
    text = _clean(_without_path(str(value)))
    if re.fullmatch(r"[\w .,:;/+=()\[\]@%\"'-]+", text):
        return f"`{text}`"
    # Markdown and HTML have no power over character references, not even in a table.
    escaped = "".join(
        letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text
    )
    return f"<code>{escaped}</code>"


def _value(value: object) -> str:
    """A setting as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return str(value) if isinstance(value, int) else _code(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _describe_model(config: VQVAEConfig | VQVAEForImageGenerationConfig) -> dict[str, Any]:
    """What the template says of the architecture."""
    prior = getattr(config, "prior_config", None)
    vqvae = config if prior is None else config.vqvae_config
    rows, columns = vqvae.grid_size
    side = vqvae.downsampling_factor
    bits = rows * columns * math.log2(vqvae.num_embeddings)
    pixel_bits = 8 * rows * columns * side * side * vqvae.num_channels
    colors = {1: "grey", 3: "RGB"}
    return {
        "vqvae": vqvae,
        "prior": prior,
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


def _describe_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    """What the card says of the data, safe to print; without a name where nothing is known."""
    name = _clean(_without_path(str(dataset.get("name") or "")))
    kind = dataset.get("kind", "hub" if HUB_ID.fullmatch(name) else "folder")
    labels = [_code(label) for label in dataset.get("label_names") or []]
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    counts = {
        f"{part}_count": f"{count:,}" if (count := dataset.get(f"{part}_count")) else None
        for part in ("train", "eval")
    }
    keys = ("train_split", "eval_split", "image_column", "label_column", "revision", "config")
    safe = {key: _code(dataset[key]) for key in keys if dataset.get(key) is not None}
    return {
        **safe,
        **counts,
        "raw": dataset,
        "name": name,
        "shown_name": _code(name),
        "is_hub": kind == "hub" and HUB_ID.fullmatch(name) is not None,
        "kind": kind,
        "labels": shown,
        "same_split": dataset.get("train_split") == dataset.get("eval_split"),
        "code": _load_code(dataset, name, kind),
    }


def _load_code(dataset: dict[str, Any], name: str, kind: str) -> str:
    """The lines of Python that load the data, without paths of this machine."""
    if kind == "digits":
        return "import hf_vqvae.digits\n\ndataset = hf_vqvae.digits.load_digits()"
    try:
        call = ast.parse(dataset.get("load_command") or "", mode="eval").body
        words = [(None, word) for word in call.args]
        words += [(keyword.arg, keyword.value) for keyword in call.keywords]
        if call.func.id != "load_dataset" or not words:
            raise ValueError("not a call of load_dataset")
        values = [(key, str(ast.literal_eval(word))) for key, word in words]
    except (SyntaxError, AttributeError, ValueError):  # there is none, or a name has quotes in it
        values = [(None, name)]
    # Written anew from its values: what it is made of came with the run.
    values[0] = (None, values[0][1] if kind == "hub" else f"./{_without_path(values[0][1])}")
    words = [f"{key}={_string(value)}" if key else _string(value) for key, value in values]
    return f"from datasets import load_dataset\n\ndataset = load_dataset({', '.join(words)})"


def _string(value: str) -> str:
    """`value` as a string in Python, in characters that mean nothing to Markdown and HTML."""
    text = json.dumps(_clean(value), ensure_ascii=False)
    return re.sub(r"[`<>{}]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _eval_results(metrics: dict[str, dict], dataset: dict[str, Any]) -> list[EvalResult]:
    """One result a metric for the model-index; numbers that are not finite have no place there."""
    # A type with a space in it is no name that a dataset on the Hub could have.
    local_types = {"digits": "scikit-learn digits"}
    kind = (
        dataset["name"] if dataset["is_hub"] else local_types.get(dataset["kind"], "local folder")
    )
    raw = dataset["raw"]
    return [
        EvalResult(
            task_type=TASK,
            task_name="Unconditional image generation",
            dataset_type=kind,
            dataset_name=dataset["name"] or "evaluation data",
            dataset_config=None if raw.get("config") is None else _clean(raw["config"]),
            dataset_split=_clean(metric["split"]),
            dataset_revision=raw.get("revision") if dataset["is_hub"] else None,
            metric_type=METRIC_TYPES.get(key, key),
            metric_name=metric["name"],
            metric_value=metric["value"],
            metric_args=_protocol(metric),
        )
        for key, metric in metrics.items()
        if math.isfinite(metric["value"])
    ]


def _protocol(metric: dict[str, Any]) -> dict[str, Any]:
    keys = ("count", "scale", "protocol")
    return {key: metric[key] for key in keys if metric.get(key) is not None}


def _result_rows(metrics: dict[str, dict]) -> list[dict[str, str]]:
    rows = []
    for key, metric in metrics.items():
        value = metric["value"]
        number = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        protocol = f"{_code(metric['split'])}, {metric['count']:,} images"
        if metric.get("protocol"):
            protocol += f"; {_plain(metric['protocol'])}"
        name = f"{_plain(metric['name'])} {BETTER.get(key, '')}".strip()
        rows.append(
            {
                "name": name,
                "value": number if math.isfinite(value) else "not finite",
                "scale": _plain(metric["scale"]),
                "protocol": protocol,
            }
        )
    return rows


def _plain(text: object) -> str:
    """Words for a cell of a table; markup in them shows as what it is."""
    markup = r"[|<>&*`{}\\]|\](?=[\[(])|\b_|_\b"
    return re.sub(markup, lambda match: f"&#{ord(match[0])};", _clean(text))


def _setting_tables(config, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings and what they mean: of each model from its config, of training from the flags."""
    prior = getattr(config, "prior_config", None)
    parts = [("VQ-VAE", config if prior is None else config.vqvae_config)]
    parts += [] if prior is None else [("Prior", prior)]
    tables = [
        (title, [(field, getattr(part, field.name)) for field in own_fields(type(part))])
        for title, part in parts
    ]
    left_out = set(HOUSEKEEPING)
    if prior is None:
        left_out |= {"train_prior", "prior_num_train_epochs", "prior_learning_rate"}
    if arguments.get("vqvae_name_or_path"):
        left_out |= {"num_train_epochs", "learning_rate"}
    flags = [field for field in fields(TrainingArguments) if field.name not in left_out]
    tables.append(("Training", [(field, arguments.get(field.name)) for field in flags]))
    return [
        {
            "title": title,
            "rows": [
                (f"`{field.name}`", _value(value), field.metadata["help"].replace("*", "\\*"))
                for field, value in settings
                if value is not None and value != ""
            ],
        }
        for title, settings in tables
    ]


def _describe_run(run: dict[str, Any]) -> dict[str, Any]:
    """Versions, hardware and time, safe to print."""
    names = {"vqvae": "VQ-VAE", "prior": "prior"}
    times = [
        f"{names[stage]} {_duration(seconds)}"
        for stage, seconds in (run.get("seconds") or {}).items()
        if stage in names and seconds
    ]
    versions = run.get("versions") or {}
    return {
        "versions": [
            (_code(name), _code(version)) for name, version in versions.items() if version
        ],
        "hardware": run.get("hardware") and _code(run["hardware"]),
        "num_processes": run.get("num_processes"),
        "mixed_precision": run.get("mixed_precision") and _code(run["mixed_precision"]),
        "times": ", ".join(times),
        "seed": run.get("seed"),
    }
