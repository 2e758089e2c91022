"""Batches of a training set, in an order that a resumed epoch finds again."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from .arguments import TrainingArguments

# Rows of a stream that are shuffled among each other; decoded, they take at most some hundred megabytes.
SHUFFLED_ROWS = 1_000


class EpochShuffle(Sampler[int]):
    """Rows in an order that depends on the seed and the epoch alone, so that a resumed epoch finds its place.

    Args:
        num_rows: rows of the dataset.
        batch_size: rows beyond the last whole batch are left out of an epoch, others in every epoch.
        seed: the run's.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int):
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Sets what the next iteration gives: `epoch`, from its `batch`-th batch on."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)[: len(self)]
        return iter(order[self.first_batch * self.batch_size :].tolist())


class EpochStream(IterableDataset):
    """Rows of a stream, shuffled over a short distance, by seed and epoch alone; as many as whole batches take.

    Args:
        rows: single examples, read anew in each epoch.
        steps_per_epoch: batches of an epoch; rows beyond them are left out.
        batch_size, seed: as of [`EpochShuffle`].
        num_workers: processes that read and decode.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        num_workers: int,
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.num_workers = num_workers
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Sets what the next iteration gives: `epoch`, from its `batch`-th batch on."""
        self.epoch, self.first_batch = epoch, batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.rows.set_epoch(self.epoch)
        # Row by row, not in batches: each worker would drop the rest of its own last batch.
        loader = DataLoader(
            self.rows, batch_size=None, num_workers=self.num_workers, generator=torch.Generator()
        )
        first = self.first_batch * self.batch_size
        return islice(loader, first, self.steps_per_epoch * self.batch_size)


def count_steps(num_rows: int | None, arguments: TrainingArguments) -> int:
    """Optimizer steps of an epoch: whole batches.

    Raises:
        ValueError: if there are fewer rows than a batch, or a stream does not say how many it has (None).
    """
    if num_rows is None:
        raise ValueError(
            "the dataset does not say how many rows its stream has: say it with --max_train_samples, or leave out "
            "--streaming."
        )
    if num_rows < arguments.train_batch_size:
        raise ValueError(
            f"there are {num_rows} training rows, fewer than --train_batch_size {arguments.train_batch_size}: "
            "make it smaller."
        )
    return num_rows // arguments.train_batch_size


def make_loader(
    dataset: Any, steps_per_epoch: int, arguments: TrainingArguments, num_workers: int = 0
) -> tuple[DataLoader, EpochShuffle | EpochStream]:
    """Batches of `train_batch_size / gradient_accumulation_steps` rows over all processes, and what orders them.

    Args:
        dataset: a map-style dataset whose `__getitems__` returns a whole batch, or a stream of single rows.
        steps_per_epoch: batches that a stream is to give, at least one.
        num_workers: processes that read a stream.
    """
    part = arguments.train_batch_size // arguments.gradient_accumulation_steps
    # A generator of its own: a loader draws from the global one at each epoch, and again where an epoch is resumed.
    shared = {"generator": torch.Generator()}
    if isinstance(dataset, datasets.IterableDataset):
        stream = EpochStream(
            dataset, steps_per_epoch, arguments.train_batch_size, arguments.seed, num_workers
        )
        return DataLoader(stream, batch_size=part, drop_last=True, **shared), stream
    sampler = EpochShuffle(len(dataset), arguments.train_batch_size, arguments.seed)
    batches = BatchSampler(sampler, part, drop_last=True)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_whole_batch, **shared), sampler


def _whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
