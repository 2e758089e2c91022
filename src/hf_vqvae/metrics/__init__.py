"""Metrics of a VQ-VAE and its prior, as modules of the `evaluate` library.

Each is used like any other metric of that library, in one call or batch by batch:

    quality = ReconstructionQuality()
    for images, reconstructions in batches:
        quality.add_batch(predictions=reconstructions, references=images)
    quality.compute()  # {"reconstruction_mse": ..., "psnr": ..., "ssim": ...}

They keep sums instead of rows: see `metrics.base`.
"""

import importlib
from typing import Any

_MODULES = dict.fromkeys(("CodeLikelihood", "CodebookUsage"), "codes")
_MODULES |= dict.fromkeys(("ReconstructionQuality", "SSIM_SIGMA", "SSIM_WINDOW", "ssim_window"), "reconstruction")
_MODULES |= dict.fromkeys(("ClassifiedImages", "FrechetDistance", "frechet_distance"), "samples")
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a metric when it is used: the catalogue is read where `evaluate` is not installed."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
