"""Metrics of codes: use of the codebook, likelihood under the prior."""

import math
from typing import Any, ClassVar

import torch
from datasets import List, Value
from torch import Tensor

from .base import SummingMetric, as_tensor
from .sums import perplexity

CODES = List(List(Value("int64")))


class CodebookUsage(SummingMetric):
    """Use of the codebook by a split. `predictions`: the chosen codes, integers (N, h, w).

    Result: `codebook_perplexity` = exp(entropy in nats) of the histogram of all codes of all rows,
    from 1 (a single code) to `num_embeddings` (all equally often); `codes_used`, how many occur at
    all; `codebook_counts`, that histogram as a list of `num_embeddings` integers.
    """

    _features: ClassVar[dict] = {"predictions": CODES}

    def __init__(self, num_embeddings: int, **kwargs: Any) -> None:
        self.num_embeddings = num_embeddings
        super().__init__(**kwargs)

    def _update(self, predictions: Any) -> None:
        codes = _as_codes("predictions", predictions, self.num_embeddings)
        self._sums.add("counts", torch.bincount(codes.flatten(), minlength=self.num_embeddings))
        self._sums.add("rows", len(codes))

    def _compute(self, totals: dict[str, Tensor]) -> dict[str, Any]:
        counts = totals["counts"]
        return {
            "codebook_perplexity": perplexity(counts),
            "codes_used": int((counts > 0).sum()),
            "codebook_counts": counts.tolist(),
        }


class CodeLikelihood(SummingMetric):
    """Likelihood of the codes of images under a prior. All inputs are (N, h, w).

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
        self.num_embeddings = num_embeddings
        super().__init__(**kwargs)

    def _update(self, predictions: Any, references: Any, negative_log_likelihoods: Any) -> None:
        predictions = _as_codes("predictions", predictions, self.num_embeddings)
        shape = predictions.shape
        references = _as_codes("references", references, self.num_embeddings, shape)
        # -log(1) may round to just below 0.
        nats = as_tensor("negative_log_likelihoods", negative_log_likelihoods, shape, low=-1e-3)
        self._sums.add("nats", nats.double().sum())
        self._sums.add("correct", (predictions == references.to(predictions.device)).sum())
        self._sums.add("codes", references.numel())
        self._sums.add("rows", len(references))

    def _compute(self, totals: dict[str, Tensor]) -> dict[str, float]:
        total = {name: value.item() for name, value in totals.items()}
        return {
            "nll": total["nats"] / total["codes"],
            "bits_per_code": total["nats"] / total["codes"] / math.log(2),
            "bits_per_image": total["nats"] / total["rows"] / math.log(2),
            "code_accuracy": total["correct"] / total["codes"],
        }


def _as_codes(name: str, value: Any, num_embeddings: int, shape: Any = None) -> Tensor:
    return as_tensor(name, value, shape, integers=True, low=0, high=num_embeddings - 1)
