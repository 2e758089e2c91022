# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""Images to `pixel_values` in [-0.5, 0.5] and back."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling


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

    def process_image(self, image, **kwargs) -> np.ndarray:
        """One image as an array (C, H, W); refuses what would be scaled twice or is empty."""
        array = super().process_image(image, **kwargs)
        if 0 in array.shape:
            raise ValueError(f"an image must have pixels, got one of shape {array.shape} (C, H, W).")
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        return array

    def _preprocess(self, images, do_resize, size, do_rescale, **kwargs):
        for image in images:
            if do_rescale and np.issubdtype(image.dtype, np.floating) and image.max() <= 1:
                raise ValueError(
                    f"a floating-point image with values up to {image.max():.3g} is on [0, 1] already and would be "
                    "divided by 255 again: pass do_rescale=False, or 8-bit images."
                )
        # Resizing to the same size would go through PIL for nothing.
        same = all(image.shape[-2:] == (size.height, size.width) for image in images)
        return super()._preprocess(
            images, do_resize=do_resize and not same, size=size, do_rescale=do_rescale, **kwargs
        )

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
        images = torch.as_tensor(images)
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
        arrays = np.rint(arrays * 255).astype(np.uint8)
        return [Image.fromarray(array[..., 0] if channels == 1 else array) for array in arrays]


__all__ = ["VQVAEImageProcessorPil"]
