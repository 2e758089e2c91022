"""Nearest training images: exact distances, the figure and the script."""

import re

import pytest
import torch
from PIL import Image

from hf_vqvae.evaluation import nearest_neighbors as neighbours_module
from hf_vqvae.evaluation.nearest_neighbors import nearest_images
from support.models import make_model

NEIGHBOURS = "scripts/neighbours.py"


def some_images(number, seed=0, size=(1, 5, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_the_nearest_are_those_of_all_differences(chunk, monkeypatch):
    monkeypatch.setattr(neighbours_module, "CHUNK", chunk)
    queries, images = some_images(7), some_images(50, seed=1)
    pairs = (queries[:, None].double() - images[None].double()).flatten(2).norm(dim=2) / 255
    expected, rows = pairs.sort(dim=1)
    distances, found = nearest_images(queries, images, 5)
    assert torch.equal(found, rows[:, :5])
    assert torch.allclose(distances.double(), expected[:, :5], atol=1e-5)


def test_a_copy_is_at_0_and_a_change_of_one_value_at_its_size():
    images = some_images(40, size=(3, 16, 16))
    changed = images.clone()
    changed[:, 1, 2, 3] ^= 1
    distances, rows = nearest_images(images, images)
    assert (distances == 0).all() and torch.equal(rows[:, 0], torch.arange(40))
    distances, rows = nearest_images(changed, images)
    assert torch.equal(rows[:, 0], torch.arange(40))
    assert torch.allclose(distances, torch.tensor(1 / 255), atol=1e-7)


def test_nearly_equal_images_come_in_the_right_order():
    # As matrix products in float32 see them, these are all at the same distance.
    images = torch.full((12, 1, 28, 28), 200, dtype=torch.uint8)
    for number in range(12):
        images[number, 0, 0, : 12 - number] = 201
    query = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    distances, rows = nearest_images(query, images, 4)
    assert rows[0].tolist() == [11, 10, 9, 8]
    assert torch.allclose(distances[0] * 255, torch.arange(1.0, 5).sqrt(), atol=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model({"num_classes": 10}, image_size=28).save_pretrained(folder)
    return folder


def test_the_script_draws_and_measures_samples(scripts, model, tmp_path):
    path = tmp_path / "new" / "neighbours.png"
    flags = ["--dataset_name", "digits", "--num_images", 4, "--num_measured", 20]
    done = scripts.succeed(NEIGHBOURS, model, *flags, "--output_file", path)
    assert "nearest of 1,497 images" in done.stdout
    rows = dict(re.findall(r"^(samples|test.*?) +(20 +[\d.]+ +[\d.]+)$", done.stdout, re.MULTILINE))
    assert list(rows) == ["samples", "test, reconstructed", "test (unseen)"]
    mean, least = map(float, rows["test (unseen)"].split()[1:])
    assert 0 < least <= mean < 15
    with Image.open(path) as image:
        assert image.width == 1280
    assert [one.name for one in path.parent.iterdir()] == ["neighbours.png"]


def test_the_training_images_themselves_are_found_to_be_copies(scripts, model, tmp_path):
    flags = ["--dataset_name", "digits", "--num_images", 1, "--num_measured", 10]
    flags += ["--eval_split", "train", "--class_labels", "3", "--max_train_samples", 300]
    done = scripts.succeed(NEIGHBOURS, model, *flags, "--output_file", tmp_path / "a.png")
    assert "nearest of 300 images" in done.stdout
    assert re.search(r"^train \(unseen\) +10 +[\d.]+ +0.00$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_images", "101"], "--num_images must be at most 100, got 101"),
        (["--num_measured", "-3"], "--num_measured must be at least 1, got -3"),
        (["--output_file", "a.jpg"], "--output_file must be a file that ends in .png, got a.jpg"),
        (["--output_file", "/proc/no/a.png"], "cannot write `--output_file` /proc/no/a.png: No such"),
        (["--class_labels", "eleven"], "no label 'eleven'"),
        (["--num_measure", "5"], "unknown argument --num_measure (did you mean --num_measured?)"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(refusal, model, flags, message):
    assert message in refusal(NEIGHBOURS, model, "--dataset_name", "digits", *flags)
