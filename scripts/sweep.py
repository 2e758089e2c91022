"""Train a grid of codebooks for a few epochs each: reconstruction error against bits an image, in a table and a figure.

python scripts/sweep.py --num_embeddings 32 64 128 256 --embedding_dim 4 16 --output_dir outputs/sweep

The same command goes on where it was stopped; longer lists add points to those that are finished.
"""

import sys
import time
from typing import Any

from accelerate import Accelerator

from hf_vqvae.arguments import DataArguments
from hf_vqvae.command_line import format_table, parse_arguments
from hf_vqvae.data.splits import load_images
from hf_vqvae.distributed import check_same_images, make_accelerator, run_on_main_process
from hf_vqvae.training.locking import locked_together
from hf_vqvae.training.signals import exit_on_signals, same_command
from hf_vqvae.training.stages import start_config
from hf_vqvae.training.trainer import TrainingFailed
from sweeping import (
    Point,
    SweepArguments,
    SweepFolder,
    SweptVQVAEArguments,
    find_finished,
    make_points,
    train_point,
    write_results,
)


def main() -> None:
    flags = parse_arguments(DataArguments, SweptVQVAEArguments, SweepArguments, description=__doc__)
    data, vqvae, sweep = flags
    points = make_points(sweep, vqvae)
    folder = SweepFolder(sweep, (data, vqvae))
    accelerator = make_accelerator(points[0].training, points[0].folder.partial)
    resume_command = same_command(
        *(["--overwrite_output_dir", "False"] if sweep.overwrite_output_dir else [])
    )
    with locked_together(accelerator, folder.path), exit_on_signals(folder.path, resume_command):
        run_on_main_process(accelerator, folder.check)
        train_points(points, folder, data, accelerator)
    accelerator.end_training()


def train_points(
    points: list[Point], folder: SweepFolder, data: DataArguments, accelerator: Accelerator
) -> None:
    """Trains the points that are not finished, and writes what all of them make together."""
    with accelerator.main_process_first():  # one process fills the cache, the others read it
        # Once for all points, which share size and channels.
        images = load_images(data, start_config(points[0].vqvae, None))
    check_same_images(accelerator, images.info)
    run_on_main_process(accelerator, lambda: folder.start(images.info))
    finished = run_on_main_process(accelerator, lambda: find_finished(points))
    for number, (point, done) in enumerate(zip(points, finished, strict=True), start=1):
        name = f"Point {number} of {len(points)} ({point})"
        if done:
            accelerator.print(f"{name} is finished: kept.")
            continue
        accelerator.print(f"{name}:")
        started = time.monotonic()
        with locked_together(accelerator, point.folder.output_dir):
            train_point(point, images, data, accelerator)
        accelerator.print(f"{name} took {time.monotonic() - started:.0f} s.")
    if accelerator.is_main_process:
        rows = write_results(points, images, folder.path, accelerator.device)
        table = describe_results(rows, images.info)
        page = f"{table}\n\n![Errors, rates and reconstructions](sweep.png)\n"
        (folder.path / "results.md").write_text(page, encoding="utf-8")
        print(f"\n{table}\n\nDone. Look at:")
        for file in ("sweep.png", "results.md", "results.json"):
            print(f"  {folder.path / file}")


def describe_results(rows: list[dict[str, Any]], dataset: dict[str, Any]) -> str:
    """The points as a Markdown table, with the protocol below it."""
    header = ("K", "D", "MSE", "PSNR", "SSIM", "perplexity", "codes used")
    header = (*header, "bits at most", "bits by entropy", "seconds")
    lines = []
    for row in rows:
        quality = (f"{row['reconstruction_mse']:.5f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}")
        usage = (f"{row['codebook_perplexity']:.1f}", str(row["codes_used"]))
        rates = (f"{row['bits_per_image_at_most']:.0f}", f"{row['bits_per_image_entropy']:.0f}")
        size = (str(row["num_embeddings"]), str(row["embedding_dim"]))
        lines.append((*size, *quality, *usage, *rates, f"{row['seconds']:.0f}"))
    table = format_table(header, lines, ">" * len(header))
    return (
        f"{table}\n\nK codes of dimension D, {rows[0]['codes_per_image']} of them an image; measured on all "
        f"{dataset['eval_count']:,} images of split `{dataset['eval_split']}`, pixels in [0, 1]. Bits an image: "
        "at most log2 K a code, by entropy log2 of the perplexity a code."
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TrainingFailed) as error:
        sys.exit(f"Error: {error}")
