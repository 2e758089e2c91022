"""How good a model's samples are, as an image classifier sees them."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..arguments import DrawArguments
from ..metrics import ClassifiedImages, FrechetDistance
from ..metrics.catalogue import sample_records
from ..models import VQVAEForImageGeneration, VQVAEImageProcessorPil, VQVAEModel
from .classifier import ImageClassifier, load_classifier
from .model_metrics import Model, eval_mode
from .small_classifier import kept_classifier

if TYPE_CHECKING:
    from ..data.splits import DecodedImages

# Images drawn from one generator, whatever the batch size and the number of processes, which so
# change no sample.
DRAWN_TOGETHER = 128
FLOOR_DRAWS = 10


@dataclass
class SampleQualityArguments(DrawArguments):
    """How samples are drawn to be measured, and by which classifier."""

    num_samples: int = field(
        default=1000,
        metadata={
            "help": "Samples to draw for the Fréchet distance; 0 leaves it and its classifier out."
        },
    )
    classifier: str | None = field(
        default=None,
        metadata={
            "help": "Classifier whose features the Fréchet distance compares: an image "
            "classification model, as a folder or owner/name on the Hub (default: a small one, "
            "trained once on the labels of train_split and kept)."
        },
    )
    classifier_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which trained classifiers are kept (default: assets/hf_vqvae in the "
            "cache of the Hub clients)."
        },
    )
    seed: int = field(default=0, metadata={"help": "The same seed draws the same samples."})

    def __post_init__(self):
        super().__post_init__()
        self._check("num_samples", self.num_samples == 0 or self.num_samples >= 2, "0 or above 1")
        self._check("seed", 0 <= self.seed < 2**32, "at least 0 and below 2**32")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"--{name} must be {rule}, got {getattr(self, name)}.")


def choose_classifier(
    arguments: SampleQualityArguments,
    train_images: "DecodedImages",
    label_names: list[str] | None,
    accelerator: Accelerator,
) -> ImageClassifier:
    """The classifier that is named, or else the small one of the training set.

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
    train_images: "DecodedImages",
    eval_images: "DecodedImages",
    classifier: ImageClassifier,
    arguments: SampleQualityArguments,
    accelerator: Accelerator,
    *,
    label_names: list[str] | None = None,
    batch_size: int = 256,
    split: str = "test",
) -> dict[str, dict[str, Any]]:
    """Fréchet distances and the classifier's reading of `arguments.num_samples` samples.

    To be called by every process of `accelerator`. Neither their number nor `batch_size` changes
    which images are drawn. All distances are to the whole of `eval_images`, of equally many images
    (fewer where a split has fewer):

    - samples of the prior, without labels (unless it was trained with labels only) and, from a
      class-conditional one, with labels, which are those of as many random training images (all
      evenly where these have others);
    - the floor, random training images; the mean of up to 10 draws, which vary by a twentieth on
      MNIST. That a small classifier was trained on these very images does not matter there: trained
      on half of them, it has a floor of 3.48 on that half and of 3.51 on the other;
    - reconstructions of random images of `eval_images`.

    All images are rounded to 8 bits, as if they had been saved.

    Args:
        model: with a prior, or without one, which leaves the samples out.
        classifier: on the device to use.
        label_names: of the labels of both sets of images.
        split: name of the split that `eval_images` are, for the record.

    Returns:
        On all processes the records of [`evaluate_model`], by the keys `frechet_distance` (without
        labels), `frechet_distance_with_labels`, `frechet_distance_reconstructions`,
        `frechet_distance_floor`; `sure_share` and `class_perplexity` (with `counts`, a list of how
        often each class of the classifier was read, and `classes`, their names), both also
        `..._with_labels`; `label_agreement`, and `classifier_accuracy`. Nothing for 0 samples.

    Raises:
        ValueError: if the arguments do not fit the model, or there are fewer than 2 images.
    """
    model = accelerator.unwrap_model(model)
    check_arguments(model, arguments)
    for name, images in (("train_images", train_images), ("eval_images", eval_images)):
        if len(images) < 2:
            raise ValueError(f"`{name}` must hold at least 2 images, got {len(images)}.")
    if arguments.num_samples == 0:
        return {}
    labels = [one.labels.max() for one in (train_images, eval_images) if one.labels is not None]
    num_labels = max(len(label_names or ()), int(max(labels, default=-1)) + 1)
    bench = _Bench(classifier, accelerator, batch_size, label_names, num_labels)
    count = arguments.num_samples
    train_rows = _random_rows(train_images, count * FLOOR_DRAWS, arguments.seed)
    # Whole draws only, unless there is not even one.
    draws = [rows for rows in train_rows.split(count) if len(rows) == count] or [train_rows]
    eval_rows = _random_rows(eval_images, count, arguments.seed)
    results: dict[str, Any] = {}
    with eval_mode(model):
        every_row = torch.arange(len(eval_images))
        results["eval"] = bench.set_reference(bench.stored(eval_images, every_row))
        results["floor"] = [bench.measure(bench.stored(train_images, rows)) for rows in draws]
        made = bench.reconstructed(model.base_model, eval_images, eval_rows)
        results["reconstructions"] = bench.measure(made)
        if isinstance(model, VQVAEForImageGeneration) and not _needs_labels(model):
            results["samples"] = bench.measure(bench.drawn(model, arguments, None))
        if _num_classes(model) is not None:
            labels = _labels_to_draw(model, train_images, draws[0], count)
            results["labelled"] = bench.measure(bench.drawn(model, arguments, labels))
    controls = ", ".join(f"{name} {value:g}" for name, value in arguments.controls.items())
    return sample_records(results, classifier, split, controls, arguments.guidance_scale)


def check_arguments(model: Model, arguments: SampleQualityArguments) -> None:
    """Raises ValueError if the arguments ask for what the model does not have."""
    if arguments.guidance_scale != 1 and _num_classes(model) is None:
        raise ValueError(
            f"--guidance_scale {arguments.guidance_scale:g} needs a class-conditional prior, and "
            "this model has none: leave the flag out."
        )


class _Bench:
    """Sets of images, read by a classifier and compared with one reference.

    Every process gives its own share of each set, batches of uint8 (B, C, H, W) with the classes
    they are to be read as, int64 (B,), -1 where that is not known.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        accelerator: Accelerator,
        batch_size: int,
        label_names: list[str] | None,
        num_labels: int,
    ):
        self.classifier, self.accelerator, self.batch_size = classifier, accelerator, batch_size
        self.label_names, self.num_labels = label_names, num_labels
        self.reference = FrechetDistance(classifier.num_features)

    def set_reference(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Makes a set the reference; the classifier's readings of it."""
        return self._read(batches, self.reference, "references")

    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """The classifier's readings of a set, its `count` and its `frechet_distance`."""
        distance = copy.deepcopy(self.reference)
        readings = self._read(batches, distance, "predictions")
        distance.sum_over_processes_(self.accelerator)
        return readings | distance.compute()

    def _read(self, batches: Iterable, distance: FrechetDistance, side: str) -> dict[str, Any]:
        readings = ClassifiedImages(self.classifier.num_classes)
        for images, classes in batches:
            features, probabilities = self.classifier.read(images)
            distance.add_batch(**{side: features})
            readings.add_batch(predictions=probabilities, references=classes)
        readings.sum_over_processes_(self.accelerator)
        return {"count": len(readings), **readings.compute()}

    def stored(self, images: "DecodedImages", rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of a dataset, to be read as their labels."""
        classes = None
        if images.labels is not None:
            classes = self.classifier.classes_of(self.label_names, self.num_labels)
        for own in self._own(rows):
            labels = torch.full((len(own),), -1) if classes is None else images.labels[own]
            yield images.images[own], _mapped(labels, classes)

    def reconstructed(
        self, vqvae: VQVAEModel, images: "DecodedImages", rows: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Reconstructions of images of a dataset."""
        for own in self._own(rows):
            pixel_values = images.__getitems__(own.tolist())["pixel_values"].to(vqvae.device)
            codes = vqvae.encode(pixel_values).codes
            yield _to_8_bits(vqvae.decode(codes)), torch.full((len(own),), -1)

    def drawn(
        self,
        model: VQVAEForImageGeneration,
        arguments: SampleQualityArguments,
        labels: Tensor | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples, with `labels` to be read as these."""
        controls, classes = arguments.controls, None
        if labels is not None:
            controls |= {"guidance_scale": arguments.guidance_scale}
            names, num_classes = _class_names(model), _num_classes(model)
            classes = self.classifier.classes_of(names, num_classes)
        starts = range(0, arguments.num_samples, DRAWN_TOGETHER)
        own = range(self.accelerator.process_index, len(starts), self.accelerator.num_processes)
        for part in self._bar(own, "Draw samples"):
            number = min(DRAWN_TOGETHER, arguments.num_samples - starts[part])
            generator = torch.Generator(model.device)
            generator.manual_seed(arguments.seed * 1_000_003 + part)
            wanted = torch.full((number,), -1)
            if labels is not None:
                wanted = labels[starts[part] :][:number]
                controls["class_labels"] = wanted.to(model.device)
            images = model.sample(number, generator=generator, **controls)
            yield _to_8_bits(images), _mapped(wanted, classes)

    def _own(self, rows: Tensor) -> Iterator[Tensor]:
        batches = rows.split(self.batch_size)
        own = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        yield from self._bar(own, "Classify")

    def _bar(self, parts: Any, description: str) -> Iterable:
        hidden = not self.accelerator.is_main_process
        return tqdm(parts, description, unit="batch", leave=False, disable=hidden)


def _to_8_bits(images: Tensor) -> Tensor:
    """A model's images as they would be saved, uint8 (B, C, H, W)."""
    scaled = VQVAEImageProcessorPil().postprocess(images, output_type="pt")
    return (scaled * 255).round().byte()


def _mapped(labels: Tensor, classes: Tensor | None) -> Tensor:
    """The classifier's number of each label, -1 where the label is or `classes` are not known."""
    if classes is None:
        return torch.full_like(labels, -1)
    return torch.where(labels < 0, -1, classes[labels.clamp(min=0)])


def _random_rows(images: "DecodedImages", count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(images), generator=generator)[:count]


def _num_classes(model: Model) -> int | None:
    return getattr(getattr(model.config, "prior_config", None), "num_classes", None)


def _needs_labels(model: VQVAEForImageGeneration) -> bool:
    """Whether its prior was trained with labels only, so that it cannot draw without."""
    return _num_classes(model) is not None and model.config.prior_config.label_dropout == 0


def _class_names(model: VQVAEForImageGeneration) -> list[str] | None:
    names = {int(key): name for key, name in model.config.prior_config.id2label.items()}
    return [names[n] for n in sorted(names)] if len(names) == _num_classes(model) else None


def _labels_to_draw(
    model: VQVAEForImageGeneration, images: "DecodedImages", rows: Tensor, count: int
) -> Tensor:
    """The labels of these training images, or all classes evenly where a label is none of them."""
    num_classes = _num_classes(model)
    labels = torch.arange(num_classes)
    if images.labels is not None:
        known = images.labels[rows]
        if known.min() >= 0 and known.max() < num_classes:
            labels = known
    return labels.repeat(count // len(labels) + 1)[:count]
