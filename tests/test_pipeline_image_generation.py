"""`pipeline("unconditional-image-generation")`."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_vqvae import (
    ImageGenerationPipeline,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = VQVAEForImageGenerationConfig(
        vqvae_config={"image_size": (8, 16), "hidden_sizes": (4, 6), "num_embeddings": 7},
        prior_config={"hidden_size": 8},
    )
    VQVAEForImageGeneration(config).save_pretrained(folder)
    VQVAEImageProcessorPil(size={"height": 8, "width": 16}).save_pretrained(folder)
    return folder


def test_the_pipeline_draws_pil_images(folder):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    assert type(pipe) is ImageGenerationPipeline
    images = pipe(3, seed=0)
    assert all(isinstance(image, Image.Image) and image.size == (16, 8) for image in images)
    assert len(images) == 3 and len(pipe()) == 1


def test_its_images_are_those_of_sample(folder):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    first, second, other = pipe(2, seed=5), pipe(2, seed=5), pipe(2, seed=6)
    np.testing.assert_array_equal(np.stack(first), np.stack(second))
    assert not np.array_equal(np.stack(first), np.stack(other))
    model = VQVAEForImageGeneration.from_pretrained(folder)
    direct = model.sample(2, temperature=0.5, generator=torch.Generator().manual_seed(5))
    expected = VQVAEImageProcessorPil.from_pretrained(folder).postprocess(direct)
    np.testing.assert_array_equal(np.stack(pipe(2, seed=5, temperature=0.5)), np.stack(expected))
    greedy = pipe(2, temperature=0)
    np.testing.assert_array_equal(greedy[0], greedy[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "`num_images` must be an integer of at least 1, got 0"),
        ({"temperature": -1}, "`temperature` must be at least 0 and finite, got -1"),
        ({"top_p": 0.9}, "no argument top_p; it has temperature and seed"),
    ],
)
def test_wrong_arguments_are_refused(folder, arguments, message):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)
