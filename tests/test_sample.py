"""scripts/sample.py: images out of a trained model."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae import (
    PixelCNNConfig,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEModel,
)

SAMPLE = "scripts/sample.py"


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """A model's folder; a test may ask for other channels than one."""
    torch.manual_seed(0)
    vqvae = VQVAEConfig(
        image_size=8,
        num_channels=getattr(request, "param", 1),
        hidden_sizes=(4, 8),
        num_embeddings=8,
    )
    prior = PixelCNNConfig(num_embeddings=8, grid_size=(2, 2), hidden_size=8, kernel_size=3)
    config = VQVAEForImageGenerationConfig(vqvae_config=vqvae, prior_config=prior)
    folder = tmp_path_factory.mktemp("model")
    VQVAEForImageGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", [1, 3], ids=["grey", "colour"], indirect=True)
def test_a_grid_of_images_is_drawn_and_the_same_seed_draws_it_again(scripts, model, tmp_path):
    pictures = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / "new" / f"{number}.png"
        flags = ["--num_images", "4", "--seed", seed, "--output_file", path]
        done = scripts.run(SAMPLE, model, *flags)
        assert done.returncode == 0, done.stderr
        assert str(path) in done.stdout
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].shape[:2] == (22, 22)  # 2 x 2 images of 8 x 8 and 2 pixels around each
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_folder_gets_the_images_of_the_model_one_by_one(scripts, model, tmp_path):
    flags = ["--num_images", "70", "--temperature", "0.5", "--output_file", tmp_path / "images"]
    done = scripts.run(SAMPLE, model, *flags)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "images").iterdir())
    assert [files[0].name, files[-1].name, len(files)] == ["00.png", "69.png", 70]
    loaded = VQVAEForImageGeneration.from_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    pixels = loaded.sample(64, temperature=0.5, generator=generator)[5]
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
        (["--temperature", "-1"], "--temperature must be 0 or more, got -1"),
        (["--temperature", "nan"], "--temperature must be 0 or more, got nan"),
        (["--output_file", "/proc/no/samples.png"], "/proc/no"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(scripts, model, flags, message, tmp_path):
    done = scripts.run(SAMPLE, model, "--output_file", tmp_path / "a.png", *flags)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_is_refused_and_not_guessed(scripts, model):
    done = scripts.run(SAMPLE, model, "--num_image", "5")
    assert done.returncode == 2
    assert "no such flag: --num_image 5" in done.stderr


def test_a_model_that_cannot_draw_says_how_to_make_one_that_can(scripts, tmp_path):
    VQVAEModel(VQVAEConfig(hidden_sizes=(4, 8))).save_pretrained(tmp_path / "vqvae")
    done = scripts.run(SAMPLE, tmp_path / "vqvae", "--output_file", tmp_path / "a.png")
    assert done.returncode == 1
    assert "without a prior" in done.stderr and "--vqvae_name_or_path" in done.stderr
    done = scripts.run(SAMPLE, tmp_path / "nothing")
    assert done.returncode == 1
    assert "Error: cannot load the model" in done.stderr and "Traceback" not in done.stderr
