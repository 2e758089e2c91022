"""Metrics of reconstructions: mean squared error, PSNR, SSIM."""

import math
from typing import Any, ClassVar

import torch
from datasets import List, Value
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from .base import SummingMetric, as_tensor

IMAGES = List(List(List(Value("float32"))))

SSIM_WINDOW = 11  # Wang et al. 2004, "Image Quality Assessment": an 11x11 Gaussian window ...
SSIM_SIGMA = 1.5  # ... of this standard deviation.

# Values handled at a time. SSIM runs up to 4 times as fast per image where a chunk stays in a CPU's cache.
CHUNK = 2**17


def ssim_window(height: int, width: int) -> int:
    """Side of the SSIM window: 11, or the largest odd number that fits a smaller image."""
    side = min(height, width, SSIM_WINDOW)
    return side - (side + 1) % 2


def _structural_similarity(predictions: Tensor, references: Tensor) -> Tensor:
    """SSIM of each pair of images on the [0, 1] scale, (N, C, H, W) twice -> (N,).

    torchmetrics' definition: a Gaussian window of side `ssim_window(H, W)` whose standard deviation
    shrinks with it, reflected borders, mean over pixels and channels. In the dtype of the images.
    """
    # torchmetrics takes the side from sigma, 2 * int(3.5 * sigma + 0.5) + 1, which is this side.
    sigma = SSIM_SIGMA * ssim_window(*references.shape[-2:]) / SSIM_WINDOW
    # Autocast or TF32 would leave three digits of a difference of nearly equal numbers.
    with (
        torch.autocast(references.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        return structural_similarity_index_measure(
            predictions, references, sigma=sigma, data_range=1.0, reduction="none"
        )


class ReconstructionQuality(SummingMetric):
    """Similarity of reconstructions (`predictions`) to images (`references`), on the [0, 1] scale.

    Both are floating point (N, C, H, W) of any size. Result:

    - `reconstruction_mse`: squared error, mean over all pixels and channels of all images;
    - `psnr`: peak signal-to-noise ratio in dB, data range 1, of that one mean over ALL pixels (as
      in torchmetrics, not the mean of a PSNR per image); infinite if there is no error at all;
    - `ssim`: mean over images of the structural similarity, at most 1 (Wang et al. 2004), by torchmetrics: Gaussian
      window of 11x11, standard deviation 1.5, reflected borders. For images below 11 pixels the window shrinks to the
      largest odd side that fits (`ssim_window`) and its standard deviation in proportion.

    The error is summed in float64. SSIM is computed in float32, or for float64 predictions in float64, 14 times slower;
    that moves its mean by 1e-7 on handwritten digits and by up to 1e-4 on bright images without any contrast.
    """

    _features: ClassVar[dict] = {"predictions": IMAGES, "references": IMAGES}

    def _update(self, predictions: Any, references: Any) -> None:
        predictions = as_tensor("predictions", predictions, [None] * 4, low=0, high=1)
        references = as_tensor("references", references, predictions.shape, low=0, high=1)
        chunk = max(1, CHUNK // references.shape[1:].numel())
        predictions = predictions.to(references.device)
        for predicted, true in zip(predictions.split(chunk), references.split(chunk), strict=True):
            if len(true):
                error = predicted.double() - true.double()
                self._sums.add("squared_error", error.square().sum())
                similarity = _structural_similarity(predicted, true)
                self._sums.add("similarity", similarity.double().sum())
        self._sums.add("values", references.numel())
        self._sums.add("rows", len(references))

    def _compute(self, totals: dict[str, Tensor]) -> dict[str, float]:
        mse = totals["squared_error"].item() / totals["values"].item()
        return {
            "reconstruction_mse": mse,
            # torchmetrics' formula; its function wants all pixels of the split at once.
            "psnr": -10 * math.log10(mse) if mse > 0 else math.inf,
            "ssim": totals["similarity"].item() / totals["rows"].item(),
        }
