"""Find the columns of images and labels of a dataset, and decode its rows."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import PurePath
from typing import Any

import datasets
import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image
from torch import Tensor

from ..arguments import DataArguments
from ..models.configuration_utils import MAX_CLASSES, shown
from ..models.image_processing_vqvae import MODES, VQVAEImageProcessorPil, read_image
from ..models.input_checks import require
from .sources import DataError, is_own_file

UNKNOWN_LABEL = -1
# `datasets` takes these names of split folders for classes where a folder of images has no folders of classes.
SPLIT_FOLDERS = {"train", "training", "validation", "valid", "val", "dev"}
SPLIT_FOLDERS |= {"test", "testing", "eval", "evaluation"}
# Columns that are taken for labels by their names, where no column is declared to have classes.
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target")
NAMES = ("string", "large_string", "bool")  # dtypes of columns of names of classes, not numbers


def find_columns(features: datasets.Features, arguments: DataArguments) -> tuple[str, str | None]:
    """Return the names of the image column and, if there is one, of the label column."""
    image_column, label_column = arguments.image_column, arguments.label_column
    for flag, column in (("--image_column", image_column), ("--label_column", label_column)):
        if column not in (None, "none", *features):
            raise DataError(f"`{flag} {column}`: there is no such column, there are {_listed(features)}.")
    images = [name for name, kind in features.items() if can_be_image(kind)]
    declared = [name for name in images if isinstance(features[name], datasets.Image)]
    image_column = image_column or _only(declared or images, "image", features)
    if image_column not in images:
        raise DataError(
            f"Column {image_column!r} has no images but {shown(features[image_column])}: name an image "
            f"column with `--image_column`; here these are {_listed(images) or 'none'}."
        )
    return image_column, _find_labels(features, label_column)


def _find_labels(features: datasets.Features, label_column: str | None) -> str | None:
    if label_column == "none" and label_column not in features:
        return None
    if label_column is None:
        classes = [
            name
            for name, kind in features.items()
            if isinstance(kind, datasets.ClassLabel) and not SPLIT_FOLDERS.issuperset(map(str, kind.names))
        ]
        if classes:
            return _only(classes, "label", features)
        named = {name.lower(): name for name, kind in features.items() if _has_labels(kind)}
        return next((named[name] for name in LABEL_COLUMNS if name in named), None)
    kind = features[label_column]
    if not _has_labels(kind) and not isinstance(kind, datasets.ClassLabel):
        raise DataError(
            f"Column {label_column!r} has no class labels but {kind}: name another with `--label_column`, or `none`."
        )
    return label_column


def has_names(kind: Any) -> bool:
    """Return whether the cells of a column with this `datasets` feature are names of classes: texts or truth values."""
    return isinstance(kind, datasets.Value) and kind.dtype in NAMES


def _has_labels(kind: Any) -> bool:
    """Return whether a column without declared classes has numbers (checked row by row) or names."""
    numbers = isinstance(kind, datasets.Value) and ("int" in kind.dtype or "float" in kind.dtype)
    return numbers or has_names(kind)


def collect_names(rows: datasets.Dataset | datasets.IterableDataset, column: str) -> list[str]:
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
        raise DataError(f"Columns {_listed(candidates)} all have {kind}s: say which with `--{kind}_column`.")
    raise DataError(
        f"No column has images; there are {_listed(features)}. Images are files (`datasets.Image`, or their bytes), or "
        "pixels in arrays or nested lists."
    )


def _listed(names: Collection[str]) -> str:
    first = ", ".join(map(repr, islice(names, 5)))
    return first + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def can_be_image(feature: Any) -> bool:
    """Return whether the cells of a column with this `datasets` feature can be decoded to images.

    They can if they are `datasets.Image`, encoded files (`bytes`, or a struct of `bytes` and `path`, as pandas writes
    it), or pixels: `Array2D`, `Array3D`, or numbers in lists of two or three levels.
    """
    if isinstance(feature, datasets.Image | datasets.Array2D | datasets.Array3D):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    if isinstance(feature, datasets.Value):
        return "binary" in feature.dtype
    levels = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, levels = feature.feature, levels + 1
    is_number = isinstance(feature, datasets.Value) and re.match("u?int|float", feature.dtype)
    return levels in (2, 3) and bool(is_number)


@dataclass(frozen=True)
class RowDecoder:
    """Decoder of the rows of one split; cheap to copy to worker processes.

    Args:
        split: name of the split, for messages.
        image_column, label_column: names; `label_column` is `None` without labels.
        label_names: names of the classes, or `None` where the dataset has none.
        processor: converts images to its `num_channels` and `size`, as it does when the model is used.
        files: prefixes of the paths that a row without the bytes of its image may name.
        mode: mode of PIL that the dataset declares for its images (`datasets.Image(mode=...)`).
        original: width and height that all images must have, or `None`.

    Raises:
        ValueError: if `processor` scales to other values.
    """

    split: str
    image_column: str
    label_column: str | None
    label_names: list[str] | None
    processor: VQVAEImageProcessorPil
    files: tuple[str, ...] = ()
    mode: str | None = None
    original: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"):
            value, usual = (getattr(one, name) for one in (self.processor, VQVAEImageProcessorPil))
            rule = f"{usual} for the scripts, which scale images to [-0.5, 0.5] (transformers.Trainer takes any scale)"
            require(set(np.ravel(value)) == {usual}, f"preprocessor_config.json: {name}", value, rule)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of decoded images."""
        size = self.processor.size
        return self.processor.num_channels, size.height, size.width

    def decode(self, row: dict[str, Any], number: int) -> tuple[np.ndarray, int, str | None]:
        """Decode a row to pixels uint8 (C, H, W), a label, and the mode of the image if it is converted to another.

        Errors name the row by `number`.
        """
        cell = row[self.image_column]
        where = f"row {number} of split {self.split!r}"
        if cell is None:
            raise DataError(f"There is no image in {where}: remove the row, or fill it in.")
        try:
            image = self.open_image(cell)
            pixels = self.processor.process_image(image)
        except Exception as error:  # decoders raise errors of any type for a broken file
            path = isinstance(cell, dict) and cell.get("path")
            file = f", file {PurePath(path).name}" if path else ""
            raise DataError(f"The image in {where}{file} cannot be decoded ({error}): mend or remove it.") from None
        if self.original not in (None, image.size):
            sizes = " and ".join("{1}x{0}".format(*size) for size in (image.size, self.original))
            raise DataError(f"The image in {where} and the first one have {sizes} pixels: set one `--image_size`.")
        is_converted = image.mode != MODES[self.processor.num_channels]
        return pixels, self._label(row, where), image.mode if is_converted else None

    def open_image(self, cell: Any) -> Image.Image:
        """Open the image of a cell of a column that [`can_be_image`]."""
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell["bytes"]
            if cell is None:
                if not is_own_file(path, self.files):
                    # It may name any file of this machine or address of the network.
                    raise ValueError(
                        f"the row only names it, as {path!r}, which is no file of the dataset: put the images "
                        "themselves into the rows, or the files into the folder"
                    )
                with xopen(path, "rb") as file:  # possibly on the Hub or within an archive
                    cell = file.read()
        if not isinstance(cell, bytes):
            return _to_image(cell)
        image = read_image(cell)
        # The modes I and F would add bits to 8, and no values.
        return image.convert(self.mode) if self.mode and self.mode[0] not in "IF" else image

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Classes by their names, for columns of names."""
        return {name: number for number, name in enumerate(self.label_names or ())}

    def _label(self, row: dict[str, Any], where: str) -> int:
        label = None if self.label_column is None else row[self.label_column]
        if self.label_names is not None and isinstance(label, str | bool):
            if str(label) not in self._numbers:
                raise DataError(
                    f"The label in {where} is {shown(label)}, which is not among the classes "
                    f"{shown(self.label_names)} of the training split or the model: correct it, empty the cell "
                    "if the class is unknown, or leave out all labels (`--label_column none`)."
                )
            return self._numbers[str(label)]
        if label is None or label != label:  # pandas writes NaN into empty cells
            label = UNKNOWN_LABEL
        if isinstance(label, float) and label.is_integer():  # and with it floats for all numbers
            label = int(label)
        # Without names, the largest label determines the number of classes.
        count = len(self.label_names) if self.label_names else MAX_CLASSES
        is_whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not is_whole or not UNKNOWN_LABEL <= label < count:
            raise DataError(
                f"The label in {where} is {shown(label)}: column {self.label_column!r} must have "
                f"the numbers of classes, 0 to {count - 1}, or {UNKNOWN_LABEL} where the class is "
                "unknown. Name another column with `--label_column`, or `none`."
            )
        return int(label)


def _to_image(pixels: Any) -> Image.Image:
    """Make an image of 8-bit values, in arrays or nested lists (H, W), (H, W, C) or (C, H, W)."""
    array = np.asarray(pixels)
    # Where both ends could be channels, they are the first, as for the image processor.
    if array.ndim == 3 and (array.shape[0] in (1, 3, 4) or array.shape[-1] not in MODES):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in MODES):
        raise ValueError(f"its shape is {np.shape(pixels)}, and not (H, W), (H, W, C) or (C, H, W)")
    with np.errstate(invalid="ignore"):
        values = array.astype(np.uint8)
    is_scaled = array.dtype.kind == "f" and array.max() <= 1
    if not np.array_equal(values, array) or (is_scaled and array.any()):
        raise ValueError(
            f"its values are {array.dtype} from {array.min():g} to {array.max():g}, and not whole numbers from 0 to 255"
        )
    values = values * np.uint8(255) if array.dtype == bool else values
    return Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values)


def scale_pixels(pixels: Tensor) -> Tensor:
    """Scale uint8 in [0, 255] to float32 in [-0.5, 0.5], as the image processor does."""
    return pixels.float().div_(255).sub_(0.5)
