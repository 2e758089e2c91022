"""Sample images from a trained model, or complete an image in several ways.

python scripts/sample.py outputs/mnist
python scripts/sample.py me/vqvae-mnist --num_images 64 --temperature 0.8 --output_file samples.png
python scripts/sample.py outputs/mnist --class_labels 3 7 --guidance_scale 2
python scripts/sample.py outputs/mnist --image digit.png --keep upper --output_file completions.png
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hf_vqvae
from hf_vqvae.arguments import DrawArguments, find_label, flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.files import atomic_replace, writing_errors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from hf_vqvae import VQVAEForImageGeneration


@dataclass
class SampleArguments(DrawArguments):
    """What to sample and where to write it."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    num_images: int | None = flag(
        None, "Images to sample (default: 16, with --image 14), per label if several (default: 8).", at_least=1
    )
    class_labels: list[str] | None = flag(
        None,
        "Names or numbers of classes, if the model has any (default: drawn by their frequencies); -1 is no class. "
        "A name has precedence over a number. Each of several labels is a row.",
    )
    image: str | None = flag(None, "An image file to complete; needs --keep.")
    keep: list[str] | None = flag(
        None,
        "The part of --image to keep: upper, lower, left or right (half of the grid of codes, "
        "rounded down), or a box X0 Y0 X1 Y1 (the cells of the grid that lie inside) in pixels of the image "
        "as the model sees it.",
    )
    batch_size: int = flag(256, "Images sampled at a time; changes no image.", at_least=1)
    seed: int = flag(0, "Image i of every label has the seed `seed` + i, whatever --num_images is.", at_least=0)
    output_file: str = flag(
        "samples.png", "PNG with a grid of all images; without .png, a new folder with a PNG each."
    )


def main() -> None:
    parser = ScriptArgumentParser(SampleArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, rest = parser.parse_args_into_dataclasses()
    output = Path(arguments.output_file)
    check(arguments, output)

    # Imported after the flags are checked: these take seconds.
    hf_vqvae.register()
    from accelerate import PartialState

    from hf_vqvae.hub.download import load_model_with_prior
    from hf_vqvae.models.image_processing_vqvae import read_image

    picture = None if arguments.image is None else read_image(arguments.image)
    model = load_model_with_prior(rest.model, arguments.model_revision)
    kept = None if picture is None else read_kept_part(picture, arguments.keep, model.config)
    images = sample(model.to(PartialState().device), arguments, kept)
    if output.suffix.lower() == ".png":
        write_grid(images, kept, output)
    else:
        images_in_order = images.reshape(-1, *images.shape[2:])
        digits = len(str(len(images_in_order) - 1))
        for index, image in enumerate(images_in_order):
            write(image, output / f"{index:0{digits}}.png")
    labels = f" of {', '.join(arguments.class_labels)}" if arguments.class_labels else ""
    before = "; before them the image and what is known of it" if kept else ""
    print(f"{images.shape[0] * images.shape[1]} images{labels}{before}: {output}")


def check(arguments: SampleArguments, output: Path) -> None:
    """Check flags before a model is loaded or downloaded."""
    from PIL import Image

    from hf_vqvae.data.masks import HALVES

    if (arguments.image is None) != (arguments.keep is None):
        raise ValueError("--image and --keep go together: the image, and which part to keep.")
    keep = arguments.keep or ["upper"]
    is_box = len(keep) == 4 and all(word.isascii() and word.isdigit() for word in keep)
    if not is_box and (len(keep) > 1 or keep[0] not in HALVES):
        raise ValueError(
            f"--keep must be {', '.join(HALVES)} or four whole numbers X0 Y0 X1 Y1, got {' '.join(keep)!r}."
        )
    if output.suffix.lower() == ".png":
        if output.is_dir():
            raise ValueError(f"--output_file {output} is a folder: name a file.")
    elif output.suffix.lower() in Image.registered_extensions():
        raise ValueError(f"--output_file {output}: images are written as PNG, name a .png file or a new folder.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output_file {output} exists: name a new folder, or a .png file.")


def read_kept_part(picture, keep: list[str], config) -> "tuple[Tensor, Tensor]":
    """`pixel_values` (1, C, H, W) of the picture, and a mask, bool (H, W), True where they are kept."""
    import torch

    from hf_vqvae.data.masks import HALVES, half_mask
    from hf_vqvae.hub.download import image_processor_for
    from hf_vqvae.models.image_processing_vqvae import MODES

    mode = MODES.get(config.num_channels)
    if picture.mode != mode:
        print(f"The image is converted from {picture.mode} to {mode}.", file=sys.stderr)
    pixel_values = image_processor_for(config)(picture, return_tensors="pt").pixel_values
    if keep[0] in HALVES:
        return pixel_values, half_mask(keep[0], config.vqvae_config)
    left, top, right, bottom = map(int, keep)
    *_, height, width = pixel_values.shape
    rule = f"0 <= X0 < X1 <= {width} and 0 <= Y0 < Y1 <= {height}"
    if not (left < right <= width and top < bottom <= height):
        raise ValueError(f"the box {' '.join(keep)} must be in the image: {rule}.")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return pixel_values, mask


def sample(
    model: "VQVAEForImageGeneration", arguments: SampleArguments, kept: "tuple[Tensor, Tensor] | None"
) -> "np.ndarray":
    """uint8 (L, N, H, W, C): N images of each of L labels, or one row without labels."""
    from hf_vqvae.data.decoding import to_8_bits

    names = arguments.class_labels or []
    rows = max(1, len(names))
    # 14 and the two images of the kept part fill a square.
    number = arguments.num_images or (8 if rows > 1 else 14 if kept else 16)
    label2id = model.config.prior_config.label2id
    labels = [find_label(name, label2id) for name in names for _ in range(number)]
    pixel_values, pixel_mask = kept or (None, None)
    images = model.sample(
        rows * number,
        class_labels=labels or None,
        guidance_scale=arguments.guidance_scale,
        **arguments.controls,
        pixel_values=pixel_values,
        pixel_mask=pixel_mask,
        seeds=[arguments.seed + index for _ in range(rows) for index in range(number)],
        batch_size=arguments.batch_size,
    )
    images = to_8_bits(images)
    return images.reshape(rows, number, *images.shape[1:])


def write_grid(images: "np.ndarray", kept: "tuple[Tensor, Tensor] | None", path: Path) -> None:
    """Write a PNG with a row of images for each label, after the completed image and its kept part."""
    import numpy as np

    from hf_vqvae.data.decoding import to_8_bits
    from hf_vqvae.figures.image_tables import hide_unknown, image_grid

    if kept is not None:
        image, mask = to_8_bits(kept[0]), kept[1].numpy()
        pair = np.concatenate([image, hide_unknown(image, mask)])
        pairs = np.broadcast_to(pair, (len(images), *pair.shape))
        images = np.concatenate([pairs, images], axis=1)
    columns = images.shape[1] if len(images) > 1 else None
    write(image_grid(images.reshape(-1, *images.shape[2:]), columns=columns), path)


def write(image: "np.ndarray", path: Path) -> None:
    """Write a PNG of (H, W, C) atomically."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    writing = path.with_name(f"{path.name}.writing")
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(writing, format="PNG")
        atomic_replace(writing, path)


if __name__ == "__main__":
    run_script(main)
