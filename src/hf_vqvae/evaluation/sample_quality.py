"""Measure the quality of samples by the features and classes of an image classifier."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..arguments import SampleQualityArguments
from ..command_line import progress_bar
from ..data.decoding import DecodedImages, as_saved
from ..metrics import ClassifiedImages, FrechetDistance
from ..metrics.catalogue import sample_records
from ..models import VQVAEForImageGeneration, VQVAEModel
from .classifier import ImageClassifier, load_classifier
from .model_metrics import Model
from .small_classifier import kept_classifier

# Samples per generator, so that neither the batch size nor the number of processes changes a sample.
SAMPLES_PER_GENERATOR = 128
FLOOR_DRAWS = 10


def choose_classifier(
    arguments: SampleQualityArguments,
    train_images: DecodedImages,
    label_names: list[str] | None,
    accelerator: Accelerator,
) -> ImageClassifier:
    """Load the named classifier, or else the small one of the training set.

    Raises:
        NoLabelsError: if none is named and the training set has no labels to train one on.
        ValueError: if it cannot be loaded.
    """
    if arguments.classifier is None:
        folder = arguments.classifier_dir and Path(arguments.classifier_dir)
        return kept_classifier(train_images, label_names, accelerator, folder)
    with accelerator.main_process_first():
        return load_classifier(arguments.classifier).to(accelerator.device)


@torch.inference_mode()
def measure_samples(
    model: Model,
    train_images: DecodedImages,
    eval_images: DecodedImages,
    classifier: ImageClassifier,
    arguments: SampleQualityArguments,
    accelerator: Accelerator,
    *,
    label_names: list[str] | None = None,
    batch_size: int = 256,
    split: str = "test",
) -> dict[str, dict[str, Any]]:
    """Measure Fréchet distances and predicted classes of `arguments.num_samples` samples.

    Called by every process of `accelerator`. Neither the number of processes nor `batch_size` changes the samples,
    which are rounded to 8 bits, as if they had been saved. All distances are to the whole of `eval_images`, of equally
    many images (fewer where a split has fewer):

    - samples of the prior without labels, which a class-conditional one draws itself, and from such a one with labels,
      which are those of as many random training images (all evenly where these have others);
    - the floor, random training images; the mean of up to 10 draws. That a small classifier was trained on these images
      does not matter on MNIST: trained on half of them, it has a floor of 3.48 on that half and of 3.51 on the other;
    - reconstructions of random images of `eval_images`.

    Args:
        model: with a prior, or without one, which leaves the samples out. It is put into eval mode.
        classifier: on the device to use.
        label_names, split: names of the labels of both sets of images, and of the split `eval_images`, for the record.

    Returns:
        Records as those of [`evaluate_model`]; of the class perplexity also with how often each class was read.

    Raises:
        ValueError: if the arguments do not fit the model, or a set has fewer than 2 images.
    """
    model = accelerator.unwrap_model(model).eval()
    check_arguments(model, arguments)
    labels = [images.labels.max() for images in (train_images, eval_images) if images.labels is not None]
    num_labels = max(len(label_names or ()), int(max(labels, default=-1)) + 1)
    evaluator = SampleEvaluator(classifier, accelerator, batch_size, classifier.classes_of(label_names, num_labels))
    count = arguments.num_samples
    train_rows = _random_rows(train_images, count * FLOOR_DRAWS, arguments.seed)
    # Whole draws only, unless there is not even one.
    draws = [rows for rows in train_rows.split(count) if len(rows) == count] or [train_rows]
    eval_rows = _random_rows(eval_images, count, arguments.seed)
    every_row = evaluator.stored(eval_images, torch.arange(len(eval_images)))
    results: dict[str, Any] = {"eval": evaluator.classify(every_row, evaluator.reference, "references")}
    results["floor"] = [evaluator.measure(evaluator.stored(train_images, rows)) for rows in draws]
    results["reconstructions"] = evaluator.measure(evaluator.reconstructed(model.base_model, eval_images, eval_rows))
    if isinstance(model, VQVAEForImageGeneration):
        results["samples"] = evaluator.measure(evaluator.sampled(model, arguments, None))
    if _num_classes(model) is not None:
        labels = _labels_to_sample(model, train_images, draws[0], count)
        results["labelled"] = evaluator.measure(evaluator.sampled(model, arguments, labels))
    controls = ", ".join(f"{name} {value:g}" for name, value in arguments.controls.items())
    return sample_records(results, classifier, split, controls, arguments.guidance_scale)


def check_arguments(model: Model, arguments: SampleQualityArguments) -> None:
    """Raise ValueError if the arguments need a class-conditional prior and the model has none."""
    if arguments.guidance_scale != 1 and _num_classes(model) is None:
        raise ValueError(
            f"--guidance_scale {arguments.guidance_scale:g} needs a class-conditional prior, and this model has none: "
            "leave the flag out."
        )


@dataclass
class SampleEvaluator:
    """Classify sets of images and compare them with one reference set.

    Every process gives its share of each set: batches of uint8 images (B, C, H, W) with their expected classes, int64
    (B,), -1 for an unknown class. `classes` are those of the dataset's labels, as of [`ImageClassifier.classes_of`].
    """

    classifier: ImageClassifier
    accelerator: Accelerator
    batch_size: int
    classes: Tensor | None

    def __post_init__(self) -> None:
        self.reference = FrechetDistance(self.classifier.num_features)

    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """As [`classify`], with the `frechet_distance` to the reference."""
        distance = copy.deepcopy(self.reference)
        predictions = self.classify(batches, distance, "predictions")
        distance.sum_over_processes_(self.accelerator)
        return predictions | distance.compute()

    def classify(self, batches: Iterable, distance: FrechetDistance, side: str) -> dict[str, Any]:
        """Classify a set, whose features become one side of `distance`; returns its predictions and `count`."""
        classified = ClassifiedImages(self.classifier.num_classes)
        for images, classes in batches:
            features, probabilities = self.classifier.read(images)
            distance.add_batch(**{side: features})
            classified.add_batch(predictions=probabilities, references=classes)
        classified.sum_over_processes_(self.accelerator)
        return {"count": len(classified), **classified.compute()}

    def stored(self, images: DecodedImages, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of a dataset, with the classes of their labels."""
        for local in self._local_batches(rows):
            labels = torch.full((len(local),), -1) if images.labels is None else images.labels[local]
            yield images.images[local], _mapped(labels, self.classes)

    def reconstructed(self, vqvae: VQVAEModel, images: DecodedImages, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Reconstructions of images of a dataset."""
        for local in self._local_batches(rows):
            pixel_values = images.__getitems__(local.tolist())["pixel_values"].to(vqvae.device)
            codes = vqvae.encode(pixel_values).codes
            yield as_saved(vqvae.decode(codes)), torch.full((len(local),), -1)

    def sampled(
        self, model: VQVAEForImageGeneration, arguments: SampleQualityArguments, labels: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples of the prior, with the classes of `labels` if these are given."""
        controls, classes = arguments.controls, None
        if labels is not None:
            controls |= {"guidance_scale": arguments.guidance_scale}
            classes = self.classifier.classes_of(class_names(model), _num_classes(model))
        starts = range(0, arguments.num_samples, SAMPLES_PER_GENERATOR)
        local = range(self.accelerator.process_index, len(starts), self.accelerator.num_processes)
        for part in progress_bar(local, "Draw samples", unit="batch", leave=False):
            number = min(SAMPLES_PER_GENERATOR, arguments.num_samples - starts[part])
            generator = torch.Generator(model.device)
            generator.manual_seed(arguments.seed * 1_000_003 + part)
            batch_labels = torch.full((number,), -1)
            if labels is not None:
                batch_labels = labels[starts[part] :][:number]
                controls["class_labels"] = batch_labels.to(model.device)
            images = model.sample(number, generator=generator, **controls)
            yield as_saved(images), _mapped(batch_labels, classes)

    def _local_batches(self, rows: Tensor) -> Iterator[Tensor]:
        batches = rows.split(self.batch_size)
        local = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        yield from progress_bar(local, "Classify", unit="batch", leave=False)


def _mapped(labels: Tensor, classes: Tensor | None) -> Tensor:
    """Map labels to the classifier's classes; -1 for an unknown label or without `classes`."""
    if classes is None:
        return torch.full_like(labels, -1)
    return torch.where(labels < 0, -1, classes[labels.clamp(min=0)])


def _random_rows(images: DecodedImages, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(images), generator=generator)[:count]


def _num_classes(model: Model) -> int | None:
    return getattr(getattr(model.config, "prior_config", None), "num_classes", None)


def class_names(model: Model) -> list[str] | None:
    """Return the names of the prior's classes by their numbers, None without classes."""
    if _num_classes(model) is None:
        return None
    return [name for _, name in sorted(model.config.prior_config.id2label.items())]


def _labels_to_sample(model: VQVAEForImageGeneration, images: DecodedImages, rows: Tensor, count: int) -> Tensor:
    """Labels of these training images, or all classes evenly if a label is not one of them."""
    num_classes = _num_classes(model)
    labels = torch.tensor([-1]) if images.labels is None else images.labels[rows]
    if labels.min() < 0 or labels.max() >= num_classes:
        labels = torch.arange(num_classes)
    return labels.repeat(count // len(labels) + 1)[:count]
