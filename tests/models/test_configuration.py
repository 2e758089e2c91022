"""Configurations: defaults, checks, round trips, overrides."""

import json
import logging
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_vqvae import PixelCNNConfig, VQVAEConfig, VQVAEForImageGenerationConfig
from hf_vqvae.models.configuration_utils import own_fields

CONFIGS = [VQVAEConfig, PixelCNNConfig, VQVAEForImageGenerationConfig]


def test_the_default_is_the_page_s_network():
    config = VQVAEConfig()
    assert (config.image_size, config.num_channels, config.hidden_sizes) == (28, 1, (32, 64))
    assert (config.embedding_dim, config.num_embeddings, config.commitment_cost) == (16, 128, 0.25)
    assert (config.downsampling_factor, config.grid_size) == (4, (7, 7))
    prior = PixelCNNConfig()
    assert (prior.num_embeddings, prior.grid_size, prior.hidden_size) == (128, (7, 7), 128)
    assert (prior.kernel_size, prior.num_residual_blocks, prior.num_pixelcnn_layers) == (7, 2, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 30}, r"multiple of 4 \(2 \*\* 2 levels.*got 30"),
        ({"image_size": (28, 28, 1)}, r"one number or \(height, width\), got \(28, 28, 1\)"),
        ({"hidden_sizes": ()}, "`hidden_sizes` must have at least one level, got none"),
        ({"hidden_sizes": (32, 0)}, r"`hidden_sizes` must be at least 1, got \(32, 0\)"),
        ({"embedding_dim": 10**12}, "`embedding_dim` must be at most 65536, got 1000000000000"),
        ({"num_embeddings": 1}, "`num_embeddings` must be at least 2, got 1"),
        ({"commitment_cost": float("nan")}, "`commitment_cost` must be at least 0.*got nan"),
        ({"ema_decay": 1.0}, "`ema_decay` must be below 1, got 1.0"),
        ({"dead_code_threshold": float("inf")}, "`dead_code_threshold` must be below inf, got inf"),
        ({"data_variance": 0.0}, "`data_variance` must be above 0, got 0.0"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_value_and_the_rule(wrong, message):
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 7}, r"`hidden_size` must be even \(residual blocks halve it\), got 7"),
        ({"kernel_size": 4}, r"`kernel_size` must be odd .* got 4"),
        ({"kernel_size": 1}, "`kernel_size` must be at least 3, got 1"),
        ({"grid_size": (7,)}, r"`grid_size` must be \(rows, columns\), got \(7,\)"),
        ({"architecture": "gatd"}, "'architecture' expected one of .*'plain', 'gated'.*, got gatd"),
        ({"gated_kernel_size": 4}, r"`gated_kernel_size` must be odd .* got 4"),
        ({"dropout": 1.0}, "`dropout` must be below 1, got 1.0"),
        ({"label_dropout": 1.1}, "`label_dropout` must be at most 1, got 1.1"),
        ({"num_classes": 2, "class_frequencies": [0.5]}, r"`class_frequencies` .* 2 classes.* sum to 1, got 1 with"),
        ({"num_classes": 2, "class_frequencies": [0.5, 0.4]}, r"`class_frequencies` .* the sum 0.9: \[0.5, 0.4\]"),
        ({"num_classes": 2, "class_frequencies": [1.5, -0.5]}, "`class_frequencies` must have a number of at least 0"),
        ({"num_classes": 2, "class_frequencies": [math.nan, 1.0]}, "`class_frequencies` .* with the sum nan"),
        ({"num_classes": 1, "class_frequencies": [math.inf]}, "`class_frequencies` .* with the sum inf"),
        ({"class_frequencies": [1.0]}, "`class_frequencies` .* each of the 0 classes"),
        ({"class_frequencies": []}, "`class_frequencies` .* each of the 0 classes"),
        ({"num_classes": 10**6}, "`num_classes` must be at most 65536, got 1000000"),
        (
            {"num_classes": 3, "id2label": {0: "cat", 1: "dog"}},
            r"`id2label` must name the classes 0 to 2 \(`num_classes` is 3\), got names for \[0, 1\]",
        ),
        (
            {"num_classes": 3, "id2label": {0: "cat", 1: "dog", 2: "cat"}},
            "`id2label` must give each class its own name, got 'cat' twice",
        ),
    ],
)
def test_a_wrong_setting_of_the_prior_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNConfig(**wrong)


def test_a_setting_changed_to_a_wrong_value_cannot_be_saved(tmp_path):
    config = VQVAEConfig()
    config.num_embeddings = 1
    with pytest.raises(StrictDataclassError, match="`num_embeddings` must be at least 2, got 1"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config_class", "wrong", "nearest"),
    [
        (VQVAEConfig, "num_embedings", "num_embeddings"),
        (PixelCNNConfig, "hiden_size", "hidden_size"),
        (VQVAEForImageGenerationConfig, "prior_cfg", "prior_config"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_nearest_name(config_class, wrong, nearest):
    with pytest.raises(ValueError, match=rf"no setting `{wrong}` \(did you mean `{nearest}`\?\)"):
        config_class(**{wrong: 5})


def test_a_misspelt_setting_of_a_part_is_refused_too():
    with pytest.raises(ValueError, match="VQVAEConfig has no setting `num_embedings`"):
        VQVAEForImageGenerationConfig(vqvae_config={"num_embedings": 5})


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_config_survives_saving_and_loading(config_class, tmp_path):
    config = config_class(dtype="bfloat16", num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path)) is config_class
    assert loaded.dtype == torch.bfloat16 and len(loaded.id2label) == 3


def test_settings_of_a_later_version_are_ignored_with_a_warning(tmp_path, caplog):
    VQVAEForImageGenerationConfig(vqvae_config={"num_embeddings": 32}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["novelty"] = 1
    saved["vqvae_config"]["rotation_trick"] = True
    saved["prior_config"]["dilation"] = 2
    (tmp_path / "config.json").write_text(json.dumps(saved))
    for config_class in (VQVAEForImageGenerationConfig, AutoConfig):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            config = config_class.from_pretrained(tmp_path)
        for key in ("novelty", "rotation_trick", "dilation"):
            assert f"does not know and ignores: {key}. It was probably written by a later" in (caplog.text)
        assert config.vqvae_config.num_embeddings == 32
        assert not hasattr(config, "novelty") and not hasattr(config.prior_config, "dilation")
    # A part finds itself in the whole's file.
    assert VQVAEConfig.from_pretrained(tmp_path).num_embeddings == 32
    assert PixelCNNConfig.from_pretrained(tmp_path).num_embeddings == 32


def test_a_setting_can_be_overridden_on_loading_and_is_checked(tmp_path):
    VQVAEConfig(num_channels=3).save_pretrained(tmp_path)
    loaded = VQVAEConfig.from_pretrained(tmp_path, image_size=[32, 64])
    assert (loaded.image_size, loaded.num_channels) == ((32, 64), 3)
    with pytest.raises(ValueError, match=r"multiple of 4 .*got 30"):
        VQVAEConfig.from_pretrained(tmp_path, image_size=30)


def test_an_override_of_a_part_keeps_what_it_leaves_out(tmp_path):
    whole = VQVAEForImageGenerationConfig(prior_config={"hidden_size": 16, "kernel_size": 5})
    whole.save_pretrained(tmp_path)
    loaded = VQVAEForImageGenerationConfig.from_pretrained(tmp_path, prior_config={"hidden_size": 32})
    assert (loaded.prior_config.hidden_size, loaded.prior_config.kernel_size) == (32, 5)
    with pytest.raises(ValueError, match=r"no setting `hiden_size` \(did you mean `hidden_size`"):
        VQVAEForImageGenerationConfig.from_pretrained(tmp_path, prior_config={"hiden_size": 32})


def test_the_prior_takes_codes_and_grid_from_the_vq_vae():
    vqvae = VQVAEConfig(image_size=(16, 32), num_embeddings=10)
    for whole in (
        VQVAEForImageGenerationConfig(vqvae_config=vqvae),
        VQVAEForImageGenerationConfig(vqvae_config=vqvae.to_dict()),
        VQVAEForImageGenerationConfig(vqvae_config=vqvae, prior_config={"hidden_size": 16}),
    ):
        assert whole.prior_config.num_embeddings == 10 and whole.prior_config.grid_size == (4, 8)
        assert (whole.image_size, whole.num_channels) == ((16, 32), 1)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"num_embeddings": 64}, r"`prior_config.num_embeddings` \(64\) must equal .* \(128\)"),
        ({"grid_size": (7, 8)}, r"`prior_config.grid_size` \(\(7, 8\)\) must equal .* \(\(7, 7\)\)"),
    ],
)
def test_a_prior_of_other_codes_is_refused(prior, message):
    with pytest.raises(ValueError, match=message):
        VQVAEForImageGenerationConfig(prior_config=PixelCNNConfig(**prior))


def test_the_architecture_says_what_is_left_open(tmp_path):
    plain, gated = PixelCNNConfig(), PixelCNNConfig(architecture="gated")
    assert (plain.architecture, plain.hidden_size, plain.dropout) == ("plain", 128, 0.0)
    assert (gated.hidden_size, gated.num_classes) == (64, None) and 0 < gated.dropout < 1
    assert PixelCNNConfig(architecture="gated", hidden_size=33, dropout=0).hidden_size == 33
    gated.save_pretrained(tmp_path)
    loaded = PixelCNNConfig.from_pretrained(tmp_path)
    assert (loaded.architecture, loaded.hidden_size, loaded.dropout) == ("gated", 64, gated.dropout)


def test_names_of_classes_travel(tmp_path):
    assert PixelCNNConfig(num_classes=2).id2label == {0: "0", 1: "1"}
    assert PixelCNNConfig(num_classes=2).label2id == {"0": 0, "1": 1}
    names = {0: "Katze", 1: "3", 2: "été, né"}
    for id2label in (names, {str(number): name for number, name in names.items()}):
        prior = PixelCNNConfig(num_classes=3, id2label=id2label)
        assert prior.id2label == names and prior.label2id["Katze"] == 0
    prior.save_pretrained(tmp_path / "part")
    VQVAEForImageGenerationConfig(
        prior_config={"num_classes": 3, "id2label": names, "architecture": "gated"}
    ).save_pretrained(tmp_path / "whole")
    whole = VQVAEForImageGenerationConfig.from_pretrained(tmp_path / "whole")
    for loaded in (
        PixelCNNConfig.from_pretrained(tmp_path / "part"),
        PixelCNNConfig.from_pretrained(tmp_path / "whole"),
        AutoConfig.from_pretrained(tmp_path / "part"),
        whole.prior_config,
    ):
        assert loaded.num_classes == 3 and loaded.id2label == names
        assert loaded.label2id == {name: number for number, name in names.items()}


def test_a_config_without_classes_loads_and_stays_without(tmp_path):
    PixelCNNConfig().save_pretrained(tmp_path)
    assert PixelCNNConfig.from_pretrained(tmp_path).num_classes is None
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("architecture", "num_classes", "dropout", "label_dropout"):  # of before
        saved.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = PixelCNNConfig.from_pretrained(tmp_path)
    assert (loaded.architecture, loaded.num_classes, loaded.dropout) == ("plain", None, 0.0)


@pytest.mark.parametrize("config_class", [VQVAEConfig, PixelCNNConfig])
def test_every_setting_explains_itself(config_class):
    for field in own_fields(config_class):
        assert f"\n    {field.name}, defaults to " in config_class.__doc__
        assert field.metadata["help"] in config_class.__doc__
