"""The VQ-VAE and its prior together: what is frozen, what loads into what, sampling."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from hf_vqvae import (
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from support.models import seeded, state

VQVAE = {
    "image_size": (8, 16),
    "num_channels": 3,
    "hidden_sizes": (4, 6),
    "num_embeddings": 7,
    "dead_code_threshold": 0.5,
}


def make_model(prior=None, **vqvae):
    torch.manual_seed(0)
    config = VQVAEForImageGenerationConfig(
        vqvae_config={**VQVAE, **vqvae}, prior_config={"hidden_size": 8, **(prior or {})}
    )
    return VQVAEForImageGeneration(config)


GATED = {"architecture": "gated", "num_gated_layers": 2, "num_classes": 3}
GATED |= {"id2label": {0: "cat", 1: "dog", 2: "eel"}}


@pytest.fixture(params=["plain", "gated"])
def model(request):
    """A model that uses several codes, whose labels matter."""
    model = make_model(GATED if request.param == "gated" else None)
    model.vqvae.train()(make_pixels(32))  # a codebook from latents
    for name, parameter in model.prior.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4 if "class_embedding" in name else 0.3)
    return model.eval()


def make_pixels(batch=4):
    return torch.rand(batch, 3, 8, 16) - 0.5


def test_the_likelihood_of_an_image_is_that_of_its_codes(model):
    pixels = make_pixels()
    codes = model.vqvae.encode(pixels).codes
    expected = model.prior.log_likelihood(codes)
    for output in (model.log_likelihood(pixels), model.log_likelihood(codes=codes)):
        assert output.nats.shape == (4, 2, 4) and output.bits.shape == (4,)
        assert torch.equal(output.nats, expected.nats) and torch.equal(output.bits, expected.bits)
    if model.config.prior_config.num_classes:
        given = model.log_likelihood(pixels, class_labels="dog")
        assert torch.equal(given.nats, model.prior.log_likelihood(codes, 1).nats)
    for arguments in ({}, {"pixel_values": pixels, "codes": codes}):
        with pytest.raises(ValueError, match="needs `pixel_values` or `codes`, and not both"):
            model.log_likelihood(**arguments)


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
    output = model(pixels, return_loss=False)
    assert output.loss is None and output[0].shape == (4, 7, 2, 4)


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
        bound = (6 / (parameter[0].numel() + parameter[:, 0].numel())) ** 0.5 if parameter.dim() > 1 else 0
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


def test_labels_by_name_number_and_tensor_survive_saving(tmp_path):
    model = make_model(GATED).eval()
    for parameter in model.prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    loaded = VQVAEForImageGeneration.from_pretrained(tmp_path)
    assert loaded.config.prior_config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    assert loaded.config.prior_config.label2id == {"cat": 0, "dog": 1, "eel": 2}
    prior = PixelCNNModel.from_pretrained(tmp_path)
    assert prior.config.id2label == loaded.config.prior_config.id2label
    expected = model.sample(class_labels=[2, 0], generator=seeded(), return_dict=True)
    for labels in (["eel", "cat"], torch.tensor([2, 0]), ["eel", 0]):
        output = loaded.sample(class_labels=labels, generator=seeded(), return_dict=True)
        assert torch.equal(output.codes, expected.codes)
        assert torch.equal(output.images, expected.images)
    assert torch.equal(prior.sample(class_labels=["eel", "cat"], generator=seeded()), output.codes)
    pixels, labels = make_pixels(), torch.tensor([0, 1, 2, -1])
    output = loaded(pixels, class_labels=labels, return_loss=True)
    direct = loaded.prior(output.codes, class_labels=labels, return_loss=True)
    assert torch.equal(output.loss, direct.loss) and output.loss != loaded(pixels, return_loss=True).loss


def test_the_kinds_of_output_hold_the_same_images(model):
    seeds = [4, 0, 9]
    images = model.sample(seeds=seeds)
    assert images.shape == (3, 3, 8, 16) and images.dtype == torch.float32
    output = model.sample(seeds=seeds, return_dict=True)
    assert torch.equal(output.images, images)
    assert torch.equal(output.codes, model.prior.sample(seeds=seeds))
    with torch.no_grad():
        assert torch.equal(model.vqvae.decode(output.codes), images)
    processor = VQVAEImageProcessorPil()
    arrays = model.sample(seeds=seeds, output_type="np", return_dict=True, batch_size=2)
    assert isinstance(arrays.images, np.ndarray) and arrays.images.shape == (3, 8, 16, 3)
    assert arrays.images.min() >= 0 and arrays.images.max() <= 1
    np.testing.assert_allclose(arrays.images, processor.postprocess(images, output_type="np"), atol=1e-5)
    assert torch.equal(arrays.codes, output.codes)
    pictures = model.sample(seeds=seeds, output_type="pil")
    assert len(pictures) == 3 and all(isinstance(picture, Image.Image) for picture in pictures)
    for picture, other in zip(pictures, processor.postprocess(images), strict=True):
        assert picture.size == (16, 8) and picture.tobytes() == other.tobytes()


@pytest.mark.parametrize("defaults", [{"dtype": torch.float64}, {"device": "meta"}])
def test_a_seed_draws_the_same_whatever_the_global_defaults_are(model, defaults):
    classes = model.prior.config.num_classes
    pixels, labels = make_pixels(6), None if classes is None else torch.tensor([0, 1, 2] * 2)
    known, named = known_pixels((0, 0, 4, 16)), {} if classes is None else {"class_labels": "dog"}

    def draw():
        drawn = [
            model.sample(5, seeds=range(5), top_p=0.9),
            model.sample(5, generator=seeded(), guidance_scale=2.0 if named else 1.0, **named),
            model.sample(5, pixel_values=pixels[0], pixel_mask=known, seeds=range(5)),
            model.vqvae.encode(pixels).codes,
            model.log_likelihood(pixels).nats,
        ]
        torch.manual_seed(0)
        trained = copy.deepcopy(model).train()
        trained.vqvae.quantizer.initialized.zero_()
        trained.vqvae.train()(pixels)  # k-means and replaced codes
        loss = trained(pixels, class_labels=labels, return_loss=True).loss  # dropout
        return [*drawn, trained.vqvae.quantizer.codebook, loss]

    expected = draw()
    torch.set_default_dtype(defaults.get("dtype", torch.float32))
    torch.set_default_device(defaults.get("device"))
    try:
        drawn = draw()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one, other)


def test_every_control_reaches_the_prior(model):
    controls = [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.4}]
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0] = True
    controls.append({"codes": torch.full((2, 4), 5), "mask": mask})
    if model.prior.config.num_classes:
        controls += [{"class_labels": 1}, {"class_labels": "dog", "guidance_scale": 3.0}]
    free = model.prior.sample(20, generator=seeded())
    for control in controls:
        expected = model.prior.sample(20, generator=seeded(), **control)
        output = model.sample(20, generator=seeded(), return_dict=True, **control)
        assert torch.equal(output.codes, expected), control
        assert not torch.equal(expected, free), control


# Completion of images


def test_an_image_that_is_known_as_a_whole_is_reconstructed(model):
    pixels = make_pixels(4)
    known = torch.ones(8, 16, dtype=torch.bool)
    output = model.sample(pixel_values=pixels, pixel_mask=known, return_dict=True)
    codes = model.vqvae.encode(pixels).codes
    assert codes.unique().numel() > 1
    assert torch.equal(output.codes, codes)
    with torch.no_grad():
        assert torch.equal(output.images, model.vqvae.decode(codes))


def test_an_image_of_which_nothing_is_known_is_drawn_freely(model):
    free = model.sample(3, generator=seeded())
    for pixels in (make_pixels(3), make_pixels(1), torch.full((3, 8, 16), float("nan"))):
        for mask in (torch.zeros(8, 16), torch.zeros(1, 8, 16), torch.zeros(3, 8, 16)):
            drawn = model.sample(3, pixel_values=pixels, pixel_mask=mask.bool(), generator=seeded())
            assert torch.equal(drawn, free)


def known_pixels(*boxes):
    """(8, 16) bool: True in each box of (top, left, bottom, right)."""
    mask = torch.zeros(8, 16, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def test_cells_that_are_known_as_a_whole_are_kept_and_the_rest_is_drawn(model):
    pixels = make_pixels(1)
    # Cells are 4x4: of the right box, a row is missing, so that its lower cells are to be drawn.
    mask = known_pixels((0, 0, 8, 8), (0, 8, 7, 16))
    cells = torch.tensor([[True] * 4, [True, True, False, False]])
    output = model.sample(50, pixel_values=pixels, pixel_mask=mask, generator=seeded(), return_dict=True)
    kept = output.codes[:, cells]
    assert (kept == kept[:1]).all()
    assert all(len(one.unique()) > 1 for one in output.codes[:, ~cells].T)
    # No unknown pixel is in the field of view of the first cell.
    assert (output.codes[:, 0, 0] == model.vqvae.encode(pixels).codes[0, 0, 0]).all()
    expected = model.prior.sample(50, codes=output.codes[0], mask=cells, generator=seeded())
    assert torch.equal(output.codes, expected)
    one_missing = known_pixels((0, 0, 8, 16))
    one_missing[5, 9] = False
    output = model.sample(50, pixel_values=pixels, pixel_mask=one_missing, return_dict=True)
    varies = (output.codes != output.codes[:1]).any(dim=0)
    assert varies.nonzero().tolist() == [[1, 2]]


def test_unknown_pixels_have_no_influence(model):
    pixels = make_pixels(3)
    mask = torch.stack([known_pixels((0, 0, 4, 16)), known_pixels((2, 3, 8, 13)), known_pixels((0, 0, 8, 9))])
    expected = model.sample(pixel_values=pixels, pixel_mask=mask, generator=seeded())
    for value in (0.0, 0.5, -100.0, float("inf"), float("nan")):
        other = pixels.masked_fill(~mask[:, None], value)
        drawn = model.sample(pixel_values=other, pixel_mask=mask, generator=seeded())
        assert torch.equal(drawn, expected) and drawn.isfinite().all()
    changed = pixels.clone()
    changed[:, :, :4, :] *= -1
    drawn = model.sample(pixel_values=changed, pixel_mask=mask, generator=seeded())
    assert not torch.equal(drawn[0], expected[0])


def test_every_shape_of_image_and_mask(model):
    pixels, mask = make_pixels(1), known_pixels((0, 0, 4, 16))
    expected = model.sample(3, pixel_values=pixels, pixel_mask=mask, generator=seeded())
    for image in (pixels[0], pixels, pixels.expand(3, -1, -1, -1)):
        for known in (mask, mask[None], mask.expand(3, -1, -1)):
            drawn = model.sample(3, pixel_values=image, pixel_mask=known, generator=seeded())
            assert torch.equal(drawn, expected)
    drawn = model.sample(3, pixel_values=pixels.numpy(), pixel_mask=mask.numpy(), generator=seeded())
    assert torch.equal(drawn, expected)
    for dtype in (torch.float64, torch.bfloat16):
        drawn = model.sample(3, pixel_values=pixels.to(dtype), pixel_mask=mask)
        assert drawn.dtype == torch.float32 and drawn.isfinite().all()


def test_each_image_is_completed_from_its_own_known_part(model):
    pixels = make_pixels(4)
    mask = torch.stack(
        [known_pixels((0, 0, 4, 16)), known_pixels(), known_pixels((0, 0, 8, 16)), known_pixels((3, 3, 5, 5))]
    )
    together = model.sample(pixel_values=pixels, pixel_mask=mask, seeds=range(4), batch_size=3, return_dict=True)
    for i in range(4):
        alone = model.sample(pixel_values=pixels[i], pixel_mask=mask[i], seeds=[i], return_dict=True)
        assert torch.equal(alone.codes[0], together.codes[i])


PIXELS, KNOWN = torch.zeros(3, 8, 16), torch.ones(8, 16).bool()


def completion(pixel_values=PIXELS, pixel_mask=KNOWN, **arguments):
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, **arguments}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_images": 0}, ValueError, "`num_images` must be an integer of at least 1, got 0"),
        ({"num_images": 3, "seeds": [0, 1]}, ValueError, "`seeds` must have .* each of the 3 of `num_images`, got 2"),
        ({"output_type": "jpg"}, ValueError, '`output_type` must be "pt", "np" or "pil", got .jpg'),
        ({"pixel_values": PIXELS}, ValueError, "`pixel_values` and `pixel_mask` go together"),
        (completion(codes=torch.zeros(2, 4).long()), ValueError, "`codes`, `mask` and .* exclude each other"),
        (completion(PIXELS.to(torch.uint8)), TypeError, "`pixel_values` must be .*floating-point.*got torch.uint8"),
        (completion(PIXELS / 0), ValueError, "`pixel_values` must be finite where `pixel_mask` is True"),
        (completion(PIXELS.mT), ValueError, r"`pixel_values` .* shape \(3, 8, 16\).*got \(1, 3, 16, 8\)"),
        (completion(pixel_mask=KNOWN.float()), TypeError, "`pixel_mask` must be .*bool.*got torch.float32"),
        (completion(pixel_mask=KNOWN[:2, :4]), ValueError, r"`pixel_mask` .* shape \(8, 16\).*got \(1, 2, 4\)"),
        (
            completion(PIXELS.expand(3, -1, -1, -1), num_images=2),
            ValueError,
            "`pixel_values` must have one entry for each of the 2 of `num_images`, got 3",
        ),
    ],
)
def test_sample_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        make_model().eval().sample(**arguments)
