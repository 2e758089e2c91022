"""Base class of the metrics, `evaluate` modules that keep sums instead of rows; checks of inputs.

`evaluate` itself writes every row to an Arrow file and reads all of them back to compute: measured,
5 s and 1.4 GB for 10,000 grey images of 28x28, and 25 s and 6 GB for 250 of 256x256x3. All numbers
here follow from a few sums, so the metrics keep those and write nothing to disk.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features
from torch import Tensor

from ..models.input_checks import INTEGERS
from .sums import CompensatedSums

# Python searches a script's own folder first, and this project has scripts/evaluate.py.
_search_path = sys.path
sys.path = [folder for folder in _search_path if not Path(folder, "evaluate.py").is_file()]
evaluate = importlib.import_module("evaluate")
sys.path = _search_path


class SummingMetric(evaluate.Metric):
    """An `evaluate.Metric` that keeps sums instead of rows.

    Takes the options of `evaluate.Metric`; those of its files have no effect. Processes exchange
    their rows by `sum_over_processes_`, not by files.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.num_process != 1:
            raise ValueError(f"`num_process` must be 1, got {self.num_process}: call `sum_over_processes_` instead.")
        self._sums = CompensatedSums()

    def _info(self) -> evaluate.MetricInfo:
        text = inspect.getdoc(type(self))
        return evaluate.MetricInfo(
            description=text.splitlines()[0], citation="", inputs_description=text, features=Features(self._features)
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # the library would create a folder here

    def _update(self, **inputs: Any) -> None:
        """Check a batch and add it to the sums, `rows` among them; add nothing where a check fails."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Rows added since the last `compute`."""
        return int(self._sums.totals().get("rows", 0))

    def add_batch(self, **inputs: Any) -> None:
        """Add rows: tensors, arrays or nested lists with the row as first axis.

        Raises `TypeError` if an input is missing or unknown, `ValueError` if its shape, dtype or a value is wrong.
        """
        self._update(**{name: value for name, value in inputs.items() if value is not None})

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one row: what `add_batch` takes, without the leading axis."""
        row = {"predictions": prediction, "references": reference, **kwargs}
        given = {name: value for name, value in row.items() if value is not None}
        self.add_batch(**{name: _to_tensor(name, value)[None] for name, value in given.items()})

    def compute(self, **inputs: Any) -> dict[str, Any]:
        """Compute the metric over all rows since the last call and these, at least one, then reset."""
        if any(value is not None for value in inputs.values()):
            self.add_batch(**inputs)
        if len(self) == 0:
            name = type(self).__name__
            raise ValueError(f"{name} needs at least 1 row, got 0. Call `add` or `add_batch` first.")
        totals = {name: total.cpu() for name, total in self._sums.totals().items()}
        result = self._compute(totals)
        self._sums = CompensatedSums()
        return result

    def sum_over_processes_(self, accelerator: Any) -> None:
        """Add up the sums of all processes of an `accelerate.Accelerator`; all must call this.

        Each may have any number of rows, also none. All then compute the result, to the bit, of one with all batches.
        """
        self._sums = self._sums.over_processes(accelerator)


def _to_tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)).detach()
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`{name}` must be a tensor, array or even nested lists: {error}") from error
    return tensor.cpu() if tensor.device.type == "mps" else tensor  # mps has no float64


def as_tensor(
    name: str,
    value: Any,
    shape: Sequence[int | None] | None = None,
    *,
    integers: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    """Convert an input of a metric, a tensor, array or nested lists, to int64 or float32 (float64 stays).

    Args:
        shape: None for any size of an axis; by default any shape of at least two axes.
        integers: whether it must be integers, else floating-point numbers, which must be finite.
        low, high: the range of the values, both inclusive.

    Raises:
        ValueError: naming what does not hold and the value.
    """
    tensor = _to_tensor(name, value)
    kind = "integers" if integers else "floating point"
    fits = tensor.dtype in INTEGERS if integers else tensor.is_floating_point()
    if not fits or tensor.layout != torch.strided:
        hint = "" if integers else " Divide 8-bit images by 255."
        raise ValueError(f"`{name}` must be {kind}, got {tensor.dtype}.{hint}")
    sizes = tuple(tensor.shape)
    wanted = shape if shape is not None else (None, *sizes[1:]) if len(sizes) > 1 else (None, "...")
    matches = [size in (None, found) for size, found in zip(wanted, sizes, strict=False)]
    if len(sizes) != len(wanted) or not all(matches) or 0 in sizes[1:]:
        text = ", ".join("number" if size is None else str(size) for size in wanted)
        raise ValueError(f"`{name}` must be of shape ({text}), got {sizes}.")
    if integers:
        tensor = tensor.long()  # torch compares no unsigned integers
    elif tensor.dtype != torch.float64:
        tensor = tensor.float()
    bad = ~tensor.isfinite()
    if bad.any():
        raise ValueError(
            f"`{name}` must be finite, got {tensor[bad][0].item()}, first in row {bad.nonzero()[0, 0].item()} of this "
            f"batch ({bad.sum().item()} in all). The model that made it overflows or has bad weights: try float32."
        )
    bad = (tensor < low) | (tensor > high)
    if bad.any():
        raise ValueError(f"`{name}` must lie in {low:g} to {high:g}, got {tensor[bad][0].item():g}.")
    return tensor
