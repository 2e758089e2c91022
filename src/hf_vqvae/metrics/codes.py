"""Metrics of codes: use of the codebook, likelihood under the prior."""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import List, Value

from .base import (
    SummingMetric,
    as_codes,
    as_count,
    as_floats,
    check_same_shape,
)

CODES = List(List(Value("int64")))


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
