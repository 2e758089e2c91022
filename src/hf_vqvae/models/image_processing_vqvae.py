# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Convert images to `pixel_values` in [-0.5, 0.5] and back."""

import math

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from .configuration_utils import shown

# Modes of PIL whose values are intensities; others, as palettes, are converted to RGB.
_MODES = ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA")


class VQVAEImageProcessorPil(PilBackend):
    r"""
    Convert 8-bit images to `pixel_values` (B, C, H, W) in [-0.5, 0.5], the scale of the Keras example.

    Takes PIL images, numpy arrays (H, W), (H, W, C) or (C, H, W), tensors, and lists of them. `postprocess` gives 8-bit
    images back exactly.

    Args:
        size (`dict`, *optional*, defaults to `{"height": 28, "width": 28}`):
            Images of another size are resized to it (PIL, bilinear with antialiasing).
        do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std:
            As in every image processor. Mean 0.5 and deviation 1 are numbers, not lists, and so fit any number of
            channels. Pass `do_rescale=False` for floating-point images in [0, 1].

    Raises:
        ValueError: if there is no image, the layout is ambiguous, a value is outside the range that the scaling is for,
            the images differ in channels, or a setting is out of its range.
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
        _check_scaling(kwargs)
        super().__init__(**kwargs)

    def preprocess(self, images, *args, **kwargs):
        """Convert images to `pixel_values`; any setting of the processor can be passed for one call."""
        _check_scaling(kwargs)
        if isinstance(images, list | tuple) and not images:
            raise ValueError("`images` is empty: pass at least one image.")
        return super().preprocess(_with_channels(images), *args, **kwargs)

    def process_image(self, image, input_data_format=None, **kwargs) -> np.ndarray:
        """Convert one image to an array (C, H, W)."""
        if isinstance(image, Image.Image) and image.mode not in _MODES:
            image = image.convert("RGB")
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image
        array = super().process_image(image, input_data_format=input_data_format, **kwargs)
        return array.astype(np.uint8) * 255 if array.dtype == bool else array

    def _preprocess(self, images, do_resize, size, do_rescale, rescale_factor, **kwargs):
        channels = sorted({len(image) for image in images})
        if len(channels) > 1:
            raise ValueError(
                f"the images of a batch must have the same number of channels, got {channels}: convert them first."
            )
        for image in images:
            _check_range(image, do_rescale, rescale_factor)
        # Skip a resize that changes nothing.
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
        """Resize an image (C, H, W).

        PIL resizes 8-bit images of 1, 3 and 4 channels. Others are resized channel by channel as floats, since 8 bits
        would lose their precision.
        """
        whole = image.dtype == np.uint8 and len(image) in (1, 3, 4)
        if whole or not (size.height and size.width):
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
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        images = images if isinstance(images, torch.Tensor) else torch.from_numpy(images)
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
            raise ValueError("`images` contains NaN: the training of the model diverged.")
        arrays = np.rint(arrays * 255).astype(np.uint8)
        return [Image.fromarray(array[..., 0] if channels == 1 else array) for array in arrays]


def _check_scaling(settings: dict) -> None:
    """Check that factor, mean and deviation can be undone for any number of channels."""
    for name in ("rescale_factor", "image_mean", "image_std"):
        value = settings.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (value <= 0 and name != "image_mean"):
            above = "" if name == "image_mean" else " above 0"
            raise ValueError(f"`{name}` must be a finite number{above}, got {shown(value)}.")


def _with_channels(images):
    """Add the channel dimension to arrays and tensors (H, W), also in lists: (1, H, W)."""
    if isinstance(images, list | tuple):
        return [_with_channels(image) for image in images]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
        return images[None]
    return images


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
