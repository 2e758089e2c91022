# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Images to `pixel_values` in [-0.5, 0.5] and back."""

import math

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict

from .codes import check_dense
from .configuration_strict import MAX_PIXELS, MAX_SIZE, check_source, shown

# PIL's modes whose values are brightnesses; others are converted to RGB (a palette's values are numbers of colours).
_MODES = ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA")


class VQVAEImageProcessorPil(PilBackend):
    r"""
    Makes `pixel_values` (B, C, H, W) in [-0.5, 0.5], the Keras example's scale, of 8-bit images.

    Takes PIL images, numpy arrays (H, W), (H, W, C) or (C, H, W), tensors, and lists of them. 8-bit images come back
    exactly from `postprocess`.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 28, "width": 28}`):
            Images of another size are resized to it (PIL, bilinear with antialiasing).
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std:
            As of any image processor. Mean 0.5 and deviation 1 are numbers, not lists, so that they fit any number of
            channels. A floating-point image that is on [0, 1] already is passed with `do_rescale=False`.

    Raises:
        ValueError: if there is no image, or one without pixels, of unclear layout, or outside the range that the scaling
            is for; if the images differ in channels; or if a setting is out of its range.
    """

    model_input_names = ["pixel_values"]
    do_resize = True
    size = {"height": 28, "width": 28}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = 0.5
    image_std = 1.0
    do_convert_rgb = False

    def __init__(self, **kwargs):
        # A saved setting becomes an attribute, whatever its name: it must not take the place of a method or property.
        for name in kwargs:
            there = getattr(type(self), name, None)
            if name.startswith("__") or callable(there) or isinstance(there, property):
                raise ValueError(f"an image processor has no setting {shown(name)}: remove it.")
        _check_settings(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As of any image processor; `TypeError` if the first argument is neither a name nor a path."""
        check_source(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def preprocess(self, images, *args, **kwargs):
        """`pixel_values` of images; any setting of the processor can be given for this call."""
        _check_settings(kwargs)
        return super().preprocess(images, *args, **kwargs)

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        if isinstance(images, list | tuple) and not images:
            raise ValueError("`images` is empty: pass at least one image.")
        return super()._prepare_images_structure(_with_channels(images), expected_ndims)

    def process_image(self, image, input_data_format=None, **kwargs) -> np.ndarray:
        """One image as an array (C, H, W)."""
        is_pil = isinstance(image, Image.Image)
        if is_pil and image.mode not in _MODES:
            image = image.convert("RGB")
        elif not is_pil and input_data_format is None:
            _check_layout(image.shape)
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        array = super().process_image(image, input_data_format=input_data_format, **kwargs)
        if 0 in array.shape:
            raise ValueError(
                f"an image must have pixels, got one of shape {array.shape} (C, H, W)."
            )
        return array.astype(np.uint8) * 255 if array.dtype == bool else array

    def _preprocess(self, images, do_resize, size, do_rescale, rescale_factor, **kwargs):
        channels = sorted({len(image) for image in images})
        if len(channels) > 1:
            raise ValueError(
                f"the images of a batch must have the same number of channels, got {channels}: convert them first, "
                "PIL images with image.convert('RGB') or image.convert('L')."
            )
        for image in images:
            _check_range(image, do_rescale, rescale_factor)
        # Resizing to the same size would go through PIL for nothing.
        same = all(image.shape[-2:] == (size.height, size.width) for image in images)
        return super()._preprocess(
            images,
            do_resize=do_resize and not same,
            size=size,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            **kwargs,
        )

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        """An image (C, H, W) of another size.

        PIL takes 8-bit images of 1, 3 and 4 channels whole. Others go plane by plane as floats: the way through 8 bits
        would lose what they have beyond those.
        """
        whole = image.dtype == np.uint8 and len(image) in (1, 3, 4)
        if whole or not (size.height and size.width):
            return super().resize(image, size, resample, **kwargs)
        planes = [Image.fromarray(plane.astype(np.float32)) for plane in image]
        return np.stack([np.asarray(p.resize((size.width, size.height), resample)) for p in planes])

    def postprocess(self, images: torch.Tensor, output_type: str = "pil"):
        """Undoes the scaling: images (B, C, H, W) of a model to PIL images, or arrays or tensors in [0, 1].

        Args:
            images: about in [-0.5, 0.5]; what is outside is clipped.
            output_type: `"pil"` (a list of 8-bit images, rounded), `"np"` (B, H, W, C) or `"pt"` (B, C, H, W).

        Raises:
            ValueError: if `output_type` is unknown, the shape has not four dimensions, or PIL has no mode for C.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        images = images if isinstance(images, torch.Tensor) else _as_array(images)
        if images.is_complex():
            raise ValueError(f"`images` must be real, got {images.dtype}.")
        check_dense("images", images)
        if images.dim() != 4:
            raise ValueError(
                f"`images` must have the shape (batch, channels, height, width), got {tuple(images.shape)}."
            )
        images = images.detach().float()
        if self.do_normalize:
            images = images * self.image_std + self.image_mean
        images = images.clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        channels = arrays.shape[-1]
        if channels not in (1, 3, 4):
            raise ValueError(
                f"PIL has images of 1, 3 or 4 channels, got {channels}: use output_type='np' or 'pt'."
            )
        if np.isnan(arrays).any():
            raise ValueError(
                "`images` has NaN, which no picture shows: the model that made it diverged."
            )
        arrays = np.rint(arrays * 255).astype(np.uint8)
        return [Image.fromarray(array[..., 0] if channels == 1 else array) for array in arrays]


def _check_settings(settings: dict) -> None:
    """Refuses sizes that no image has, and scales that would make NaN or divide by zero."""
    for name in ("size", "crop_size", "pad_size"):
        size = settings.get(name)
        pair = isinstance(size, dict | SizeDict)
        sides = [dict(size).get(side) for side in ("height", "width")] if pair else [size, size]
        if size is None:
            continue
        if not all(type(n) is int and 1 <= n <= MAX_SIZE for n in sides):
            raise ValueError(
                f"`{name}` must have a `height` and a `width` from 1 to {MAX_SIZE}, got {shown(size)}."
            )
        if math.prod(sides) > MAX_PIXELS:
            raise ValueError(f"`{name}` must be of at most {MAX_PIXELS} pixels, got {shown(size)}.")
    filter_number = settings.get("resample")
    if filter_number is not None and (
        not isinstance(filter_number, int) or filter_number not in list(PILImageResampling)
    ):
        raise ValueError(
            f"`resample` must be a filter of PIL, 0 to {len(PILImageResampling) - 1}, got {shown(filter_number)}."
        )
    for name in ("rescale_factor", "image_mean", "image_std"):
        value = settings.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (value <= 0 and name != "image_mean"):
            above = "" if name == "image_mean" else " above 0"
            raise ValueError(f"`{name}` must be a finite number{above}, got {shown(value)}.")


def _as_array(images) -> torch.Tensor:
    try:
        return torch.as_tensor(np.asarray(images))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`images` must be a tensor or an array: {error}") from error


def _with_channels(images):
    """Gives bare arrays and tensors (H, W), alone or in lists, their channel: (1, H, W)."""
    if isinstance(images, list | tuple):
        return [_with_channels(image) for image in images]
    if isinstance(images, torch.Tensor):
        check_dense("images", images)
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
        return images[None]
    return images


def _check_layout(shape: tuple[int, ...]) -> None:
    """Refuses arrays (a, b, c) of which no side can be told to be the channels."""
    if shape[0] not in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an image of shape {tuple(shape)} has no side of 1, 3 or 4 to tell its channels by: pass "
            "input_data_format='channels_first' or 'channels_last', and a batch of grey images as (B, 1, H, W)."
        )


def _check_range(image: np.ndarray, do_rescale: bool, rescale_factor: float) -> None:
    """Refuses values that the scaling would take out of [0, 1], and floats that it would scale a second time."""
    if np.iscomplexobj(image):
        raise ValueError(f"an image must be of real numbers, got {image.dtype}.")
    low, high = float(image.min()), float(image.max())
    if do_rescale and np.issubdtype(image.dtype, np.floating) and 0 < high <= 1:
        raise ValueError(
            f"a floating-point image with values up to {high:.3g} is on [0, 1] already and would be divided by "
            f"{1 / rescale_factor:g} again: pass do_rescale=False, or 8-bit images."
        )
    limit = 1 / rescale_factor if do_rescale else 1.0
    if not (low >= 0 and high <= limit * (1 + 1e-6)):
        way_out = (
            "pass 8-bit images, or the `rescale_factor` of yours"
            if do_rescale
            else "leave do_rescale=False away for 8-bit images"
        )
        raise ValueError(
            f"the values of an image must be in [0, {limit:g}], got {low:.6g} to {high:.6g}: {way_out}."
        )


__all__ = ["VQVAEImageProcessorPil"]
