"""Small models with random weights, and images for them."""

import torch

from hf_vqvae import VQVAEForImageGeneration, VQVAEForImageGenerationConfig
from hf_vqvae.data.decoding import DecodedImages


def make_model(prior: dict | None = None, **vqvae) -> VQVAEForImageGeneration:
    """A model of 8 x 8 images of one channel and 16 codes; `prior` and `vqvae` are settings of its configs."""
    torch.manual_seed(0)
    small = {"image_size": 8, "hidden_sizes": (4, 8), "embedding_dim": 4, "num_embeddings": 16}
    config = VQVAEForImageGenerationConfig(
        vqvae_config={**small, **vqvae}, prior_config={"hidden_size": 8, **(prior or {})}
    )
    return VQVAEForImageGeneration(config).eval()


def make_digit_model(prior: dict | None = None, image_size: int = 28) -> VQVAEForImageGeneration:
    """A model of 28 x 28 images whose codebook vectors lie apart, so that it uses many of its 16 codes."""
    model = make_model({"hidden_size": 16, **(prior or {})}, image_size=image_size)
    with torch.no_grad():
        model.vqvae.quantizer.embedding.weight.normal_(0, 0.3)
    return model


def make_images(count: int, image_size: int = 28, seed: int = 0) -> DecodedImages:
    """Images of noise, without labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, image_size, image_size)
    return DecodedImages(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of random numbers on the CPU."""
    return torch.Generator().manual_seed(seed)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights and buffers of a module, by name."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    """All weights and buffers of a module are equal to `expected`."""
    assert module.state_dict().keys() == expected.keys()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name
