"""Measure a trained model on a whole split, on one process or several."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..data.decoding import DecodedImages
from ..data.loaders import local_batches
from ..hub.download import Model
from ..metrics import SSIM_SIGMA, SSIM_WINDOW, CodebookUsage, CodeLikelihood, ReconstructionQuality, ssim_window
from ..metrics.catalogue import METRICS
from ..models import PixelCNNConfig, VQVAEConfig, VQVAEImageProcessorPil, VQVAEModel
from ..models.configuration_vqvae import as_pair

NOISE_IMAGES = 64
# Passes of a conditional prior for the likelihood without labels, which takes one for each class of an image.
MARGINAL_PASSES = 100_000


@torch.inference_mode()
def evaluate_model(
    model: Model, images: Any, accelerator: Accelerator, *, batch_size: int = 256, split: str = "test"
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Measure a VQ-VAE, and its prior if it has one, on all of `images`.

    Called by every process of `accelerator`: each takes every n-th batch, and the sums are exchanged, so the numbers
    have the same bits on one process. A class-conditional prior is measured with the labels of the images, if they have
    any, and without, as the sum over all classes, on the first batches that take about 100,000 forward passes; and on
    noise, whose likelihood says how far images of another kind are.

    Args:
        model: on the device of `accelerator`; also as returned by `accelerator.prepare`. It is put into eval mode.
        images: `DecodedImages`, or `CodesDataset`, which leaves the reconstructions out.
        batch_size: images per process at a time; it changes at most the last digits.
        split: name of the split of `images`, for the records.

    Returns:
        On all processes, the records of metrics.json by their keys in the catalogue; and how often each code occurs.

    Raises:
        ValueError: if the labels are not the prior's classes, or the model makes NaN.
    """
    model = accelerator.unwrap_model(model).eval()
    vqvae, prior = model.base_model, getattr(model, "prior", None)
    num_embeddings = vqvae.config.num_embeddings
    processor, has_images = VQVAEImageProcessorPil(), isinstance(images, DecodedImages)
    quality, usage = ReconstructionQuality(), CodebookUsage(num_embeddings)
    likelihood, marginal = CodeLikelihood(num_embeddings), CodeLikelihood(num_embeddings)
    bits: list[float] = []  # of the images of this process, without labels
    given_labels = prior is not None and _has_labels_for(prior.config, images.labels, split)
    classes = (prior and prior.config.num_classes) or 1
    limit = len(images) if classes == 1 else max(1, MARGINAL_PASSES // classes)
    for number, batch in enumerate(local_batches(images, accelerator, batch_size, f"Evaluate ({split})")):
        start = (number * accelerator.num_processes + accelerator.process_index) * batch_size
        codes = vqvae.encode(batch["pixel_values"]).codes if has_images else batch["codes"]
        if has_images:
            # Decode from codes only, as a user of stored codes would.
            reconstructions = processor.postprocess(vqvae.decode(codes), output_type="pt")
            references = processor.postprocess(batch["pixel_values"], output_type="pt")
            quality.add_batch(predictions=reconstructions, references=references)
        usage.add_batch(predictions=codes)
        if given_labels:
            likelihood.add_batch(**_predict_codes(prior, codes, batch["labels"]))
        if prior is not None and start < limit:
            unlabelled = _predict_codes(prior, codes, None)
            marginal.add_batch(**unlabelled)
            bits += (unlabelled["negative_log_likelihoods"].sum((1, 2)) / math.log(2)).tolist()
    noise = None if prior is None else model.log_likelihood(_noise(vqvae)).bits.mean().item()
    values = {}
    for metric in (*([quality] if has_images else []), usage, *([likelihood] if given_labels else [])):
        metric.sum_over_processes_(accelerator)
        values |= metric.compute()
    facts = _facts(vqvae.config, given_labels) | {"split": split, "count": len(images), "labels": ""}
    marginal.sum_over_processes_(accelerator)
    unlabelled = marginal.compute() if prior is not None else {}
    without = facts | {"count": min(len(images), -(-limit // batch_size) * batch_size)}
    if given_labels:
        unlabelled = {f"{key}_marginal": unlabelled[key] for key in ("nll", "bits_per_image")}
        without |= {"given": "given the true codes before it, whatever the label", "labels": " (without labels)"}
    metrics = _records(values, facts) | _records(unlabelled, without)
    if prior is not None:
        bits = gather_object(bits)
        metrics["bits_per_image_noise"] = METRICS["bits_per_image_noise"].record(
            noise, split=split, count=NOISE_IMAGES, low=min(bits), high=max(bits)
        )
    return metrics, values["codebook_counts"]


def _records(values: dict[str, Any], facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {key: METRICS[key].record(value, **facts) for key, value in values.items() if key in METRICS}


def _has_labels_for(config: PixelCNNConfig, labels: Tensor | None, split: str) -> bool:
    """Whether the prior is conditional and any image has a label; checks that labels are its classes."""
    if config.num_classes is None or labels is None or labels.max() < 0:
        return False
    if labels.max() >= config.num_classes:
        raise ValueError(
            f"the labels of the split {split!r} must be the prior's classes, 0 to "
            f"{config.num_classes - 1}, got {labels.max().item()}: name their column with --label_column."
        )
    return True


def _predict_codes(prior: nn.Module, codes: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """Inputs of `CodeLikelihood`: predictions of `prior` for each code given those before it and any labels."""
    output = prior.log_likelihood(codes, labels)
    return {"predictions": output.logits.argmax(1), "references": codes, "negative_log_likelihoods": output.nats}


def _noise(vqvae: VQVAEModel) -> Tensor:
    """Make `pixel_values` of uniform noise, the same on every machine."""
    shape = (NOISE_IMAGES, vqvae.config.num_channels, *as_pair(vqvae.config.image_size))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(vqvae.device) - 0.5


def _facts(config: VQVAEConfig, given_labels: bool) -> dict[str, Any]:
    """Facts of a measurement, for the protocols of the metrics."""
    height, width = config.grid_size
    window = ssim_window(*as_pair(config.image_size))
    return {
        "num_embeddings": config.num_embeddings,
        "height": height,
        "width": width,
        "window": window,
        "sigma": SSIM_SIGMA * window / SSIM_WINDOW,
        "given": "given the true codes before it" + (" and the label" if given_labels else ""),
    }
