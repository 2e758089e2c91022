"""The two stages of a run: the VQ-VAE on images, the prior on their codes."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging

from .arguments import TrainingArguments, VQVAEArguments
from .averages import widen
from .batching import count_steps
from .data import ImageSplits
from .evaluation import load_model
from .models import (
    PixelCNNConfig,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEModel,
)
from .run_folder import RunFolder, discard_checkpoints, read_json, write_json
from .training import Stage, StageTrainer


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


def start_config(settings: VQVAEArguments, handed_in: str | None) -> VQVAEConfig:
    """The VQ-VAE's config out of its flags, or that of a trained VQ-VAE.

    Raises:
        ValueError: if a setting is out of its range, the trained VQ-VAE is missing, or a flag contradicts it.
    """
    given = {key: value for key, value in vars(settings).items() if value is not None}
    if len(settings.image_size) == 1:
        given["image_size"] = settings.image_size[0]
    config = VQVAEConfig(**given)
    if handed_in is None:
        return config
    trained = load_model(handed_in).config
    trained = getattr(trained, "vqvae_config", trained)
    default = VQVAEConfig()
    for name in given:
        wanted, there = getattr(config, name), getattr(trained, name)
        if wanted not in (there, getattr(default, name)):
            raise ValueError(
                f"--{name} {wanted} contradicts the trained VQ-VAE {handed_in}, which has {there}: leave the flag out."
            )
    return trained


def start_full_config(
    vqvae_config: VQVAEConfig, prior_settings: dict[str, Any]
) -> VQVAEForImageGenerationConfig:
    """The config of a VQ-VAE together with the prior that its flags describe.

    Raises:
        ValueError: if a setting of the prior is out of its range.
    """
    prior_config = PixelCNNConfig(
        num_embeddings=vqvae_config.num_embeddings,
        grid_size=vqvae_config.grid_size,
        **prior_settings,
    )
    return VQVAEForImageGenerationConfig(vqvae_config=vqvae_config, prior_config=prior_config)


def hand_in_vqvae(name_or_path: str, accelerator: Accelerator, folder: RunFolder) -> Path:
    """Puts a trained VQ-VAE (its own folder or repo, or one with a prior) where stage 1 would have put it."""
    done = folder.partial / "vqvae"
    if accelerator.is_main_process and not done.exists():
        write_json(folder.partial / "history.json", {})
        write_json(folder.partial / "seconds.json", {})
        _save_model(VQVAEModel.from_pretrained(name_or_path), done)
    accelerator.wait_for_everyone()
    return done


def train_vqvae(
    config: VQVAEConfig,
    images: ImageSplits,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    folder: RunFolder,
    show: Callable[[VQVAEModel], dict[str, Any]],
    num_workers: int = 0,
) -> Path:
    """Stage 1. Returns the folder of the trained VQ-VAE, which an earlier session of the run may have written."""
    done = folder.partial / "vqvae"
    if done.exists():
        return done
    set_seed(arguments.seed)
    model = VQVAEModel(config)

    def measure(output, batch) -> dict[str, Tensor]:
        return {
            "reconstruction_mse": output.reconstruction_loss,
            "commitment_loss": output.commitment_loss,
        }

    def evaluate() -> dict[str, float]:
        def errors(batch):
            output = model(batch["pixel_values"])
            clipped = output.reconstruction.float().clamp(-0.5, 0.5)
            error = (clipped - batch["pixel_values"]).square().mean((1, 2, 3))
            return {"eval_reconstruction_mse": error}

        return mean_over_split(model, images.eval, accelerator, arguments.eval_batch_size, errors)

    stage = Stage(
        name="vqvae",
        num_epochs=arguments.num_train_epochs,
        learning_rate=arguments.learning_rate,
        input_name="pixel_values",
        measure=measure,
        evaluate=evaluate,
        num_codes=config.num_embeddings,
        show=lambda: show(model),
    )
    steps = count_steps(images.info["train_count"], arguments)
    trainer = StageTrainer(
        model, stage, images.train, steps, arguments, accelerator, folder, num_workers
    )
    _train_and_save(trainer, model, done, folder, accelerator, arguments)
    return done


def train_prior(
    vqvae_folder: str | Path,
    prior_settings: dict[str, Any],
    images: ImageSplits,
    arguments: TrainingArguments,
    accelerator: Accelerator,
    folder: RunFolder,
    show: Callable[[VQVAEForImageGeneration], dict[str, Any]],
) -> Path:
    """Stage 2, on the codes of a trained VQ-VAE. Returns the folder of both together."""
    done = folder.partial / "full"
    if done.exists():
        return done
    set_seed(arguments.seed)
    config = start_full_config(VQVAEConfig.from_pretrained(vqvae_folder), prior_settings)
    with _quiet_loading():  # that the prior is not there yet is no news
        full = VQVAEForImageGeneration.from_pretrained(vqvae_folder, config=config)
    full.vqvae.to(accelerator.device)
    train_codes, eval_codes = (
        encode_split(full.vqvae, split, name, arguments, accelerator, folder)
        for split, name in ((images.train, "train"), (images.eval, "eval"))
    )
    prior = full.prior

    def measure(output, batch) -> dict[str, Tensor]:
        hits = output.logits.detach().argmax(1) == batch["codes"]
        return {"accuracy": hits.float().mean()}

    def evaluate() -> dict[str, float]:
        def likelihoods(batch):
            codes = batch["codes"]
            logits = prior(codes).logits.float()
            nats = torch.nn.functional.cross_entropy(logits, codes, reduction="none")
            hits = logits.argmax(1) == codes
            return {
                "eval_loss": nats.mean((1, 2)),
                "eval_accuracy": hits.float().mean((1, 2)),
            }

        return mean_over_split(
            prior, eval_codes, accelerator, arguments.eval_batch_size, likelihoods
        )

    earlier = read_json(folder.partial / "history.json")
    earlier.pop("prior", None)  # of a session that was killed between the history and the model
    stage = Stage(
        name="prior",
        num_epochs=arguments.prior_num_train_epochs,
        learning_rate=arguments.prior_learning_rate,
        input_name="codes",
        measure=measure,
        evaluate=evaluate,
        show=lambda: show(full),
        steps_before=sum(rows[-1]["step"] for rows in earlier.values() if rows),
    )
    steps = count_steps(len(train_codes), arguments)
    trainer = StageTrainer(prior, stage, train_codes, steps, arguments, accelerator, folder)
    _train_and_save(trainer, full, done, folder, accelerator, arguments)
    return done


def _train_and_save(trainer, model, done, folder, accelerator, arguments) -> None:
    """Trains (or goes on), and writes model and history; called by all processes."""
    stage, resume_from = trainer.stage.name, None
    if arguments.resume_from_checkpoint:
        resume_from = folder.checkpoint_to_resume(arguments.resume_from_checkpoint, stage)
    records = {"history": trainer.train(resume_from), "seconds": round(trainer.seconds, 1)}
    if accelerator.is_main_process:
        for name, value in records.items():
            path = folder.partial / f"{name}.json"
            write_json(path, (read_json(path) if path.exists() else {}) | {stage: value})
        # Contiguous as in every other folder; channels last is a matter of training speed only.
        _save_model(model.to(memory_format=torch.contiguous_format), done)
        discard_checkpoints(folder.checkpoints, stage)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


@contextmanager
def _quiet_loading() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    """Complete or not at all."""
    writing = folder.with_name(f"{folder.name}.writing")
    model.save_pretrained(writing)
    os.rename(writing, folder)


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


@torch.inference_mode()
def mean_over_split(
    model: torch.nn.Module,
    dataset: Any,
    accelerator: Accelerator,
    batch_size: int,
    measure: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, float]:
    """Means over all rows of `dataset`, split over the processes, of what `measure` says of each row of a batch.

    The model is put into eval mode meanwhile.
    """
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    with accelerator.autocast():
        for batch in own_batches(dataset, accelerator, batch_size, "evaluate"):
            for name, values in measure(batch).items():
                sums[name] = sums.get(name, 0) + widen(values).sum()
    model.train(training)
    # The first process has rows if any has; of few rows, the last may have none.
    (names,) = broadcast_object_list([list(sums)])
    zero = widen(torch.zeros((), device=accelerator.device))
    return {
        name: (accelerator.reduce(sums.get(name, zero), "sum") / len(dataset)).item()
        for name in names
    }


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
