"""The VQ-VAE and its prior together: what is frozen, what loads into what, sampling."""

import json
import logging

import pytest
import torch
from transformers import AutoModel

from hf_vqvae import (
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEModel,
)

VQVAE = {
    "image_size": (8, 16),
    "num_channels": 3,
    "hidden_sizes": (4, 6),
    "num_embeddings": 7,
    "dead_code_threshold": 0.5,
}


def make_model(**vqvae):
    torch.manual_seed(0)
    config = VQVAEForImageGenerationConfig(
        vqvae_config={**VQVAE, **vqvae}, prior_config={"hidden_size": 8}
    )
    return VQVAEForImageGeneration(config)


def make_pixels(batch=4):
    return torch.rand(batch, 3, 8, 16) - 0.5


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("reload", [False, True])
def test_training_the_prior_leaves_the_vq_vae_as_it_is(update, reload, tmp_path):
    model = make_model(codebook_update=update)
    if reload:
        model.save_pretrained(tmp_path)
        model = VQVAEForImageGeneration.from_pretrained(tmp_path)
    assert model.train() is model
    assert model.prior.training and not any(m.training for m in model.vqvae.modules())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"prior.{name}" for name, _ in model.prior.named_parameters()}
    before = state(model)
    # Weight decay would move a frozen weight that the optimizer was given with a gradient.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    pixels = make_pixels()
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(pixels, return_loss=True).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in state(model).items():
        if name.startswith("vqvae."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.prior.conv_out.weight, before["prior.conv_out.weight"])
    assert not model.eval().prior.training


def test_its_output_is_the_prior_s_on_the_vq_vae_s_codes():
    model = make_model().eval()
    pixels = make_pixels()
    output = model(pixels, return_loss=True)
    codes = model.vqvae.encode(pixels).codes
    prior = model.prior(codes, return_loss=True)
    assert torch.equal(output.codes, codes) and output.codes.shape == (4, 2, 4)
    assert torch.equal(output.logits, prior.logits) and torch.equal(output.loss, prior.loss)
    assert model(pixels).loss is None and model(pixels)[0].shape == (4, 7, 2, 4)


def test_sampling_decodes_what_the_prior_draws():
    model = make_model().eval()
    images = model.sample(3, generator=torch.Generator().manual_seed(1))
    codes = model.prior.sample(3, generator=torch.Generator().manual_seed(1))
    assert images.shape == (3, 3, 8, 16) and not images.requires_grad
    assert torch.equal(images, model.vqvae.decode(codes))
    greedy = model.sample(2, temperature=0)
    assert torch.equal(greedy[0], greedy[1])
    with pytest.raises(ValueError, match="`num_images` must be an integer of at least 1, got 0"):
        model.sample(0)


@pytest.fixture
def load_report(caplog):
    """Loads with `load(folder)` and gives the model and what transformers had to say."""

    def load(model_class, folder, **kwargs):
        caplog.clear()
        logger = logging.getLogger("transformers")
        logger.addHandler(caplog.handler)
        try:
            model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
        finally:
            logger.removeHandler(caplog.handler)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        return model, info, "\n".join(record.getMessage() for record in warnings)

    return load


def test_stage_2_takes_the_vq_vae_of_stage_1_and_starts_a_new_prior(load_report, tmp_path):
    stage_1 = VQVAEModel(VQVAEConfig(**VQVAE)).train()
    stage_1(make_pixels())
    stage_1.save_pretrained(tmp_path)
    model, info, warnings = load_report(VQVAEForImageGeneration, tmp_path)
    for name, value in stage_1.state_dict().items():
        assert torch.equal(model.vqvae.state_dict()[name], value), name
    assert model.config.vqvae_config.to_diff_dict() == stage_1.config.to_diff_dict() | {
        key: value
        for key, value in model.config.vqvae_config.to_diff_dict().items()
        if key in ("architectures", "transformers_version")
    }
    assert set(info["missing_keys"]) == {f"prior.{name}" for name in model.prior.state_dict()}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert "prior.conv_in.weight" in warnings and "vqvae." not in warnings
    for parameter in model.prior.parameters():
        bound = (
            (6 / (parameter[0].numel() + parameter[:, 0].numel())) ** 0.5
            if parameter.dim() > 1
            else 0
        )
        assert parameter.isfinite().all() and parameter.abs().max() <= bound + 1e-6
    assert not any(p.requires_grad for p in model.vqvae.parameters())
    model.train()(make_pixels(), return_loss=True).loss.backward()


def test_the_prior_of_stage_2_can_be_set_on_loading(tmp_path):
    VQVAEModel(VQVAEConfig(**VQVAE)).save_pretrained(tmp_path)
    model = VQVAEForImageGeneration.from_pretrained(tmp_path, prior_config={"hidden_size": 24})
    assert model.prior.conv_in.weight.shape == (24, 7, 7, 7)
    assert model.config.prior_config.grid_size == (2, 4)


def test_a_full_model_loads_cleanly_whole_and_in_parts(load_report, tmp_path):
    model = make_model()
    model.vqvae.train()(make_pixels())
    model.eval().save_pretrained(tmp_path)
    for model_class, part in (
        (VQVAEForImageGeneration, model),
        (AutoModel, model),
        (VQVAEModel, model.vqvae),
        (PixelCNNModel, model.prior),
    ):
        loaded, info, warnings = load_report(model_class, tmp_path)
        assert type(loaded) is type(part) and not loaded.training
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert not info["unexpected_keys"], model_class
        assert "prior." not in warnings and "vqvae." not in warnings, warnings
        expected = part.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, expected[name]), name
    autoencoder = VQVAEModel.from_pretrained(tmp_path)
    trainable = {name for name, p in autoencoder.named_parameters() if not p.requires_grad}
    assert trainable == {"quantizer.embedding.weight"}  # moves by its averages
    autoencoder.train()(make_pixels(), return_loss=True).loss.backward()


def test_an_autoencoder_taken_out_of_a_full_model_saves_as_its_own(tmp_path):
    make_model().save_pretrained(tmp_path / "full")
    VQVAEModel.from_pretrained(tmp_path / "full").save_pretrained(tmp_path / "part")
    saved = json.loads((tmp_path / "part" / "config.json").read_text())
    assert saved["model_type"] == "vqvae" and saved["architectures"] == ["VQVAEModel"]
    assert type(AutoModel.from_pretrained(tmp_path / "part")) is VQVAEModel


def test_weights_of_another_shape_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        VQVAEForImageGeneration.from_pretrained(tmp_path, prior_config={"hidden_size": 16})


def test_a_truncated_file_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)incomplete|header|metadata|invalid"):
        VQVAEForImageGeneration.from_pretrained(tmp_path)
