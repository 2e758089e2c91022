"""What a run leaves beside its weights: metrics, figures, records, card; and pictures for the trackers on the way."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.splits import DecodedImages, ImageSplits
from ..evaluation.model_metrics import evaluate_model
from ..evaluation.sample_quality import SampleQualityArguments, choose_classifier, measure_samples
from ..figures.image_tables import color_codes, image_grid
from ..files import read_json, write_json, writing_errors
from ..hub.download import load_model
from ..model_card.card import write_card
from ..model_card.run_figures import to_8_bits, write_figures
from ..models import VQVAEForImageGeneration, VQVAEModel
from ..publishing.staging import add_code, image_processor_for
from .run_directory import RunDirectory

PACKAGES = (
    "hf_vqvae",
    "torch",
    "transformers",
    "huggingface_hub",
    "accelerate",
    "datasets",
    "evaluate",
    "safetensors",
)
TRACKED_IMAGES = 16
KEPT = "All that was trained is whole: make room, and go on with --resume_from_checkpoint latest."


def report(
    model_folder: Path,
    images: ImageSplits,
    flags: tuple,
    accelerator: Accelerator,
    folder: RunDirectory,
) -> None:
    """Measures the trained model as it lies on disk, and completes the unfinished run's folder.

    Args:
        model_folder: a VQ-VAE's or that of both stages.
        flags: the dataclasses of the command line.
    """
    model = load_model(str(model_folder)).to(accelerator.device)
    split = images.info["eval_split"]
    metrics, counts = evaluate_model(model, images.eval, accelerator, split=split)
    values = {key: value for dataclass in flags for key, value in asdict(dataclass).items()}
    if isinstance(model, VQVAEForImageGeneration) and values["num_eval_samples"]:
        metrics |= _measure_samples(model, images, values, accelerator)
    if not accelerator.is_main_process:
        return
    run = {
        "dataset": images.info,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "hardware": _hardware(accelerator),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "seconds": read_json(folder.partial / "seconds.json"),
        "seed": values["seed"],
        "codebook_counts": counts,
    }
    with writing_errors(folder.partial / "model.safetensors", KEPT):
        model.save_pretrained(folder.partial)
        image_processor_for(model).save_pretrained(folder.partial)
    write_json(folder.partial / "metrics.json", metrics)
    write_json(folder.partial / "arguments.json", values)
    write_json(folder.partial / "run.json", run)
    generator = torch.Generator(accelerator.device).manual_seed(values["seed"])
    train = images.train if isinstance(images.train, DecodedImages) else None
    write_figures(folder.partial, model, images.eval, generator, train)
    # With its code the folder is what a repo holds: it loads where this package is not installed.
    add_code(folder.partial, type(model))
    local_name = None if folder.output_dir.is_absolute() else folder.output_dir.as_posix()
    write_card(folder.partial, repo_id=values["hub_model_id"] or local_name)


def _measure_samples(
    model: VQVAEForImageGeneration,
    images: ImageSplits,
    values: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, dict[str, Any]]:
    """The metrics of samples, or a line that says why there are none: no reason to lose a trained model."""
    arguments = SampleQualityArguments(num_samples=values["num_eval_samples"], seed=values["seed"])
    names, split = images.info["label_names"], images.info["eval_split"]
    try:
        if not isinstance(images.train, DecodedImages):
            raise ValueError(
                "the training images are a stream; scripts/evaluate.py, without --streaming, measures the finished run."
            )
        if min(len(images.train), len(images.eval)) < 2:
            raise ValueError("it takes 2 images in the training split and in the evaluation split.")
        classifier = choose_classifier(arguments, images.train, names, accelerator)
    except ValueError as error:
        accelerator.print(f"The Fréchet distance is left out: {error}")
        return {}
    return measure_samples(
        model,
        images.train,
        images.eval,
        classifier,
        arguments,
        accelerator,
        label_names=names,
        split=split,
    )


def tracker_images(images: DecodedImages) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from a model to pictures: reconstructions and codes of the first images, samples if it has a prior."""
    pixel_values = images.__getitems__(list(range(min(TRACKED_IMAGES, len(images)))))[
        "pixel_values"
    ]

    @torch.inference_mode()
    def show(model: VQVAEModel | VQVAEForImageGeneration) -> dict[str, np.ndarray]:
        training, device = model.training, model.device
        model.eval()
        if isinstance(model, VQVAEForImageGeneration):
            generator = torch.Generator(device).manual_seed(0)
            classes = model.config.prior_config.num_classes
            labels = None if classes is None else torch.arange(TRACKED_IMAGES) % classes
            samples = model.sample(TRACKED_IMAGES, class_labels=labels, generator=generator)
            grids = {"samples": image_grid(to_8_bits(samples), columns=4)}
        else:
            inputs = pixel_values.to(device)
            codes = model.encode(inputs).codes
            # Each image above its reconstruction.
            pairs = torch.cat([inputs, model.decode(codes)])
            factor = model.config.downsampling_factor
            colors = color_codes(codes.cpu().numpy(), model.config.num_embeddings, factor)
            grids = {
                "reconstructions": image_grid(to_8_bits(pairs), columns=len(inputs)),
                "codes": image_grid(colors, columns=4),
            }
        model.train(training)
        return grids

    return show


def _hardware(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{accelerator.device.type.upper()}, {cores} cores, {platform.machine()}"
