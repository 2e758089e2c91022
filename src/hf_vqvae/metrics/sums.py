"""Averages of an epoch, over steps and processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Averages:
    """Sums of an epoch's measures and code counts; kept on the device, so that a step waits for nothing."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.names: list[str] = []
        self.sums = self.counts = None
        self.steps = 0

    def add(self, measures: dict[str, Tensor], codes: Tensor | None, num_codes: int | None) -> None:
        """Adds a step's scalars, and its codes (any shape) to the counts if `num_codes` is given."""
        self.names = list(measures)
        values = widen(torch.stack([value.detach().float() for value in measures.values()]))
        self.sums = values if self.sums is None else self.sums + values
        if num_codes is not None:
            counts = torch.bincount(codes.flatten(), minlength=num_codes)
            self.counts = counts if self.counts is None else self.counts + counts
        self.steps += 1

    def compute(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; with code counts also perplexity and codes used. Called by all."""
        means = accelerator.reduce(self.sums, "mean") / self.steps
        figures = dict(zip(self.names, means.tolist(), strict=True))
        if self.counts is not None:
            counts = accelerator.reduce(self.counts, "sum").cpu().double()
            shares = counts / counts.sum()
            figures["perplexity"] = torch.special.entr(shares).sum().exp().item()
            figures["codes_used"] = int((counts > 0).sum())
        return figures

    def gather(self, accelerator: Accelerator) -> dict[str, Any]:
        """Every process's sums, for a checkpoint. Called by all."""
        if not self.steps:
            return {"steps": 0}
        state = {"steps": self.steps, "names": self.names}
        state["sums"] = accelerator.gather(self.sums[None]).tolist()
        if self.counts is not None:
            state["counts"] = accelerator.gather(self.counts[None]).tolist()
        return state

    def restore(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Takes up this process's sums out of [`gather`]'s state; of other processes than then, everyone the mean."""
        self.reset()
        if not state["steps"]:
            return
        self.steps, self.names = state["steps"], state["names"]
        process, sums = accelerator.process_index, torch.tensor(state["sums"], dtype=torch.double)
        same = len(sums) == accelerator.num_processes
        self.sums = widen(sums[process] if same else sums.mean(0), self.device)
        if "counts" in state:
            counts = torch.tensor(state["counts"])
            share = counts[process] if same else counts.sum(0) * (process == 0)
            self.counts = share.to(self.device)


def widen(values: Tensor, device: torch.device | None = None) -> Tensor:
    """`values` in the widest floating-point type that its device (or `device`, which it goes to) has."""
    device = values.device if device is None else device
    return values.to(torch.float32 if device.type == "mps" else torch.float64).to(device)
