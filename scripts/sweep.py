"""Train a grid of codebooks for a few epochs each: reconstruction error against bits per image, in a table and figure.

python scripts/sweep.py --num_embeddings 32 64 128 256 --embedding_dim 4 16 --output_dir outputs/sweep
python scripts/sweep.py --num_embeddings 16 32 64 128 256 512 --embedding_dim 16 --num_train_epochs 30 --train_prior

Each point of the grid is a run of `train.py` in a folder of its own, without a prior unless asked for. The same command
resumes a sweep that was stopped; longer lists add points to those that are finished. To start again, remove the folder.
"""

__registers_after_parsing__ = True  # --help and a wrong flag need no modeling code

import math
import time
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_vqvae
from hf_vqvae.arguments import (
    REPLACED,
    DataArguments,
    PriorArguments,
    RunArguments,
    TrainingArguments,
    VQVAEArguments,
    config_arguments,
    flag,
)
from hf_vqvae.command_line import ScriptArgumentParser, format_table, run_script
from hf_vqvae.files import read_json, write_json
from hf_vqvae.models import VQVAEConfig

if TYPE_CHECKING:
    from hf_vqvae.training.run_directory import Run

NUM_IMAGES = 8  # in a strip of reconstructions: large enough on a phone

SweptVQVAEArguments = config_arguments(
    VQVAEConfig, "SweptVQVAEArguments", num_embeddings=..., embedding_dim=..., **REPLACED
)


@dataclass
class SweepArguments(TrainingArguments):
    """Codebooks to train, number of epochs and output folder; the other flags are those of `train.py`."""

    num_embeddings: list[int] = flag([32, 64, 128, 256], "Codebook sizes K to try.")
    embedding_dim: list[int] = flag([4, 16], "Dimensions D of the codebook vectors to try, each with every K.")
    output_dir: str = flag(
        "outputs/sweep",
        "Folder of the table, the figure and a folder for each point, called KxD. Finished points "
        "are kept, unfinished ones are resumed.",
    )
    num_train_epochs: int = flag(3, "Epochs of each point.")
    train_prior: bool = flag(False, "Train a prior at each point, which gives its bits per image.")
    num_eval_samples: int = flag(0, "Samples of each prior for the Fréchet distance; 0 skips it.")
    # Not flags: a point starts from nothing, and is resumed whenever it is not finished.
    overwrite_output_dir: bool = field(default=False, init=False)
    resume_from_checkpoint: str = field(default="latest", init=False)
    vqvae_name_or_path: None = field(default=None, init=False)
    codes_dataset_name: None = field(default=None, init=False)
    train_vqvae: bool = field(default=False, init=False)
    log_with: list[str] = field(default_factory=list, init=False)


def main() -> None:
    parts = (DataArguments, SweptVQVAEArguments, PriorArguments, SweepArguments)
    data, vqvae, prior, sweep = ScriptArgumentParser(parts, description=__doc__).parse()
    run_sweep(make_points(data, vqvae, prior, sweep), Path(sweep.output_dir))


def make_points(data: DataArguments, vqvae: Any, prior: Any, sweep: SweepArguments) -> list[RunArguments]:
    """Make the flags of each point's run, for the first codebook size with every dimension first."""
    shared = {one.name: getattr(sweep, one.name) for one in fields(TrainingArguments)}
    points = []
    for size, dimension in dict.fromkeys(product(sweep.num_embeddings, sweep.embedding_dim)):
        swept = VQVAEArguments(**vars(vqvae), num_embeddings=size, embedding_dim=dimension)
        folder = str(Path(sweep.output_dir, f"{size}x{dimension}"))
        points.append(RunArguments(data, swept, prior, TrainingArguments(**shared | {"output_dir": folder})))
    return points


def run_sweep(points: list[RunArguments], folder: Path) -> None:
    """Train the points that are not finished, then write table and figure of all points."""
    hf_vqvae.register()
    from hf_vqvae.distributed import make_accelerator, run_on_main_process
    from hf_vqvae.training.locking import locked_together
    from hf_vqvae.training.run import check_run, train
    from hf_vqvae.training.run_directory import Run, RunDirectory
    from hf_vqvae.training.signals import exit_on_signals, same_command

    accelerator = make_accelerator(points[0].training, folder)
    runs = [Run(point, accelerator, RunDirectory(Path(point.training.output_dir))) for point in points]
    with exit_on_signals(folder, same_command()):
        # Flags that contradict a point that is there are an error before any training.
        checked = run_on_main_process(accelerator, lambda: [check_run(run) for run in runs])
        for number, (run, changes) in enumerate(zip(runs, checked, strict=True), start=1):
            name = f"Point {number} of {len(runs)} ({run.directory.output_dir.name})"
            accelerator.print("\n".join([f"{name}:", *(f"From here on: {change}." for change in changes or ())]))
            if changes is None:
                continue
            started = time.monotonic()
            with locked_together(accelerator, run.directory.output_dir):
                train(run)
                if accelerator.is_main_process:
                    run.directory.finish()
                accelerator.wait_for_everyone()
            accelerator.print(f"{name} took {time.monotonic() - started:.0f} s.")
        if accelerator.is_main_process:
            write_results(runs, folder)
    accelerator.end_training()


def write_results(runs: "list[Run]", folder: Path) -> None:
    """Write results.json, results.md and sweep.png of finished points into `folder`, and print the table."""
    import numpy as np
    import torch

    from hf_vqvae.data.decoding import to_8_bits
    from hf_vqvae.data.splits import load_split
    from hf_vqvae.figures.sweep import plot_sweep
    from hf_vqvae.hub.download import load_model
    from hf_vqvae.model_card.run_figures import choose_images

    rows = [describe_point(run) for run in runs]
    first = runs[0].directory.output_dir
    dataset = read_json(first / "run.json")["dataset"]
    for run in runs:
        there = read_json(run.directory.output_dir / "run.json")["dataset"]
        if there["fingerprint"] != dataset["fingerprint"]:
            raise ValueError(f"{run.directory.output_dir} was trained on other data than {first}: remove one of them.")
    images, _ = load_split(runs[0].arguments.data, VQVAEConfig.from_pretrained(first), "eval")
    chosen = choose_images(images.labels, len(images))[:NUM_IMAGES]
    device = runs[0].accelerator.device
    pixel_values = images.__getitems__(chosen)["pixel_values"].to(device)
    strips = []
    for run in runs:
        model = load_model(str(run.directory.output_dir)).base_model.to(device)
        with torch.inference_mode():
            strips.append(to_8_bits(model.decode(model.encode(pixel_values).codes)))
    originals = images.images[chosen].permute(0, 2, 3, 1).numpy()
    plot_sweep(rows, originals, np.stack(strips), folder / "sweep.png", dataset=dataset["name"])
    write_json(folder / "results.json", {"dataset": dataset, "points": rows})
    table = describe_results(rows, dataset)
    page = f"{table}\n\n![Errors, rates and reconstructions](sweep.png)\n"
    (folder / "results.md").write_text(page, encoding="utf-8")
    files = ("sweep.png", "results.md", "results.json")
    print(f"\n{table}\n\nDone. Look at:", *(folder / file for file in files), sep="\n  ")


def describe_point(run: "Run") -> dict[str, Any]:
    """Read the numbers of a finished point.

    Beside its metrics (under their keys) these are `codes_per_image` and two or three rates: `bits_per_image_at_most`,
    with codes of equal length (cells x log2 K); `bits_per_image_entropy`, the average with an ideal entropy code (cells
    x log2 perplexity); and `bits_per_image_prior`, by the prior if there is one; plus `seconds` of training.
    """
    folder, vqvae = run.directory.output_dir, run.arguments.vqvae
    metrics = {key: one["value"] for key, one in read_json(folder / "metrics.json").items()}
    codes = math.prod(VQVAEConfig.from_pretrained(folder).grid_size)
    # Whatever the label, which a receiver is not told.
    prior = metrics.get("bits_per_image_marginal", metrics.get("bits_per_image"))
    return {
        "num_embeddings": vqvae.num_embeddings,
        "embedding_dim": vqvae.embedding_dim,
        "folder": folder.name,
        **metrics,
        "codes_per_image": codes,
        "bits_per_image_at_most": codes * math.log2(vqvae.num_embeddings),
        "bits_per_image_entropy": codes * math.log2(metrics["codebook_perplexity"]),
        **({} if prior is None else {"bits_per_image_prior": prior}),
        "seconds": sum(read_json(folder / "run.json")["seconds"].values()),
    }


def describe_results(rows: list[dict[str, Any]], dataset: dict[str, Any]) -> str:
    """Format the points as a Markdown table, with the protocol below it."""
    columns = {
        "K": ("num_embeddings", "d"),
        "D": ("embedding_dim", "d"),
        "MSE": ("reconstruction_mse", ".5f"),
        "PSNR": ("psnr", ".2f"),
        "SSIM": ("ssim", ".4f"),
        "perplexity": ("codebook_perplexity", ".1f"),
        "codes used": ("codes_used", ""),
        "bits at most": ("bits_per_image_at_most", ".0f"),
        "bits by entropy": ("bits_per_image_entropy", ".0f"),
        "bits by prior": ("bits_per_image_prior", ".1f"),
        "seconds": ("seconds", ".0f"),
    }
    columns = {name: column for name, column in columns.items() if column[0] in rows[0]}
    cells = [[format(row[key], form) for key, form in columns.values()] for row in rows]
    table = format_table(list(columns), cells, ">" * len(columns))
    return (
        f"{table}\n\nK codebook vectors of dimension D, {rows[0]['codes_per_image']} codes per image; measured on all "
        f"{dataset['eval_count']:,} images of split `{dataset['eval_split']}`, pixels in [0, 1]. Bits per image: "
        "at most log2 K per code, by entropy log2 of the perplexity per code"
        f"{', by the prior -log2 p(codes) without labels' if 'bits by prior' in columns else ''}."
    )


if __name__ == "__main__":
    run_script(main)
