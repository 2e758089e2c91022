"""Images encoded to codes, once for all epochs of the prior."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..arguments import TrainingArguments
from ..files import atomic_replace
from ..models import VQVAEModel
from .decoding import DecodedImages
from .splits import StreamedImages


class CodesDataset(Dataset):
    """Grids of codes, in memory or, as [`load`] opens them, on disk.

    Args:
        codes: (N, h, w) integers.
        labels: (N,) int64, or None.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None):
        self._set_parts([codes.numpy()], None if labels is None else [labels.numpy()])

    def _set_parts(self, codes: list[np.ndarray], labels: list[np.ndarray] | None) -> None:
        self._codes, self._labels = codes, labels
        # Where each part begins, and the end of the last.
        self._starts = np.cumsum([0, *map(len, codes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch: `codes` (B, h, w) int64, and `labels` (B,) if there are labels."""
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
        """-1 where no row has one, None without labels."""
        if self._labels is None:
            return None
        return max(int(part.max()) for part in self._labels)

    @classmethod
    def load(cls, folder: Path) -> "CodesDataset":
        """Opens what [`encode_split`] wrote; a batch is read from disk when it is asked for.

        `datasets`' own access takes 20 ms for 256 random rows of 7x7 codes, this one 0.2 ms.
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
    """The codes of a split, encoded once and kept in `codes/<name>` of `folder`.

    All processes encode; the first one writes. The codes and their order depend neither on the number of processes nor
    on whether the images are a stream, and no more than a batch of each process is in memory at a time.
    """
    kept = folder / "codes" / name
    if not kept.exists():
        streamed = isinstance(images, StreamedImages)
        labelled = images.decoder.label_column if streamed else images.labels
        features = {"codes": datasets.Array2D(tuple(vqvae.config.grid_size), "int32")}
        if labelled is not None:
            features["label"] = datasets.Value("int64")
        rounds = (_streamed_rounds if streamed else _rounds)(
            images, accelerator, arguments.eval_batch_size
        )
        # Others than the first process do their part of each round, and have nothing to write.
        encoded = _encoded(vqvae, rounds, list(features), arguments.eval_batch_size, accelerator)
        total = None if streamed else len(images)
        hidden = not accelerator.is_main_process
        with tqdm(total=total, desc=f"encode {name}", leave=False, disable=hidden) as bar:
            shown = _shown(encoded, bar)
            if accelerator.is_main_process:
                kept.parent.mkdir(exist_ok=True)
                _write(shown, kept, datasets.Features(features))
            else:
                for _ in shown:
                    pass
    # Outside of the condition: a process that comes late may find the codes written.
    accelerator.wait_for_everyone()
    return CodesDataset.load(kept)


Round = tuple[dict[str, Tensor], int]


def _rounds(images: DecodedImages, accelerator: Accelerator, batch_size: int) -> Iterator[Round]:
    """Of a batch for each process at a time: this process's, which may be empty; and the rows of all of them."""
    together = batch_size * accelerator.num_processes
    own_rows = slice(accelerator.process_index * batch_size, None)
    for start in range(0, len(images), together):
        rows = torch.arange(start, min(start + together, len(images)))
        yield images.__getitems__(rows[own_rows][:batch_size]), len(rows)


def _streamed_rounds(
    images: StreamedImages, accelerator: Accelerator, batch_size: int
) -> Iterator[Round]:
    """As [`_rounds`]; the first process alone reads, since the order would cost the others the same reading."""
    together = batch_size * accelerator.num_processes
    own_rows = slice(accelerator.process_index * batch_size, None)
    # A generator of its own: that the codes were there already is to leave the global one as it would be.
    loader = DataLoader(images, batch_size=together, generator=torch.Generator())
    batches = iter(loader) if accelerator.is_main_process else None
    while True:
        batch = next(batches, None) if accelerator.is_main_process else None
        (batch,) = broadcast_object_list([batch])
        if batch is None:
            return
        own = {key: value[own_rows][:batch_size] for key, value in batch.items()}
        yield own, len(batch["pixel_values"])


def _encoded(
    vqvae: VQVAEModel,
    rounds: Iterable[Round],
    columns: list[str],
    batch_size: int,
    accelerator: Accelerator,
) -> Iterator[dict[str, np.ndarray]]:
    """The `columns` of each round, in the order of the dataset."""
    for batch, count in rounds:
        pixel_values = batch["pixel_values"].to(accelerator.device)
        found = {"label": batch.get("labels")}
        if len(pixel_values):
            found["codes"] = vqvae.encode(pixel_values).codes
        whole = {}
        for name in columns:
            shape = vqvae.config.grid_size if name == "codes" else ()
            # Short batches are the last ones of a round, so all that is added here is cut off behind them.
            own = torch.zeros((batch_size, *shape), dtype=torch.long, device=accelerator.device)
            if len(pixel_values):
                own[: len(pixel_values)] = found[name]
            whole[name] = accelerator.gather(own)[:count].cpu().numpy()
        yield whole


def _shown(encoded: Iterable[dict[str, np.ndarray]], bar: tqdm) -> Iterator[dict[str, np.ndarray]]:
    for columns in encoded:
        yield columns
        bar.update(len(columns["codes"]))


def _write(
    batches: Iterable[dict[str, np.ndarray]], folder: Path, features: datasets.Features
) -> None:
    """Writes a `datasets` dataset batch by batch, complete or not at all."""
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
    # Copied out of that file, 1,000 rows at a time, since the form in which it can be loaded is `datasets`' own.
    table = datasets.Dataset.from_file(str(rows)).data
    # By default the fingerprint comes from the time of the file, and the same codes would give another folder.
    fingerprint = "".join(digest.hexdigest()[:32] for digest in digests.values())
    datasets.Dataset(table, fingerprint=fingerprint).save_to_disk(str(writing))
    rows.unlink()
    atomic_replace(writing, folder)


def own_batches(
    dataset: Any, accelerator: Accelerator, batch_size: int, description: str
) -> Iterator[dict[str, Tensor]]:
    """This process's share of `dataset`, on its device: every n-th of the batches that one process would have.

    Whole batches, since the last bits of a row's numbers may depend on what else is in its batch.
    """
    starts = range(0, len(dataset), batch_size)
    own = starts[accelerator.process_index :: accelerator.num_processes]
    hidden = not accelerator.is_main_process
    for start in tqdm(own, description, unit="batch", leave=False, disable=hidden):
        batch = dataset.__getitems__(list(range(start, min(start + batch_size, len(dataset)))))
        yield {key: value.to(accelerator.device) for key, value in batch.items()}
