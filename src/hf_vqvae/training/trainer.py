"""Train a stage under Accelerate: one loop for both stages."""

import copy
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel, get_scheduler

from ..arguments import RunArguments
from ..command_line import log_line, progress_bar
from ..data.loaders import ended_early, make_loader
from ..metrics.sums import Averages
from .checkpoints import choose_checkpoint, discard_checkpoints, list_checkpoints, load_checkpoint, save_checkpoint
from .muon import Muon
from .run_directory import Run
from .signals import Interrupted, catch_signals


@dataclass
class Stage:
    """Settings of a stage for the training loop.

    Args:
        inputs: for each argument of the model, its key in the batch; keys that the batch lacks are left out.
        measure: maps the model's output and the batch to scalars, which are averaged over an epoch.
        evaluate: called after each epoch on all processes; its numbers join the history.
        num_codes: K, to compute perplexity and codes in use, else None.
        log_images: called with the step after each epoch where there are trackers, on the main process.
        steps_before: steps of the run's earlier stages: trackers have one axis of steps for all.
        optimizer: "muon" (see [`Muon`]) or "adamw" (Loshchilov and Hutter 2019, arXiv 1711.05101).
        betas, weight_decay: of AdamW; without decay it is Adam.
        average_decay: of the moving average of the weights, which is evaluated and saved; None for none.
        augment: maps a training batch and the share of the steps that are done to the batch that is trained on.
        best_by: the evaluated number by whose lowest value the epoch is chosen whose weights are kept; None: the last.
    """

    name: str  # "vqvae" or "prior"
    num_epochs: int
    learning_rate: float
    inputs: dict[str, str]
    measure: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
    evaluate: Callable[[], dict[str, float]]
    num_codes: int | None = None
    log_images: Callable[[int], None] | None = None
    steps_before: int = 0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    average_decay: float | None = None
    max_grad_norm: float | None = None
    data: str = ""  # fingerprint of the dataset
    augment: Callable[[dict[str, Tensor], float], dict[str, Tensor]] | None = None
    best_by: str | None = None


class StageTrainer:
    """Trains one model on one dataset, with checkpoints, and resumes to the very step.

    Args:
        model: its forward returns `loss` with `return_loss=True`.
        dataset: see [`make_loader`].
    """

    def __init__(self, model: PreTrainedModel, stage: Stage, dataset: Any, steps_per_epoch: int, run: Run):
        self.stage, self.folder, self.steps_per_epoch = stage, run.directory.checkpoints, steps_per_epoch
        accelerator, arguments = self.accelerator, self.arguments = run.accelerator, run.arguments.training
        self.total_steps = steps_per_epoch * stage.num_epochs
        # What a checkpoint must have in common with this stage.
        settings = self._settings()
        self.identity = model.config.to_dict() | settings | {"run": run.directory.run_id}
        self.identity |= {"optimizer": stage.optimizer} if stage.optimizer != "adamw" else {}  # as older ones
        self.changeable = {*settings, "data_variance"}
        num_workers = run.arguments.data.dataloader_num_workers
        loader, self.order = make_loader(dataset, steps_per_epoch, arguments, num_workers)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kind = Muon if stage.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(learned, lr=stage.learning_rate, betas=stage.betas, weight_decay=stage.weight_decay)
        warmup = min(arguments.warmup_steps, self.total_steps // 10)
        scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, self.total_steps)
        # Channels last: the layout convolutions are fastest in, on CPU and GPU alike.
        self.model, self.optimizer, self.scheduler, self.loader = accelerator.prepare(
            model.to(memory_format=torch.channels_last), optimizer, scheduler, loader
        )
        # Accelerate drops the generator of a stream's loader, which would then draw from the global one.
        self.loader.base_dataloader.generator = torch.Generator()
        self.weight_average = None
        if stage.average_decay is not None:
            update = partial(_average, stage.average_decay)
            self.weight_average = AveragedModel(self._unwrapped_model(), multi_avg_fn=update)
        self.best = copy.deepcopy(self._unwrapped_model()) if stage.best_by else None
        models = {"average": self.weight_average, "best": self.best}.items()
        self.saved_models = {name: model for name, model in models if model is not None}
        self.averages = Averages(accelerator.device)
        self.epoch, self.step, self.history = 0, 0, []
        # Checkpoints loaded and saved by this process, and their steps: an earlier one may have counted otherwise.
        self.checkpoints: dict[Path, int] = {}
        self.first_bad = torch.tensor(float("inf"), device=accelerator.device)
        self.started = time.monotonic()  # moved back by the time of earlier sessions

    def _settings(self) -> dict[str, Any]:
        """Returns what the result of training depends on, besides the model's config."""
        accelerator, arguments, stage = self.accelerator, self.arguments, self.stage
        settings = {
            "num_processes": accelerator.num_processes,
            "device": accelerator.device.type,
            # Sums of floating-point numbers depend on these two.
            "threads": torch.get_num_threads() if accelerator.device.type == "cpu" else None,
            "torch": torch.__version__,
            "mixed_precision": accelerator.mixed_precision,
            "dynamo_backend": accelerator.state.dynamo_plugin.backend.value,
            "steps_per_epoch": self.steps_per_epoch,
        }
        settings |= {name: getattr(arguments, name) for name in sorted(RunArguments.names("stages") | {"seed"})}
        names = ("num_epochs", "learning_rate", "betas", "weight_decay", "average_decay", "max_grad_norm", "data")
        return settings | {name: getattr(stage, name) for name in names}

    def _unwrapped_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def train(self, saved: Sequence[Path] = ()) -> list[dict[str, float]]:
        """Trains to the end, from the last undamaged of the `saved` checkpoints; returns the history, one row an epoch.

        Raises:
            Interrupted: after a checkpoint, if a signal came.
            FloatingPointError: if the loss is NaN or infinite.
            ValueError: if the checkpoints are of another run, or a stream ends too early.
            OSError: if a checkpoint cannot be written.
        """
        with catch_signals() as caught:
            changes = self.arguments.resume_with_changes
            chosen = choose_checkpoint(self.accelerator, saved, self.identity, self.changeable, with_changes=changes)
            if chosen is not None:
                self._load(chosen)
                log_line(f"{self.stage.name}: resumed from {chosen}", {}, f"step {self.step} of {self.total_steps}")
            batch_size = self.arguments.train_batch_size
            counts = {"total": self.total_steps * batch_size, "initial": self.step * batch_size}
            with progress_bar(**counts, desc=self.stage.name, unit=" images") as bar:
                self._stop_if_signalled(caught)
                while self.epoch < self.stage.num_epochs:
                    before, started = self.step, time.monotonic()
                    self._train_epoch(bar, caught)
                    images = (self.step - before) * batch_size
                    self._end_epoch(bar, images / (time.monotonic() - started))
                    self._stop_if_signalled(caught)
        if caught:  # a signal arrived after the last check: raise it again for the next handler
            signal.raise_signal(caught[0])
        self._swap_weights_()
        if self.best is not None:
            self._unwrapped_model().load_state_dict(self.best.state_dict())
        return self.history

    def _swap_weights_(self) -> None:
        """Exchanges weights and averaged weights."""
        if self.weight_average is None:
            return
        now = self._unwrapped_model().parameters()
        for one, other in zip(now, self.weight_average.module.parameters(), strict=True):
            one.data, other.data = other.data, one.data

    def _load(self, checkpoint: Path) -> None:
        state = load_checkpoint(self.accelerator, checkpoint, self.saved_models)
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.started -= state["seconds"]
        self.averages.restore(state["averages"], self.accelerator)
        if self.arguments.resume_with_changes:
            # At the same fraction of the epoch, with the settings of the current flags.
            self.step = self.step * self.steps_per_epoch // state["identity"]["steps_per_epoch"]
            scheduler, group = self.scheduler.scheduler, self.optimizer.param_groups[0]
            scheduler.base_lrs, scheduler.last_epoch = [self.stage.learning_rate], self.step
            group["lr"] = self._learning_rate(self.step + 1)
            group["betas"], group["weight_decay"] = self.stage.betas, self.stage.weight_decay
        if self.step > self.total_steps:
            raise ValueError(
                f"the checkpoint {checkpoint} is {self.step} steps into stage {self.stage.name}, which is to have "
                f"{self.total_steps}: ask for more epochs, or resume from an earlier checkpoint."
            )
        self.checkpoints[checkpoint] = self.step

    def _learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1."""
        return self.stage.learning_rate * self.scheduler.scheduler.lr_lambdas[0](step - 1)

    def _train_epoch(self, bar: Any, caught: list[int]) -> None:
        arguments, accelerator, done = self.arguments, self.accelerator, self.step - self.epoch * self.steps_per_epoch
        self.model.train()
        if done == self.steps_per_epoch:  # Accelerate fails on a stream's loader that gives nothing
            return
        self.order.start_at(self.epoch, done)
        for batch in self.loader:
            self._train_on(batch)
            if not accelerator.sync_gradients:  # within an accumulation
                continue
            self.step += 1
            bar.update(arguments.train_batch_size)
            logs = self.step % arguments.logging_steps == 0
            saves = arguments.checkpointing_steps and self.step % arguments.checkpointing_steps == 0
            # Not at every step on a GPU, since the check synchronizes it.
            if accelerator.device.type == "cpu" or logs or saves or self.step % 10 == 0:
                self._check_loss()
                self._stop_if_signalled(caught)
            if logs:
                figures = self.averages.compute(accelerator)
                bar.set_postfix(_short(figures))
                self._log({**figures, "learning_rate": self._learning_rate(self.step)})
            if saves:
                self._save()
        done = self.step - self.epoch * self.steps_per_epoch
        if done < self.steps_per_epoch:
            raise ended_early(done, self.steps_per_epoch)

    def _train_on(self, batch: dict[str, Tensor]) -> None:
        """One forward and backward pass; the optimizer steps at the end of an accumulation."""
        if self.stage.augment is not None:
            batch = self.stage.augment(batch, self.step / self.total_steps)
        with self.accelerator.accumulate(self.model):
            inputs = {name: batch[key] for name, key in self.stage.inputs.items() if key in batch}
            output = self.model(**inputs, return_loss=True)
            self.accelerator.backward(output.loss)
            if self.accelerator.sync_gradients and self.stage.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.stage.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        if self.weight_average is not None and self.accelerator.sync_gradients:
            self.weight_average.update_parameters(self._unwrapped_model())
        codes = output.codes if self.stage.num_codes is not None else None
        measures = {"loss": output.loss, **self.stage.measure(output, batch)}
        self.averages.add(measures, codes, self.stage.num_codes)
        bad_now = self.first_bad.clamp(max=self.step + 1)
        self.first_bad = torch.where(output.loss.detach().isfinite(), self.first_bad, bad_now)

    def _check_loss(self) -> None:
        first_bad = self.accelerator.gather(self.first_bad.reshape(1)).min().item()
        if first_bad <= self.step:
            raise self._failure(int(first_bad))

    def _failure(self, step: int) -> FloatingPointError:
        """Makes the error for a loss that is not finite at `step`; discards checkpoints of those weights."""
        name, accelerator = self.stage.name, self.accelerator
        if accelerator.is_main_process:
            discard_checkpoints(path for path, at in self.checkpoints.items() if at >= step - 1)
        accelerator.wait_for_everyone()
        saved = list_checkpoints(self.folder, name)
        kept = f"The last good checkpoint is {saved[-1]}" if saved else "No checkpoint was good yet"
        start = "--resume_from_checkpoint latest --resume_with_changes" if saved else "--overwrite_output_dir"
        flag = "--learning_rate" if name == "vqvae" else "--prior_learning_rate"
        return FloatingPointError(
            f"the loss of stage {name} is NaN or infinite at step {step} (epoch {self.epoch + 1}, learning rate "
            f"{self._learning_rate(step):.3g}). {kept}. A lower {flag} (it was {self.stage.learning_rate:g}), "
            f"--max_grad_norm 1 or --mixed_precision no helps, with {start}."
        )

    def _stop_if_signalled(self, caught: list[int]) -> None:
        number = torch.tensor([caught[0] if caught else 0], device=self.accelerator.device)
        signal_number = int(self.accelerator.gather(number).max())
        if signal_number:
            raise Interrupted(signal_number, self._save())

    def _end_epoch(self, bar: Any, images_per_second: float) -> None:
        self._check_loss()
        self.epoch += 1
        figures = self.averages.compute(self.accelerator)
        self.averages.reset()
        row = {"epoch": self.epoch, "step": self.step, "learning_rate": self._learning_rate(self.step)}
        self._swap_weights_()
        evaluated = self.stage.evaluate()
        if self.accelerator.trackers and self.stage.log_images is not None:
            self.stage.log_images(self.stage.steps_before + self.step)
        self.history.append({**row, **figures, **evaluated})
        if self.best is not None and best_epoch(self.history, self.stage.best_by) == self.epoch:
            self.best.load_state_dict(self._unwrapped_model().state_dict())
        self._swap_weights_()
        bar.set_postfix(_short(figures | evaluated))
        place = f"epoch {self.epoch}/{self.stage.num_epochs}, step {self.step}"
        log_line(f"{self.stage.name}: {place}", figures | evaluated, f"{images_per_second:,.0f} images/s")
        self._log(evaluated)
        if self.arguments.checkpointing_steps == 0:
            self._save()

    def _log(self, figures: dict[str, float]) -> None:
        named = {f"{self.stage.name}/{name}": value for name, value in figures.items()}
        self.accelerator.log(named, step=self.stage.steps_before + self.step)

    def _save(self) -> Path:
        # A finite loss can produce weights that are not finite.
        tensors = (*self.model.parameters(), *self.model.buffers())
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise self._failure(self.step + 1)
        state = {"stage": self.stage.name, "step": self.step, "epoch": self.epoch, "history": self.history}
        state |= {"identity": self.identity, "seconds": time.monotonic() - self.started}
        state["averages"] = self.averages.gather(self.accelerator)
        limit = self.arguments.checkpoints_total_limit
        saved = save_checkpoint(self.accelerator, self.folder, state, limit, self.saved_models)
        self.checkpoints[saved] = self.step
        return saved


def best_epoch(history: list[dict[str, float]], name: str) -> int:
    """Returns the first epoch with the lowest value of `name`."""
    return min(history, key=lambda row: row[name])["epoch"]


@torch.no_grad()
def _average(decay: float, averaged: list[Tensor], now: list[Tensor], updates: Tensor) -> None:
    """Updates the moving average; the decay starts low, so that the first weights are soon forgotten."""
    torch._foreach_lerp_(averaged, now, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))


def _short(figures: dict[str, float]) -> dict[str, float]:
    # For the progress bar, which is to fit into a line.
    names = (name for name in figures if name != "commitment_loss")
    return {name.replace("reconstruction_", ""): figures[name] for name in names}
