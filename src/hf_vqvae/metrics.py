"""The numbers of a VQ-VAE and its prior, as modules of the `evaluate` library.

Each is used like any other of its metrics, in one call or batch by batch:

    quality = ReconstructionQuality()
    for images, reconstructions in batches:
        quality.add_batch(predictions=reconstructions, references=images)
    quality.compute()  # {"reconstruction_mse": ..., "psnr": ..., "ssim": ...}

They keep sums in place of rows: see `summing_metric`.
"""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import List, Value
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from .summing_metric import (
    SummingMetric,
    as_classes,
    as_codes,
    as_count,
    as_floats,
    as_images,
    as_table,
    check_same_shape,
)

IMAGES = List(List(List(Value("float32"))))
CODES = List(List(Value("int64")))
TABLE = List(Value("float32"))

SSIM_WINDOW = 11  # Wang et al. 2004, "Image Quality Assessment": an 11x11 Gaussian window ...
SSIM_SIGMA = 1.5  # ... of this standard deviation.
SURE = 0.95  # Probability of its likeliest class from which on a classifier counts as sure.

# Values handled at a time. SSIM runs up to 4 times as fast per image where a chunk stays in a CPU's
# cache; on an accelerator the limit only keeps large images from filling the memory.
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**24


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
    """How close reconstructions (`predictions`) come to images (`references`), on the [0, 1] scale.

    Both are floating point (N, C, H, W), of any size and channels, the same in every batch. Result:

    - `reconstruction_mse`: squared error, mean over all pixels and channels of all images;
    - `psnr`: peak signal-to-noise ratio in dB, data range 1, of that one mean over ALL pixels (as
      in torchmetrics, not the mean of a PSNR per image); infinite if there is no error at all;
    - `ssim`: mean over images of the structural similarity, at most 1 (Wang et al. 2004), by
      torchmetrics: Gaussian window of 11x11, standard deviation 1.5, reflected borders. For images
      below 11 pixels the window shrinks to the largest odd side that fits (`ssim_window`) and its
      standard deviation in proportion.

    The error is summed in float64. SSIM is computed in float32, or in float64, 14 times slower, for
    float64 predictions; that moves its mean by 1e-7 on handwritten digits and by up to 1e-4 on
    bright images without any contrast.
    """

    _features: ClassVar[dict] = {"predictions": IMAGES, "references": IMAGES}

    def _reset(self) -> None:
        self._image_shape: torch.Size | None = None
        self._sums = {
            "squared_error": np.float64(0),
            "similarity": np.float64(0),
            "values": np.int64(0),
            "rows": np.int64(0),
        }

    def _update(self, predictions: Any, references: Any) -> None:
        predictions = as_images("predictions", predictions)
        references = as_images("references", references)
        check_same_shape(predictions=predictions, references=references)
        shape = references.shape[1:]
        if self._image_shape not in (None, shape):
            raise ValueError(
                f"images must be of one (channels, height, width), got {tuple(shape)} after "
                f"{tuple(self._image_shape)}. Use one ReconstructionQuality for each size."
            )
        self._image_shape = shape
        on_cpu = references.device.type == "cpu"
        limit = CHUNK_VALUES_CPU if on_cpu else CHUNK_VALUES_ACCELERATOR
        chunk = max(1, limit // shape.numel())
        predictions = predictions.to(references.device)
        for predicted, true in zip(predictions.split(chunk), references.split(chunk), strict=True):
            if len(true):
                error = predicted.double() - true.double()
                self._add("squared_error", error.square().sum().item())
                similarity = _structural_similarity(predicted, true)
                self._add("similarity", similarity.double().sum().item())
        self._add("values", references.numel())
        self._add("rows", len(references))

    def _compute(self) -> dict[str, float]:
        mse = float(self._sums["squared_error"] / self._sums["values"])
        return {
            "reconstruction_mse": mse,
            # torchmetrics' formula; its function wants all pixels of the split at once.
            "psnr": -10 * math.log10(mse) if mse > 0 else math.inf,
            "ssim": float(self._sums["similarity"] / self._sums["rows"]),
        }


class CodebookUsage(SummingMetric):
    """How a split uses the codebook. `predictions`: the codes chosen, integers (N, h, w).

    Result: `codebook_perplexity` = exp(entropy in nats) of the histogram of all codes of all rows,
    from 1 (a single code) to `num_embeddings` (all equally often); `codes_used`, how many occur at
    all; `codebook_counts`, that histogram as a list of `num_embeddings` integers.
    """

    _features: ClassVar[dict] = {"predictions": CODES}

    def __init__(self, num_embeddings: int, **kwargs: Any) -> None:
        self.num_embeddings = as_count("num_embeddings", num_embeddings, 2**24)
        super().__init__(**kwargs)

    def _reset(self) -> None:
        self._sums = {"counts": np.zeros(self.num_embeddings, np.int64), "rows": np.int64(0)}

    def _update(self, predictions: Any) -> None:
        codes = as_codes("predictions", predictions, self.num_embeddings)
        counts = torch.bincount(codes.flatten(), minlength=self.num_embeddings)
        self._add("counts", counts.cpu().numpy())
        self._add("rows", len(codes))

    def _compute(self) -> dict[str, Any]:
        counts = self._sums["counts"]
        share = counts[counts > 0] / counts.sum()
        return {
            "codebook_perplexity": float(np.exp(-(share * np.log(share)).sum())),
            "codes_used": len(share),
            "codebook_counts": counts.tolist(),
        }


class CodeLikelihood(SummingMetric):
    """How well a prior knows the codes of images. All inputs are (N, h, w).

    `references` are the true codes, `predictions` the codes it held most probable at each position
    given the true ones before it, `negative_log_likelihoods` those of the true codes in nats.

    Result: `nll` in nats per code; `bits_per_code` = nll / ln 2; `bits_per_image`, the bits of the
    whole grid, mean over images; `code_accuracy`, the share of positions predicted right, 0 to 1.
    """

    _features: ClassVar[dict] = {
        "predictions": CODES,
        "references": CODES,
        "negative_log_likelihoods": List(List(Value("float32"))),
    }

    def __init__(self, num_embeddings: int, **kwargs: Any) -> None:
        self.num_embeddings = as_count("num_embeddings", num_embeddings, 2**24)
        super().__init__(**kwargs)

    def _reset(self) -> None:
        integers = {name: np.int64(0) for name in ("correct", "codes", "rows")}
        self._sums = {"nats": np.float64(0), **integers}

    def _update(self, predictions: Any, references: Any, negative_log_likelihoods: Any) -> None:
        predictions = as_codes("predictions", predictions, self.num_embeddings)
        references = as_codes("references", references, self.num_embeddings)
        nats = as_floats("negative_log_likelihoods", negative_log_likelihoods)
        check_same_shape(
            predictions=predictions, references=references, negative_log_likelihoods=nats
        )
        if (nats < -1e-3).any():  # -log(1) may round to just below 0
            raise ValueError(
                f"`negative_log_likelihoods` must not be negative, got {nats.min().item():g}: no "
                "probability exceeds 1. Change the sign if these are log-likelihoods."
            )
        self._add("nats", nats.double().sum().item())
        self._add("correct", (predictions == references.to(predictions.device)).sum().item())
        self._add("codes", references.numel())
        self._add("rows", len(references))

    def _compute(self) -> dict[str, float]:
        nats_per_code = float(self._sums["nats"] / self._sums["codes"])
        return {
            "nll": nats_per_code,
            "bits_per_code": nats_per_code / math.log(2),
            "bits_per_image": float(self._sums["nats"] / self._sums["rows"]) / math.log(2),
            "code_accuracy": float(self._sums["correct"] / self._sums["codes"]),
        }


def frechet_distance(
    mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor
) -> float:
    """Squared Fréchet distance of two Gaussians: Heusel et al. 2017 (arXiv 1706.08500), equation 6.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64. Means are (D,), covariances (D, D) and
    of any rank.
    """
    # tr (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2) S2^(1/2). torchmetrics has the
    # sum of the roots of the eigenvalues of S1 S2, a matrix that is not symmetric: where there are
    # fewer rows than features, rounding moves its zeros to 1e-12 and their roots to 1e-6, so that
    # the distance comes out wrong by 1e-5 and below 0 for equal sets; this one is exact to 1e-12.
    shared = torch.linalg.svdvals(_square_root(covariance_1) @ _square_root(covariance_2)).sum()
    distance = (mean_1.double() - mean_2.double()).square().sum()
    distance += covariance_1.double().trace() + covariance_2.double().trace() - 2 * shared
    return max(0.0, distance.item())


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance.double())
    # Zeros come out as rounding errors of the largest, on either side.
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > rounding, values, 0).sqrt()
    return (vectors * roots) @ vectors.T


class FrechetDistance(SummingMetric):
    """How far the features of made images (`predictions`) are from those of real ones (`references`).

    Both are floating point (N, `num_features`), for example the penultimate activations of an image
    classifier; their numbers of rows may differ, and a batch may hold either or both. Result:

    - `frechet_distance`: the squared Fréchet distance of the Gaussians with their means and unbiased
      covariances, at least 0 (Heusel et al. 2017, arXiv 1706.08500, equation 6; FID is this with the
      features of one Inception network). It depends on the classifier, and falls as rows are added:
      compare only distances of the same classifier and the same numbers of rows.

    The sums behind it are float64, so features whose mean is a million times their spread come out
    with few digits. Needs at least 2 rows on either side; works with fewer rows than features.
    """

    _features: ClassVar[dict] = {"predictions": TABLE, "references": TABLE}
    _inputs_are_paired: ClassVar[bool] = False

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        self.num_features = as_count("num_features", num_features, 2**14)
        super().__init__(**kwargs)

    def _reset(self) -> None:
        size = self.num_features
        self._sums: dict[str, Any] = {"rows": np.int64(0)}
        for side in self._features:
            self._sums[f"{side}_rows"] = np.int64(0)
            self._sums[f"{side}_sum"] = np.zeros(size)
            self._sums[f"{side}_products"] = np.zeros((size, size))

    def _update(self, **inputs: Any) -> None:
        tables = {side: as_table(side, value, self.num_features) for side, value in inputs.items()}
        for side, table in tables.items():
            features = table.double()
            self._add("rows", len(features))
            self._add(f"{side}_rows", len(features))
            self._add(f"{side}_sum", features.sum(0).cpu().numpy())
            self._add(f"{side}_products", (features.T @ features).cpu().numpy())

    def _compute(self) -> dict[str, float]:
        first, second = (self._gaussian(side) for side in self._features)
        return {"frechet_distance": frechet_distance(*first, *second)}

    def _gaussian(self, side: str) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D) of the rows of one side."""
        rows = int(self._sums[f"{side}_rows"])
        if rows < 2:
            raise ValueError(
                f"a covariance needs at least 2 rows of `{side}`, got {rows}: add more images."
            )
        mean = self._sums[f"{side}_sum"] / rows
        centred = self._sums[f"{side}_products"] - rows * np.outer(mean, mean)
        return torch.from_numpy(mean), torch.from_numpy(centred / (rows - 1))


class ClassifiedImages(SummingMetric):
    """What a classifier reads in images, and how often that is what they were to be.

    `predictions` are its probabilities (N, `num_classes`); `references` the classes that the images
    have or were asked for, integers (N,), -1 where there is none. Result:

    - `class_counts`: how often each class is the likeliest one, a list of `num_classes` integers;
    - `class_perplexity`: exp(entropy in nats) of that histogram, from 1 (all images of one class) to
      `num_classes` (all classes equally often);
    - `sure_share`: share of the images whose likeliest class has a probability of 0.95 or more;
    - `class_accuracy`: share, of the images with a reference, whose likeliest class is that one; NaN
      if none has a reference.
    """

    _features: ClassVar[dict] = {"predictions": TABLE, "references": Value("int64")}

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        self.num_classes = as_count("num_classes", num_classes, 2**16)
        super().__init__(**kwargs)

    def _reset(self) -> None:
        self._sums = {name: np.int64(0) for name in ("sure", "correct", "referenced", "rows")}
        self._sums["counts"] = np.zeros(self.num_classes, np.int64)

    def _update(self, predictions: Any, references: Any) -> None:
        probabilities = as_table("predictions", predictions, self.num_classes)
        if ((probabilities.sum(1) - 1).abs() > 1e-2).any() or (probabilities < 0).any():
            raise ValueError(
                "`predictions` must be probabilities, of which each row sums to 1; got rows that do "
                "not. Apply a softmax to logits."
            )
        references = as_classes("references", references, self.num_classes)
        check_same_shape(predictions=probabilities[:, 0], references=references)
        confidences, classes = probabilities.max(1)
        counts = torch.bincount(classes, minlength=self.num_classes)
        self._add("counts", counts.cpu().numpy())
        self._add("sure", (confidences >= SURE).sum().item())
        self._add("correct", (classes == references.to(classes.device)).sum().item())
        self._add("referenced", (references >= 0).sum().item())
        self._add("rows", len(classes))

    def _compute(self) -> dict[str, Any]:
        counts, rows, referenced = (self._sums[name] for name in ("counts", "rows", "referenced"))
        share = counts[counts > 0] / rows
        return {
            "class_counts": counts.tolist(),
            "class_perplexity": float(np.exp(-(share * np.log(share)).sum())),
            "sure_share": float(self._sums["sure"] / rows),
            "class_accuracy": float(self._sums["correct"] / referenced) if referenced else math.nan,
        }
