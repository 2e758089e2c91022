# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Convert images to `pixel_values` in [-0.5, 0.5] and back."""

import math
import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .configuration_utils import without_code
from .input_checks import require

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of PIL, for each number of channels


class VQVAEImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of [`VQVAEImageProcessorPil`] that other image processors do not have."""

    num_channels: int | None
    background: str
    resize_mode: str


class VQVAEImageProcessorPil(PilBackend):
    r"""
    Convert 8-bit images to `pixel_values` (B, C, H, W) in [-0.5, 0.5], the scale of the Keras example.

    Takes paths and bytes of image files, PIL images, numpy arrays (H, W), (H, W, C) or (C, H, W), tensors, and lists
    of them. Training uses [`read_image`] and `process_image`, too. `postprocess` gives 8-bit images back exactly.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 28, "width": 28}`):
            Images of another size are resized to it (PIL, bilinear with antialiasing).
        resize_mode (`str`, *optional*, defaults to `"squash"`):
            `"squash"` distorts images of another aspect ratio, `"crop"` cuts both ends off, `"pad"` adds `background`.
        num_channels (`int`, *optional*):
            8-bit images become grey (1), grey with alpha (2), RGB (3) or RGBA (4); by default they stay as they are.
        background (`str`, *optional*, defaults to `"black"`):
            Colour behind transparent pixels where no alpha channel is kept, and of padding: a name or `#rrggbb`.
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std:
            As in every image processor: mean and deviation are a number, or a list of one for each channel. Pass
            `do_rescale=False` for floating-point images in [0, 1].

    Raises:
        ValueError: if there is no image, it cannot be read without loss, its layout, channels or values are not those
            that the settings are for, or a setting is out of its range.
    """

    valid_kwargs = VQVAEImageProcessorKwargs
    do_resize = True
    size = {"height": 28, "width": 28}
    resize_mode = "squash"
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    do_normalize = True
    image_mean = 0.5
    image_std = 1.0
    do_convert_rgb = False
    num_channels = None
    background = "black"

    def __init__(self, **kwargs):
        _check_settings(kwargs)
        super().__init__(**without_code(kwargs, self))

    def preprocess(self, images, *args, **kwargs):
        """Convert images to `pixel_values`; any setting of the processor can be passed for one call."""
        _check_settings(kwargs)
        return super().preprocess(images, *args, **kwargs)

    def fetch_images(self, images):
        """Read the files among `images`, and make arrays and tensors (H, W) to (1, H, W). Of addresses, as RGB."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, bytes | os.PathLike) or (isinstance(images, str) and os.path.isfile(images)):
            return read_image(images)
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
            return images[None]
        return super().fetch_images(images)

    def process_image(self, image, input_data_format=None, **kwargs) -> np.ndarray:
        """Convert one image to an array (C, H, W); 8-bit images also to `num_channels` and `size`."""
        settings = {**vars(self), **kwargs}
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        if isinstance(image, Image.Image):
            image = read_image(image)
        if not isinstance(image, Image.Image) or image.mode.startswith(("I", "F")):
            array = super().process_image(image, input_data_format=input_data_format)
            array = array.astype(np.uint8) * 255 if array.dtype == bool else array
            # Two channels are grey with alpha only for a model of such images.
            channels = {1, 3, 4, settings["num_channels"]} & MODES.keys()
            if array.dtype != np.uint8 or len(array) not in channels:
                return array
            image = Image.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1))
        array = np.array(_resize(_convert(image, settings), settings))
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _preprocess(self, images, do_resize, size, num_channels, resize_mode, **kwargs):
        require(bool(images), "images", images, "at least one image")
        channels = sorted({len(image) for image in images})
        if len(channels) > 1 or num_channels not in (None, channels[0]):
            wanted = num_channels or "the same number of"
            raise ValueError(f"images must have {wanted} channels, got {channels}: convert them first.")
        for image in images:
            _check_range(image, kwargs["do_rescale"], kwargs["rescale_factor"])
        # 8-bit images have their size already. Skip a resize that changes nothing.
        same = all(image.shape[-2:] == (size.height, size.width) for image in images)
        is_possible = same or not do_resize or resize_mode == "squash"
        require(is_possible, "resize_mode", resize_mode, "'squash' for other than 8-bit images")
        return super()._preprocess(images, do_resize=do_resize and not same, size=size, **kwargs)

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        """Resize an image (C, H, W) of more than 8 bits by channels as floats, since 8 bits would lose precision."""
        if not (size.height and size.width):
            return super().resize(image, size, resample, **kwargs)
        planes = [Image.fromarray(plane.astype(np.float32)) for plane in image]
        return np.stack([np.asarray(p.resize((size.width, size.height), resample)) for p in planes])

    def postprocess(self, images: torch.Tensor, output_type: str = "pil"):
        """Undo the scaling: convert images (B, C, H, W) of a model to PIL images, or to arrays or tensors in [0, 1].

        Args:
            images: values in [-0.5, 0.5]; others are clipped.
            output_type: `"pil"` (a list of 8-bit images, rounded), `"np"` (B, H, W, C) or `"pt"` (B, C, H, W).

        Raises:
            ValueError: if `output_type` is unknown, `images` has not four dimensions, or PIL has no mode for C.
        """
        require(output_type in ("pil", "np", "pt"), "output_type", output_type, "'pil', 'np' or 'pt'")
        images = images if isinstance(images, torch.Tensor) else torch.from_numpy(images)
        shape = tuple(images.shape)
        require(len(shape) == 4, "images", shape, "of shape (batch, channels, height, width)")
        images = images.detach().float()
        if self.do_normalize:
            mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
            require({len(mean), len(std)} <= {1, shape[1]}, "images", shape, "of the channels of mean and deviation")
            images = images * std + mean
        images = images.clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        require(shape[1] in (1, 3, 4), "output_type", output_type, f"'np' or 'pt' for images of {shape[1]} channels")
        if np.isnan(arrays).any():
            raise ValueError("`images` contains NaN: the training of the model diverged.")
        arrays = np.rint(arrays * 255).astype(np.uint8)
        return [Image.fromarray(array[..., 0] if shape[1] == 1 else array) for array in arrays]


def read_image(image: bytes | str | os.PathLike | Image.Image) -> Image.Image:
    """Read an image file, or what PIL has opened, and apply its EXIF orientation.

    Raises:
        ValueError: if a file cannot be read, is a drawing, or has several frames or more than 8 bits per channel.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return read_image(Path(image).read_bytes())
        except Exception as error:  # decoders raise errors of any type for a broken file
            raise ValueError(f"cannot read the image {image}: {error}.") from error
    is_file = isinstance(image, bytes)
    if is_file:
        try:
            image = Image.open(BytesIO(image))  # reads the header only
        except UnidentifiedImageError:  # its message is the address of a buffer
            raise ValueError("no image format of PIL") from None
    if image.format in ("EPS", "WMF", "EMF"):  # PIL starts another program to draw them
        raise ValueError(f"{image.format} is a drawing: save it as PNG")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"it has {image.n_frames} frames: save one, or each as a file of its own")
    # Of a deep grey image that PIL has opened, the values are checked.
    is_deep = image.mode.startswith(("I", "F"))
    if is_file if is_deep else _has_wide_channels(image):
        raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}): save it with 8")
    return ImageOps.exif_transpose(image)


def _has_wide_channels(image: Image.Image) -> bool:
    """Return whether an image that is opened but not read has 16-bit channels of which PIL would keep 8 bits."""
    for decoder, _, _, arguments in getattr(image, "tile", ()):
        words = arguments if isinstance(arguments, tuple) else (arguments,)
        is_ppm = decoder.startswith("ppm") and isinstance(words[-1], int) and words[-1] > 255
        if is_ppm or decoder == "SGI16" or re.search(";16[BLN]", str(words)):
            return True
    return False


def _convert(image: Image.Image, settings: dict) -> Image.Image:
    """Convert an 8-bit image to `num_channels`, or else to a mode whose values are intensities."""
    channels = 3 if settings["do_convert_rgb"] else settings["num_channels"]
    if channels not in (None, *MODES):
        raise ValueError(f"the model's images have {channels} channels, which no image file has")
    own = {"1": "L"}.get(image.mode, image.mode if image.mode in MODES.values() else "RGB")
    mode = MODES.get(channels, own)
    if image.mode == mode and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB").convert(mode)
    image = image.convert("RGBA")
    if mode in ("L", "RGB"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, settings["background"]), image)
    return image.convert(mode)


def _resize(image: Image.Image, settings: dict) -> Image.Image:
    """Resize an image to `size`, if that has a height and a width."""
    size = (settings["size"].width, settings["size"].height)
    if not (settings["do_resize"] and all(size)) or image.size == size:
        return image
    if settings["resize_mode"] == "crop":
        return ImageOps.fit(image, size, settings["resample"])
    if settings["resize_mode"] == "pad":
        return ImageOps.pad(image, size, settings["resample"], settings["background"])
    return image.resize(size, settings["resample"])


def _check_settings(settings: dict) -> None:
    """Check names, and that factor, mean and deviation can be undone."""
    for name, more in {"rescale_factor": " above 0", "image_mean": "", "image_std": " above 0"}.items():
        value = settings.get(name)
        lists = " or a list of them" if name.startswith("image") else ""
        each = value if lists and isinstance(value, list | tuple) else [value]
        fit = all(isinstance(one, int | float) and math.isfinite(one) and (one > 0 or not more) for one in each)
        require(value is None or fit, name, value, f"a finite number{more}{lists}")
    mode, background = settings.get("resize_mode"), settings.get("background")
    require(mode in (None, "squash", "crop", "pad"), "resize_mode", mode, "squash, crop or pad")
    try:
        ImageColor.getrgb(background or "black")
    except (TypeError, ValueError):
        require(False, "background", background, "a colour such as 'white' or '#ffffff'")


def _check_range(image: np.ndarray, do_rescale: bool, rescale_factor: float) -> None:
    """Raise `ValueError` for values that the scaling takes out of [0, 1], and for floats that are scaled already."""
    low, high = float(image.min()), float(image.max())
    if do_rescale and np.issubdtype(image.dtype, np.floating) and 0 < high <= 1:
        raise ValueError(
            f"a floating-point image with values up to {high:.3g} is on [0, 1] already and would be divided by "
            f"{1 / rescale_factor:g} again: pass do_rescale=False, or 8-bit images."
        )
    limit = 1 / rescale_factor if do_rescale else 1.0
    if not (low >= 0 and high <= limit * (1 + 1e-6)):
        raise ValueError(
            f"image values must be in [0, {limit:g}], got {low:.6g} to {high:.6g}: pass 8-bit images or a `rescale_factor`."
        )
