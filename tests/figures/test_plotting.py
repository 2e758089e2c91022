"""Figures: every one has a size, ink and margins, for every kind of model and image, and looks as it did."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae.figures import charts, image_tables
from hf_vqvae.figures.architecture import autoencoder_boxes, plot_architecture
from hf_vqvae.figures.sweep import plot_sweep
from hf_vqvae.models import PixelCNNConfig, VQVAEConfig, VQVAEModel

GOLDEN = Path(__file__).parents[1] / "fixtures" / "figures"
RANDOM = np.random.default_rng(0)


def some_images(number=10, height=28, width=28, channels=1):
    return RANDOM.integers(0, 256, (number, height, width, channels), dtype=np.uint8)


def discs(number):
    """Images (number, 28, 28, 1) of a light disc that grows and wanders, the same on every machine."""
    y, x = np.mgrid[:28, :28]
    shift = np.arange(number)[:, None, None]
    inside = (y - 10 - shift % 5) ** 2 + (x - 9 - shift % 7) ** 2 < (4 + shift % 6) ** 2
    return np.where(inside, 230, 20).astype(np.uint8)[..., None]


def pixels_of(path, margin=4):
    """The pixels of a figure, after the checks that every figure passes."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1280 and 100 < image.height < 4000
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all(), "a transparent figure is dark on dark in dark mode"
    grey = pixels[..., :3].mean(-1)
    assert grey.std() > 5, "the figure is blank"
    assert (grey == 255).mean() > 0.02, "the background is white"
    border = [grey[:margin], grey[-margin:], grey[:, :margin], grey[:, -margin:]]
    assert all((edge == 255).all() for edge in border), "something is cropped at the border"
    return pixels


def history_of(epochs, prior=True):
    stage = [
        {"epoch": epoch, "reconstruction_mse": 0.02 / epoch, "eval_reconstruction_mse": 0.021}
        | {"perplexity": 20.0, "codes_used": 100, "loss": 2 / epoch, "eval_loss": 1.5}
        for epoch in range(1, epochs + 1)
    ]
    return {"vqvae": stage, "prior": stage if prior else []}


def draw_architecture(path):
    prior = PixelCNNConfig(architecture="gated", num_classes=10)
    plot_architecture(VQVAEConfig(num_residual_layers=2), path, prior)


def draw_architecture_plain(path):
    plot_architecture(VQVAEConfig(), path, PixelCNNConfig())


def draw_training_curves(path):
    charts.plot_training_curves(history_of(12), path)


def draw_codebook_usage(path):
    charts.plot_codebook_usage([1000 // (index + 1) for index in range(120)] + [0] * 8, path)


def draw_reconstructions(path):
    image_tables.plot_reconstructions(discs(10), 255 - discs(10), path)


def draw_codes(path):
    codes = np.arange(147).reshape(3, 7, 7) % 128
    image_tables.plot_codes(discs(3), codes, 255 - discs(3), 128, path)


def draw_samples(path):
    image_tables.plot_samples(discs(64), path)


def draw_samples_by_class(path):
    samples = discs(32).reshape(4, 8, 28, 28, 1)
    image_tables.plot_samples_by_class(samples, ["zero", "zero", "one", "automobile"], path)


def draw_completions(path):
    known = np.arange(28)[:, None].repeat(28, 1) < 12
    completions = discs(20).reshape(4, 5, 28, 28, 1)
    image_tables.plot_completions(discs(4), known, completions, 255 - discs(4), path)


def draw_likelihoods(path):
    nats = np.add.outer(np.arange(5), np.add.outer(np.arange(7), np.arange(7))) / 4
    image_tables.plot_likelihoods(discs(5), nats, 16, [("Least", 2), ("Most", 2), ("Noise", 1)], path)


def draw_neighbours(path):
    neighbours = discs(16).reshape(4, 4, 28, 28, 1)
    image_tables.plot_neighbours(discs(4), neighbours, np.arange(16).reshape(4, 4) / 3, path)


def draw_sweep(path, sizes=(32, 64, 128), dimensions=(2, 4), images=None, prior=False):
    images = discs(8) if images is None else images
    points = [
        {"num_embeddings": size, "embedding_dim": dimension, "codebook_perplexity": 0.4 * size}
        | {"reconstruction_mse": 0.01 / (index + dimension), "bits_per_image_entropy": 20 * index}
        | {"bits_per_image_at_most": 20 * index + 10}
        | ({"bits_per_image_prior": 10 * index} if prior else {})
        for index, size in enumerate(sizes, start=1)
        for dimension in dimensions
    ]
    plot_sweep(points, images, np.stack([255 - images] * len(points)), path, dataset="ylecun/mnist")


FIGURES = {name.removeprefix("draw_"): draw for name, draw in globals().items() if "draw_" in name}


def small(path):
    """A figure at a twentieth of its size in grey, in which the versions of a font look alike."""
    with Image.open(path) as image:
        grey = image.convert("L")
        return grey.resize((64, round(grey.height / 20)), Image.Resampling.BOX)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_as_it_did(name, tmp_path):
    """`python tests/figures/test_plotting.py` writes new ones: look at the figures first."""
    FIGURES[name](tmp_path / "figure.png")
    pixels_of(tmp_path / "figure.png")
    now, before = small(tmp_path / "figure.png"), Image.open(GOLDEN / f"{name}.png")
    assert now.size == before.size
    difference = np.abs(np.asarray(now, dtype=int) - np.asarray(before, dtype=int))
    assert difference.max() < 64, f"at {np.argwhere(difference >= 64)[:5] * 20}"


# The architecture


LARGE = {"image_size": [64, 96], "num_channels": 3, "hidden_sizes": [32, 64, 128, 256, 512]}
LARGE |= {"num_residual_layers": 12, "num_embeddings": 65536, "embedding_dim": 1024}
FLAT = {"num_embeddings": 2, "embedding_dim": 1, "image_size": [4, 256]}
SMALL_PRIOR = {"kernel_size": 3, "num_residual_blocks": 0, "num_pixelcnn_layers": 0}
DEEP_PRIOR = {"architecture": "gated", "num_classes": 10_000, "num_gated_layers": 100}
WIDE_PRIOR = {"architecture": "gated", "num_gated_layers": 1, "kernel_size": 3, "hidden_size": 4096}


@pytest.mark.parametrize(
    "settings, prior",
    [
        ({}, None),
        ({"hidden_sizes": [8]}, {"num_classes": 1}),
        *((LARGE, prior) for prior in (None, SMALL_PRIOR, DEEP_PRIOR, WIDE_PRIOR)),
        *((FLAT, prior) for prior in (None, SMALL_PRIOR, DEEP_PRIOR)),
    ],
)
def test_architecture_fits_on_its_page(settings, prior, tmp_path):
    config = VQVAEConfig(**settings)
    if prior is not None:
        codes = {"num_embeddings": config.num_embeddings, "grid_size": config.grid_size}
        prior = PixelCNNConfig(**codes, **prior)
    plot_architecture(config, tmp_path / "a.png", prior)
    pixels_of(tmp_path / "a.png")


def test_architecture_names_the_shapes_of_the_real_layers():
    config = VQVAEConfig(image_size=[16, 24], num_channels=3, hidden_sizes=[8, 12, 20])
    model = VQVAEModel(config)
    shapes = {"encoder": [], "decoder": []}

    def remember(name):
        return lambda module, inputs, output: shapes[name].append(output.shape[1:])

    for name in shapes:
        part = getattr(model, name)
        for layer in (*part.levels, part.conv_out):
            layer.register_forward_hook(remember(name))
    model.eval()(torch.zeros(1, 3, 16, 24))
    encoder, decoder = zip(*autoencoder_boxes(config), strict=True)
    for drawn, real in ((encoder[1:], shapes["encoder"]), (decoder[:0:-1], shapes["decoder"])):
        sizes = [f"{h} × {w} × {c}" for c, h, w in real]  # noqa: RUF001
        assert [lines[-1] for lines in drawn] == sizes


# Tables of pictures


@pytest.mark.parametrize(
    "height, width, channels, number",
    [(28, 28, 1, 3), (8, 8, 3, 1), (8, 8, 3, 10), (64, 128, 3, 3), (256, 4, 1, 3), (32, 96, 2, 3), (300, 200, 4, 1)],
)
def test_tables_of_pictures_of_any_size_and_number_fit(height, width, channels, number, tmp_path):
    def rows(*numbers):
        images = some_images(int(np.prod(numbers)), height, width, channels)
        return images.reshape(*numbers, *images.shape[1:])

    images, five = rows(number), rows(number, 5)
    codes = RANDOM.integers(0, 512, (number, height // 4, width // 4))
    known = np.arange(height)[:, None].repeat(width, 1) < height // 2
    name = "a name that is longer than there is room for, by far"
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    image_tables.plot_reconstructions(images, images, paths[0])
    image_tables.plot_codes(images, codes, images, 512, paths[1])
    image_tables.plot_samples(rows(64), paths[2])
    image_tables.plot_samples_by_class(rows(2, 8), ["0", name], paths[3])
    image_tables.plot_completions(images, known, five, images, paths[4])
    image_tables.plot_neighbours(images, five, np.full((number, 5), 1234.5), paths[5])
    groups = [("Least surprising", number - 1), (name, 1)] if number > 1 else [(name, 1)]
    image_tables.plot_likelihoods(images, 900.0 * codes, 512, groups, paths[6])
    for path in paths:
        pixels_of(path)


def test_every_pixel_of_a_table_takes_the_same_whole_number_of_dots(tmp_path):
    images = some_images(16).reshape(2, 8, 28, 28, 1)
    table = image_tables.Table(images, row_names=["a", "b"])
    table.save(tmp_path / "a.png")
    grey = pixels_of(tmp_path / "a.png")[..., 0]
    assert table.size == (140, 140)
    for row, top in zip(images, table.tops, strict=True):
        for image, left in zip(row, table.lefts, strict=True):
            shown = grey[top : top + 140, left : left + 140]
            assert np.array_equal(shown, image[..., 0].repeat(5, 0).repeat(5, 1))


@pytest.mark.parametrize(
    "name, shown", [("cat", "cat"), ("a\n b", "a b"), ("", "class 3"), ("犬", "class 3"), ("$x$", "$x$")]
)
def test_names_that_cannot_be_written_are_numbers(name, shown):
    assert image_tables.printable(name, "class 3") == shown


# Charts


@pytest.mark.parametrize("counts", [[5, 3], [1, 0], [10**7] + [0] * 511, list(range(128))])
def test_codebook_usage_of_any_counts_fits(counts, tmp_path):
    charts.plot_codebook_usage(counts, tmp_path / "usage.png")
    pixels_of(tmp_path / "usage.png")


@pytest.mark.parametrize("epochs", [1, 2, 30, 400])
def test_training_curves_of_any_length_are_visible(epochs, tmp_path):
    charts.plot_training_curves(history_of(epochs), tmp_path / "curves.png")
    pixels = pixels_of(tmp_path / "curves.png").astype(int)
    for color in ((0, 114, 178), (0, 158, 115), (213, 94, 0)):
        # The legend, farther right, has each colour too.
        assert (pixels[:, :740, :3] == color).all(-1).any()


def test_training_curves_leave_out_what_a_run_has_not(tmp_path):
    history = history_of(3, prior=False)
    for epoch in history["vqvae"]:
        epoch["eval_reconstruction_mse"] = None
    charts.plot_training_curves(history, tmp_path / "two.png")
    charts.plot_training_curves(history_of(3), tmp_path / "three.png")
    assert len(pixels_of(tmp_path / "two.png")) * 3 == len(pixels_of(tmp_path / "three.png")) * 2


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(
    "sizes, dimensions, images",
    [([2], [1], (1,)), ([2, 3, 65536], [1, 2, 3, 4, 5, 6, 1024], (8, 64, 96, 3)), ([8, 16], [4], (2, 4, 256, 2))],
)
def test_the_figure_of_a_sweep_fits_on_its_page(sizes, dimensions, images, prior, tmp_path):
    draw_sweep(tmp_path / "sweep.png", sizes, dimensions, some_images(*images), prior)
    pixels_of(tmp_path / "sweep.png")


# The caller's matplotlib


def test_a_dark_theme_of_the_caller_changes_nothing(tmp_path):
    charts.plot_codebook_usage([3, 2, 1], tmp_path / "a.png")
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        charts.plot_codebook_usage([3, 2, 1], tmp_path / "b.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        draw(GOLDEN / f"{name}.png")
        small(GOLDEN / f"{name}.png").save(GOLDEN / f"{name}.png")
