"""Batches for training, in an order that can be resumed, and for evaluation."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from ..arguments import TrainingArguments
from ..command_line import progress_bar
from .splits import StreamedImages

# Undecoded rows in the shuffle buffer of a stream.
SHUFFLED_ROWS = 1_000


class EpochShuffle(Sampler[int]):
    """Sampler whose order depends only on seed and epoch, so that an epoch can be resumed.

    Rows after the last full batch are left out, different ones in each epoch.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int):
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Start the next iteration at the `batch`-th batch of `epoch`."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)[: len(self)]
        # Converted one by one: a list of Python integers would take five times the memory.
        return map(int, order[self.first_batch * self.batch_size :].numpy())


class EpochStream(IterableDataset):
    """Stream shuffled in a buffer, in an order that depends only on seed and epoch, cut to full batches.

    Undecoded rows are read, shuffled and skipped, so that resuming an epoch decodes no row twice. Threads decode the
    next batch while the model trains on one.

    Args:
        steps_per_epoch: batches per epoch; later rows are left out.
        num_workers: threads that decode, at least one.
        decode: converts a row to the inputs of the model.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        num_workers: int,
        decode: Callable[[dict[str, Any]], dict[str, Any]],
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
        self.steps_per_epoch, self.batch_size = steps_per_epoch, batch_size
        self.num_workers, self.decode = num_workers, decode
        self.epoch, self.first_batch = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Start the next iteration at the `batch`-th batch of `epoch`."""
        self.epoch, self.first_batch = epoch, batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.rows.set_epoch(self.epoch)
        first = self.first_batch * self.batch_size
        rows = islice(self.rows, first, self.steps_per_epoch * self.batch_size)
        given, decoded = self.first_batch, iter(())
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            # Full batches only: from a stream that ends early, Accelerate would train on a part of one.
            while len(batch := list(islice(rows, self.batch_size))) == self.batch_size:
                following = pool.map(self.decode, batch)  # which starts now
                yield from decoded
                given, decoded = given + 1, following
            yield from decoded
        if given == self.first_batch < self.steps_per_epoch:  # Accelerate fails on an empty loader
            raise ended_early(given, self.steps_per_epoch)


def ended_early(batches: int, expected: int) -> ValueError:
    """Make the error for a stream with fewer batches than an epoch needs."""
    return ValueError(
        f"the training rows ended after {batches} of {expected} batches: give the dataset's true number as "
        "--max_train_samples."
    )


def count_steps(num_rows: int | None, arguments: TrainingArguments) -> int:
    """Return the number of optimizer steps of an epoch, which is that of full batches.

    Raises:
        ValueError: if there are fewer rows than a batch, or their number is unknown (None).
    """
    if num_rows is None:
        raise ValueError(
            "the dataset does not say how many rows its stream has: say it with --max_train_samples, or leave out "
            "--streaming."
        )
    if num_rows < arguments.train_batch_size:
        raise ValueError(
            f"there are {num_rows} training rows beside --validation_samples {arguments.validation_samples or 0}, "
            f"fewer than --train_batch_size {arguments.train_batch_size}: make one of these flags smaller."
        )
    return num_rows // arguments.train_batch_size


def make_loader(
    dataset: Any, steps_per_epoch: int, arguments: TrainingArguments, num_workers: int = 0
) -> tuple[DataLoader, EpochShuffle | EpochStream]:
    """Make a loader of batches of `train_batch_size / gradient_accumulation_steps` rows, and its sampler or stream.

    Args:
        dataset: a map-style dataset whose `__getitems__` returns a whole batch, or a stream of images.
        steps_per_epoch, num_workers: as for [`EpochStream`]; of a stream only.
    """
    part = arguments.train_batch_size // arguments.gradient_accumulation_steps
    # Its own generator: from the global one a loader draws in each epoch, and again when an epoch is resumed.
    shared = {"generator": torch.Generator()}
    if isinstance(dataset, StreamedImages):
        stream = EpochStream(
            dataset.rows, steps_per_epoch, arguments.train_batch_size, arguments.seed, num_workers, dataset.decode
        )
        return DataLoader(stream, batch_size=part, drop_last=True, **shared), stream
    sampler = EpochShuffle(len(dataset), arguments.train_batch_size, arguments.seed)
    batches = BatchSampler(sampler, part, drop_last=True)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch, **shared), sampler


def local_batches(
    dataset: Any, accelerator: Accelerator, batch_size: int, description: str
) -> Iterator[dict[str, Tensor]]:
    """Iterate over this process's share of `dataset`, on its device: every n-th of the batches of one process.

    The batches are those of one process, since the last bits of a row's results may depend on the rest of its batch.
    """
    starts = range(0, len(dataset), batch_size)
    local = starts[accelerator.process_index :: accelerator.num_processes]
    for start in progress_bar(local, desc=description, unit="batch", leave=False):
        batch = dataset.__getitems__(list(range(start, min(start + batch_size, len(dataset)))))
        yield {key: value.to(accelerator.device) for key, value in batch.items()}
