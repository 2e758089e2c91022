"""Draw samples beside their nearest training images: are they copies?

    python scripts/neighbours.py outputs/mnist --output_file neighbours.png

The yardstick is how near images that the model has never seen are to the training images: new images
are no nearer than those. Decoding makes images smoother and so nearer to all others; samples, which
are decoded, are therefore to be compared with the reconstructions of unseen images.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.arguments import DataArguments, DrawArguments, check_guidance, find_label
from hf_vqvae.command_line import ScriptArgumentParser
from hf_vqvae.data.decoding import to_8_bits
from hf_vqvae.data.splits import DecodedImages, load_split
from hf_vqvae.evaluation.nearest_neighbors import nearest_images
from hf_vqvae.files import output_file_errors
from hf_vqvae.hub.download import load_model
from hf_vqvae.model_card.run_figures import draw_neighbours


@dataclass
class NeighbourArguments(DrawArguments):
    """What to draw, to measure and to write."""

    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."}
    )
    num_images: int = field(
        default=10, metadata={"help": "Samples that the picture shows, 100 at most."}
    )
    num_measured: int = field(
        default=1000,
        metadata={"help": "Samples whose distances are measured, and as many evaluation images."},
    )
    class_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names or numbers of classes, in turn (default: drawn without a label, from a "
            "model that needs one all classes in turn)."
        },
    )
    batch_size: int = field(default=256, metadata={"help": "Images drawn at a time."})
    seed: int = field(default=0, metadata={"help": "Sample i is that of seed + i."})
    output_file: str = field(default="neighbours.png", metadata={"help": "PNG to write."})


def main() -> None:
    arguments, data, name = parse_arguments()
    check(arguments)
    model = load_model(name, arguments.model_revision)
    if not isinstance(model, VQVAEForImageGeneration):
        raise ValueError(
            f"{name} is a VQ-VAE without a prior, which draws no samples: train one with "
            f"scripts/train.py --vqvae_name_or_path {name}."
        )
    model.to(PartialState().device)
    samples = draw(model, arguments)
    # The limit of the split that is opened here is that of the training split.
    limited = replace(data, max_eval_samples=data.max_train_samples)
    train_images, info = load_split(limited, model.base_model.config, data.train_split)
    eval_images, _ = load_split(data, model.base_model.config, data.eval_split)
    # Evenly over the split, which may be in the order of its classes.
    number = min(arguments.num_measured, len(eval_images))
    rows = torch.arange(number) * len(eval_images) // number
    unseen = eval_images.images[rows]
    decoded = reconstruct(model, eval_images, rows, arguments.batch_size)
    print(
        f"Distance to the nearest of {len(train_images):,} images ({info['split']} of "
        f"{info['name']}), L2 over all pixels on [0, 1]:\n"
    )
    print(f"{'':34}  images   mean  least")
    sets = {
        "samples": samples[: arguments.num_measured],
        f"{data.eval_split}, reconstructed": decoded,
        f"{data.eval_split} (unseen)": unseen,
    }
    found = []
    for title, images in sets.items():
        distances = nearest_images(images.to(model.device), train_images.images)[0]
        mean, least = distances.mean().item(), distances.min().item()
        print(f"{title:34}  {len(images):6,}  {mean:5.2f}  {least:5.2f}")
        found.append(distances)
    near = found[1].quantile(0.01).item()
    share = (found[0] <= near).float().mean().item()
    print(
        f"\n{share:.1%} of the samples are within {near:.2f}, as are 1% of the reconstructions: a much "
        "larger share would be copies."
    )
    write(samples[: arguments.num_images], train_images, model.device, Path(arguments.output_file))
    print(f"{arguments.num_images} samples and their nearest: {arguments.output_file}")


def parse_arguments() -> tuple[NeighbourArguments, DataArguments, str]:
    """The flags, and MODEL."""
    parser = ScriptArgumentParser((NeighbourArguments, DataArguments), description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, data, rest = parser.parse_args_into_dataclasses()
    return arguments, data, rest.model


def check(arguments: NeighbourArguments) -> None:
    """What can be wrong is said before a model is loaded or downloaded."""
    for name, least in (("num_images", 1), ("num_measured", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(arguments, name)}.")
    if arguments.num_images > 100:
        raise ValueError(f"--num_images must be at most 100, got {arguments.num_images}.")
    check_guidance(arguments.guidance_scale, arguments.class_labels)
    output = Path(arguments.output_file)
    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"--output_file must be a file that ends in .png, got {output}.")
    with output_file_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)


def draw(model: VQVAEForImageGeneration, arguments: NeighbourArguments) -> Tensor:
    """uint8 (N, C, H, W), as many as are shown or measured."""
    number = max(arguments.num_images, arguments.num_measured)
    config = model.config.prior_config
    labels = [
        find_label(name, model.config.prior_config.label2id)
        for name in arguments.class_labels or []
    ]
    if not labels and config.num_classes is not None and config.label_dropout == 0:
        labels = list(range(config.num_classes))
    samples = model.sample(
        number,
        class_labels=[labels[index % len(labels)] for index in range(number)] if labels else None,
        guidance_scale=arguments.guidance_scale,
        **arguments.controls,
        seeds=range(arguments.seed, arguments.seed + number),
        batch_size=arguments.batch_size,
    )
    return torch.from_numpy(to_8_bits(samples)).permute(0, 3, 1, 2)


@torch.inference_mode()
def reconstruct(
    model: VQVAEForImageGeneration, images: DecodedImages, rows: Tensor, batch_size: int
) -> Tensor:
    """uint8 (N, C, H, W), what the decoder makes of the codes of `images[rows]`."""
    parts = []
    for part in rows.split(batch_size):
        pixel_values = images.__getitems__(part.tolist())["pixel_values"].to(model.device)
        parts.append(to_8_bits(model.vqvae.decode(model.vqvae.encode(pixel_values).codes)))
    return torch.cat([torch.from_numpy(part) for part in parts]).permute(0, 3, 1, 2)


def write(samples: Tensor, train_images: DecodedImages, device: torch.device, path: Path) -> None:
    """Writes the picture beside its place and renames it."""
    writing = path.with_name(f"{path.name}.writing")
    with output_file_errors(path):
        draw_neighbours(samples.permute(0, 2, 3, 1).numpy(), train_images, device, writing)
        os.replace(writing, path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
