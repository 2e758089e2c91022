"""Draw the figures of the card from a run's files, its model and its evaluation images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.decoding import DecodedImages, to_8_bits
from ..data.masks import half_mask
from ..evaluation.nearest_neighbors import nearest_images
from ..figures import image_tables
from ..figures.architecture import plot_architecture
from ..figures.charts import plot_codebook_usage, plot_training_curves
from ..models import VQVAEForImageGeneration, VQVAEModel
from .context import NUM_CLASSES
from .records import read_record

NUM_IMAGES, NUM_SAMPLES = 10, 64
SAMPLES_PER_ROW, FEWEST_ROWS = 8, 8  # of the samples of a conditional model
NUM_COMPLETIONS, NUM_NEIGHBOURS = 5, 4
NUM_LIKELIHOODS, MOST_LIKELIHOODS = 3, 256  # images of each kind, of the first ones


@torch.inference_mode()
def write_figures(
    run_folder: str | Path,
    model: VQVAEModel | VQVAEForImageGeneration,
    images: DecodedImages | None,
    generator: torch.Generator | None = None,
    train_images: DecodedImages | None = None,
) -> list[Path]:
    """Draw all figures of the card into `run_folder/figures`, and return their paths.

    Training curves and codebook usage are drawn from `history.json` and `run.json` if these exist.

    Args:
        model: a VQ-VAE, or one with a prior, which also gets samples and completions. It is set to evaluation mode.
        images: the evaluation split. The first image of each label is shown, or the first ten; without, none.
        generator: random generator of the samples, on the model's device.
        train_images: the training split. Without it (a stream is not in memory) there are no nearest neighbours.
    """
    run_folder = Path(run_folder)
    folder = run_folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    vqvae, prior = model.base_model, getattr(model, "prior", None)
    model.eval()
    if prior is not None:
        samples = _draw_samples(model, generator, folder / "samples.png")
        if train_images is not None:
            draw_neighbours(samples[:NUM_IMAGES], train_images, model.device, folder / "neighbours.png")
    plot_architecture(vqvae.config, folder / "architecture.png", None if prior is None else prior.config)
    if images is not None:
        chosen = choose_images(images.labels, len(images))
        pixel_values = images.__getitems__(chosen)["pixel_values"].to(model.device)
        codes = vqvae.encode(pixel_values).codes
        inputs, outputs = to_8_bits(pixel_values), to_8_bits(vqvae.decode(codes))
        if prior is not None:
            _draw_completions(model, pixel_values, outputs, generator, folder / "completions.png")
            _draw_likelihoods(model, images, folder / "likelihoods.png")
        image_tables.save_strip(inputs, folder / "test_images.png")
        image_tables.plot_reconstructions(inputs, outputs, folder / "reconstructions.png")
        grids = codes.cpu().numpy()
        image_tables.plot_codes(inputs, grids, outputs, vqvae.config.num_embeddings, folder / "codes.png")
    history = read_record(run_folder, "history.json")
    if any(history.values()):
        plot_training_curves(history, folder / "training_curves.png")
    counts = read_record(run_folder, "run.json").get("codebook_counts")
    if counts:
        plot_codebook_usage(counts, folder / "codebook_usage.png")
    return sorted(folder.glob("*.png"))


def _draw_samples(model: VQVAEForImageGeneration, generator: torch.Generator | None, path: Path) -> np.ndarray:
    """Draw the figure of samples, by class if the prior is conditional, and the gallery; return the samples."""
    config = model.config.prior_config
    if config.num_classes is None:
        samples = to_8_bits(model.sample(NUM_SAMPLES, generator=generator))
        image_tables.plot_samples(samples, path)
        image_tables.save_gallery(samples[:NUM_CLASSES], path.with_name("gallery"))
        return samples
    # At most ten classes; few of them get several rows.
    shown = min(config.num_classes, NUM_CLASSES)
    rows = [label for label in range(shown) for _ in range(max(1, FEWEST_ROWS // shown))]
    labels = torch.tensor(rows).repeat_interleave(SAMPLES_PER_ROW)
    samples = to_8_bits(model.sample(class_labels=labels, generator=generator))
    table = samples.reshape(len(rows), SAMPLES_PER_ROW, *samples.shape[1:])
    names = [image_tables.printable(config.id2label[label], f"class {label}") for label in rows]
    image_tables.plot_samples_by_class(table, names, path)
    image_tables.save_gallery(table[:: len(rows) // shown, 0], path.with_name("gallery"))
    # Column by column, so that successive samples are of different classes.
    return table.swapaxes(0, 1).reshape(samples.shape)


def _draw_completions(
    model: VQVAEForImageGeneration,
    pixel_values: Tensor,
    reconstructions: np.ndarray,
    generator: torch.Generator | None,
    path: Path,
) -> None:
    """Draw the figure of completions of the upper half, without labels; none if there is a single row of codes."""
    if model.config.prior_config.grid_size[0] < 2:
        return
    known = half_mask("upper", model.config.vqvae_config)
    repeated = pixel_values.repeat_interleave(NUM_COMPLETIONS, dim=0)
    completions = model.sample(pixel_values=repeated, pixel_mask=known, generator=generator)
    images, completions = to_8_bits(pixel_values), to_8_bits(completions)
    completions = completions.reshape(len(images), NUM_COMPLETIONS, *images.shape[1:])
    image_tables.plot_completions(images, known.numpy(), completions, reconstructions, path)


def _draw_likelihoods(model: VQVAEForImageGeneration, images: DecodedImages, path: Path) -> None:
    """Draw the least and the most surprising of the first images, and others upside down, and noise."""
    rows = list(range(min(len(images), MOST_LIKELIHOODS)))
    pixel_values = images.__getitems__(rows)["pixel_values"].to(model.device)
    order = model.log_likelihood(pixel_values).bits.argsort()
    number = min(NUM_LIKELIHOODS, len(order))
    upside_down = pixel_values[order[(len(order) - number) // 2 :][:number]].flip(2, 3)
    noise = torch.rand(pixel_values[:1].shape, generator=torch.Generator().manual_seed(0)).to(pixel_values) - 0.5
    shown = torch.cat([pixel_values[order[:number]], pixel_values[order[-number:]], upside_down, noise])
    kinds = ("Least surprising", "Most surprising", "Upside down")
    groups = [*((kind, number) for kind in kinds), ("Noise", 1)]
    nats = model.log_likelihood(shown).nats.cpu().numpy()
    image_tables.plot_likelihoods(to_8_bits(shown), nats, model.config.vqvae_config.num_embeddings, groups, path)


def draw_neighbours(samples: np.ndarray, train_images: DecodedImages, device: torch.device, path: Path) -> None:
    """Draw samples, uint8 (N, H, W, C), beside their nearest training images."""
    queries = torch.from_numpy(samples).permute(0, 3, 1, 2).to(device)
    distances, rows = nearest_images(queries, train_images.images, min(NUM_NEIGHBOURS, len(train_images)))
    neighbours = train_images.images[rows.cpu()].permute(0, 1, 3, 4, 2)
    image_tables.plot_neighbours(samples, neighbours.numpy(), distances.cpu().numpy(), path)


def choose_images(labels: torch.Tensor | None, number: int) -> list[int]:
    """Return the indices of ten of `number` images to show: the first of each label (-1 if unknown), then the first."""
    first: dict[int, int] = {}
    for index, label in enumerate([] if labels is None else labels.tolist()):
        if label >= 0:
            first.setdefault(label, index)
    chosen = [first[label] for label in sorted(first)][:NUM_IMAGES]
    others = [index for index in range(min(number, 2 * NUM_IMAGES)) if index not in chosen]
    return chosen + others[: NUM_IMAGES - len(chosen)]
