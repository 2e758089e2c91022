"""Read image files as 8-bit pixels, and refuse those that would lose information or start another program."""

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
DRAWINGS = ("EPS", "WMF", "EMF")  # PIL starts another program to rasterize them


def read_image(file: str | PathLike | BytesIO) -> Image.Image:
    """Read a whole image file and apply its EXIF orientation; no other program is started.

    Raises:
        DataError: if it has several frames or more than 8 bits per channel (16-bit colour is
            recognised in PNG, TIFF, PPM and SGI).
        ValueError: if it is a vector drawing.
        Exception: any error of its decoder for a broken file, and that of PIL for more than 179
            million pixels (decompression bombs).
    """
    with Image.open(file) as image:  # reads the header only
        if image.format in DRAWINGS:
            raise ValueError(
                f"{image.format} is a drawing, which only another program could rasterize: save it as PNG"
            )
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError(
                f"has {image.n_frames} frames, of which only one could be used: save one frame, or each, "
                "as a separate image."
            )
        if image.mode.startswith("I") or image.mode == "F" or _has_wide_channels(image):
            raise DataError(
                f"has more than 8 bits a channel (mode {image.mode}), of which PIL would silently drop "
                "some: save the images with 8 bits a channel first."
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def _has_wide_channels(image: Image.Image) -> bool:
    """Return whether an image that is opened but not read has 16-bit channels of which PIL would keep 8 bits."""
    for decoder, _, _, arguments in image.tile:
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        if decoder in ("ppm", "ppm_plain") and isinstance(words[-1], int) and words[-1] > 255:
            return True
        if decoder == "SGI16" or any(re.search(";16[BLN]", str(word)) for word in words):
            return True
    return False


def decode_image(cell: dict[str, Any], config: VQVAEConfig) -> np.ndarray:
    """Decode an image file to uint8 (C, H, W), resized as the image processor does.

    1-bit images become grey. Palette images become RGB, or grey if `config` has fewer than three channels and all
    colours are grey. CMYK and YCbCr become RGB (by PIL, without colour profiles). EXIF orientation is applied.
    Transparency is one more channel. The whole image is resized to `config.image_size`, whatever its aspect ratio. Of
    the pictures of a multi-picture JPEG (MPO) the first is used.

    Args:
        cell: `bytes` or `path` of the file, as in an undecoded image column.

    Raises:
        DataError: if the number of channels is not `config.num_channels`.
        Exception: as [`read_image`].
    """
    content = cell["bytes"]
    if content is None:  # a file, possibly on the Hub or within an archive
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
    """Return the mode in `MODES` that keeps all information of the image."""
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("P", "PA") and num_channels < 3:
        colours = np.asarray(image.convert("RGB"))
        grey = bool((colours == colours[..., :1]).all())
    return MODES[(1 if grey else 3) + image.has_transparency_data]
