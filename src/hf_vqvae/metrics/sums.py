"""Sums over batches and processes, exact up to the last rounding; averages of training; perplexity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class CompensatedSums:
    """Named sums of tensors, whose bits depend neither on the order of the batches nor on the processes.

    Integers are summed in int64, floating-point numbers in float64 (float32 on MPS, which has no
    float64) with the rounding errors in a second sum (Knuth's two-sum). A sum stays on the device of
    the first tensor, so that adding waits for nothing.
    """

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._errors: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | int) -> None:
        """Add a tensor, of the same shape each time, to a sum."""
        value = widen(torch.as_tensor(value).detach())
        if name not in self._sums:
            self._sums[name], self._errors[name] = value, torch.zeros_like(value)
            return
        before = self._sums[name]
        value = value.to(before.device)
        self._sums[name] = after = before + value
        # What is added to the errors is exactly `before + value - after`.
        added = after - before
        self._errors[name] = self._errors[name] + ((before - (after - added)) + (value - added))

    def totals(self) -> dict[str, Tensor]:
        """All sums by name, each rounded once."""
        return {name: total + self._errors[name] for name, total in self._sums.items()}

    def over_processes(self, accelerator: Accelerator) -> "CompensatedSums":
        """The sums of all processes, which all must call this; one that added nothing may lack names."""
        if accelerator.num_processes == 1:
            return self
        local = [(name, value.cpu(), self._errors[name].cpu()) for name, value in self._sums.items()]
        together = CompensatedSums()
        for name, value, error in gather_object(local):
            together.add(name, value)
            together._errors[name] = together._errors[name] + error
        return together


class Averages:
    """Means of a step's measures, and counts of codes, over the steps of an epoch and the processes."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start a new epoch."""
        self.names: list[str] = []
        self._sums = CompensatedSums()

    def add(self, measures: dict[str, Tensor], codes: Tensor | None, num_codes: int | None) -> None:
        """Add a step's scalars, and its codes (any shape) to the counts if `num_codes` is given."""
        self.names = list(measures)
        values = [value.detach().float() for value in measures.values()]
        self._sums.add("sums", torch.stack(values))
        if num_codes is not None:
            self._sums.add("counts", torch.bincount(codes.flatten(), minlength=num_codes))
        self._sums.add("steps", 1)

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Means; with code counts also perplexity and codes used. Called by all processes."""
        totals = self._sums.over_processes(accelerator).totals()
        means = totals["sums"].double().cpu() / totals["steps"].item()
        figures = dict(zip(self.names, means.tolist(), strict=True))
        if "counts" in totals:
            figures["perplexity"] = perplexity(totals["counts"])
            figures["codes_used"] = int((totals["counts"] > 0).sum())
        return figures

    def gather(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums of all processes, for a checkpoint. Called by all processes."""
        totals = self._sums.over_processes(accelerator).totals()
        return {"names": self.names} | {name: [total.tolist()] for name, total in totals.items()}

    def restore(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Give the sums of [`gather`] to the main process; an older checkpoint has a row for each process."""
        self.reset()
        self.names = state.get("names", [])
        rows = {name: state[name] for name in ("sums", "counts", "steps") if state.get(name)}
        if isinstance(rows.get("steps"), int):
            rows["steps"] = [rows["steps"]] * len(rows["sums"])
        for name, values in rows.items() if accelerator.is_main_process else ():
            self._sums.add(name, widen(torch.as_tensor(np.sum(values, axis=0)), self.device))


def perplexity(counts: Tensor | Sequence[int]) -> float:
    """exp(entropy in nats) of a histogram (K,), from 1 (one code) to K (all equally often)."""
    counts = torch.as_tensor(counts).cpu().double()
    shares = counts / counts.sum()
    return torch.special.entr(shares).sum().exp().item()


def widen(values: Tensor, device: torch.device | None = None) -> Tensor:
    """`values` in the widest type of their kind that their device (or `device`, to which they go) has."""
    device = values.device if device is None else device
    widest = torch.float32 if device.type == "mps" else torch.float64
    return values.to(widest if values.is_floating_point() else torch.int64).to(device)
