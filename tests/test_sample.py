"""scripts/sample.py: images out of a trained model."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae import VQVAEConfig, VQVAEForImageGeneration, VQVAEImageProcessorPil, VQVAEModel
from support.models import make_model
from support.scripts import ROOT

SAMPLE = "scripts/sample.py"


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """A model's folder; a test may ask for other channels than one."""
    channels = getattr(request, "param", 1)
    model = make_model({"kernel_size": 3}, num_channels=channels, num_embeddings=8)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", [1, 3], ids=["grey", "colour"], indirect=True)
def test_a_grid_of_images_is_drawn_and_the_same_seed_draws_it_again(scripts, model, tmp_path):
    pictures = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / "new" / f"{number}.png"
        flags = ["--num_images", "4", "--seed", seed, "--output_file", path]
        done = scripts.succeed(SAMPLE, model, *flags)
        assert str(path) in done.stdout
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].shape[:2] == (22, 22)  # 2 x 2 images of 8 x 8 and 2 pixels around each
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_folder_gets_the_images_of_the_model_one_by_one(scripts, model, tmp_path):
    flags = ["--num_images", "70", "--temperature", "0.5", "--output_file", tmp_path / "images"]
    scripts.succeed(SAMPLE, model, *flags)
    files = sorted((tmp_path / "images").iterdir())
    assert [files[0].name, files[-1].name, len(files)] == ["00.png", "69.png", 70]
    loaded = VQVAEForImageGeneration.from_pretrained(model)
    pixels = loaded.sample(temperature=0.5, seeds=[5])[0]
    expected = ((pixels + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    there = np.asarray(Image.open(files[5])).reshape(expected.shape)
    assert np.abs(there.astype(int) - expected.numpy()).max() <= 1
    before = [path.stat().st_mtime_ns for path in files]
    done = scripts.run(SAMPLE, model, *flags)
    assert done.returncode == 1 and "exists: name a new folder" in done.stderr
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_images", "0"], "--num_images must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--temperature", "-1"], "--temperature must be at least 0 and finite, got -1"),
        (["--guidance_scale", "2"], "`guidance_scale` must be 1 for a prior without classes, got 2.0"),
        (["--class_labels", "1"], "`class_labels` were given to a prior without classes"),
        (["--keep", "upper"], "--image and --keep go together"),
        (["--image", "a.png"], "--image and --keep go together"),
        (["--image", "no.png", "--keep", "upper"], "cannot read the image no.png"),
        (["--image", "a.png", "--keep", "middle"], "--keep must be upper, lower, left, right or"),
        (["--image", "a.png", "--keep", "0", "0", "4"], "four whole numbers X0 Y0 X1 Y1, got '0 0 4'"),
        (["--image", "a.png", "--keep", "upper", "left"], "--keep must be upper, lower"),
        (["--output_file", "/proc/x.png"], "cannot write /proc/x.png: [Errno 2] No such file"),
        (["--output_file", "/proc/x"], "cannot write /proc/x/00.png: [Errno 2] No such file"),
        (["--output_file", "x.JPG"], "--output_file x.JPG: images are written as PNG, name"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(refusal, model, flags, message, tmp_path):
    assert message in refusal(SAMPLE, model, "--output_file", tmp_path / "a.png", *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A gated model whose names of classes are numbers of others, and matter."""
    names = {0: "1", 1: "cat", 2: "dog"}
    prior = {"architecture": "gated", "num_classes": 3, "id2label": names}
    model = make_model(prior, num_embeddings=8)
    for block in model.prior.blocks:  # as they begin, labels have no effect
        torch.nn.init.normal_(block.class_embedding.weight, std=3)
    folder = tmp_path_factory.mktemp("conditional")
    model.save_pretrained(folder)
    return folder


def cells_of(path, rows, columns):
    """The images (rows, columns, 8, 8) of a grid; a whole number of them fills it."""
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (10 * rows + 2, 10 * columns + 2)
    cells = pixels[2:, 2:].reshape(rows, 10, columns, 10)
    return cells.transpose(0, 2, 1, 3)[:, :, :8, :8]


def test_every_label_has_a_row_and_names_come_before_numbers(scripts, conditional, tmp_path):
    path = tmp_path / "a.png"
    flags = ["--guidance_scale", "2", "--top_k", "6", "--top_p", "0.95", "--seed", "4"]
    done = scripts.succeed(SAMPLE, conditional, *flags, "--class_labels", "1", "dog", "2", "--output_file", path)
    assert done.stdout == f"24 images of 1, dog, 2: {path}\n"
    rows = cells_of(path, 3, 8)
    model = VQVAEForImageGeneration.from_pretrained(conditional)
    controls = {"guidance_scale": 2.0, "top_k": 6, "top_p": 0.95, "output_type": "np"}
    for row, label in enumerate([0, 2, 2]):
        drawn = model.sample(8, class_labels=label, seeds=range(4, 12), **controls)
        assert np.array_equal(rows[row], np.rint(drawn[..., 0] * 255).astype(np.uint8))
    assert (rows[0] != rows[1]).any()


def test_without_labels_they_are_drawn_and_minus_one_is_none(scripts, conditional, tmp_path):
    model = VQVAEForImageGeneration.from_pretrained(conditional)
    for name, flags, label in (("a", [], None), ("b", ["--class_labels", "-1"], -1)):
        done = scripts.run(SAMPLE, conditional, "--num_images", "9", *flags, "--output_file", tmp_path / name)
        assert done.returncode == 0, done.stderr
        drawn = model.sample(9, class_labels=label, seeds=range(9), output_type="np")
        for file, image in zip(sorted((tmp_path / name).iterdir()), drawn, strict=True):
            assert np.array_equal(np.asarray(Image.open(file)), np.rint(image[..., 0] * 255).astype(np.uint8))


def test_what_was_drawn_is_said_of_one_label_and_of_a_completed_image(scripts, conditional, tmp_path):
    flags = ["--num_images", "3", "--output_file", tmp_path / "a.png", "--class_labels", "dog"]
    assert scripts.run(SAMPLE, conditional, *flags).stdout.startswith("3 images of dog: ")
    Image.new("L", (8, 8)).save(tmp_path / "in.png")
    flags += ["2", "--image", tmp_path / "in.png", "--keep", "upper"]
    said = scripts.run(SAMPLE, conditional, *flags).stdout
    assert said.startswith("6 images of dog, 2; before them the image and what is known")


def test_an_image_depends_neither_on_the_number_nor_on_the_batch(scripts, model, tmp_path):
    for name, flags in (("a", [9]), ("b", [4, "--batch_size", "3"])):
        scripts.succeed(SAMPLE, model, "--output_file", tmp_path / f"{name}.png", "--num_images", *flags)
    nine, four = cells_of(tmp_path / "a.png", 3, 3), cells_of(tmp_path / "b.png", 2, 2)
    assert np.array_equal(nine.reshape(9, 8, 8)[:4], four.reshape(4, 8, 8))


@pytest.mark.parametrize(
    "keep, kept",
    [
        (["upper"], np.s_[:4]),
        (["right"], np.s_[:, 4:]),
        (["0", "0", "5", "8"], np.s_[:, :5]),  # of 8 x 8 pixels that the model sees
    ],
)
def test_an_image_is_completed_beside_its_known_part(scripts, model, keep, kept, tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[4:12, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "in.png")
    path = tmp_path / "out.png"
    flags = ["--image", tmp_path / "in.png", "--keep", *keep, "--output_file", path]
    done = scripts.succeed(SAMPLE, model, *flags)
    assert "converted from RGB to L" in done.stderr
    cells = cells_of(path, 4, 4).reshape(16, 8, 8)
    image = torch.tensor(cells[0].astype(np.float32))[None, None] / 255 - 0.5
    assert cells[0, 4, 4] > 200 and cells[0, 0, 0] < 50
    known = np.zeros((8, 8), bool)
    known[kept] = True
    assert np.array_equal(cells[1][known], cells[0][known])
    assert (cells[1][~known] >= 150).all()
    loaded = VQVAEForImageGeneration.from_pretrained(model)
    drawn = loaded.sample(
        pixel_values=image, pixel_mask=torch.tensor(known), seeds=range(14), num_images=14, output_type="np"
    )
    assert np.array_equal(cells[2:], np.rint(drawn[..., 0] * 255).astype(np.uint8))


def test_a_box_outside_of_the_image_is_refused(refusal, model, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "in.png")
    flags = ["--image", tmp_path / "in.png", "--output_file", tmp_path / "out.png", "--keep", "0", "0", "9", "8"]
    assert "must be in the image: 0 <= X0 < X1 <= 8" in refusal(SAMPLE, model, *flags)
    assert not (tmp_path / "out.png").exists()


def test_a_box_is_in_pixels_of_what_a_model_that_crops_sees(scripts, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    VQVAEImageProcessorPil(size=(8, 8), num_channels=1, resize_mode="crop").save_pretrained(tmp_path / "model")
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:24] = 255  # the left half of the square in the middle
    Image.fromarray(pixels).save(tmp_path / "in.png")
    flags = ["--image", tmp_path / "in.png", "--keep", "0", "0", "4", "8", "--output_file", tmp_path / "out.png"]
    scripts.succeed(SAMPLE, tmp_path / "model", *flags)
    image, known = cells_of(tmp_path / "out.png", 4, 4).reshape(16, 8, 8)[:2]
    assert image[:, :3].min() > 200 and image[:, 5:].max() < 50
    assert np.array_equal(known[:, :4], image[:, :4]) and known[:, 4:].min() >= 150


def test_neither_the_backend_of_a_notebook_nor_an_encoding_stops_a_script(model, tmp_path):
    path = tmp_path / "Fréchet.png"
    done = subprocess.run(
        [sys.executable, ROOT / SAMPLE, model, "--num_images", "1", "--output_file", path],
        env=os.environ | {"MPLBACKEND": "module://not.installed", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Fr?chet.png\n") and path.exists()


def test_an_unknown_flag_is_refused_and_not_guessed(refusal, model):
    line = refusal(SAMPLE, model, "--num_image", "5")
    assert "unknown argument --num_image (did you mean --num_images?)" in line


def test_a_model_that_cannot_draw_says_how_to_make_one_that_can(refusal, tmp_path):
    VQVAEModel(VQVAEConfig(hidden_sizes=(4, 8))).save_pretrained(tmp_path / "vqvae")
    line = refusal(SAMPLE, tmp_path / "vqvae", "--output_file", tmp_path / "a.png")
    assert "without a prior" in line and "--vqvae_name_or_path" in line
    line = refusal(SAMPLE, tmp_path / "nothing")
    assert line.startswith("Error: cannot") and str(tmp_path / "nothing") in line


def test_a_model_that_is_nowhere_is_no_download_to_go_on_with(scripts):
    """Without the Hub: what is said first is that there is no such folder, and each sentence has one full stop."""
    done = scripts.run(SAMPLE, "outputs/mnis")
    assert done.returncode == 1
    assert "there is no folder outputs/mnis, and getting it from the Hub failed: no" in done.stderr
    assert "downloaded is kept" not in done.stderr and ".." not in done.stderr
