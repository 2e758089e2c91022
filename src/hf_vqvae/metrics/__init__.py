"""The numbers of a VQ-VAE and its prior, as modules of the `evaluate` library.

Each is used like any other of its metrics, in one call or batch by batch:

    quality = ReconstructionQuality()
    for images, reconstructions in batches:
        quality.add_batch(predictions=reconstructions, references=images)
    quality.compute()  # {"reconstruction_mse": ..., "psnr": ..., "ssim": ...}

They keep sums in place of rows: see `metrics.base`.
"""

from .codes import CodebookUsage, CodeLikelihood
from .reconstruction import SSIM_SIGMA, SSIM_WINDOW, ReconstructionQuality, ssim_window
from .samples import SURE, ClassifiedImages, FrechetDistance, frechet_distance

__all__ = [
    "SSIM_SIGMA",
    "SSIM_WINDOW",
    "SURE",
    "ClassifiedImages",
    "CodeLikelihood",
    "CodebookUsage",
    "FrechetDistance",
    "ReconstructionQuality",
    "frechet_distance",
    "ssim_window",
]
