"""The figures of the card, drawn from a run's files, its model and the images it is evaluated on."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .card_sections import read_record
from .models import VQVAEForImageGeneration, VQVAEImageProcessorPil, VQVAEModel

if TYPE_CHECKING:
    from .decoding import DecodedImages

NUM_IMAGES, NUM_SAMPLES = 10, 64


@torch.inference_mode()
def write_figures(
    run_folder: str | Path,
    model: VQVAEModel | VQVAEForImageGeneration,
    images: "DecodedImages",
    generator: torch.Generator | None = None,
) -> list[Path]:
    """Draws all figures of the card into `run_folder/figures`.

    Curves and codebook usage come from `history.json` and `run.json`, where these are there.

    Args:
        model: a VQ-VAE, with samples drawn too if it has a prior; left in the mode it was in.
        images: the evaluation split; shown are the first image of each label, or the first ten.
        generator: source of the samples, on the model's device.

    Returns:
        The files written.

    Raises:
        ValueError: if there are no images.
    """
    # Not at the top: a card can be built without matplotlib.
    from .plotting import plot_codes, plot_reconstructions, plot_samples
    from .plotting_architecture import plot_architecture
    from .plotting_charts import plot_codebook_usage, plot_training_curves

    if not len(images):
        raise ValueError("`images` must hold at least 1 image to draw, got 0.")
    run_folder = Path(run_folder)
    folder = run_folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    vqvae, prior = model.base_model, getattr(model, "prior", None)
    chosen = choose_images(images.labels, len(images))
    was_training = model.training
    model.eval()
    try:
        pixel_values = images.__getitems__(chosen)["pixel_values"].to(model.device)
        codes = vqvae.encode(pixel_values).codes
        inputs, outputs = to_8_bits(pixel_values), to_8_bits(vqvae.decode(codes))
        samples = None if prior is None else model.sample(NUM_SAMPLES, generator=generator)
    finally:
        model.train(was_training)
    codes = codes.cpu().numpy()
    plot_architecture(
        vqvae.config, folder / "architecture.png", None if prior is None else prior.config
    )
    plot_reconstructions(inputs, outputs, folder / "reconstructions.png")
    plot_codes(inputs, codes, outputs, vqvae.config.num_embeddings, folder / "codes.png")
    if samples is not None:
        plot_samples(to_8_bits(samples), folder / "samples.png")
    history = read_record(run_folder, "history.json")
    if any(history.values()):
        plot_training_curves(history, folder / "training_curves.png")
    counts = read_record(run_folder, "run.json").get("codebook_counts")
    if counts:
        plot_codebook_usage(counts, folder / "codebook_usage.png")
    return sorted(folder.glob("*.png"))


def choose_images(labels: torch.Tensor | None, number: int) -> list[int]:
    """Indices of the images to show: the first of each label, filled up to ten with the first ones.

    Args:
        labels: int64 (number,), -1 where unknown, or None.
        number: how many images there are.
    """
    first: dict[int, int] = {}
    for index, label in enumerate([] if labels is None else labels.tolist()):
        if label >= 0:
            first.setdefault(label, index)
    chosen = [first[label] for label in sorted(first)][:NUM_IMAGES]
    others = [index for index in range(min(number, 2 * NUM_IMAGES)) if index not in chosen]
    return chosen + others[: NUM_IMAGES - len(chosen)]


def to_8_bits(images: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) in [-0.5, 0.5] to uint8 (N, H, W, C)."""
    return (VQVAEImageProcessorPil().postprocess(images, "np") * 255).round().astype("uint8")
