"""Draw samples beside their nearest training images: are they copies?

    python scripts/neighbours.py outputs/mnist --output_file neighbours.png

The reference is the distance of unseen images to the training images: new images are no nearer than
those. Decoding smooths images and so brings them nearer to all others, so samples, which are
decoded, are to be compared with the reconstructions of unseen images.
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import hf_vqvae
from hf_vqvae.arguments import DataArguments, DrawArguments, find_label, flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.files import output_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hf_vqvae import VQVAEForImageGeneration
    from hf_vqvae.data.decoding import DecodedImages


@dataclass
class NeighbourArguments(DrawArguments):
    """What to sample, to measure and to write."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    num_images: int = flag(10, "Samples in the figure, 100 at most.", at_least=1)
    num_measured: int = flag(1000, "Samples whose distances are measured, and as many evaluation images.", at_least=1)
    class_labels: list[str] | None = flag(
        None, "Names or numbers of classes, in turn (default: drawn by their frequencies)."
    )
    batch_size: int = flag(256, "Images sampled at a time.", at_least=1)
    seed: int = flag(0, "Sample i has the seed `seed` + i.", at_least=0)
    output_file: str = flag("neighbours.png", "PNG to write.")


def main() -> None:
    parser = ScriptArgumentParser((NeighbourArguments, DataArguments), description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, data, rest = parser.parse_args_into_dataclasses()
    output = Path(arguments.output_file)
    check(arguments, output)

    # Imported after the flags are checked: these take seconds.
    hf_vqvae.register()
    from accelerate import PartialState

    from hf_vqvae.data.splits import load_split
    from hf_vqvae.hub.download import load_model_with_prior
    from hf_vqvae.model_card.run_figures import draw_neighbours

    model = load_model_with_prior(rest.model, arguments.model_revision).to(PartialState().device)
    samples = sample(model, arguments)
    data = replace(data, label_column="none")
    train_images, info = load_split(data, model.config, "train")
    eval_images, _ = load_split(data, model.config, "eval")
    unseen, reconstructed = unseen_images(model, eval_images, arguments)
    sets = {
        "samples": samples[: arguments.num_measured],
        f"{data.eval_split}, reconstructed": reconstructed,
        f"{data.eval_split} (unseen)": unseen,
    }
    print(
        f"Distance to the nearest of {len(train_images):,} images ({info['split']} of "
        f"{info['name']}), L2 over all pixels on [0, 1]:\n"
    )
    print_distances(sets, train_images, model.device)
    shown = samples[: arguments.num_images].permute(0, 2, 3, 1).numpy()
    with output_file(output) as writing:
        draw_neighbours(shown, train_images, model.device, writing)
    print(f"{arguments.num_images} samples and their nearest: {output}")


def check(arguments: NeighbourArguments, output: Path) -> None:
    """Check flags before a model is loaded or downloaded."""
    if arguments.num_images > 100:
        raise ValueError(f"--num_images must be at most 100, got {arguments.num_images}.")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"--output_file must be a file that ends in .png, got {output}.")
    with output_file(output):  # its folder is made now
        pass


def sample(model: "VQVAEForImageGeneration", arguments: NeighbourArguments) -> "Tensor":
    """uint8 (N, C, H, W), as many as are shown or measured."""
    from hf_vqvae.data.decoding import as_saved

    number = max(arguments.num_images, arguments.num_measured)
    label2id = model.config.prior_config.label2id
    labels = [find_label(name, label2id) for name in arguments.class_labels or []]
    samples = model.sample(
        number,
        class_labels=[labels[index % len(labels)] for index in range(number)] if labels else None,
        guidance_scale=arguments.guidance_scale,
        **arguments.controls,
        seeds=range(arguments.seed, arguments.seed + number),
        batch_size=arguments.batch_size,
    )
    return as_saved(samples)


def unseen_images(
    model: "VQVAEForImageGeneration", images: "DecodedImages", arguments: NeighbourArguments
) -> "tuple[Tensor, Tensor]":
    """Evaluation images and their reconstructions, both uint8 (N, C, H, W)."""
    import torch

    from hf_vqvae.data.decoding import as_saved

    # Evenly over the split, which may be ordered by class.
    number = min(arguments.num_measured, len(images))
    rows = torch.arange(number) * len(images) // number
    parts = []
    with torch.inference_mode():
        for part in rows.split(arguments.batch_size):
            pixel_values = images.__getitems__(part.tolist())["pixel_values"].to(model.device)
            parts.append(as_saved(model.vqvae.decode(model.vqvae.encode(pixel_values).codes)))
    return images.images[rows], torch.cat(parts)


def print_distances(sets: "dict[str, Tensor]", train_images: "DecodedImages", device: "torch.device") -> None:
    """Print the distances of each set to the nearest training images, and the fraction of near samples."""
    from hf_vqvae.evaluation.nearest_neighbors import nearest_images

    print(f"{'':34}  images   mean  least")
    distances = []
    for title, images in sets.items():
        distances.append(nearest_images(images.to(device), train_images.images)[0])
        mean, least = distances[-1].mean().item(), distances[-1].min().item()
        print(f"{title:34}  {len(images):6,}  {mean:5.2f}  {least:5.2f}")
    of_samples, of_reconstructions, _ = distances
    near = of_reconstructions.quantile(0.01).item()
    share = (of_samples <= near).float().mean().item()
    print(
        f"\n{share:.1%} of the samples are within {near:.2f}, as are 1% of the reconstructions: a much "
        "larger share would be copies."
    )


if __name__ == "__main__":
    run_script(main)
