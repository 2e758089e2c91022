"""Charts of a run: training curves and codebook usage."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..metrics.sums import perplexity
from .page import BLUE, GREEN, PALE, PURPLE, VERMILION, page, plain_log_axis


def plot_codebook_usage(counts: Sequence[int], path: str | Path) -> None:
    """Draw how often each of K codes was chosen over a whole split, most frequent first, with the perplexity."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total, number = ordered.sum(), len(ordered)
    used = int((ordered > 0).sum())
    with page(path, 800, layout="constrained") as figure:
        axes = figure.add_subplot(yscale="log", xlabel="codes, most frequent first", ylabel="times chosen")
        axes.set_title(f"{used:,} of {number:,} codes in use, perplexity {perplexity(counts):.1f}")
        edges = np.arange(number + 1)
        floor = max(0.5, 0.5 * ordered[used - 1])
        axes.stairs(ordered[:used], edges[: used + 1], baseline=floor, fill=True, color=BLUE)
        if used < number:
            label = f"not used: {number - used:,}"
            axes.axvspan(used, number, color=PALE, label=label)
        even = total / number
        label = f"if all were equal: {even:,.{0 if even >= 10 else 1}f}"
        axes.axhline(even, color=VERMILION, linestyle="--", label=label)
        axes.set(xlim=(0, number), ylim=(floor, 2 * ordered[0]))
        axes.grid(False, axis="x")
        plain_log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", frameon=True, framealpha=1, edgecolor=PALE)


def plot_training_curves(history: dict[str, list[dict]], path: str | Path) -> None:
    """Draw the history of both stages: reconstruction error, codebook use, the prior's loss.

    `history.json` has `{"vqvae": [{"epoch": 1, "reconstruction_mse": ...}, ...], "prior": [...]}`. A missing stage or
    value is left out; one stage has an epoch.
    """
    train, held_out, mse = ("training", BLUE, "-"), ("validation", VERMILION, "--"), "reconstruction_mse"
    old = ("evaluation", VERMILION, "--")  # of older runs
    panels = {
        "VQ-VAE: reconstruction MSE": ("vqvae", {mse: train, f"validation_{mse}": held_out, f"eval_{mse}": old}),
        "VQ-VAE: codebook": (
            "vqvae",
            {"codes_used": ("codes in use", GREEN, "-"), "perplexity": ("perplexity", PURPLE, "--")},
        ),
        "Prior: nats per code": ("prior", {"loss": train, "validation_loss": held_out, "eval_loss": old}),
    }
    panels = {title: panel for title, panel in panels.items() if history.get(panel[0])}
    with page(path, 560 * len(panels), layout="constrained") as figure:
        for axes, (title, (stage, curves)) in zip(
            np.atleast_1d(figure.subplots(len(panels))), panels.items(), strict=True
        ):
            for key, (label, color, line) in curves.items():
                points = [(epoch["epoch"], epoch[key]) for epoch in history[stage] if epoch.get(key) is not None]
                if points:
                    # With a marker per point: one epoch alone draws no line.
                    options = {"marker": "o" if len(points) <= 60 else None, "markersize": 4.5}
                    axes.plot(*zip(*points, strict=True), label=label, color=color, linestyle=line, **options)
            axes.set(title=title, xlabel="epoch")
            if title.endswith("MSE"):
                axes.set_yscale("log")
                plain_log_axis(axes)
            elif title.endswith("codebook"):
                # Room for the legend above a codebook in full use.
                axes.set_ylim(0, 1.4 * axes.get_ylim()[1])
            first, last = (history[stage][index]["epoch"] for index in (0, -1))
            margin = max(0.5, 0.03 * (last - first))
            axes.set_xlim(first - margin, last + margin)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.legend(loc="best")
