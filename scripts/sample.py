"""Draw images from a trained model: codes from the prior, decoded; or complete an image in several ways.

python scripts/sample.py outputs/mnist
python scripts/sample.py me/vqvae-mnist --num_images 64 --temperature 0.8 --output_file samples.png
python scripts/sample.py outputs/mnist --class_labels 3 7 --guidance_scale 2
python scripts/sample.py outputs/mnist --image digit.png --keep upper --output_file completions.png
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image

from hf_vqvae import VQVAEForImageGeneration
from hf_vqvae.arguments import DrawArguments, check_guidance, find_label
from hf_vqvae.command_line import ScriptArgumentParser
from hf_vqvae.data.masks import HALVES, box_mask, half_mask, open_image, to_pixel_values
from hf_vqvae.figures.image_tables import hide_unknown, image_grid
from hf_vqvae.files import output_file_errors
from hf_vqvae.hub.download import load_model


@dataclass
class SampleArguments(DrawArguments):
    """What to draw and where to write it."""

    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."}
    )
    num_images: int | None = field(
        default=None,
        metadata={
            "help": "Images to draw (default: 16, of --image 14), of each label if several (default: 8)."
        },
    )
    class_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names or numbers of classes, where the model has any; a name comes before a "
            "number. Several make a row each."
        },
    )
    image: str | None = field(
        default=None, metadata={"help": "An image file to complete; needs --keep."}
    )
    keep: list[str] | None = field(
        default=None,
        metadata={
            "help": "The part of --image that is known: upper, lower, left or right (half of the "
            "cells of codes, rounded down), or X0 Y0 X1 Y1 in its pixels (the cells that lie in it "
            "as a whole)."
        },
    )
    batch_size: int = field(
        default=256, metadata={"help": "Images drawn at a time; changes no image."}
    )
    seed: int = field(
        default=0,
        metadata={
            "help": "Image number i of every label is that of seed + i, however many are drawn."
        },
    )
    output_file: str = field(
        default="samples.png",
        metadata={
            "help": "PNG with all of them in a grid; without .png at its end, a new folder with a "
            "PNG for each."
        },
    )


def main() -> None:
    arguments, name = parse_arguments()
    output = Path(arguments.output_file)
    check(arguments, output)
    picture = None if arguments.image is None else open_image(arguments.image)
    model = load_model(name, arguments.model_revision)
    if not isinstance(model, VQVAEForImageGeneration):
        raise ValueError(
            f"{name} is a VQ-VAE without a prior, which cannot draw images: train one with "
            f"scripts/train.py --vqvae_name_or_path {name}."
        )
    known = None if picture is None else read_known_part(picture, arguments.keep, model)
    model.to(PartialState().device)
    rows = draw(model, arguments, known)  # (labels, images of each, H, W, C)
    of_each = rows.shape[1]
    number = len(rows) * of_each
    if output.suffix.lower() == ".png":
        if known is not None:
            rows = np.concatenate([show_known_part(*known, len(rows)), rows], axis=1)
        images = rows.reshape(-1, *rows.shape[2:])
        write(image_grid(images, columns=rows.shape[1] if len(rows) > 1 else None), output)
    else:
        for index, image in enumerate(rows.reshape(-1, *rows.shape[2:])):
            write(image, output / f"{index:0{len(str(number - 1))}}.png")
    *others, last = arguments.class_labels or [None]
    of_labels = "" if last is None else f" of {last}"
    if others:
        of_labels = f", {of_each} each of {', '.join(others)} and {last}"
    before = "; before them the image and what is known of it" if known is not None else ""
    print(f"{number} images{of_labels}{before}: {output}")


def parse_arguments() -> tuple[SampleArguments, str]:
    """The flags, and MODEL."""
    parser = ScriptArgumentParser(SampleArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, rest = parser.parse_args_into_dataclasses()
    return arguments, rest.model


def check(arguments: SampleArguments, output: Path) -> None:
    """What can be wrong is said before a model is loaded or downloaded."""
    for name, least in (("num_images", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}.")
    if arguments.seed >= 2**62:
        raise ValueError(f"--seed must be below 2**62, got {arguments.seed}.")
    check_guidance(arguments.guidance_scale, arguments.class_labels)
    if (arguments.image is None) != (arguments.keep is None):
        raise ValueError("--image and --keep go together: the image, and which part is known.")
    if arguments.keep is not None and arguments.keep[0] not in HALVES:
        numbers = [word for word in arguments.keep if word.isascii() and word.isdigit()]
        if len(arguments.keep) != 4 or len(numbers) != 4:
            raise ValueError(
                f"--keep must be {', '.join(HALVES)} or four whole numbers X0 Y0 X1 Y1, got "
                f"{' '.join(arguments.keep)!r}."
            )
    elif arguments.keep is not None and len(arguments.keep) > 1:
        raise ValueError(f"--keep takes one half, got {' '.join(arguments.keep)!r}.")
    if output.suffix.lower() == ".png":
        if output.is_dir():
            raise ValueError(f"--output_file {output} is a folder: name a file.")
    elif output.suffix.lower() in Image.registered_extensions():
        raise ValueError(
            f"--output_file {output}: images are written as PNG, name a file that ends in .png or a new folder."
        )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"--output_file {output} exists: name a new folder, or a file that ends in .png."
        )


def read_known_part(
    picture: Image.Image, keep: list[str], model: VQVAEForImageGeneration
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pixel_values` (1, C, H, W) of the picture, and bool (H, W), True where they are known."""
    config = model.config.vqvae_config
    if keep[0] in HALVES:
        mask = half_mask(keep[0], config)
    else:
        mask = box_mask(tuple(int(word) for word in keep), picture.size, config)
    return to_pixel_values(picture, config), mask


def draw(
    model: VQVAEForImageGeneration,
    arguments: SampleArguments,
    known: tuple[torch.Tensor, torch.Tensor] | None,
) -> np.ndarray:
    """uint8 (L, N, H, W, C): N images of each of the L labels, or of one row without labels."""
    names = arguments.class_labels or []
    rows = max(1, len(names))
    # With the image and its known part 14 make a square.
    number = arguments.num_images or (8 if rows > 1 else 14 if known else 16)
    labels = [
        find_label(name, model.config.prior_config.label2id)
        for name in names
        for _ in range(number)
    ]
    pixel_values, pixel_mask = (None, None) if known is None else known
    images = model.sample(
        rows * number,
        class_labels=labels or None,
        guidance_scale=arguments.guidance_scale,
        **arguments.controls,
        pixel_values=pixel_values,
        pixel_mask=pixel_mask,
        seeds=[arguments.seed + index for _ in range(rows) for index in range(number)],
        batch_size=arguments.batch_size,
        output_type="np",
    )
    images = np.rint(images * 255).astype(np.uint8)
    return images.reshape(rows, number, *images.shape[1:])


def show_known_part(pixel_values: torch.Tensor, mask: torch.Tensor, rows: int) -> np.ndarray:
    """uint8 (rows, 2, H, W, C): the image, and what is known of it."""
    image = np.rint((pixel_values.numpy() + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    pair = np.concatenate([image, hide_unknown(image, mask.numpy())])
    return np.broadcast_to(pair, (rows, *pair.shape))


def write(image: np.ndarray, path: Path) -> None:
    """Writes a PNG of (H, W, C) beside its place and renames it."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    writing = path.with_name(f"{path.name}.writing")
    with output_file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(writing, format="PNG")
        os.replace(writing, path)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
