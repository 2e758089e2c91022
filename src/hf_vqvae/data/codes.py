"""Encode images to codes once, for all epochs of the prior, and read them from disk."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..arguments import TrainingArguments
from ..files import atomic_replace
from ..models import VQVAEModel
from .decoding import DecodedImages
from .splits import StreamedImages


class CodesDataset(Dataset):
    """Grids of codes, in memory or, opened by [`load`], on disk.

    Args:
        codes: (N, h, w) integers.
        labels: (N,) int64, or None.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None):
        self._set_parts([codes.numpy()], None if labels is None else [labels.numpy()])

    def _set_parts(self, codes: list[np.ndarray], labels: list[np.ndarray] | None) -> None:
        self._codes, self._labels = codes, labels
        # First row of each part, and the end of the last part.
        self._starts = np.cumsum([0, *map(len, codes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a batch: `codes` (B, h, w) int64 and, if any, `labels` (B,)."""
        rows = np.asarray(indices)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        places = list(zip(parts.tolist(), (rows - self._starts[parts]).tolist(), strict=True))
        codes = np.empty((len(rows), *self._codes[0].shape[1:]), np.int64)
        for number, (part, row) in enumerate(places):
            codes[number] = self._codes[part][row]
        batch = {"codes": torch.from_numpy(codes)}
        if self._labels is not None:
            labels = np.array([self._labels[part][row] for part, row in places], np.int64)
            batch["labels"] = torch.from_numpy(labels)
        return batch

    @property
    def largest_label(self) -> int | None:
        """Largest label; -1 if no row has one, None without labels."""
        if self._labels is None:
            return None
        return max(int(part.max()) for part in self._labels)

    @classmethod
    def load(cls, folder: Path) -> "CodesDataset":
        """Open the codes that [`encode_split`] wrote; batches are read from the memory-mapped file.

        For 256 random rows of 7x7 codes this takes 0.2 ms, indexing the `datasets` dataset 20 ms.
        """
        table = datasets.load_from_disk(str(folder), keep_in_memory=False)
        shape = table.features["codes"].shape
        codes = [
            part.storage.flatten().flatten().to_numpy().reshape(-1, *shape)
            for part in table.data.column("codes").chunks
        ]
        labels = None
        if "label" in table.column_names:
            labels = [part.to_numpy() for part in table.data.column("label").chunks]
        opened = cls.__new__(cls)
        opened._set_parts(codes, labels)
        return opened


@torch.inference_mode()
def encode_split(
    vqvae: VQVAEModel,
    images: DecodedImages | StreamedImages,
    name: str,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    folder: Path,
) -> CodesDataset:
    """Encode a split once and store its codes in `codes/<name>` of `folder`.

    All processes encode; the main process writes. The codes and their order depend neither on the number of processes
    nor on whether the images are a stream, and at most one batch per process is in memory at a time.
    """
    path = folder / "codes" / name
    if not path.exists():
        streamed = isinstance(images, StreamedImages)
        labels = images.decoder.label_column if streamed else images.labels
        features = datasets.Features(codes=datasets.Array2D(tuple(vqvae.config.grid_size), "int32"))
        if labels is not None:
            features["label"] = datasets.Value("int64")
        batch_size = arguments.eval_batch_size
        rounds = (_streamed_rounds if streamed else _rounds)(images, accelerator, batch_size)
        total = None if streamed else len(images)
        with tqdm(total=total, desc=f"encode {name}", leave=False) as bar:
            encoded = _encode(vqvae, rounds, list(features), batch_size, accelerator, bar)
            if accelerator.is_main_process:
                path.parent.mkdir(exist_ok=True)
                _write(encoded, path, features)
            else:
                for _ in encoded:
                    pass
    # Outside of the condition: a process that is late may find the codes written.
    accelerator.wait_for_everyone()
    return CodesDataset.load(path)


Round = tuple[dict[str, Tensor], int]


def _rounds(images: DecodedImages, accelerator: Accelerator, batch_size: int) -> Iterator[Round]:
    """In each round, return the batch of this process, which may be empty, and the rows of all processes."""
    together = batch_size * accelerator.num_processes
    local = slice(accelerator.process_index * batch_size, None)
    for start in range(0, len(images), together):
        rows = torch.arange(start, min(start + together, len(images)))
        yield images.__getitems__(rows[local][:batch_size]), len(rows)


def _streamed_rounds(
    images: StreamedImages, accelerator: Accelerator, batch_size: int
) -> Iterator[Round]:
    """As [`_rounds`]; only the main process reads, since the others would have to read all rows before theirs too."""
    together = batch_size * accelerator.num_processes
    local = slice(accelerator.process_index * batch_size, None)
    # Its own generator: the global one must be the same afterwards whether or not the codes existed.
    loader = DataLoader(images, batch_size=together, generator=torch.Generator())
    batches = iter(loader) if accelerator.is_main_process else None
    while True:
        batch = next(batches, None) if accelerator.is_main_process else None
        (batch,) = broadcast_object_list([batch])
        if batch is None:
            return
        local_batch = {key: value[local][:batch_size] for key, value in batch.items()}
        yield local_batch, len(batch["pixel_values"])


def _encode(
    vqvae: VQVAEModel,
    rounds: Iterable[Round],
    columns: list[str],
    batch_size: int,
    accelerator: Accelerator,
    bar: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """Encode each round and gather its `columns` from all processes, in the order of the dataset."""
    for batch, count in rounds:
        pixel_values = batch["pixel_values"].to(accelerator.device)
        values = {"label": batch.get("labels")}
        if len(pixel_values):
            values["codes"] = vqvae.encode(pixel_values).codes
        gathered = {}
        for name in columns:
            shape = vqvae.config.grid_size if name == "codes" else ()
            # Short batches are the last ones of a round, so that [:count] cuts off all padding.
            padded = torch.zeros((batch_size, *shape), dtype=torch.long, device=accelerator.device)
            if len(pixel_values):
                padded[: len(pixel_values)] = values[name]
            gathered[name] = accelerator.gather(padded)[:count].cpu().numpy()
        yield gathered
        bar.update(count)


def _write(
    batches: Iterable[dict[str, np.ndarray]], folder: Path, features: datasets.Features
) -> None:
    """Write a `datasets` dataset batch by batch, atomically."""
    rows = folder.with_name(f"{folder.name}.arrow.writing")
    writing = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    digests = {name: hashlib.sha256() for name in features}
    with ArrowWriter(path=str(rows), features=features) as writer:
        for columns in batches:
            for name, values in columns.items():
                digests[name].update(values)
            columns["codes"] = columns["codes"].astype(np.int32)
            writer.write_batch(columns)
        writer.finalize()
    # `save_to_disk` copies the rows, 1,000 at a time, to the format that `load_from_disk` reads.
    table = datasets.Dataset.from_file(str(rows)).data
    # The default fingerprint depends on the time of the file; this one makes equal codes equal folders.
    fingerprint = "".join(digest.hexdigest()[:32] for digest in digests.values())
    datasets.Dataset(table, fingerprint=fingerprint).save_to_disk(str(writing))
    rows.unlink()
    atomic_replace(writing, folder)
