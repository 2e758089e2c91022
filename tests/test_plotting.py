"""Figures: every one has a size, ink, and margins, for every kind of model and image."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_vqvae import plotting, plotting_architecture, plotting_charts, plotting_page
from hf_vqvae.models import PixelCNNConfig, VQVAEConfig

RANDOM = np.random.default_rng(0)


def some_images(number=10, height=28, width=28, channels=1):
    return RANDOM.integers(0, 256, (number, height, width, channels), dtype=np.uint8)


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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hidden_sizes": [8]},
        {"image_size": [64, 96], "num_channels": 3, "hidden_sizes": [32, 64, 128, 256, 512]}
        | {"num_residual_layers": 12, "num_embeddings": 65536, "embedding_dim": 1024},
        {"num_embeddings": 2, "embedding_dim": 1, "image_size": [4, 256]},
    ],
)
@pytest.mark.parametrize(
    "prior", [None, {}, {"kernel_size": 3, "num_residual_blocks": 0, "num_pixelcnn_layers": 0}]
)
def test_architecture_fits_on_its_page(settings, prior, tmp_path):
    config = VQVAEConfig(**settings)
    if prior is not None:
        taken = {"num_embeddings": config.num_embeddings, "grid_size": config.grid_size}
        prior = PixelCNNConfig(**taken, **prior)
    plotting_architecture.plot_architecture(config, tmp_path / "a.png", prior)
    pixels_of(tmp_path / "a.png")


def test_architecture_of_two_configurations_differs(tmp_path):
    plotting_architecture.plot_architecture(VQVAEConfig(), tmp_path / "a.png")
    plotting_architecture.plot_architecture(VQVAEConfig(embedding_dim=17), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_architecture_names_the_shapes_of_the_real_layers():
    import torch

    from hf_vqvae.models import VQVAEModel

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
    encoder, decoder = zip(*plotting_architecture._autoencoder_rows(config), strict=True)
    for drawn, real in ((encoder[1:], shapes["encoder"]), (decoder[:0:-1], shapes["decoder"])):
        sizes = [f"{h} × {w} × {c}" for c, h, w in real]  # noqa: RUF001
        assert [lines[-1] for lines in drawn] == sizes


@pytest.mark.parametrize("number", [1, 3, 10])
@pytest.mark.parametrize(
    "height, width, channels", [(28, 28, 1), (8, 8, 3), (64, 128, 3), (300, 200, 4), (28, 28, 2)]
)
def test_pictures_of_any_size_and_number_fit(number, height, width, channels, tmp_path):
    images = some_images(number, height, width, channels)
    codes = RANDOM.integers(0, 512, (number, height // 4, width // 4))
    plotting.plot_reconstructions(images, images, tmp_path / "reconstructions.png")
    plotting.plot_codes(images, codes, images, 512, tmp_path / "codes.png")
    plotting.plot_samples(images, tmp_path / "samples.png")
    for name in ("reconstructions", "codes", "samples"):
        pixels_of(tmp_path / f"{name}.png")


def test_pixels_of_images_are_shown_sharp_and_true(tmp_path):
    images = some_images(8)
    plotting.plot_samples(images, tmp_path / "samples.png")
    pixels = pixels_of(tmp_path / "samples.png")[..., 0]
    height, width = plotting_page.shown_size(28, 28, plotting._pitch(8) - 8)
    left = plotting_page.MARGIN + round((plotting._pitch(8) - width) / 2)
    shown = pixels[plotting_page.MARGIN :, left:][:height, :width]
    scale = width // 28
    # The frame lies on the outermost dots.
    centers = shown[scale // 2 :: scale, scale // 2 :: scale]
    assert np.array_equal(centers, images[0, ..., 0])
    block = shown[scale : 2 * scale, scale : 2 * scale]
    assert (block == images[0, 1, 1, 0]).all()


@pytest.mark.parametrize("counts", [[5, 3], [1, 0], [10**7] + [0] * 511, list(range(128))])
def test_codebook_usage_of_any_counts_fits(counts, tmp_path):
    plotting_charts.plot_codebook_usage(counts, tmp_path / "usage.png")
    pixels_of(tmp_path / "usage.png")


def test_codebook_usage_without_any_code_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"at least one code above 0, got 3 zeros"):
        plotting_charts.plot_codebook_usage([0, 0, 0], tmp_path / "usage.png")


def history_of(epochs, prior=True):
    stage = [
        {"epoch": epoch, "reconstruction_mse": 0.02 / epoch, "eval_reconstruction_mse": 0.021}
        | {"perplexity": 20.0, "codes_used": 100, "loss": 2 / epoch, "eval_loss": 1.5}
        for epoch in range(1, epochs + 1)
    ]
    return {"vqvae": stage, "prior": stage if prior else []}


@pytest.mark.parametrize("epochs", [1, 2, 30, 400])
def test_training_curves_of_any_length_are_visible(epochs, tmp_path):
    plotting_charts.plot_training_curves(history_of(epochs), tmp_path / "curves.png")
    pixels = pixels_of(tmp_path / "curves.png").astype(int)
    for color in (plotting_page.BLUE, plotting_page.GREEN, plotting_page.VERMILION):
        red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
        same = (pixels[..., 0] == red) & (pixels[..., 1] == green) & (pixels[..., 2] == blue)
        # The legend, farther right, has each colour too.
        assert same[:, :740].any()


def test_training_curves_leave_out_what_a_run_has_not(tmp_path):
    history = history_of(3, prior=False)
    for epoch in history["vqvae"]:
        epoch["eval_reconstruction_mse"] = None
    plotting_charts.plot_training_curves(history, tmp_path / "two.png")
    plotting_charts.plot_training_curves(history_of(3), tmp_path / "three.png")
    assert len(pixels_of(tmp_path / "two.png")) * 3 == len(pixels_of(tmp_path / "three.png")) * 2


def test_training_curves_without_epochs_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no epoch of any stage, only \['prior', 'vqvae'\]"):
        plotting_charts.plot_training_curves({"vqvae": [], "prior": []}, tmp_path / "curves.png")


def test_image_grid_places_images_row_by_row_on_white():
    images = some_images(5, 4, 6, 3)
    grid = plotting.image_grid(images, columns=3, padding=1)
    assert grid.shape == (2 * 5 + 1, 3 * 7 + 1, 3) and grid.dtype == np.uint8
    assert np.array_equal(grid[1:5, 1:7], images[0])
    assert np.array_equal(grid[6:10, 8:14], images[4])
    assert (grid[6:10, 15:] == 255).all() and (grid[0] == 255).all()
    assert plotting.image_grid(some_images(16, 4, 4)).shape == (26, 26, 1)


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((2, 4, 4, 1)), r"got float64 \(2, 4, 4, 1\)"),
        (np.zeros((4, 4, 1), np.uint8), r"got uint8 \(4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), r"none of them 0"),
    ],
)
def test_images_of_another_kind_are_an_error(images, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        plotting.image_grid(images)
    with pytest.raises(ValueError, match=said):
        plotting.plot_samples(images, tmp_path / "samples.png")
    assert not list(tmp_path.iterdir())


def test_image_grid_needs_a_column():
    with pytest.raises(ValueError, match=r"`columns` must be at least 1, got 0"):
        plotting.image_grid(some_images(1), columns=0)


def test_colored_codes_are_as_large_as_their_images():
    codes = np.array([[[0, 1], [2, 2]]])
    colors = plotting.color_codes(codes, 3, cell=4)
    assert colors.shape == (1, 8, 8, 3) and colors.dtype == np.uint8
    assert (colors[0, 4:] == colors[0, 4, 0]).all()
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 3


def test_a_dark_theme_of_the_caller_changes_nothing(tmp_path):
    plotting_charts.plot_codebook_usage([3, 2, 1], tmp_path / "a.png")
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        plotting_charts.plot_codebook_usage([3, 2, 1], tmp_path / "b.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_plotting_leaves_pyplot_and_the_backend_alone(tmp_path):
    code = (
        "import sys, matplotlib; matplotlib.use('svg'); from hf_vqvae import plotting, plotting_charts; "
        f"plotting_charts.plot_codebook_usage([1, 2], {str(tmp_path / 'a.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules; "
        "assert matplotlib.get_backend() == 'svg'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
