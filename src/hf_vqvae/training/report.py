"""Write metrics, figures, records and model card of a run; log images to its trackers."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import HfApi

from ..data.splits import DecodedImages, ImageSplits
from ..evaluation.model_metrics import evaluate_model
from ..evaluation.sample_quality import SampleQualityArguments, choose_classifier, measure_samples
from ..figures.image_tables import color_codes, image_grid
from ..files import read_json, write_json, writing_errors
from ..hub.download import hash_weights
from ..model_card.card import write_card
from ..model_card.records import training_alone
from ..model_card.run_figures import to_8_bits, write_figures
from ..models import VQVAEForImageGeneration, VQVAEModel
from ..publishing.staging import add_code
from .run_directory import KEPT, Run
from .stages import BEST_BY
from .trainer import best_epoch

PACKAGES = ("hf_vqvae", "torch", "transformers", "huggingface_hub", "accelerate", "datasets")
PACKAGES += ("evaluate", "safetensors")
PROJECT = "hf_vqvae"  # of the trackers
TRACKED_IMAGES = 16


def report(model: VQVAEModel | VQVAEForImageGeneration, images: ImageSplits, run: Run) -> None:
    """Measures the trained model and completes the directory of the unfinished run."""
    accelerator, folder = run.accelerator, run.directory.partial
    values = run.arguments.values
    split = images.info["eval_split"]
    metrics, counts = evaluate_model(model, images.eval, accelerator, split=split)
    if isinstance(model, VQVAEForImageGeneration) and values["num_eval_samples"]:
        metrics |= _measure_samples(model, images, values, accelerator)
    if not accelerator.is_main_process:
        return
    history = read_json(folder / "history.json")
    epochs = {stage: rows[-1]["epoch"] for stage, rows in history.items()}
    if "prior" in epochs and values["prior_keep_best"] and images.held_out:
        epochs["prior"] = best_epoch(history["prior"], BEST_BY)
    versions = {name: version(name) for name in PACKAGES}
    base = values["vqvae_name_or_path"]
    record = {
        "dataset": images.info,
        "base_model": None if base is None or os.path.isdir(os.path.expanduser(base)) else base,  # on the Hub
        "versions": {"python": platform.python_version(), **versions},
        "hardware": _hardware(accelerator),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "kept_epochs": epochs,
        "seconds": read_json(folder / "seconds.json"),
        "seed": values["seed"],
        "codebook_counts": counts,
        "weights_sha256": hash_weights(model.state_dict()),
        "dashboard": _freeze_dashboard(run),
    }
    with writing_errors(folder / "model.safetensors", KEPT):
        model.save_pretrained(folder)
        images.processor.save_pretrained(folder)
    write_json(folder / "metrics.json", metrics)
    # The record can be given to train.py again.
    write_json(folder / "arguments.json", training_alone(values, images.info))
    write_json(folder / "run.json", record)
    generator = torch.Generator(accelerator.device).manual_seed(values["seed"])
    train, evaluation = (one if isinstance(one, DecodedImages) else None for one in (images.train, images.eval))
    write_figures(folder, model, evaluation, generator, train)
    # With its code the folder is what a repo holds: it loads where this package is not installed.
    add_code(folder, type(model))
    output_dir = run.directory.output_dir
    local_name = None if output_dir.is_absolute() else output_dir.as_posix()
    write_card(folder, repo_id=values["hub_model_id"] or local_name)


def _measure_samples(
    model: VQVAEForImageGeneration, images: ImageSplits, values: dict[str, Any], accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of samples; if they cannot be measured, prints why and returns none."""
    arguments = SampleQualityArguments(num_samples=values["num_eval_samples"], seed=values["seed"])
    names, split, train = images.info["label_names"], images.info["eval_split"], images.train
    try:
        if not isinstance(train, DecodedImages):
            raise ValueError(
                "no training images are in memory; scripts/evaluate.py, without --streaming, measures the finished run."
            )
        if min(len(train), len(images.eval)) < 2:
            raise ValueError("it takes 2 images in the training split and in the evaluation split.")
        classifier = choose_classifier(arguments, train, names, accelerator)
    except ValueError as error:
        accelerator.print(f"The Fréchet distance is left out: {error}")
        return {}
    return measure_samples(
        model, train, images.eval, classifier, arguments, accelerator, label_names=names, split=split
    )


@torch.inference_mode()
def log_images(
    images: DecodedImages, accelerator: Accelerator, model: VQVAEModel | VQVAEForImageGeneration, step: int
) -> None:
    """Logs reconstructions and codes of the first images to the trackers, or samples if the model has a prior."""
    training = model.training
    model.eval()
    if isinstance(model, VQVAEForImageGeneration):
        generator = torch.Generator(model.device).manual_seed(0)
        classes = model.config.prior_config.num_classes
        labels = None if classes is None else torch.arange(TRACKED_IMAGES) % classes
        samples = model.sample(TRACKED_IMAGES, class_labels=labels, generator=generator)
        grids = {"prior/samples": image_grid(to_8_bits(samples), columns=4)}
    else:
        rows = list(range(min(TRACKED_IMAGES, len(images))))
        inputs = images.__getitems__(rows)["pixel_values"].to(model.device)
        codes = model.encode(inputs).codes
        pairs = torch.cat([inputs, model.decode(codes)])  # each image above its reconstruction
        factor = model.config.downsampling_factor
        colors = color_codes(codes.cpu().numpy(), model.config.num_embeddings, factor)
        grids = {
            "vqvae/reconstructions": image_grid(to_8_bits(pairs), columns=len(inputs)),
            "vqvae/codes": image_grid(colors, columns=4),
        }
    model.train(training)
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":  # Accelerate has no `log_images` for it
            from trackio import Image

            # It takes no grey pictures.
            rgb = {n: g.repeat(3, -1) if g.shape[-1] == 1 else g for n, g in grids.items()}
            tracker.log({name: Image(grid) for name, grid in rgb.items()}, step=step)
        else:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            pictures = {name: grid[None] for name, grid in grids.items()}
            tracker.log_images(pictures, step=step, **layout)


def _freeze_dashboard(run: Run) -> str | None:
    """Ends the run in trackio; returns the static Space with a copy of its dashboard, or else the live one, if any."""
    space, trackers = run.arguments.training.trackio_space_id, run.accelerator.trackers
    if space is None:
        return None
    import trackio

    (tracker,) = [one for one in trackers if one.name == "trackio"]
    trackers.remove(tracker)
    tracker.finish()
    live = None
    try:
        private = HfApi().space_info(space).private  # then it is not copied, as a static Space is public
        live = space
        return trackio.freeze(space, PROJECT, private=private)
    except Exception as error:  # of any kind: the run is complete without the copy
        print(f"trackio made no static copy of the Space {space}: {error}")
    return live


def _hardware(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{accelerator.device.type.upper()}, {cores} cores, {platform.machine()}"
