"""What holds for every input, tried on many: configs, codes, masks, images."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_vqvae import PixelCNNConfig, VQVAEConfig, VQVAEForImageGenerationConfig, VQVAEImageProcessorPil, VQVAEModel
from hf_vqvae.models.configuration_utils import own_fields
from hf_vqvae.models.input_checks import check_codes

# The same examples everywhere; no time limit, for the machines of a test are shared.
bounded = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
counts = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def vqvae_settings(draw):
    levels = draw(st.lists(counts, min_size=1, max_size=3))
    factor = 2 ** len(levels)
    sides = [factor * draw(st.integers(1, 3)) for _ in range(2)]
    return {
        "image_size": draw(st.sampled_from([tuple(sides), sides[0]])),
        "num_channels": draw(st.integers(1, 5)),
        "hidden_sizes": tuple(levels),
        "num_residual_layers": draw(st.integers(0, 2)),
        "embedding_dim": draw(counts),
        "num_embeddings": draw(st.integers(2, 20)),
        "commitment_cost": draw(st.floats(0, 1e30)),
        "codebook_update": draw(st.sampled_from(["ema", "gradient"])),
        "ema_decay": draw(st.floats(0, 1, exclude_max=True)),
        "codebook_init": draw(st.sampled_from(["kmeans", "uniform"])),
        "dead_code_threshold": draw(st.floats(0, 1e30)),
        "data_variance": draw(st.floats(0, 1e30, exclude_min=True)),
    }


prior_settings = st.fixed_dictionaries(
    {
        "hidden_size": st.integers(1, 64).map(lambda half: 2 * half),
        "kernel_size": st.integers(1, 10).map(lambda reach: 2 * reach + 1),
        "num_residual_blocks": st.integers(0, 3),
        "num_pixelcnn_layers": st.integers(0, 3),
    }
)


@bounded
@given(vqvae_settings())
def test_every_config_of_a_vq_vae_comes_back_from_json(given_settings):
    assert given_settings.keys() == {field.name for field in own_fields(VQVAEConfig)}
    config = VQVAEConfig(**given_settings)
    for again in (
        VQVAEConfig.from_dict(json.loads(config.to_json_string())),
        VQVAEConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        VQVAEConfig(**config.to_dict()),
    ):
        assert again.to_dict() == config.to_dict()
        assert {name: getattr(again, name) for name in given_settings} == given_settings
    factor, (rows, columns) = config.downsampling_factor, config.grid_size
    size = given_settings["image_size"]
    pair = (size, size) if isinstance(size, int) else size
    assert (rows * factor, columns * factor) == pair


@bounded
@given(vqvae_settings(), prior_settings)
def test_every_config_of_both_parts_comes_back_from_json(vqvae, prior):
    config = VQVAEForImageGenerationConfig(vqvae_config=vqvae, prior_config=prior)
    again = VQVAEForImageGenerationConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    assert type(again.prior_config) is PixelCNNConfig and type(again.vqvae_config) is VQVAEConfig
    assert again.prior_config.grid_size == config.vqvae_config.grid_size


@bounded
@given(st.dictionaries(st.text(min_size=1).map(lambda key: f"x{key}"), st.integers(), max_size=3))
def test_settings_that_no_version_knows_are_ignored_when_saved_and_refused_when_written(unknown):
    assert VQVAEConfig.from_dict(dict(unknown)).to_dict() == VQVAEConfig().to_dict()
    if unknown:
        with pytest.raises(ValueError, match="has no setting"):
            VQVAEConfig(**unknown)


@settings(bounded, max_examples=15)
@given(vqvae_settings(), seeds, st.integers(0, 3))
def test_codes_are_of_the_grid_and_decode_to_images_for_every_network(given_settings, seed, batch):
    torch.manual_seed(seed)
    model = VQVAEModel(VQVAEConfig(**given_settings)).eval()
    size = given_settings["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.rand(batch, given_settings["num_channels"], height, width) - 0.5
    codes = model.encode(pixels).codes
    check_codes(codes, model.config.num_embeddings, model.config.grid_size)
    with torch.no_grad():
        images = model.decode(codes)
        whole = model(pixels)
    assert images.shape == pixels.shape and torch.equal(whole.codes, codes)
    torch.testing.assert_close(images, whole.reconstruction)
    # A code's own vector is nearest to that code: quantizing twice changes nothing.
    vectors = model.quantizer.decode(codes)
    again = model.quantizer.decode(model.quantizer.encode(vectors))
    torch.testing.assert_close(again, vectors)


@bounded
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 4]), seeds)
def test_the_image_processor_gives_every_8_bit_image_back(height, width, channels, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    processor = VQVAEImageProcessorPil(size={"height": height, "width": width})
    pixels = processor(image, input_data_format="channels_last", return_tensors="pt").pixel_values
    assert pixels.min() >= -0.5 and pixels.max() <= 0.5
    (back,) = processor.postprocess(pixels)
    np.testing.assert_array_equal(np.asarray(back).reshape(image.shape), image)
    # What a model adds, up to half of a level of 255, is rounded away.
    noise = (torch.rand(pixels.shape) - 0.5) * 0.99 / 255
    (back,) = processor.postprocess(pixels + noise)
    np.testing.assert_array_equal(np.asarray(back).reshape(image.shape), image)
