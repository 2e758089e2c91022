"""A grid of codebooks, each trained for a few epochs: what do more codes, or longer ones, buy?

Every point of the grid is a run of its own, in a folder of its own, as `train.py --train_prior no` leaves it.
"""

import json
import math
from dataclasses import dataclass, field, fields, make_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_vqvae.arguments import (
    DataArguments,
    RunArguments,
    TrainingArguments,
    VQVAEArguments,
    config_arguments,
)
from hf_vqvae.data.decoding import to_8_bits
from hf_vqvae.data.splits import ImageSplits
from hf_vqvae.distributed import check_shared_folder
from hf_vqvae.figures.sweep import plot_sweep
from hf_vqvae.files import atomic_remove, read_json, write_json
from hf_vqvae.hub.download import load_model
from hf_vqvae.model_card.run_figures import choose_images
from hf_vqvae.models import VQVAEConfig
from hf_vqvae.training.report import report
from hf_vqvae.training.run_directory import Run, RunDirectory
from hf_vqvae.training.stages import start_config, train_vqvae

NUM_IMAGES = 8  # in a strip of reconstructions: large enough on a phone
MINIMA = {"num_embeddings": 2, "embedding_dim": 1}
# Flags of `train.py` that mean the same for every point.
SHARED = ("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "learning_rate")
SHARED += ("lr_scheduler_type", "warmup_steps", "max_grad_norm", "seed", "mixed_precision")
SHARED += ("checkpointing_steps", "logging_steps", "resume_with_changes")
# Flags that may change while a sweep goes on: they change no result, or only which points there are.
FREE = {"output_dir", "overwrite_output_dir", "num_embeddings", "embedding_dim", "cache_dir"}
FREE |= {"eval_batch_size", "checkpointing_steps", "logging_steps", "dataloader_num_workers"}
FREE |= {"resume_with_changes", "dataset_revision"}

SweptVQVAEArguments = config_arguments(
    VQVAEConfig, "SweptVQVAEArguments", num_embeddings=..., embedding_dim=..., data_variance=None
)
_SharedArguments = make_dataclass(
    "_SharedArguments",
    [
        (flag.name, flag.type, field(default=flag.default, metadata=flag.metadata))
        for flag in fields(TrainingArguments)
        if flag.name in SHARED
    ],
)


@dataclass
class SweepArguments(_SharedArguments):
    """Which codebooks to train, for how long, and where to; the other flags are those of `train.py`."""

    num_embeddings: list[int] = field(
        default_factory=lambda: [32, 64, 128, 256], metadata={"help": "Codebook sizes K to try."}
    )
    embedding_dim: list[int] = field(
        default_factory=lambda: [4, 16],
        metadata={"help": "Dimensions D of latents and codes to try, each with every K."},
    )
    output_dir: str = field(
        default="outputs/sweep",
        metadata={
            "help": "Folder of the table, the figure and a folder for each point, called KxD. Points that are "
            "finished in it are kept, an unfinished one goes on."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Discard the sweep in output_dir and start anew."}
    )
    num_train_epochs: int = field(default=3, metadata={"help": "Epochs of each point."})

    def __post_init__(self):
        for name, minimum in MINIMA.items():
            values = getattr(self, name)
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(
                    f"--{name} names {', '.join(map(str, repeated))} more than once: each point is trained once."
                )
            if not values or min(values) < minimum:
                raise ValueError(
                    f"--{name} must be one or more numbers, each at least {minimum}, got "
                    f"{' '.join(map(str, values)) or 'none'}."
                )
        self.training_of(Path(self.output_dir))  # checks the flags of training

    def training_of(self, folder: Path) -> TrainingArguments:
        """The flags with which `train.py` would train a point into `folder`."""
        shared = {name: getattr(self, name) for name in (*SHARED, "num_train_epochs")}
        return TrainingArguments(**shared, output_dir=str(folder), train_prior=False)


@dataclass(frozen=True)
class Point:
    """One codebook of the grid: the flags with which `train.py` would train it, and its folder."""

    vqvae: VQVAEArguments
    training: TrainingArguments

    @property
    def folder(self) -> RunDirectory:
        """Where the point's run is, or will be."""
        return RunDirectory(Path(self.training.output_dir))

    def __str__(self) -> str:
        return (
            f"num_embeddings {self.vqvae.num_embeddings}, embedding_dim {self.vqvae.embedding_dim}"
        )


def make_points(sweep: SweepArguments, vqvae: SweptVQVAEArguments) -> list[Point]:
    """The grid, the first codebook size with every dimension first.

    Raises:
        ValueError: if a setting that all points share is out of its range.
    """
    points = []
    for num_embeddings, embedding_dim in product(sweep.num_embeddings, sweep.embedding_dim):
        codebook = {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim}
        folder = Path(sweep.output_dir) / f"{num_embeddings}x{embedding_dim}"
        settings = VQVAEArguments(**vars(vqvae), **codebook)
        start_config(settings, None)
        points.append(Point(settings, sweep.training_of(folder)))
    return points


@dataclass
class SweepFolder:
    """`output_dir` of a sweep, and `sweep.json` in it: what all of its points have in common.

    Args:
        sweep, others: the dataclasses of the command line.
    """

    sweep: SweepArguments
    others: tuple

    def __post_init__(self):
        self.path = Path(self.sweep.output_dir)
        flags = {
            key: value for one in (self.sweep, *self.others) for key, value in vars(one).items()
        }
        self.common = {key: value for key, value in flags.items() if key not in FREE}

    def check(self) -> None:
        """Finds out, before any work, whether this sweep may be written here.

        Raises:
            ValueError: if something else is in the way, or a sweep with other settings; with the ways out.
        """
        record = self.path / "sweep.json"
        overwrite = self.sweep.overwrite_output_dir
        if overwrite and (self.path.name in ("", "..") or self.path.is_symlink()):
            raise ValueError(
                f"--overwrite_output_dir replaces a folder, and --output_dir {self.path} is not that folder's own "
                f"name: give {self.path.resolve()}."
            )
        if self.path.exists() and not record.is_file():
            if not self.path.is_dir() or any(self.path.iterdir()):
                raise ValueError(
                    f"{self.path} exists and holds no sweep (no sweep.json): choose another --output_dir."
                )
        elif record.is_file() and not overwrite:
            self._check_same(read_json(record)["settings"], self.common, "settings")

    def start(self, dataset: dict[str, Any]) -> None:
        """Writes what the points have in common, or checks that it is the same.

        Args:
            dataset: where the images come from, as in `ImageSplits.info`.

        Raises:
            ValueError: if the finished points were trained on other data.
        """
        record = self.path / "sweep.json"
        if self.sweep.overwrite_output_dir:
            atomic_remove(self.path, self.path.with_name(f".{self.path.name}.discarded"))
        elif record.is_file():
            before = read_json(record)["dataset"]
            if before["fingerprint"] != dataset["fingerprint"]:
                self._check_same(before, dataset, "data")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(record, {"settings": self.common, "dataset": dataset})

    def _check_same(self, there: dict[str, Any], here: dict[str, Any], what: str) -> None:
        differences = [
            f"{key} {there.get(key)} there, {here.get(key)} here"
            for key in sorted(there.keys() | here.keys())
            if json.dumps(there.get(key)) != json.dumps(here.get(key))
        ]
        if differences:
            raise ValueError(
                f"{self.path} holds a sweep with other {what} ({'; '.join(differences)}): go on with the same {what}, "
                "choose another --output_dir, or discard that sweep with --overwrite_output_dir."
            )


def find_finished(points: list[Point]) -> list[bool]:
    """Which points are finished; removes what a session that was killed just then has left in them."""
    finished = [point.folder.is_finished for point in points]
    for point, done in zip(points, finished, strict=True):
        if done:
            point.folder.tidy()
    return finished


def train_point(
    point: Point, images: ImageSplits, data: DataArguments, accelerator: Accelerator
) -> None:
    """Trains, measures and documents one point, from where an earlier session left it; its folder is locked."""
    config = start_config(point.vqvae, None)
    if point.vqvae.data_variance is None:
        config.data_variance = images.data_variance
    if accelerator.is_main_process:
        point.folder.start(resume=True)
    accelerator.wait_for_everyone()
    check_shared_folder(accelerator, point.folder.partial, point.folder.output_dir)
    training = replace(point.training, resume_from_checkpoint="latest")
    arguments = RunArguments(data=data, vqvae=point.vqvae, training=training)
    run = Run(arguments, accelerator, point.folder)
    report(train_vqvae(config, images, run), images, run)
    if accelerator.is_main_process:
        point.folder.finish()
    accelerator.wait_for_everyone()


def write_results(
    points: list[Point], images: ImageSplits, folder: Path, device: torch.device
) -> list[dict[str, Any]]:
    """Writes results.json and sweep.png of finished points into `folder`; returns the points' numbers."""
    rows = [describe_point(point) for point in points]
    chosen = choose_images(images.eval.labels, len(images.eval))[:NUM_IMAGES]
    pixel_values = images.eval.__getitems__(chosen)["pixel_values"].to(device)
    models = (load_model(str(point.folder.output_dir)).to(device) for point in points)
    strips = [reconstruct(model, pixel_values) for model in models]
    originals = images.eval.images[chosen].permute(0, 2, 3, 1).numpy()
    plot_sweep(rows, originals, np.stack(strips), folder / "sweep.png")
    write_json(folder / "results.json", {"dataset": images.info, "points": rows})
    return rows


@torch.inference_mode()
def reconstruct(model, pixel_values: torch.Tensor) -> np.ndarray:
    """What a VQ-VAE makes of (N, C, H, W) in [-0.5, 0.5]: uint8 (N, H, W, C)."""
    return to_8_bits(model.decode(model.encode(pixel_values).codes))


def describe_point(point: Point) -> dict[str, Any]:
    """The numbers of a finished point.

    Beside its metrics (under their keys) `codes_per_image` and two rates: `bits_per_image_at_most`, what storing each
    code costs whatever codes there are (cells x log2 K), and `bits_per_image_entropy`, what it costs on average where
    frequent codes are given short names (cells x log2 perplexity); plus `seconds` of training.
    """
    folder = point.folder.output_dir
    metrics = {key: one["value"] for key, one in read_json(folder / "metrics.json").items()}
    codes = math.prod(VQVAEConfig.from_pretrained(folder).grid_size)
    num_embeddings = point.vqvae.num_embeddings
    return {
        "num_embeddings": num_embeddings,
        "embedding_dim": point.vqvae.embedding_dim,
        "folder": folder.name,
        **metrics,
        "codes_per_image": codes,
        "bits_per_image_at_most": codes * math.log2(num_embeddings),
        "bits_per_image_entropy": codes * math.log2(metrics["codebook_perplexity"]),
        "seconds": read_json(folder / "run.json")["seconds"]["vqvae"],
    }
