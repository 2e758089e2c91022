"""Decode rows of a dataset to pixels, and hold decoded images in memory."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from PIL import UnidentifiedImageError
from torch import Tensor

from ..distributed import available_memory
from ..models.configuration_utils import MAX_CLASSES, shown
from ..models.configuration_vqvae import VQVAEConfig, as_pair
from ..models.image_processing_vqvae import VQVAEImageProcessorPil
from .image_files import decode_image
from .sources import DataError, is_own_file

UNKNOWN_LABEL = -1
MAX_NAME = 1000  # characters of the name of a class
ROWS_PER_BATCH = 1024
# Per thread: few enough to spread large images, many enough to hide the overhead.
ROWS_PER_TASK = 64


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
        config: images are resized to its `image_size` and must have its `num_channels`.
        files: prefixes of the paths that a row without the bytes of its image may name.

    Raises:
        DataError: if `label_names` cannot be written to a config or a card.
    """

    split: str
    image_column: str
    label_column: str | None
    label_names: list[str] | None
    config: VQVAEConfig
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.label_names or []:
            # Other types and invalid Unicode could not be saved at the end of training.
            is_text = isinstance(name, str) and not re.search("[\ud800-\udfff]", name)
            if not is_text or len(name) > MAX_NAME:
                raise DataError(
                    f"Column {self.label_column!r} has the class name {shown(name)}: names must be "
                    f"texts of at most {MAX_NAME} characters. Rename the classes, or cast the column "
                    "to whole numbers."
                )

    def decode(self, row: dict[str, Any], number: int) -> tuple[np.ndarray, int]:
        """Decode a row to pixels uint8 (C, H, W) and a label; errors name the row by `number`."""
        cell = row[self.image_column]
        where = f"row {number} of split {self.split!r}"
        if cell is None:
            raise DataError(f"There is no image in {where}: remove the row, or fill it in.")
        try:
            if cell["bytes"] is None and not is_own_file(cell["path"], self.files):
                # It may name any file of this machine or address of the network.
                raise DataError(
                    f"is only named in the row, as {cell['path']!r}, which is no file of the dataset: "
                    "put the images themselves into the rows, or the files into the folder."
                )
            pixels = decode_image(cell, self.config)
        except Exception as error:  # decoders raise errors of any type for a broken file
            file = f", file {PurePath(cell['path']).name}" if cell.get("path") else ""
            if not isinstance(error, DataError):
                # For an unknown format the message of PIL is only the address of a buffer.
                unknown = isinstance(error, UnidentifiedImageError)
                reason = "no image format of PIL" if unknown else error
                error = f"cannot be decoded ({reason}): mend or remove it."
            raise DataError(f"The image in {where}{file} {error}") from None
        return pixels, self._label(row, where)

    def decode_streamed(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Decode a row to `pixel_values` float32 (C, H, W) and, if any, `labels`."""
        pixels, label = self.decode(row, number)
        example = {"pixel_values": scale_pixels(torch.from_numpy(pixels))}
        return example if self.label_column is None else example | {"labels": label}

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


def scale_pixels(pixels: Tensor) -> Tensor:
    """Scale uint8 in [0, 255] to float32 in [-0.5, 0.5], as the image processor does."""
    return pixels.float().div_(255).sub_(0.5)


def to_8_bits(images: Tensor) -> np.ndarray:
    """Float (N, C, H, W) on [-0.5, 0.5] to uint8 (N, H, W, C), as images are saved."""
    return (VQVAEImageProcessorPil().postprocess(images, "np") * 255).round().astype(np.uint8)


def as_saved(images: Tensor) -> Tensor:
    """As [`to_8_bits`], but a tensor, uint8 (N, C, H, W)."""
    return torch.from_numpy(to_8_bits(images)).permute(0, 3, 1, 2)


class DecodedImages(torch.utils.data.Dataset):
    """Images in memory, 8 bits per value; `__getitems__` returns whole batches, so there is nothing to collate.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), -1 where the class is unknown, or `None`.

    Raises:
        ValueError: if a type or shape differs.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        for name, value in {
            "images": images,
            "labels": images if labels is None else labels,
        }.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"`{name}` must be a tensor, got {type(value).__name__}.")
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"`images` must be uint8 of shape (N, C, H, W), got {images.dtype} of shape "
                f"{tuple(images.shape)}."
            )
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
            raise ValueError(
                f"`labels` must be int64 of shape ({len(images)},), one for each image, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}."
            )
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return `pixel_values` (C, H, W) and, if any, `labels` ()."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return `pixel_values` float32 (B, C, H, W) in [-0.5, 0.5] and, if any, `labels` int64 (B,)."""
        rows = torch.as_tensor(indices)
        batch = {"pixel_values": scale_pixels(self.images[rows])}
        return batch if self.labels is None else batch | {"labels": self.labels[rows]}


def check_memory(count: int, decoder: RowDecoder) -> None:
    """Raise `DataError` if `count` decoded images do not fit into memory."""
    config = decoder.config
    height, width = as_pair(config.image_size)
    needed = count * config.num_channels * height * width
    # Half, because training needs memory too; each process of the machine holds its own copy.
    limit = available_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if needed > limit:
        raise DataError(
            f"The {count:,} images of split {decoder.split!r} take {needed / 2**30:,.1f} GiB "
            f"decoded to {config.num_channels}x{height}x{width}, more than the "
            f"{limit / 2**30:,.1f} GiB that a process may fill: take fewer (`--max_train_samples`, "
            "`--max_eval_samples`), or decode training images as they are read (`--streaming`)."
        )


def decode_rows(
    rows: datasets.Dataset | datasets.IterableDataset, count: int | None, decoder: RowDecoder
) -> DecodedImages:
    """Decode all `rows` into memory, in their order.

    Args:
        count: number of rows, `None` for a stream of unknown length.

    Raises:
        DataError: if a row cannot be decoded (the first is named), or there are none, or too many for memory.
    """
    capacity = ROWS_PER_BATCH if count is None else count
    check_memory(capacity, decoder)
    shape = (decoder.config.num_channels, *as_pair(decoder.config.image_size))
    images = np.empty((capacity, *shape), np.uint8)
    labels = np.empty(capacity, np.int64)
    done = 0

    def fill(start: int, part: list[tuple]) -> None:
        for number, cells in enumerate(part, start):
            row = dict(zip(columns, cells, strict=True))
            images[number], labels[number] = decoder.decode(row, number)

    bar = tqdm(
        desc=f"Decoding {decoder.split}",
        total=count,
        unit="img",
        disable=os.environ.get("LOCAL_RANK", "0") != "0",
    )
    # Decoders release the GIL, so threads speed up large images; small ones gain little.
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for batch in rows.iter(batch_size=ROWS_PER_BATCH):
            columns, table = list(batch), list(zip(*batch.values(), strict=True))
            # A stream may be longer than declared, or of unknown length.
            while done + len(table) > len(images):
                check_memory(2 * len(images), decoder)
                images.resize((2 * len(images), *shape), refcheck=False)
                labels.resize(len(images), refcheck=False)
            starts = range(0, len(table), ROWS_PER_TASK)
            parts = [table[start : start + ROWS_PER_TASK] for start in starts]
            # Results are taken in order, so that the first bad row is the one that is named.
            list(pool.map(fill, [done + start for start in starts], parts))
            done += len(table)
            bar.update(len(table))
    if not done:
        raise DataError(f"Split {decoder.split!r} is empty: name another.")
    kept_labels = None if decoder.label_column is None else torch.from_numpy(labels[:done])
    return DecodedImages(torch.from_numpy(images[:done]), kept_labels)
