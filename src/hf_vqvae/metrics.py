"""The numbers of a VQ-VAE and its prior, as modules of the `evaluate` library.

Each is used like any other of its metrics, in one call or batch by batch:

    quality = ReconstructionQuality()
    for images, reconstructions in batches:
        quality.add_batch(predictions=reconstructions, references=images)
    quality.compute()  # {"reconstruction_mse": ..., "psnr": ..., "ssim": ...}

`evaluate` itself writes every row to an Arrow file and reads all of them back to compute: measured,
5 s and 1.4 GB for 10,000 grey images of 28x28, and 25 s and 6 GB for 250 of 256x256x3. All numbers
here follow from a few sums, so these modules keep the sums alone (float64 and int64) and touch no
disk. The result is exact over all rows, however they were cut into batches.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Features, List, Value
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

IMAGES = List(List(List(Value("float32"))))
CODES = List(List(Value("int64")))

SSIM_WINDOW = 11  # Wang et al. 2004, "Image Quality Assessment": an 11x11 Gaussian window ...
SSIM_SIGMA = 1.5  # ... of this standard deviation.

# Values handled at a time. SSIM runs up to 4 times as fast per image where a chunk stays in a CPU's
# cache; on an accelerator the limit only keeps large images from filling the memory.
CHUNK_VALUES_CPU = 2**17
CHUNK_VALUES_ACCELERATOR = 2**24


def _import_evaluate() -> ModuleType:
    """The `evaluate` library, also where the running script lies beside a file evaluate.py.

    Python looks into a script's own folder first, and this project has scripts/evaluate.py.
    """
    search_path = list(sys.path)
    sys.path[:] = [folder for folder in search_path if not Path(folder, "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path[:] = search_path


evaluate = _import_evaluate()


def ssim_window(height: int, width: int) -> int:
    """Side of the SSIM window: 11, or the largest odd number that fits a smaller image."""
    side = min(height, width, SSIM_WINDOW)
    return side - (side + 1) % 2


def structural_similarity(predictions: Tensor, references: Tensor) -> Tensor:
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


class SummingMetric(evaluate.Metric):
    """An `evaluate.Metric` that keeps sums in place of rows. Subclasses say which.

    Takes the options of `evaluate.Metric`; those about its cache files have nothing to act on.

    Raises:
        ValueError: if `num_process` is not 1 (the library's exchange of rows through files).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"`num_process` must be 1, got {self.num_process}: {type(self).__name__} writes no "
                "files for processes to exchange. Add each process's own rows there and call "
                "`sum_over_processes_`."
            )
        self._reset()

    def _info(self) -> evaluate.MetricInfo:
        text = inspect.getdoc(type(self))
        return evaluate.MetricInfo(
            description=text.splitlines()[0],
            citation="",
            inputs_description=text,
            features=Features(self._features),
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # the library would create a folder here, for no files

    def _reset(self) -> None:
        """Set `self._sums` to what it is before any row; `rows` is one of them."""
        raise NotImplementedError

    def _update(self, **inputs: Any) -> None:
        """Check a batch and add it to the sums; nothing is added where a check fails."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Rows added since the last `compute`."""
        return int(self._sums["rows"])

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add rows: tensors, arrays or nested lists with the row as first axis.

        Raises:
            ValueError: if an input is missing or unknown, or has a wrong shape, dtype or value.
        """
        inputs = {"predictions": predictions, "references": references, **kwargs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if set(inputs) != set(self._feature_names()):
            raise ValueError(
                f"{type(self).__name__} takes {_names(self._feature_names())}, got "
                f"{_names(inputs) or 'nothing'}."
            )
        self._update(**inputs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one row: what `add_batch` takes, without the leading axis."""
        row = {"predictions": prediction, "references": reference, **kwargs}
        given = {name: value for name, value in row.items() if value is not None}
        self.add_batch(**{name: _tensor(name, value)[None] for name, value in given.items()})

    def compute(
        self, *, predictions: Any = None, references: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The metric over the rows added since the last call, and these; then forget them all.

        Raises:
            ValueError: if there is no row at all, or as `add_batch` does.
        """
        inputs = {"predictions": predictions, "references": references, **kwargs}
        if any(value is not None for value in inputs.values()):
            self.add_batch(**inputs)
        if len(self) == 0:
            raise ValueError(
                f"{type(self).__name__} needs at least 1 row, got 0. Call `add` or `add_batch` "
                f"before `compute`, or give it {_names(self._feature_names())}."
            )
        result = self._compute()
        self._reset()
        return result

    def sum_over_processes_(self, accelerator: Any) -> None:
        """Add up the sums of all processes of an `accelerate.Accelerator`; all must call this.

        Each may have added any number of rows, also none; all then compute the same result.
        """
        if accelerator.num_processes > 1:
            sums = {
                name: torch.as_tensor(value, device=accelerator.device)
                for name, value in self._sums.items()
            }
            totals = accelerator.reduce(sums, "sum")
            self._sums = {name: value.cpu().numpy()[()] for name, value in totals.items()}


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
        predictions = _images("predictions", predictions)
        references = _images("references", references)
        _check_same_shape(predictions=predictions, references=references)
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
                self._sums["squared_error"] += error.square().sum().item()
                similarity = structural_similarity(predicted, true)
                self._sums["similarity"] += similarity.double().sum().item()
        self._sums["values"] += references.numel()
        self._sums["rows"] += len(references)

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
        self.num_embeddings = num_embeddings
        super().__init__(**kwargs)

    def _reset(self) -> None:
        self._sums = {"counts": np.zeros(self.num_embeddings, np.int64), "rows": np.int64(0)}

    def _update(self, predictions: Any) -> None:
        codes = _codes("predictions", predictions, self.num_embeddings)
        counts = torch.bincount(codes.flatten(), minlength=self.num_embeddings)
        self._sums["counts"] += counts.cpu().numpy()
        self._sums["rows"] += len(codes)

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
        self.num_embeddings = num_embeddings
        super().__init__(**kwargs)

    def _reset(self) -> None:
        integers = {name: np.int64(0) for name in ("correct", "codes", "rows")}
        self._sums = {"nats": np.float64(0), **integers}

    def _update(self, predictions: Any, references: Any, negative_log_likelihoods: Any) -> None:
        predictions = _codes("predictions", predictions, self.num_embeddings)
        references = _codes("references", references, self.num_embeddings)
        nats = _floats("negative_log_likelihoods", negative_log_likelihoods)
        _check_same_shape(
            predictions=predictions, references=references, negative_log_likelihoods=nats
        )
        if (nats < -1e-3).any():  # -log(1) may round to just below 0
            raise ValueError(
                f"`negative_log_likelihoods` must not be negative, got {nats.min().item():g}: no "
                "probability exceeds 1. Change the sign if these are log-likelihoods."
            )
        self._sums["nats"] += nats.double().sum().item()
        self._sums["correct"] += (predictions == references.to(predictions.device)).sum().item()
        self._sums["codes"] += references.numel()
        self._sums["rows"] += len(references)

    def _compute(self) -> dict[str, float]:
        nats_per_code = float(self._sums["nats"] / self._sums["codes"])
        return {
            "nll": nats_per_code,
            "bits_per_code": nats_per_code / math.log(2),
            "bits_per_image": float(self._sums["nats"] / self._sums["rows"]) / math.log(2),
            "code_accuracy": float(self._sums["correct"] / self._sums["codes"]),
        }


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        array = value if isinstance(value, Tensor) else np.asarray(value)
        tensor = torch.as_tensor(array).detach()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a tensor, array or even nested lists: {error}"
        ) from error
    return tensor.cpu() if tensor.device.type == "mps" else tensor  # mps has no float64


def _floats(name: str, value: Any) -> Tensor:
    tensor = _tensor(name, value)
    if not tensor.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point, got {tensor.dtype}. Divide 8-bit images by 255."
        )
    bad = ~tensor.isfinite()
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, got {tensor[bad][0].item()}, first in row "
            f"{bad.nonzero()[0, 0].item()} of this batch ({bad.sum().item()} in all). The model "
            "that made it overflows or has bad weights: try float32, or an earlier checkpoint."
        )
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _images(name: str, value: Any) -> Tensor:
    images = _floats(name, value)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"`{name}` must be of shape (number, channels, height, width), got "
            f"{tuple(images.shape)}. Add the missing axes, for example with `images[:, None]`."
        )
    if images.numel() and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got {images.min().item():g} to {images.max().item():g}. "
            "The image processor's `postprocess(pixel_values, output_type='pt')` does that."
        )
    return images


def _codes(name: str, value: Any, num_embeddings: int) -> Tensor:
    codes = _tensor(name, value)
    if codes.is_floating_point() or codes.dtype == torch.bool or codes.ndim < 2:
        raise ValueError(
            f"`{name}` must be integers of shape (number, height, width), got {codes.dtype} of "
            f"shape {tuple(codes.shape)}. `model.encode(pixel_values).codes` is of that kind."
        )
    wrong = codes[(codes < 0) | (codes >= num_embeddings)]
    if len(wrong):
        raise ValueError(
            f"`{name}` must lie in 0 to {num_embeddings - 1}, got {wrong[0].item()}. Give this "
            f"metric the `num_embeddings` of the model that made the codes, not {num_embeddings}."
        )
    return codes.long()


def _check_same_shape(**tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"inputs must have the same shape, got {shapes}. Give each prediction its reference."
        )
