"""Load the training and evaluation splits: images decoded into memory, or a stream."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor

from ..arguments import DataArguments
from ..models.configuration_vqvae import VQVAEConfig
from .decoding import ROWS_PER_BATCH, DecodedImages, RowDecoder, check_memory, decode_rows
from .sources import DataError, Source, open_source

VARIANCE_ROWS = 10_000
# `datasets` takes these names of split folders for classes where a folder of images has no folders of classes.
SPLIT_FOLDERS = {"train", "training", "validation", "valid", "val", "dev"}
SPLIT_FOLDERS |= {"test", "testing", "eval", "evaluation"}
# Columns that are taken for labels by their names, where no column is declared to have classes.
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target")
NAMES = (
    "string",
    "large_string",
    "bool",
)  # dtypes of columns that have names of classes, not numbers
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
        return self.decoder.decode_streamed(row, row[ROW_NUMBER])


@dataclass
class ImageSplits:
    """Training and evaluation images of a run.

    Args:
        train: images in memory, or a stream.
        eval: images in memory.
        info: description of the dataset for `run.json` and the card. `train_count` is `None` for a
            stream of unknown length. `fingerprint` depends on all pixels and labels (of a stream,
            on those of its first 10,000 rows).
        data_variance: population variance of the training pixels on the [0, 1] scale; of a stream,
            of its first 10,000 rows.
    """

    train: DecodedImages | StreamedImages
    eval: DecodedImages
    info: dict[str, Any]
    data_variance: float

    def __str__(self) -> str:
        """One line: which columns are used for what."""
        labels, names = self.info["label_column"], self.info["label_names"]
        used = f"Dataset {self.info['name']!r}: images from column {self.info['image_column']!r}, "
        if labels is None:
            return used + "no labels (`--label_column` names a column of classes)."
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


def load_images(arguments: DataArguments, config: VQVAEConfig) -> ImageSplits:
    """Load the training and the evaluation split, at the size and with the channels of `config`.

    Both are opened and checked before any image is decoded. An empty cell of labels becomes -1, as
    hidden classes on the Hub are.

    Raises:
        DataError: if a split or column is missing or empty, or the images do not fit `config` or
            memory; see also [`open_source`] and [`decode_image`].
    """
    source = open_source(arguments)
    source.check_split(arguments.train_split, "--train_split")
    source.check_split(arguments.eval_split, "--eval_split")
    train = _open_split(source, arguments, config, "train")
    evaluation = _open_split(source, arguments, config, "eval", train.decoder.label_names)
    if not arguments.streaming:
        check_memory(train.count, train.decoder)
    eval_images = decode_rows(evaluation.rows, evaluation.count, evaluation.decoder)
    if arguments.streaming:
        train_images = StreamedImages(train.rows.map(_numbered, with_indices=True), train.decoder)
        labels: list[int] = []
        pixels = _decode_first(train_images, labels)
    else:
        train_images = decode_rows(train.rows, train.count, train.decoder)
        pixels = train_images.images.split(ROWS_PER_BATCH)
    digest = hashlib.sha256()
    variance = _variance(pixels, train.decoder.split, digest)
    train_labels = torch.tensor(labels) if arguments.streaming else train_images.labels
    for part in (*eval_images.images.split(ROWS_PER_BATCH), eval_images.labels, train_labels):
        if part is not None:
            digest.update(part.contiguous().numpy())
    counts = {"train_count": train.count, "eval_count": len(eval_images)}
    splits = {"train_split": arguments.train_split, "eval_split": arguments.eval_split}
    info = _describe(source, arguments, train.decoder) | splits | counts
    info |= {"fingerprint": digest.hexdigest()}
    return ImageSplits(train_images, eval_images, info, variance)


def load_split(
    arguments: DataArguments,
    config: VQVAEConfig,
    role: str,
    label_names: list[str] | None = None,
) -> tuple[DecodedImages, dict[str, Any]]:
    """Load one split as [`load_images`] does, into memory.

    Args:
        role: "train" or "eval".
        label_names: the classes of a column of names, such as those of a model; by default those of this split.

    Returns:
        The images, and the description of the dataset as in `run.json`, with `split` and `count`.
    """
    split = getattr(arguments, f"{role}_split")
    source = open_source(arguments)
    source.check_split(split, f"--{role}_split")
    opened = _open_split(source, arguments, config, role, label_names)
    images = decode_rows(opened.rows, opened.count, opened.decoder)
    info = _describe(source, arguments, opened.decoder)
    return images, info | {"split": split, "count": len(images)}


def _open_split(
    source: Source,
    arguments: DataArguments,
    config: VQVAEConfig,
    role: str,
    label_names: list[str] | None = None,
) -> _Split:
    """Open a split, limited to `max_*_samples` rows and to the columns in use; arguments as of [`load_split`]."""
    split = getattr(arguments, f"{role}_split")
    limit = getattr(arguments, f"max_{role}_samples")
    if source.features is not None:  # before the download, so that a typo costs none
        _find_columns(source.features, arguments)
    rows = source.stream(split) if arguments.streaming else source.read(split)
    if rows.features is None:
        raise DataError(
            f"The files of dataset {source.name!r} do not say which columns they have, so they "
            "cannot be streamed: leave out `--streaming`."
        )
    image_column, label_column = _find_columns(rows.features, arguments)
    kind = rows.features.get(label_column)
    if not _has_names(kind):
        label_names = getattr(kind, "names", None)
    elif label_names is None:
        label_names = _collect_names(rows, label_column)
    count = source.splits[split] if arguments.streaming else len(rows)
    if limit is not None:
        count = limit if count is None else min(limit, count)
        rows = rows.take(count)
    rows = rows.select_columns([column for column in (image_column, label_column) if column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    decoder = RowDecoder(split, image_column, label_column, label_names, config, files=source.files)
    return _Split(rows, count, decoder)


def _find_columns(features: datasets.Features, arguments: DataArguments) -> tuple[str, str | None]:
    """Return the names of the image column and, if there is one, of the label column."""
    image_column, label_column = arguments.image_column, arguments.label_column
    for flag, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in (None, "none", *features):
            raise DataError(
                f"`{flag} {column}`: there is no such column, there are {', '.join(map(repr, features))}."
            )
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image_column = image_column or _only(images, "image", features)
    if image_column not in images:
        raise DataError(
            f"Column {image_column!r} has no images but {features[image_column]}: name an image "
            f"column with `--image_column`; here these are {images}."
        )
    return image_column, _find_labels(features, label_column)


def _find_labels(features: datasets.Features, label_column: str | None) -> str | None:
    if label_column == "none" and label_column not in features:
        return None
    if label_column is None:
        classes = [
            name
            for name, kind in features.items()
            if isinstance(kind, datasets.ClassLabel)
            and not SPLIT_FOLDERS.issuperset(map(str, kind.names))
        ]
        if classes:
            return _only(classes, "label", features)
        named = {name.lower(): name for name, kind in features.items() if _has_labels(kind)}
        return next((named[name] for name in LABEL_COLUMNS if name in named), None)
    kind = features[label_column]
    if not _has_labels(kind) and not isinstance(kind, datasets.ClassLabel):
        raise DataError(
            f"Column {label_column!r} has no class labels but {kind}: name another with "
            "`--label_column`, or `none`."
        )
    return label_column


def _has_names(kind: Any) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype in NAMES


def _has_labels(kind: Any) -> bool:
    """Return whether a column without declared classes has numbers (checked row by row) or names."""
    numbers = isinstance(kind, datasets.Value) and ("int" in kind.dtype or "float" in kind.dtype)
    return numbers or _has_names(kind)


def _collect_names(rows: datasets.Dataset | datasets.IterableDataset, column: str) -> list[str]:
    """Return the names of the classes in a column, in sorted order."""
    if rows.features[column].dtype == "bool":
        return ["False", "True"]
    if isinstance(rows, datasets.IterableDataset):
        raise DataError(
            f"Column {column!r} has texts, and which classes there are is only known once all rows are read: leave "
            "out `--streaming`, or the labels (`--label_column none`)."
        )
    return sorted(set(rows.select_columns([column]).unique(column)) - {None})


def _only(candidates: list[str], kind: str, features: datasets.Features) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise DataError(
            f"Columns {', '.join(map(repr, candidates))} all have {kind}s: say which with "
            f"`--{kind}_column`."
        )
    raise DataError(
        f"No column has {kind}s; there are {features}. A column of pixels as lists can be cast "
        "with `datasets` (`cast_column(name, datasets.Image())`) and saved as parquet."
    )


def _describe(source: Source, arguments: DataArguments, decoder: RowDecoder) -> dict[str, Any]:
    return {
        "name": source.name,
        "kind": source.kind,
        "config": arguments.dataset_config_name,
        "revision": source.revision,
        "image_column": decoder.image_column,
        "label_column": decoder.label_column,
        "label_names": decoder.label_names,
        "load_command": source.load_command,
    }


def _numbered(row: dict[str, Any], number: int) -> dict[str, int]:
    return {ROW_NUMBER: number}


def _decode_first(images: StreamedImages, labels: list[int]) -> Iterator[Tensor]:
    """Decode the first rows of a stream to uint8 (C, H, W), and append their labels, if any, to `labels`."""
    for row in islice(images.rows, VARIANCE_ROWS):
        pixels, label = images.decoder.decode(row, row[ROW_NUMBER])
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
