"""Which figures of samples a model gets, and which part of an image a completion keeps."""

import pytest
import torch
from PIL import Image

from hf_vqvae.data.decoding import DecodedImages
from hf_vqvae.data.masks import HALVES, half_mask
from hf_vqvae.model_card.run_figures import write_figures
from hf_vqvae.models import VQVAEConfig, VQVAEForImageGeneration, VQVAEForImageGenerationConfig


def tiny_model(image_size=8, **prior):
    torch.manual_seed(0)
    config = VQVAEForImageGenerationConfig(
        vqvae_config={"image_size": image_size, "hidden_sizes": (4, 8), "num_embeddings": 8},
        prior_config={"hidden_size": 8, "kernel_size": 3, **prior},
    )
    return VQVAEForImageGeneration(config).eval()


def some_images(number, labels=None, size=(8, 8)):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 1, *size), dtype=torch.uint8, generator=generator)
    return DecodedImages(pixels, labels and torch.tensor(labels))


OF_SAMPLES = {"samples", "completions", "likelihoods", "neighbours"}


@pytest.mark.parametrize(
    "prior, labels, train, expected",
    [
        ({}, None, 3, OF_SAMPLES),
        ({}, [0, 1, -1, 1], 0, OF_SAMPLES - {"neighbours"}),
        ({"architecture": "gated", "num_classes": 2}, None, 20, OF_SAMPLES),
        ({"num_classes": 2, "label_dropout": 0}, [-1] * 4, 20, OF_SAMPLES),
    ],
)
def test_a_model_gets_the_figures_that_it_can_have(prior, labels, train, expected, tmp_path):
    train_images = some_images(train) if train else None
    model, images = tiny_model(**prior), some_images(4, labels)
    generator = torch.Generator().manual_seed(0)
    drawn = write_figures(tmp_path, model, images, generator, train_images)
    names = {path.stem for path in drawn} - {"architecture", "reconstructions", "codes"}
    assert names == expected | {"test_images"}
    for path in (path for path in drawn if path.stem != "test_images"):  # a strip without a page
        with Image.open(path) as image:
            assert image.width == 1280


def test_a_single_row_of_codes_has_no_upper_half(tmp_path):
    drawn = write_figures(tmp_path, tiny_model(image_size=(4, 16)), some_images(2, size=(4, 16)), None, None)
    assert {path.stem for path in drawn} & OF_SAMPLES == {"samples", "likelihoods"}


def test_opposite_halves_are_disjoint_and_made_of_whole_cells():
    config = VQVAEConfig(image_size=(28, 20))  # 7 x 5 cells of 4 x 4 pixels
    upper, lower, left, right = (half_mask(half, config) for half in HALVES)
    assert upper.shape == (28, 20) and upper.dtype == torch.bool
    assert upper[:12].all() and not upper[12:].any() and torch.equal(lower, upper.flip(0))
    assert left[:, :8].all() and not left[:, 8:].any() and torch.equal(right, left.flip(1))
    with pytest.raises(ValueError, match="'upper' needs 2 rows of codes, and this model has 1"):
        half_mask("upper", VQVAEConfig(image_size=(4, 20)))
