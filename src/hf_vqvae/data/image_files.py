"""Image files: what they are read as, and those that cannot be read without a loss or a danger."""

import re
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps

from ..models.configuration_vqvae import VQVAEConfig, as_pair
from ..models.image_processing_vqvae import VQVAEImageProcessorPil
from .sources import DataError

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of PIL, for each number of channels
DRAWINGS = ("EPS", "WMF", "EMF")  # PIL has another program turn them into pixels


def read_image(file: str | PathLike | BytesIO) -> Image.Image:
    """An image file, read as a whole, turned as its EXIF says. No other program is started for it.

    Raises:
        DataError: if it has several frames or more than 8 bits a channel, with what to do (16-bit
            colour is known in PNG, TIFF, PPM and SGI; decoders of other formats make 8 bits of it).
        ValueError: if it is a drawing.
        Exception: whatever its decoder raises of a broken file, or PIL of one of more than 179
            million pixels (its guard against bombs).
    """
    with Image.open(file) as image:  # reads no more than the head
        if image.format in DRAWINGS:
            raise ValueError(
                f"{image.format} is a drawing, and no program is started to make pixels of it: save it as PNG"
            )
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError(
                f"has {image.n_frames} frames, of which only one could be used: save the one that is "
                "meant, or each, as an image of its own."
            )
        if image.mode.startswith("I") or image.mode == "F" or _has_wide_channels(image):
            raise DataError(
                f"has more than 8 bits a channel (mode {image.mode}), which would lose most of its "
                "greys or its range without a word: save the images with 8 bits a channel first."
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def _has_wide_channels(image: Image.Image) -> bool:
    """Whether a file that has been opened, not read, has channels of 16 bits of which PIL would keep 8."""
    for decoder, _, _, arguments in image.tile:
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        if decoder in ("ppm", "ppm_plain") and isinstance(words[-1], int) and words[-1] > 255:
            return True
        if decoder == "SGI16" or any(re.search(";16[BLN]", str(word)) for word in words):
            return True
    return False


def decode_image(cell: dict[str, Any], config: VQVAEConfig) -> np.ndarray:
    """One image file as uint8 (C, H, W), resized as the image processor does.

    What a file means: 1-bit images are grey; a palette is its colours, or grey where all of them
    are and one channel is asked for; CMYK and YCbCr become RGB (by PIL, without colour profiles);
    EXIF orientation is applied. A transparent image has its alpha as one more channel. Whatever
    its shape, the whole image is resized to `config.image_size`; of that size it stays as it is.
    Of the pictures that cameras put into one JPEG it is the first.

    Args:
        cell: `bytes` or `path` of the file, as in an image column that is not decoded.

    Raises:
        DataError: if the image has other channels than `config.num_channels`; with what to do.
        Exception: as [`read_image`].
    """
    content = cell["bytes"]
    if content is None:  # a file, maybe of the Hub or within an archive
        with xopen(cell["path"], "rb") as file:
            content = file.read()
    image = read_image(BytesIO(content))
    mode = _natural_mode(image, config.num_channels)
    if MODES.get(config.num_channels) != mode:
        channels = len(Image.new(mode, (1, 1)).getbands())
        wanted = MODES.get(config.num_channels)
        raise DataError(
            f"has {channels} channel{'s' * (channels > 1)} (mode {image.mode}), but `num_channels` "
            f"is {config.num_channels}: use `--num_channels {channels}`"
            + (f", or convert the images to {wanted} first." if wanted else ".")
        )
    if image.mode != mode:
        image = image.convert(mode)
    height, width = as_pair(config.image_size)
    if image.size != (width, height):
        image = image.resize((width, height), VQVAEImageProcessorPil.resample)
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _natural_mode(image: Image.Image, num_channels: int) -> str:
    """The mode out of `MODES` that keeps all that the image means."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA") and num_channels < 3:
        colours = np.asarray(image.convert("RGB"))
        grey = bool((colours == colours[..., :1]).all())
    return MODES[(1 if grey else 3) + image.has_transparency_data]
