"""Load the training and evaluation splits: images decoded into memory, or a stream."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import datasets
import torch
from PIL.ImageMode import getmode
from torch import Tensor
from torch.utils.data import Subset
from transformers.image_utils import SizeDict

from ..arguments import DataArguments
from ..command_line import is_first_process
from ..hub.download import image_processor_for
from ..models.configuration_vqvae import VQVAEConfig
from ..models.image_processing_vqvae import VQVAEImageProcessorPil
from .decoding import ROWS_PER_BATCH, DecodedImages, check_memory, decode_rows, report_conversions
from .rows import RowDecoder, collect_names, find_columns, has_names, scale_pixels
from .sources import DataError, Source, open_source

VARIANCE_ROWS = 10_000
# Of the training rows one in so many is held out for validation, and at most this number.
VALIDATION_SHARE, VALIDATION_ROWS = 12, 5_000
ROW_NUMBER = "row number"  # column of a stream, beside those of the dataset


class StreamedImages(torch.utils.data.IterableDataset):
    """Stream of images: `pixel_values` float32 (C, H, W) and, if any, `labels`, in the order of the rows.

    Args:
        rows: undecoded rows, which are cheap to shuffle and skip, with their number in the column `ROW_NUMBER`.
        decoder: decoder of the split.
    """

    def __init__(self, rows: datasets.IterableDataset, decoder: RowDecoder):
        self.rows, self.decoder = rows, decoder

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.decode, self.rows)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode one of `rows`."""
        pixels, label, _ = self.decoder.decode(row, row[ROW_NUMBER])
        example = {"pixel_values": scale_pixels(torch.from_numpy(pixels))}
        return example if self.decoder.label_column is None else example | {"labels": label}


@dataclass
class ImageSplits:
    """Training and evaluation images of a run, or their codes (`CodesDataset`) alone.

    Args:
        train: images of the training split, in memory or a stream; those held out are among them.
        eval: images in memory.
        info: description of the dataset for `run.json` and the card. `train_count` is the number of rows to train on,
            `None` for a stream of unknown length. `fingerprint` depends on all pixels and labels of both splits (of a
            stream, on those of its first 10,000 rows).
        data_variance: population variance of the pixels of `train` on [0, 1]; of a stream, of its first 10,000 rows.
        processor: converted the images, and is saved with the model.
        streaming: whether the first rows of `train` are held out for validation, not random ones.
        held_out: number of rows of `train` that are held out for validation.
    """

    train: DecodedImages | StreamedImages
    eval: DecodedImages
    info: dict[str, Any]
    data_variance: float
    processor: VQVAEImageProcessorPil
    streaming: bool = False
    held_out: int = 0

    def hold_out(self, number: int | None = None) -> "ImageSplits":
        """Return these splits with `number` rows of `train` held out for validation, by default a twelfth."""
        count = self.info["train_count"]
        if count is None:
            return self
        number = min(VALIDATION_ROWS, count // VALIDATION_SHARE) if number is None else min(number, count)
        info = self.info | {"train_count": count - number, "validation_count": number}
        return replace(self, info=info, held_out=number)

    def split_train(self, rows: Any) -> tuple[Subset, Subset]:
        """Split rows of `train`, or codes of them, into those to train on and those held out.

        Of a stream the first rows are held out. Otherwise they are the same random ones in every run, whatever its
        seed: a prior that is trained later is validated on rows that its VQ-VAE did not see either.
        """
        number, count = self.held_out, len(rows)
        if self.streaming:
            return Subset(rows, range(number, count)), Subset(rows, range(number))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return tuple(Subset(rows, part.sort().values.tolist()) for part in (order[number:], order[:number]))

    @cached_property
    def parts(self) -> "tuple[Subset | StreamedImages, Subset | DecodedImages]":
        """The images to train on and, in memory, those held out."""
        if not isinstance(self.train, StreamedImages):
            return self.split_train(self.train)
        if not self.held_out:
            return self.train, Subset(self.eval, ())
        rows, decoder = self.train.rows, self.train.decoder
        held_out = decode_rows(rows.take(self.held_out), self.held_out, decoder)
        return StreamedImages(rows.skip(self.held_out), decoder), held_out

    def __str__(self) -> str:
        """One line: which columns are used for what."""
        labels, names, images = (self.info[key] for key in ("label_column", "label_names", "image_column"))
        used = f"Dataset {self.info['name']!r}: {f'images from column {images!r}' if images else 'codes'}, "
        if labels is None:
            return used + "no labels (`--label_column` names their column; unpack archives of class folders)."
        numbers = getattr(self.train, "labels", None)
        count = len(names) if names else None if numbers is None else numbers.max().item() + 1
        classes = "" if count is None else f" ({count:,} {'class' if count == 1 else 'classes'})"
        return f"{used}labels from column {labels!r}{classes}."


@dataclass
class _Split:
    """A split that is opened but not decoded; `count` is `None` if it is not known before reading."""

    rows: datasets.Dataset | datasets.IterableDataset
    count: int | None
    decoder: RowDecoder


def load_images(arguments: DataArguments, config: VQVAEConfig, settings: Any = None) -> ImageSplits:
    """Load the training and the evaluation split, at the size and with the channels of `config`.

    Both are opened and checked before any image is decoded. An empty cell of labels becomes -1, the Hub's hidden class.

    Args:
        settings: flags; if their `image_size` or `num_channels` is None, that of the first training image is taken,
            and set here and in `config`.

    Raises:
        DataError: if a split or column is missing or empty, or the images do not fit `config` or memory.
    """
    source = open_source(arguments)
    source.check_split(arguments.train_split, "--train_split")
    source.check_split(arguments.eval_split, "--eval_split")
    train = open_split(source, arguments, config, "train")
    if settings is not None:
        train.decoder = _take_own_format(train, config, settings)
    evaluation = open_split(source, arguments, config, "eval", train.decoder.label_names)
    evaluation.decoder = replace(evaluation.decoder, original=train.decoder.original)
    if not arguments.streaming:
        check_memory(train.count, train.decoder)
    eval_images = decode_rows(evaluation.rows, evaluation.count, evaluation.decoder)
    if arguments.streaming:
        train_images = StreamedImages(train.rows, train.decoder)
        labels, modes = [], []
        pixels = _decode_first(train_images, labels, modes)
    else:
        train_images = decode_rows(train.rows, train.count, train.decoder)
        pixels = train_images.images.split(ROWS_PER_BATCH)
    digest = hashlib.sha256()
    variance = _variance(pixels, train.decoder.split, digest)
    if arguments.streaming:
        report_conversions(modes, train.decoder)
    train_labels = torch.tensor(labels) if arguments.streaming else train_images.labels
    for part in (*eval_images.images.split(ROWS_PER_BATCH), eval_images.labels, train_labels):
        if part is not None:
            digest.update(part.contiguous().numpy())
    counts = {"train_count": train.count, "eval_count": len(eval_images)}
    splits = {"train_split": arguments.train_split, "eval_split": arguments.eval_split}
    info = describe_source(source, arguments, train.decoder) | splits | counts | {"fingerprint": digest.hexdigest()}
    return ImageSplits(train_images, eval_images, info, variance, train.decoder.processor, arguments.streaming)


def _take_own_format(train: _Split, config: VQVAEConfig, settings: Any) -> RowDecoder:
    """Set the format as [`load_images`] says, its size rounded down to what the network divides; return its decoder."""
    decoder, row = train.decoder, next(iter(train.rows), None)
    if row is None:  # an empty split is an error later
        return decoder
    decoder.decode(row, 0)  # an error names the row
    image, processor = decoder.open_image(row[decoder.image_column]), decoder.processor
    if settings.num_channels is None:
        config.num_channels = 1 if getmode(image.mode).basemode == "L" else 3
        settings.num_channels = processor.num_channels = config.num_channels
    if settings.image_size is not None:
        return decoder
    factor = config.downsampling_factor
    width, height = (side - side % factor for side in image.size)
    found = f"The images have {image.height}x{image.width} pixels, and the network needs multiples of {factor}"
    if not (width and height):
        raise DataError(f"{found}: set `--image_size`, or fewer `--hidden_sizes`.")
    if (width, height) != image.size and is_first_process():
        print(f"{found}: they are resized to {height}x{width} (--image_size).", file=sys.stderr)
    config.image_size = height if height == width else (height, width)
    settings.image_size = [height] if height == width else [height, width]
    processor.size = SizeDict(height=height, width=width)
    return replace(decoder, original=image.size)


def load_split(
    arguments: DataArguments, config: VQVAEConfig, role: str, label_names: list[str] | None = None
) -> tuple[DecodedImages, dict[str, Any]]:
    """Load one split into memory as [`load_images`] does; return it, and its description with `split` and `count`.

    Args:
        role: "train" or "eval".
        label_names: the classes of a column of names, such as those of a model; by default those of this split.
    """
    source = open_source(arguments)
    opened = open_split(source, arguments, config, role, label_names)
    images = decode_rows(opened.rows, opened.count, opened.decoder)
    info = describe_source(source, arguments, opened.decoder)
    return images, info | {"split": opened.decoder.split, "count": len(images)}


def open_split(
    source: Source, arguments: DataArguments, config: VQVAEConfig, role: str, label_names: list[str] | None = None
) -> _Split:
    """Open a split, limited to `max_*_samples` rows and to the columns in use; arguments as of [`load_split`]."""
    split, limit = (getattr(arguments, name) for name in (f"{role}_split", f"max_{role}_samples"))
    source.check_split(split, f"--{role}_split")
    if source.features is not None:  # before the download, so that a typo costs none
        find_columns(source.features, arguments)
    rows = source.stream(split) if arguments.streaming else source.read(split)
    if rows.features is None:
        raise DataError(
            f"The files of dataset {source.name!r} do not say which columns they have, so they "
            "cannot be streamed: leave out `--streaming`."
        )
    image_column, label_column = find_columns(rows.features, arguments)
    kind = rows.features.get(label_column)
    if not has_names(kind):
        label_names = getattr(kind, "names", None)
    elif label_names is None:
        label_names = collect_names(rows, label_column)
    count = source.splits[split] if arguments.streaming else len(rows)
    if limit is not None:
        count = limit if count is None else min(limit, count)
        rows = rows.take(count)
    rows = rows.select_columns([column for column in (image_column, label_column) if column])
    kind = rows.features[image_column]
    if isinstance(kind, datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    if arguments.streaming:
        rows = rows.map(lambda row, number: {ROW_NUMBER: number}, with_indices=True)
    given = {"resize_mode": arguments.resize_mode, "background": arguments.background}.items()
    decoder = RowDecoder(
        split,
        image_column,
        label_column,
        label_names,
        image_processor_for(config, **{name: value for name, value in given if value is not None}),
        source.files,
        getattr(kind, "mode", None),
    )
    return _Split(rows, count, decoder)


def describe_source(source: Source, arguments: DataArguments, decoder: RowDecoder) -> dict[str, Any]:
    """Return what run.json says of a dataset, whatever the split."""
    return {
        "name": source.name,
        "kind": source.kind,
        "config": arguments.dataset_config_name,
        "revision": source.revision,
        "license": source.license,
        "image_column": decoder.image_column,
        "label_column": decoder.label_column,
        "label_names": decoder.label_names,
    }


def _decode_first(images: StreamedImages, labels: list[int], modes: list[str | None]) -> Iterator[Tensor]:
    """Decode the first rows of a stream to uint8 (C, H, W); append their labels, if any, and modes to the lists."""
    for row in islice(images.rows, VARIANCE_ROWS):
        pixels, label, mode = images.decoder.decode(row, row[ROW_NUMBER])
        modes.append(mode)
        if images.decoder.label_column is not None:
            labels.append(label)
        yield torch.from_numpy(pixels)


def _variance(pixels: Iterable[Tensor], split: str, digest: Any) -> float:
    """Compute the population variance of uint8 `pixels` on the [0, 1] scale, from exact counts; hash them too."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in pixels:
        digest.update(part.contiguous().numpy())
        counts += torch.bincount(part.flatten(), minlength=256)
    if not counts.any():
        raise DataError(f"Split {split!r} is empty: name another.")
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    shares = counts.double() / counts.sum()
    variance = (shares * (values - (shares * values).sum()) ** 2).sum().item()
    if (counts > 0).sum() == 1:
        raise DataError(
            f"All pixels of split {split!r} are equal, so there is nothing to learn: name another "
            "split or image column."
        )
    return variance
