"""Metrics of samples: Fréchet distance of features, classes predicted by a classifier."""

import math
from typing import Any, ClassVar

import torch
from datasets import List, Value
from torch import Tensor

from .base import SummingMetric, as_tensor
from .catalogue import CONFIDENT
from .sums import perplexity

TABLE = List(Value("float32"))


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians: Heusel et al. 2017 (arXiv 1706.08500), equation 6.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64. Means are (D,), covariances (D, D) and of any rank.
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
    """Symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance.double())
    # Zeros become rounding errors of the largest eigenvalue, of either sign.
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    roots = torch.where(values > rounding, values, 0).sqrt()
    return (vectors * roots) @ vectors.T


class FrechetDistance(SummingMetric):
    """Distance between the features of generated images (`predictions`) and real ones (`references`).

    Both are floating point (N, `num_features`), for example penultimate activations of an image
    classifier. Their numbers of rows may differ, and a batch may hold either or both. Result:

    - `frechet_distance`: the squared Fréchet distance of the Gaussians with their means and unbiased
      covariances, at least 0 (Heusel et al. 2017, arXiv 1706.08500, equation 6; FID is this with the
      features of one Inception network). It depends on the classifier, and falls as rows are added:
      compare only distances of the same classifier and the same numbers of rows.

    Sums are float64, so features whose mean is a million times their spread lose most digits. Needs
    at least 2 rows on either side; works with fewer rows than features.
    """

    _features: ClassVar[dict] = {"predictions": TABLE, "references": TABLE}

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        self.num_features = num_features
        super().__init__(**kwargs)

    def _update(self, predictions: Any = None, references: Any = None) -> None:
        inputs = {"predictions": predictions, "references": references}
        tables = {
            side: as_tensor(side, value, (None, self.num_features))
            for side, value in inputs.items()
            if value is not None
        }
        for side, table in tables.items():
            features = table.double()
            self._sums.add("rows", len(features))
            self._sums.add(f"{side}_rows", len(features))
            self._sums.add(f"{side}_sum", features.sum(0))
            self._sums.add(f"{side}_products", features.T @ features)

    def _compute(self, totals: dict[str, Tensor]) -> dict[str, float]:
        first, second = (self._gaussian(side, totals) for side in self._features)
        return {"frechet_distance": frechet_distance(*first, *second)}

    def _gaussian(self, side: str, totals: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D) of the rows of one side."""
        rows = int(totals.get(f"{side}_rows", 0))
        if rows < 2:
            raise ValueError(f"a covariance needs at least 2 rows of `{side}`, got {rows}.")
        mean = totals[f"{side}_sum"] / rows
        centred = totals[f"{side}_products"] - rows * torch.outer(mean, mean)
        return mean, centred / (rows - 1)


class ClassifiedImages(SummingMetric):
    """Classes that a classifier predicts for images, and how often they are the expected ones.

    `predictions` are probabilities (N, `num_classes`); `references` the expected classes, integers
    (N,), -1 if unknown. Result:

    - `class_counts`: how often each class is the likeliest one, a list of `num_classes` integers;
    - `class_perplexity`: exp(entropy in nats) of that histogram, from 1 (all images of one class) to
      `num_classes` (all classes equally often);
    - `sure_share`: the confident fraction, of images whose likeliest class has a probability of at least 0.95;
    - `class_accuracy`: share, of the images with a reference, whose likeliest class is that one; NaN
      if none has a reference.
    """

    _features: ClassVar[dict] = {"predictions": TABLE, "references": Value("int64")}

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        self.num_classes = num_classes
        super().__init__(**kwargs)

    def _update(self, predictions: Any, references: Any) -> None:
        probabilities = as_tensor("predictions", predictions, (None, self.num_classes))
        if ((probabilities.sum(1) - 1).abs() > 1e-2).any() or (probabilities < 0).any():
            raise ValueError("`predictions` must be probabilities. Apply a softmax to logits.")
        shape, highest = (len(probabilities),), self.num_classes - 1
        references = as_tensor("references", references, shape, integers=True, low=-1, high=highest)
        confidences, classes = probabilities.max(1)
        self._sums.add("counts", torch.bincount(classes, minlength=self.num_classes))
        self._sums.add("confident", (confidences >= CONFIDENT).sum())
        self._sums.add("correct", (classes == references.to(classes.device)).sum())
        self._sums.add("referenced", (references >= 0).sum())
        self._sums.add("rows", len(classes))

    def _compute(self, totals: dict[str, Tensor]) -> dict[str, Any]:
        counts, referenced = totals["counts"], totals["referenced"].item()
        return {
            "class_counts": counts.tolist(),
            "class_perplexity": perplexity(counts),
            "sure_share": totals["confident"].item() / totals["rows"].item(),
            "class_accuracy": totals["correct"].item() / referenced if referenced else math.nan,
        }
