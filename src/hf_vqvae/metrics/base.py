"""Base class of the metrics: `evaluate` modules that keep sums in place of rows; checks of inputs.

`evaluate` itself writes every row to an Arrow file and reads all of them back to compute: measured,
5 s and 1.4 GB for 10,000 grey images of 28x28, and 25 s and 6 GB for 250 of 256x256x3. All numbers
here follow from a few sums, so the metrics keep those and write nothing to disk.
"""

import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Features
from torch import Tensor

from ..models.codes import INTEGERS
from .sums import CompensatedSums


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


class SummingMetric(evaluate.Metric):
    """An `evaluate.Metric` that keeps sums in place of rows. Subclasses say which.

    Takes the options of `evaluate.Metric`; those about its cache files have nothing to act on.

    Raises:
        ValueError: if `num_process` is not 1 (the library's exchange of rows through files).
    """

    # Whether a row has all inputs, as a prediction has its reference; else each may come alone.
    _inputs_are_paired: ClassVar[bool] = True

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
        """Forget all rows."""
        self._sums = CompensatedSums()

    def _update(self, **inputs: Any) -> None:
        """Check a batch and add it to the sums, `rows` among them; add nothing where a check fails."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Rows added since the last `compute`."""
        return int(self._sums.total("rows"))

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add rows: tensors, arrays or nested lists with the row as first axis.

        Raises:
            ValueError: if an input is missing or unknown, or has a wrong shape, dtype or value.
        """
        inputs = {"predictions": predictions, "references": references, **kwargs}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        known = set(self._feature_names())
        incomplete = set(inputs) != known if self._inputs_are_paired else not inputs
        if incomplete or not set(inputs) <= known:
            alone = "" if self._inputs_are_paired else " (together or one of them)"
            raise ValueError(
                f"{type(self).__name__} takes {_names(self._feature_names())}{alone}, got "
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
        totals = {name: total.cpu() for name, total in self._sums.totals().items()}
        result = self._compute(totals)
        self._reset()
        return result

    def sum_over_processes_(self, accelerator: Any) -> None:
        """Add up the sums of all processes of an `accelerate.Accelerator`; all must call this.

        Each may have added any number of rows, also none; all then compute the same result, to the
        bit that of one process with all the batches.
        """
        self._sums = self._sums.over_processes(accelerator)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        array = value if isinstance(value, Tensor) else np.asarray(value)
        tensor = torch.as_tensor(array).detach()
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"`{name}` must be a tensor, array or even nested lists: {error}"
        ) from error
    dense = tensor.layout == torch.strided and not tensor.is_nested
    if tensor.is_meta or not dense or tensor.is_complex():
        raise ValueError(
            f"`{name}` must be dense, real and hold values, got {tensor.dtype} on {tensor.device}."
        )
    return tensor.cpu() if tensor.device.type == "mps" else tensor  # mps has no float64


def as_count(name: str, value: Any, maximum: int) -> int:
    """`value`; a ValueError unless it is a whole number from 1 to `maximum`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise ValueError(f"`{name}` must be a whole number from 1 to {maximum}, got {value!r}.")
    return value


def as_floats(name: str, value: Any) -> Tensor:
    """`value` in float32, or in float64 if it is; a ValueError unless it is finite floating point."""
    tensor = _tensor(name, value)
    if not tensor.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point, got {tensor.dtype}. Divide 8-bit images by 255."
        )
    if not tensor.ndim:
        raise ValueError(f"`{name}` must have rows, got the single number {tensor.item()}.")
    bad = ~tensor.isfinite()
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, got {tensor[bad][0].item()}, first in row "
            f"{bad.nonzero()[0, 0].item()} of this batch ({bad.sum().item()} in all). The model "
            "that made it overflows or has bad weights: try float32, or an earlier checkpoint."
        )
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def as_images(name: str, value: Any) -> Tensor:
    """`value` as by `as_floats`; a ValueError unless it is (N, C, H, W) in [0, 1]."""
    images = as_floats(name, value)
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


def as_codes(name: str, value: Any, num_embeddings: int) -> Tensor:
    """`value` in int64; a ValueError unless it is integers in [0, num_embeddings) of (N, ...)."""
    codes = _tensor(name, value)
    if codes.dtype not in INTEGERS or codes.ndim < 2:
        raise ValueError(
            f"`{name}` must be integers of shape (number, height, width), got {codes.dtype} of "
            f"shape {tuple(codes.shape)}. `model.encode(pixel_values).codes` is of that kind."
        )
    codes = codes.long()  # torch compares no unsigned integers
    wrong = codes[(codes < 0) | (codes >= num_embeddings)]
    if len(wrong):
        raise ValueError(
            f"`{name}` must lie in 0 to {num_embeddings - 1}, got {wrong[0].item()}. Give this "
            f"metric the `num_embeddings` of the model that made the codes, not {num_embeddings}."
        )
    return codes


def as_table(name: str, value: Any, columns: int) -> Tensor:
    """`value` as by `as_floats`; a ValueError unless it is (N, `columns`)."""
    table = as_floats(name, value)
    if table.ndim != 2 or table.shape[1] != columns:
        raise ValueError(
            f"`{name}` must be of shape (number, {columns}), got {tuple(table.shape)}. Give one row "
            "for each image, from one classifier."
        )
    return table


def as_classes(name: str, value: Any, num_classes: int) -> Tensor:
    """`value` in int64; a ValueError unless it is (N,) integers in [-1, num_classes)."""
    classes = _tensor(name, value)
    if classes.dtype not in INTEGERS or classes.ndim != 1:
        raise ValueError(
            f"`{name}` must be integers of shape (number,), got {classes.dtype} of shape "
            f"{tuple(classes.shape)}. Give the number of a class for each row, -1 for none."
        )
    classes = classes.long()
    wrong = classes[(classes < -1) | (classes >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"`{name}` must lie in -1 to {num_classes - 1}, got {wrong[0].item()}. Use the "
            "classifier's numbers of its classes, and -1 for none."
        )
    return classes


def check_same_shape(**tensors: Tensor) -> None:
    """A ValueError, with their names and shapes, unless all are of one shape."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"`{name}` {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"inputs must have the same shape, got {shapes}. Give each prediction its reference."
        )
