"""Draw images from a trained model: codes from the prior, decoded.

python scripts/sample.py outputs/mnist
python scripts/sample.py me/vqvae-mnist --num_images 64 --temperature 0.8 --output_file samples.png
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from transformers import HfArgumentParser

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.evaluation import load_model
from hf_vqvae.models.publishing import image_processor_for
from hf_vqvae.plotting import image_grid

BATCH_SIZE = 64


@dataclass
class SampleArguments:
    """What to draw and where to write it."""

    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."}
    )
    num_images: int = field(default=16, metadata={"help": "Images to draw."})
    temperature: float = field(
        default=1.0,
        metadata={"help": "Below 1 likelier and more alike, above 1 more varied; 0 the likeliest."},
    )
    seed: int = field(default=0, metadata={"help": "The same seed draws the same images."})
    output_file: str = field(
        default="samples.png",
        metadata={
            "help": "PNG with all of them in a grid; without .png at its end, a new folder with a "
            "PNG for each."
        },
    )


def main() -> None:
    parser = HfArgumentParser(
        SampleArguments, description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, rest, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        parser.error(f"no such flag: {' '.join(unknown)}. The flags there are stand above.")
    output = Path(arguments.output_file)
    check(arguments, output)
    model = load_model(rest.model, arguments.model_revision)
    if not isinstance(model, VQVAEForImageGeneration):
        raise ValueError(
            f"{rest.model} is a VQ-VAE without a prior, which cannot draw images: train one with "
            f"scripts/train.py --vqvae_name_or_path {rest.model}."
        )
    images = draw(model.to(PartialState().device), arguments)
    if output.suffix.lower() == ".png":
        write(image_grid(images), output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            write(image, output / f"{number:0{len(str(len(images) - 1))}}.png")
    print(f"{len(images)} images: {output}")


def check(arguments: SampleArguments, output: Path) -> None:
    """What can be wrong is said before a model is loaded or downloaded."""
    if arguments.num_images < 1:
        raise ValueError(f"--num_images must be at least 1, got {arguments.num_images}.")
    if not 0 <= arguments.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 or more, got {arguments.temperature}.")
    if output.suffix.lower() == ".png":
        if output.is_dir():
            raise ValueError(f"--output_file {output} is a folder: name a file.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"--output_file {output} exists: name a new folder, or a file that ends in .png."
        )


def draw(model: VQVAEForImageGeneration, arguments: SampleArguments) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    generator = torch.Generator(model.device).manual_seed(arguments.seed)
    parts = []
    for start in range(0, arguments.num_images, BATCH_SIZE):
        number = min(BATCH_SIZE, arguments.num_images - start)
        parts.append(
            model.sample(number, temperature=arguments.temperature, generator=generator).cpu()
        )
    images = image_processor_for(model).postprocess(torch.cat(parts), output_type="np")
    return np.rint(images * 255).astype(np.uint8)


def write(image: np.ndarray, path: Path) -> None:
    """Writes a PNG of (H, W, C) beside its place and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{path.name}.writing")
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(writing, format="PNG")
    os.replace(writing, path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
