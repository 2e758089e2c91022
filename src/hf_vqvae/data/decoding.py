"""Decode rows of a dataset to pixels, and hold decoded images in memory."""

import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import torch
from torch import Tensor

from ..command_line import is_first_process, progress_bar
from ..distributed import available_memory
from ..models.image_processing_vqvae import MODES, VQVAEImageProcessorPil
from .rows import RowDecoder, scale_pixels
from .sources import DataError

ROWS_PER_BATCH = 1024
# Per thread: few enough to spread large images, many enough to hide the overhead.
ROWS_PER_TASK = 64


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
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None):
        self.images, self.labels = images, labels

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
    channels, height, width = decoder.shape
    needed = count * channels * height * width
    # Half, because training needs memory too; each process of the machine holds its own copy.
    limit = available_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if needed > limit:
        raise DataError(
            f"The {count:,} images of split {decoder.split!r} take {needed / 2**30:,.1f} GiB "
            f"decoded to {channels}x{height}x{width}, more than the "
            f"{limit / 2**30:,.1f} GiB that a process may fill: take fewer (`--max_train_samples`, "
            "`--max_eval_samples`), or decode training images as they are read (`--streaming`)."
        )


def report_conversions(modes: list[str | None], decoder: RowDecoder) -> None:
    """Print how many images were converted to `num_channels`, given the modes that `decoder` returned for them."""
    converted = Counter(mode for mode in modes if mode is not None)
    if converted and is_first_process():
        channels = decoder.processor.num_channels
        kinds = ", ".join(f"{count:,} {mode}" for mode, count in converted.most_common())
        print(
            f"Of {len(modes):,} images of split {decoder.split!r}, {converted.total():,} are converted to "
            f"{MODES[channels]} (--num_channels {channels}): {kinds}. Transparent pixels become "
            f"{decoder.processor.background} (--background).",
            file=sys.stderr,
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
    shape = decoder.shape
    images = np.empty((capacity, *shape), np.uint8)
    labels = np.empty(capacity, np.int64)
    done, modes = 0, []

    def fill(start: int, part: list[tuple]) -> list[str | None]:
        modes = []
        for number, cells in enumerate(part, start):
            row = dict(zip(columns, cells, strict=True))
            images[number], labels[number], mode = decoder.decode(row, number)
            modes.append(mode)
        return modes

    bar = progress_bar(desc=f"Decoding {decoder.split}", total=count, unit="img")
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
            for part in pool.map(fill, [done + start for start in starts], parts):
                modes += part
            done += len(table)
            bar.update(len(table))
    if not done:
        raise DataError(f"Split {decoder.split!r} is empty: name another.")
    report_conversions(modes, decoder)
    kept_labels = None if decoder.label_column is None else torch.from_numpy(labels[:done])
    return DecodedImages(torch.from_numpy(images[:done]), kept_labels)


def shift_images(images: Tensor, shifts: Tensor, radius: int) -> Tensor:
    """Shift images (B, C, H, W) up and left by `shifts` (B, 2), integers in [-radius, radius]; edges are repeated."""
    height, width = images.shape[2:]
    # As floats, because not all backends pad bytes.
    padded = torch.nn.functional.pad(images.float(), (radius,) * 4, mode="replicate").to(images.dtype)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2r+1, 2r+1, H, W)
    rows, columns = (shifts + radius).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, rows, columns]
