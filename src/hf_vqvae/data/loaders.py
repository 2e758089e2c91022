"""Batches of a training set, in an order that a resumed epoch finds again."""

import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    default_collate,
)

from ..arguments import TrainingArguments
from .splits import StreamedImages

# Rows of a stream that are shuffled among each other, as files: what is in memory does not grow with the dataset.
SHUFFLED_ROWS = 1_000
# A worker's task: enough rows to hide the cost of handing them over, few enough to wait for.
DECODED_TOGETHER = 64


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
        # One by one: as Python's numbers, all together would take five times the memory.
        return map(int, order[self.first_batch * self.batch_size :].numpy())


class EpochStream(IterableDataset):
    """Rows of a stream, shuffled over a short distance, by seed and epoch alone; as many as whole batches take.

    Rows are read, shuffled and skipped by this process as they are, and only then decoded, by the workers. So neither
    the number of workers nor the dataset's files change the order, and an epoch is resumed without decoding what was
    seen before.

    Args:
        rows: single examples, read anew in each epoch.
        steps_per_epoch: batches of an epoch; rows beyond them are left out.
        batch_size, seed: as of [`EpochShuffle`].
        num_workers: processes that decode; with 0, this one does.
        decode: makes of a row what the model takes; None if it is that.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        num_workers: int,
        decode: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.num_workers, self.decoding = num_workers, _Decoding(decode)
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Sets what the next iteration gives: `epoch`, from its `batch`-th batch on."""
        self.epoch, self.first_batch = epoch, batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.rows.set_epoch(self.epoch)
        first = self.first_batch * self.batch_size
        rows = islice(self.rows, first, self.steps_per_epoch * self.batch_size)
        # What a loader hands to its workers are not numbers of rows here but the rows.
        loader = DataLoader(
            self.decoding,
            batch_size=DECODED_TOGETHER,
            sampler=rows,
            num_workers=self.num_workers,
            generator=torch.Generator(),
            collate_fn=_rows_or_error,
            worker_init_fn=_leave_signals_to_parent,
        )
        batch, given = [], self.first_batch
        for part in loader:
            if isinstance(part, ValueError):
                raise part
            for values in zip(*part.values(), strict=True):
                batch.append(dict(zip(part, values, strict=True)))
                if len(batch) == self.batch_size:
                    # Whole ones only: of a stream that ends early, Accelerate would make a step of a part.
                    yield from batch
                    batch, given = [], given + 1
        if given == self.first_batch < self.steps_per_epoch:  # Accelerate cannot take nothing
            raise ended_early(given, self.steps_per_epoch)


def ended_early(batches: int, expected: int) -> ValueError:
    """The error for a stream of fewer batches than an epoch is to have."""
    return ValueError(
        f"the training rows ended after {batches} of {expected} batches: the dataset has fewer than it says, or than "
        "--max_train_samples does; make that smaller."
    )


class _Decoding(Dataset):
    """Gives for each row what `decode` makes of it, or the error that names the row: see [`_rows_or_error`]."""

    def __init__(self, decode: Callable[[dict[str, Any]], dict[str, Any]] | None):
        self.decode = decode

    def __getitem__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return row if self.decode is None else self.decode(row)
        except ValueError as error:
            return error


def _rows_or_error(rows: list[dict[str, Any] | ValueError]) -> dict[str, Any] | ValueError:
    """Rows as columns, or the first error among them: what a worker raises arrives as pages of its traceback."""
    errors = [row for row in rows if isinstance(row, ValueError)]
    return errors[0] if errors else default_collate(rows)


def _leave_signals_to_parent(_worker: int) -> None:
    """A signal to all processes of a run would end a worker, and with it the run before it could save."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


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
        dataset: a map-style dataset whose `__getitems__` returns a whole batch, or a stream of images.
        steps_per_epoch: batches that a stream is to give, at least one.
        num_workers: processes that decode a stream.
    """
    part = arguments.train_batch_size // arguments.gradient_accumulation_steps
    # A generator of its own: a loader draws from the global one at each epoch, and again where an epoch is resumed.
    shared = {"generator": torch.Generator()}
    if isinstance(dataset, StreamedImages):
        stream = EpochStream(
            dataset.rows,
            steps_per_epoch,
            arguments.train_batch_size,
            arguments.seed,
            num_workers,
            dataset.decode,
        )
        return DataLoader(stream, batch_size=part, drop_last=True, **shared), stream
    sampler = EpochShuffle(len(dataset), arguments.train_batch_size, arguments.seed)
    batches = BatchSampler(sampler, part, drop_last=True)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_whole_batch, **shared), sampler


def _whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
