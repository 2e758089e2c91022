"""One training loop for both stages, by Accelerate."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler

from .arguments import TrainingArguments
from .run_folder import RunFolder, list_checkpoints, load_checkpoint, save_checkpoint


class Interrupted(Exception):
    """A signal ended training after a checkpoint; `signal_number` says which signal."""

    def __init__(self, signal_number: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; saved {checkpoint}")
        self.signal_number = signal_number


class TrainingFailed(Exception):
    """The loss is NaN or infinite; the message says where, and what to do."""


class EpochShuffle(Sampler[int]):
    """Rows in an order that depends on the seed and the epoch alone, so that a resumed epoch finds its place.

    Args:
        num_rows: rows of the dataset.
        batch_size: rows beyond the last whole batch are left out of an epoch, others in every epoch.
        seed: the run's.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int):
        self.num_rows, self.seed = num_rows, seed
        self.batch_size = batch_size
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


@dataclass
class Stage:
    """What the loop has to know of a stage.

    Args:
        name: "vqvae" or "prior".
        num_epochs, learning_rate: of the optimizer.
        input_name: key of the batch that the model takes.
        measure: maps the model's output and the batch to scalars to be averaged over an epoch.
        evaluate: called after each epoch, on all processes; its numbers join the history.
        num_codes: K where codes are counted (perplexity and codes in use), else None.
        show: called on the main process after each epoch; images for the trackers by name.
    """

    name: str
    num_epochs: int
    learning_rate: float
    input_name: str
    measure: Callable[[Any], dict[str, Tensor]]
    evaluate: Callable[[], dict[str, float]]
    num_codes: int | None = None
    show: Callable[[], dict[str, Any]] = dict


class Averages:
    """Sums of an epoch's measures and code counts; kept on the device, so that a step waits for nothing."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.names: list[str] = []
        self.sums = self.counts = None
        self.steps = 0

    def add(self, measures: dict[str, Tensor], codes: Tensor | None, num_codes: int | None) -> None:
        """Adds a step's scalars, and its codes (any shape) to the counts if `num_codes` is given."""
        self.names = list(measures)
        values = torch.stack([value.detach().double() for value in measures.values()])
        self.sums = values if self.sums is None else self.sums + values
        if num_codes is not None:
            counts = torch.bincount(codes.flatten(), minlength=num_codes)
            self.counts = counts if self.counts is None else self.counts + counts
        self.steps += 1

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; with code counts also perplexity and codes used. Called by all."""
        means = accelerator.reduce(self.sums, "mean") / self.steps
        figures = dict(zip(self.names, means.tolist(), strict=True))
        if self.counts is not None:
            counts = accelerator.reduce(self.counts, "sum").double()
            shares = counts / counts.sum()
            figures["perplexity"] = torch.special.entr(shares).sum().exp().item()
            figures["codes_used"] = int((counts > 0).sum())
        return figures

    def gather(self, accelerator: Accelerator) -> dict[str, Any]:
        """Every process's sums, for a checkpoint. Called by all."""
        if not self.steps:
            return {"steps": 0}
        state = {"steps": self.steps, "names": self.names}
        state["sums"] = accelerator.gather(self.sums[None]).tolist()
        if self.counts is not None:
            state["counts"] = accelerator.gather(self.counts[None]).tolist()
        return state

    def restore(self, state: dict[str, Any], process: int) -> None:
        """Takes up the sums of `process` out of [`gather`]'s state."""
        self.reset()
        if state["steps"]:
            self.steps, self.names = state["steps"], state["names"]
            self.sums = torch.tensor(state["sums"][process], dtype=torch.double, device=self.device)
            if "counts" in state:
                self.counts = torch.tensor(state["counts"][process], device=self.device)


def make_loader(
    dataset: Any, arguments: TrainingArguments, num_workers: int = 0
) -> tuple[DataLoader, Any]:
    """Batches of `train_batch_size / gradient_accumulation_steps` rows over all processes, and their sampler.

    Args:
        dataset: a map-style dataset whose `__getitems__` returns a whole batch, or an iterable one of single rows,
            which has no sampler.

    Raises:
        ValueError: if there are fewer rows than a batch.
    """
    part = arguments.train_batch_size // arguments.gradient_accumulation_steps
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=part, drop_last=True, num_workers=num_workers), None
    if len(dataset) < arguments.train_batch_size:
        raise ValueError(
            f"there are {len(dataset)} training rows, fewer than --train_batch_size {arguments.train_batch_size}: "
            "make it smaller."
        )
    sampler = EpochShuffle(len(dataset), arguments.train_batch_size, arguments.seed)
    batches = BatchSampler(sampler, part, drop_last=True)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_whole_batch), sampler


def _whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM in the list it yields; a second one acts as usual."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, _frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StageTrainer:
    """Trains one model on one dataset, with checkpoints, and resumes to the very step.

    Args:
        model: whose forward returns `loss` with `return_loss=True`.
        dataset: see [`make_loader`].
        steps_per_epoch: optimizer steps.
        folder: the run's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stage: Stage,
        dataset: Any,
        steps_per_epoch: int,
        arguments: TrainingArguments,
        accelerator: Accelerator,
        folder: RunFolder,
        num_workers: int = 0,
    ):
        self.stage, self.arguments = stage, arguments
        self.accelerator, self.folder = accelerator, folder
        self.steps_per_epoch = steps_per_epoch
        self.config = {
            key: value
            for key, value in model.config.to_diff_dict().items()
            if key != "transformers_version"
        }
        loader, self.sampler = make_loader(dataset, arguments, num_workers)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(learned, lr=stage.learning_rate)
        total = steps_per_epoch * stage.num_epochs
        scheduler = get_scheduler(
            arguments.lr_scheduler_type, optimizer, min(arguments.warmup_steps, total // 10), total
        )
        # Channels last: the layout convolutions are fastest in, on CPU and GPU alike.
        model = model.to(memory_format=torch.channels_last)
        self.model, self.optimizer, self.scheduler, self.loader = accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        self.averages = Averages(accelerator.device)
        self.epoch, self.step, self.history = 0, 0, []
        self.first_bad = torch.tensor(float("inf"), device=accelerator.device)

    def train(self, resume_from: Path | None = None) -> list[dict[str, float]]:
        """Trains to the end; returns the history, one row an epoch.

        Raises:
            Interrupted: after a checkpoint, if SIGINT or SIGTERM came.
            TrainingFailed: if the loss is NaN or infinite.
            ValueError: if `resume_from` is damaged or of another model.
        """
        if resume_from is not None:
            state = load_checkpoint(self.accelerator, resume_from, self.config)
            self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
            self.averages.restore(state["averages"], self.accelerator.process_index)
        total = self.steps_per_epoch * self.stage.num_epochs
        bar = tqdm(
            total=total * self.arguments.train_batch_size,
            initial=self.step * self.arguments.train_batch_size,
            desc=self.stage.name,
            unit=" images",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        with bar, signals_caught() as caught:
            while self.epoch < self.stage.num_epochs:
                self.model.train()
                for batch in self._rest_of_epoch():
                    if self._train_on(batch):
                        bar.update(self.arguments.train_batch_size)
                        self._after_step(bar, caught)
                self._end_epoch(bar)
        return self.history

    def _rest_of_epoch(self) -> DataLoader:
        done = self.step - self.epoch * self.steps_per_epoch
        if self.sampler is not None:
            self.sampler.start_at(self.epoch, done)
            return self.loader
        self.loader.set_epoch(self.epoch)
        parts = self.arguments.gradient_accumulation_steps
        return self.accelerator.skip_first_batches(self.loader, done * parts)

    def _train_on(self, batch: dict[str, Tensor]) -> bool:
        """One forward and backward pass; True if the optimizer stepped (not within an accumulation)."""
        inputs = batch[self.stage.input_name]
        with self.accelerator.accumulate(self.model):
            output = self.model(inputs, return_loss=True)
            self.accelerator.backward(output.loss)
            if self.accelerator.sync_gradients and self.arguments.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(
                    self.model.parameters(), self.arguments.max_grad_norm
                )
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        codes = output.codes if self.stage.num_codes is not None else None
        measures = {"loss": output.loss, **self.stage.measure(output, batch)}
        self.averages.add(measures, codes, self.stage.num_codes)
        finite = output.loss.detach().isfinite()
        self.first_bad = torch.where(
            finite, self.first_bad, self.first_bad.clamp(max=self.step + 1)
        )
        self.step += int(self.accelerator.sync_gradients)
        return self.accelerator.sync_gradients

    def _after_step(self, bar: tqdm, caught: list[int]) -> None:
        """Looks for signals and bad losses, shows figures, saves; the same on all processes."""
        arguments, accelerator = self.arguments, self.accelerator
        logs = self.step % arguments.logging_steps == 0
        saves = arguments.checkpointing_steps and self.step % arguments.checkpointing_steps == 0
        # Several processes have to agree, and a GPU to be waited for: not at every step.
        alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
        if alone or logs or saves or self.step % 10 == 0:
            self._check_loss()
            signal_number = self._agreed_signal(caught)
            if signal_number:
                raise Interrupted(signal_number, self._save())
        if logs:
            figures = self.averages.compute(accelerator)
            bar.set_postfix(_short(figures))
            learning_rate = self.scheduler.get_last_lr()[0]
            self._log({**figures, "learning_rate": learning_rate})
        if saves:
            self._save()

    def _check_loss(self) -> None:
        first_bad = self.accelerator.gather(self.first_bad.reshape(1)).min().item()
        if first_bad <= self.step:
            learning_rate = self.scheduler.get_last_lr()[0]
            saved = list_checkpoints(self.folder.checkpoints, self.stage.name)
            kept = (
                f"The last good checkpoint is {saved[-1]}."
                if saved
                else "No checkpoint had been written yet."
            )
            flag = "--learning_rate" if self.stage.name == "vqvae" else "--prior_learning_rate"
            raise TrainingFailed(
                f"the loss of {self.stage.name} is NaN or infinite at step {first_bad:.0f} (epoch {self.epoch + 1}, "
                f"learning rate {learning_rate:.3g}). {kept} A lower {flag}, --max_grad_norm 1 or --mixed_precision no helps."
            )

    def _agreed_signal(self, caught: list[int]) -> int:
        number = torch.tensor([caught[0] if caught else 0], device=self.accelerator.device)
        return int(self.accelerator.gather(number).max())

    def _end_epoch(self, bar: tqdm) -> None:
        learning_rate = self.scheduler.get_last_lr()[0]
        self._check_loss()
        self.epoch += 1
        figures = self.averages.compute(self.accelerator)
        self.averages.reset()
        row = {"epoch": self.epoch, "step": self.step, "learning_rate": learning_rate}
        evaluated = self.stage.evaluate()
        self.history.append({**row, **figures, **evaluated})
        bar.set_postfix(_short({**figures, **evaluated}))
        self._log(evaluated)
        if self.accelerator.is_main_process and self.accelerator.trackers:
            shown = self.stage.show()
            images = {f"{self.stage.name}/{name}": grid[None] for name, grid in shown.items()}
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(images, step=self.step, **layout)
        if self.arguments.checkpointing_steps == 0:
            self._save()

    def _log(self, figures: dict[str, float]) -> None:
        named = {f"{self.stage.name}/{name}": value for name, value in figures.items()}
        self.accelerator.log(named, step=self.step)

    def _save(self) -> Path:
        state = {"stage": self.stage.name, "step": self.step, "epoch": self.epoch}
        state |= {"history": self.history, "config": self.config}
        state["averages"] = self.averages.gather(self.accelerator)
        limit = self.arguments.checkpoints_total_limit
        return save_checkpoint(self.accelerator, self.folder.checkpoints, state, limit)


def _short(figures: dict[str, float]) -> dict[str, str]:
    """The figures of the bar, in few characters."""
    names = {
        "reconstruction_mse": "mse",
        "eval_reconstruction_mse": "eval mse",
        "perplexity": "perplexity",
    }
    names |= {
        "codes_used": "codes",
        "loss": "loss",
        "eval_loss": "eval loss",
        "accuracy": "accuracy",
    }
    return {short: f"{figures[name]:.4g}" for name, short in names.items() if name in figures}
