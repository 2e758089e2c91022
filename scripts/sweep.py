"""Train a grid of codebooks for a few epochs each: reconstruction error against bits an image, in a table and a figure.

python scripts/sweep.py --num_embeddings 32 64 128 256 --embedding_dim 4 16 --output_dir outputs/sweep

The same command goes on where it was stopped; longer lists add points to those that are finished.
"""

import sys
import time

from accelerate import Accelerator, DataLoaderConfiguration

from hf_vqvae.arguments import DataArguments, parse_arguments
from hf_vqvae.data import load_images
from hf_vqvae.stages import start_config
from hf_vqvae.sweeping import (
    SweepArguments,
    SweepFolder,
    SweptVQVAEArguments,
    make_points,
    train_point,
    write_results,
)
from hf_vqvae.training import Interrupted, TrainingFailed


def main() -> None:
    flags = parse_arguments(DataArguments, SweptVQVAEArguments, SweepArguments, description=__doc__)
    data, vqvae, sweep = flags
    points = make_points(sweep, vqvae)
    folder = SweepFolder(sweep, (data, vqvae))
    folder.check()
    accelerator = Accelerator(
        mixed_precision=sweep.mixed_precision,
        gradient_accumulation_steps=sweep.gradient_accumulation_steps,
        # `--train_batch_size` is that of all processes together.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    # Once for all points, which share size and channels.
    images = load_images(data, start_config(points[0].vqvae, None))
    folder.start(images.info, accelerator)
    for number, point in enumerate(points, start=1):
        name = f"Point {number} of {len(points)} ({point})"
        if point.folder.is_finished:
            accelerator.print(f"{name} is finished: kept.")
            continue
        accelerator.print(f"{name}:")
        started = time.monotonic()
        train_point(point, images, data, accelerator)
        accelerator.print(f"{name} took {time.monotonic() - started:.0f} s.")
    if accelerator.is_main_process:
        table = write_results(points, images, folder.path, accelerator.device)
        print(f"\n{table}\n\nDone. Look at:")
        for file in ("sweep.png", "results.md", "results.json"):
            print(f"  {folder.path / file}")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        words = [word for word in sys.argv if word != "--overwrite_output_dir"]
        print(
            f"\nThe sweep was {stop}. Go on with:\n  python {' '.join(words)}",
            file=sys.stderr,
        )
        sys.exit(128 + stop.signal_number)
    except (ValueError, TrainingFailed) as error:
        sys.exit(f"{type(error).__name__}: {error}")
