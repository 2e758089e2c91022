"""Images encoded to codes, once for all epochs of the prior."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm

from .arguments import TrainingArguments
from .models import VQVAEModel
from .run_folder import RunFolder


class CodesDataset(Dataset):
    """Grids of codes in memory.

    Args:
        codes: (N, h, w) integers.
        labels: (N,) int64, or None.
    """

    def __init__(self, codes: Tensor, labels: Tensor | None):
        self.codes, self.labels = codes, labels

    def __len__(self) -> int:
        return len(self.codes)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch: `codes` (B, h, w) int64, and `labels` (B,) if there are labels."""
        batch = {"codes": self.codes[indices].long()}
        return batch if self.labels is None else batch | {"labels": self.labels[indices]}

    def save(self, folder: Path) -> None:
        """Writes a `datasets` dataset with the columns `codes` and `label`, complete or not at all."""
        shape = tuple(self.codes.shape[1:])
        features = {"codes": datasets.Array2D(shape, "int32")}
        columns = {"codes": self.codes.to(torch.int32).numpy()}
        if self.labels is not None:
            features["label"], columns["label"] = datasets.Value("int64"), self.labels.numpy()
        writing = folder.with_name(folder.name + ".writing")
        shutil.rmtree(writing, ignore_errors=True)
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.save_to_disk(str(writing))
        os.rename(writing, folder)

    @classmethod
    def load(cls, folder: Path) -> "CodesDataset":
        """Reads what [`save`] wrote."""
        table = datasets.load_from_disk(str(folder)).with_format("torch")
        labels = table["label"][:] if "label" in table.column_names else None
        return cls(table["codes"][:], labels)


@torch.inference_mode()
def encode_split(
    vqvae: VQVAEModel,
    images: Dataset | IterableDataset,
    name: str,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    folder: RunFolder,
) -> CodesDataset:
    """The codes of a split, encoded once and kept in `codes/<name>` of the unfinished run."""
    kept = folder.partial / "codes" / name
    if not kept.exists():
        codes, labels = [], []
        # A stream has one reader; images in memory are encoded by all processes.
        streamed = isinstance(images, IterableDataset)
        if not streamed:
            batches = own_batches(images, accelerator, arguments.eval_batch_size, f"encode {name}")
        elif accelerator.is_main_process:
            loader = DataLoader(images, batch_size=arguments.eval_batch_size)
            batches = tqdm(loader, desc=f"encode {name}", unit="batch", leave=False)
        else:
            batches = ()
        for batch in batches:
            pixel_values = batch["pixel_values"].to(accelerator.device)
            codes.append(vqvae.encode(pixel_values).codes)
            if "labels" in batch:
                labels.append(batch["labels"].to(accelerator.device))
        if not streamed:
            # Of few rows, a process may have none.
            none = torch.zeros((0, *vqvae.config.grid_size), dtype=torch.long)
            codes = [_in_order([none, *codes], len(images), accelerator)]
            if images.labels is not None:
                labels = [_in_order([none[:, 0, 0], *labels], len(images), accelerator)]
        if accelerator.is_main_process:
            kept.parent.mkdir(exist_ok=True)
            CodesDataset(torch.cat(codes).cpu(), torch.cat(labels).cpu() if labels else None).save(
                kept
            )
    # Outside of the condition: a process that comes late may find the codes of a stream written.
    accelerator.wait_for_everyone()
    return CodesDataset.load(kept)


def _in_order(batches: list[Tensor], total: int, accelerator: Accelerator) -> Tensor:
    """The rows of all processes, of which each has every n-th, in the order of the dataset."""
    own = torch.cat([batch.to(accelerator.device) for batch in batches])
    if accelerator.num_processes == 1:
        return own
    padded = accelerator.pad_across_processes(own)
    gathered = accelerator.gather(padded[None])  # (n, rows, ...)
    return gathered.transpose(0, 1).flatten(0, 1)[:total]


def own_batches(
    dataset: Any, accelerator: Accelerator, batch_size: int, description: str
) -> Iterator[dict[str, Tensor]]:
    """Batches on the device of this process's share of `dataset`: every n-th row, none of them padding."""
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    starts = range(0, len(own), batch_size)
    hidden = not accelerator.is_main_process
    for start in tqdm(starts, description, unit="batch", leave=False, disable=hidden):
        batch = dataset.__getitems__(list(own[start : start + batch_size]))
        yield {key: value.to(accelerator.device) for key, value in batch.items()}
