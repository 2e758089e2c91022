"""Classifiers that samples are measured by: the small one, how it is kept, and those of transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vqvae import VQVAEImageProcessorPil
from hf_vqvae.data.decoding import DecodedImages
from hf_vqvae.evaluation import small_classifier
from hf_vqvae.evaluation.classifier import ImageClassifier, SmallClassifier, SmallClassifierConfig, load_classifier
from hf_vqvae.evaluation.small_classifier import NoLabelsError, kept_classifier, train_classifier

CPU = torch.device("cpu")
NAMES = ["left", "right"]


def make_images(count=64, shape=(1, 12, 12), seed=0):
    """Noise with a bright left or right half, which is the label."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 156, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    half = shape[-1] // 2
    pixels[labels == 0, ..., :half] += 100
    pixels[labels == 1, ..., half:] += 100
    return DecodedImages(pixels, labels)


def make_vit(folder, *, num_labels=5, num_channels=3, image_size=16):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = ViTConfig(
        **sizes,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=8,
        num_channels=num_channels,
        num_labels=num_labels,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


# The small one


def test_it_learns_what_can_be_learned():
    images, others = make_images(200), make_images(100, seed=1)
    model = train_classifier(images.images, images.labels, NAMES, CPU)
    classifier = ImageClassifier(model, VQVAEImageProcessorPil(do_resize=False), "small")
    _, probabilities = classifier.read(others.images)
    assert (probabilities.argmax(1) == others.labels).float().mean() > 0.95
    assert model.config.id2label == {0: "left", 1: "right"}
    assert not model.training


def test_the_same_images_train_the_same_classifier_and_no_other_randomness_is_touched(monkeypatch):
    monkeypatch.setattr(small_classifier, "NUM_STEPS", 3)
    images = make_images()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [train_classifier(images.images, images.labels, NAMES, CPU) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    first, same = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 8, 8), (2, 5, 9), (4, 17, 33)])
def test_images_of_any_size_are_trained_on_and_read(shape, monkeypatch):
    monkeypatch.setattr(small_classifier, "NUM_STEPS", 2)
    images = make_images(5, shape)
    model = train_classifier(images.images, images.labels, NAMES, CPU)
    features, probabilities = ImageClassifier(model, VQVAEImageProcessorPil(do_resize=False), "small").read(
        images.images
    )
    assert features.shape == (5, 96) and features.isfinite().all()
    assert probabilities.shape == (5, 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


def test_it_loads_through_the_auto_class_with_the_same_numbers(tmp_path):
    torch.manual_seed(0)
    model = SmallClassifier(SmallClassifierConfig(num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, SmallClassifier)
    pixel_values = torch.rand(2, 1, 28, 28) - 0.5
    labels = torch.tensor([0, 2])
    output = model(pixel_values, labels=labels)
    assert torch.equal(loaded(pixel_values).logits, output.logits)
    assert output.loss.item() == pytest.approx(-output.logits.log_softmax(1)[[0, 1], labels].mean().item(), rel=1e-5)
    assert not any(path.suffix in (".bin", ".pt") for path in tmp_path.iterdir())


def test_whitening_keeps_the_logits_and_makes_the_covariance_of_the_features_the_identity():
    torch.manual_seed(0)
    model = SmallClassifier(SmallClassifierConfig(num_labels=3, num_features=6)).eval()
    images = make_images(500, (1, 28, 28)).images
    with torch.no_grad():
        model.features.weight[0] *= 5  # features of different scale, two of them alike
        model.features.weight[1] = model.features.weight[0] + model.features.weight[1]
    classifier = ImageClassifier(model, VQVAEImageProcessorPil(do_resize=False), "small")
    before = classifier.read(images)[1]
    model.whiten_(batch / 255 - 0.5 for batch in images.split(120))
    features, after = classifier.read(images)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features.mean(0), torch.zeros(6), rtol=0, atol=1e-2)
    torch.testing.assert_close(torch.cov(features.T), torch.eye(6), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("count", [1, 3])
def test_whitening_on_fewer_images_than_features_stays_finite(count):
    torch.manual_seed(0)
    model = SmallClassifier(SmallClassifierConfig(num_labels=3)).eval()
    images = torch.rand(8, 1, 28, 28) - 0.5
    before = model(images).logits
    model.whiten_([images[:count]])
    torch.testing.assert_close(model(images).logits, before, rtol=1e-2, atol=1e-2)


# Kept


def test_it_is_trained_once_and_then_read(tmp_path, accelerator):
    images = make_images()
    first = kept_classifier(images, NAMES, accelerator, tmp_path)
    (kept,) = tmp_path.iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len({path.stat().st_mode for path in kept.iterdir()}) == 1  # weights are as readable as the config
    assert {"config.json", "model.safetensors"} <= set(written)
    again = kept_classifier(images, NAMES, accelerator, tmp_path)
    assert written == {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    for one, other in zip(first.read(images.images), again.read(images.images), strict=True):
        assert torch.equal(one, other)


def test_other_pixels_labels_or_names_are_other_classifiers(tmp_path, accelerator):
    images, others = make_images(8), make_images(8, seed=1)
    variants = [
        (images, NAMES),
        (DecodedImages(others.images, images.labels), NAMES),
        (DecodedImages(images.images, 1 - images.labels), NAMES),
        (images, ["links", "rechts"]),
        (images, [*NAMES, "above"]),
        (images, None),
    ]
    for number, (one, names) in enumerate(variants, 1):
        classifier = kept_classifier(one, names, accelerator, tmp_path)
        assert classifier.num_classes == (3 if names and len(names) == 3 else 2)
        assert len(list(tmp_path.iterdir())) == number


def test_a_cache_that_cannot_be_written_is_named_and_done_without(tmp_path, accelerator, caplog):
    (tmp_path / "file").write_text("")
    images, folder = make_images(8), tmp_path / "file" / "kept"
    classifier = kept_classifier(images, NAMES, accelerator, folder)
    assert classifier.model.config.id2label == {0: "left", 1: "right"}
    (warning,) = caplog.messages
    assert "is not kept, so the next run trains it again" in warning
    assert str(folder) in warning and "--classifier_dir" in warning and "HF_HOME" in warning


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_kept_classifier_that_is_damaged_is_trained_anew(tmp_path, accelerator, name):
    images = make_images(8)
    kept_classifier(images, NAMES, accelerator, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = {path.name: path.read_bytes() for path in kept.iterdir()}
    (kept / name).write_bytes(whole[name][:100])
    assert kept_classifier(images, NAMES, accelerator, tmp_path).num_classes == 2
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == whole
    assert list(tmp_path.iterdir()) == [kept]


def test_hidden_labels_are_left_out(tmp_path, accelerator):
    images = make_images(40)
    images.labels[::2] = -1
    classifier = kept_classifier(images, None, accelerator, tmp_path)
    assert classifier.num_classes == 2


@pytest.mark.parametrize(
    "labels, found",
    [
        (None, "no labels"),
        (torch.full((8,), -1), "no labels"),
        (torch.ones(8, dtype=torch.int64), "labels of fewer than two classes"),
    ],
)
def test_without_labels_of_two_classes_there_is_nothing_to_train(tmp_path, accelerator, labels, found):
    images = DecodedImages(make_images(8).images, labels)
    with pytest.raises(NoLabelsError, match=f"have {found}.*--classifier.*--label_column"):
        kept_classifier(images, None, accelerator, tmp_path)
    assert not list(tmp_path.iterdir())


# Those of transformers


def test_the_features_are_what_the_logits_are_linear_in(tmp_path):
    classifier = load_classifier(str(make_vit(tmp_path)))
    features, probabilities = classifier.read(make_images(6, (3, 16, 16)).images)
    head = classifier.model.classifier
    assert features.shape == (6, 8)
    torch.testing.assert_close(head(features).softmax(1), probabilities)


def test_a_classifiers_own_processor_is_used_and_grey_images_become_three_channels(tmp_path):
    make_vit(tmp_path)
    images = make_images(4, (1, 16, 16)).images
    bare = load_classifier(str(tmp_path)).read(images)[0]
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.2] * 3, image_std=[2.0] * 3)
    processor.save_pretrained(tmp_path)
    classifier = load_classifier(str(tmp_path))
    features, _ = classifier.read(images)
    pixel_values = (images / 255 - 0.2).expand(-1, 3, -1, -1) / 2
    hidden = classifier.model.vit(pixel_values).last_hidden_state[:, 0]
    torch.testing.assert_close(features, hidden)
    assert not torch.allclose(features, bare)


def test_images_of_another_size_are_resized_to_the_classifiers(tmp_path):
    classifier = load_classifier(str(make_vit(tmp_path)))
    greys = torch.tensor([0, 80, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    sizes = [(16, 16), (40, 24)]
    native, other = (classifier.read(greys.expand(3, 3, *size)) for size in sizes)
    torch.testing.assert_close(native, other)
    assert not torch.allclose(native[0][0], native[0][1])


def test_a_network_without_an_image_size_reads_images_as_they_are(tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=4)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    features, probabilities = load_classifier(str(tmp_path)).read(make_images(3).images)
    assert features.shape == (3, 8) and probabilities.shape == (3, 4)


def test_channels_that_do_not_fit_are_an_error(tmp_path):
    classifier = load_classifier(str(make_vit(tmp_path / "vit", num_channels=1)))
    with pytest.raises(ValueError, match=r"\(classifier vit\) takes images of 1 channels, got 3"):
        classifier.read(make_images(2, (3, 16, 16)).images)


def test_classes_are_matched_by_name_then_by_number(tmp_path):
    classifier = load_classifier(str(make_vit(tmp_path, num_labels=3)))
    classifier.model.config.id2label = {0: "cat", 1: "dog", 2: "bird"}
    assert classifier.classes_of(["bird", "cat"], 2).tolist() == [2, 0]
    assert classifier.classes_of(["a", "b", "c"], 3).tolist() == [0, 1, 2]
    assert classifier.classes_of(None, 3).tolist() == [0, 1, 2]
    assert classifier.classes_of(["bird", "cow"], 2) is None
    assert classifier.classes_of(None, 4) is None


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot load the classifier 'no/such/classifier'"):
        load_classifier("no/such/classifier")
    bare = ViTConfig.from_pretrained(make_vit(tmp_path / "vit"))
    ViTModel(bare).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"lack 2 tensors, for example 'classifier\.bias'"):
        load_classifier(str(tmp_path / "bare"))
    weights = tmp_path / "vit" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match="with safetensors weights"):
        load_classifier(str(tmp_path / "vit"))


# From anywhere


def edit(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_along_is_neither_run_nor_asked_about(tmp_path, monkeypatch, file):
    folder, mark = make_vit(tmp_path / "vit"), tmp_path / "mark"
    ViTImageProcessorPil().save_pretrained(folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    classes = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
    edit(folder / file, auto_map=dict.fromkeys(classes, "evil.Evil"))
    edit(folder / file, model_type="evil", image_processor_type="Evil")
    answers = []
    monkeypatch.setattr("builtins.input", lambda *args: answers.append(args) or "y")
    with pytest.raises(ValueError, match=r"cannot load the classifier .*custom code"):
        load_classifier(str(folder))
    assert not mark.exists() and not answers


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = load_file(make_vit(tmp_path) / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"'classifier\.bias' has 1 values that are not finite"):
        load_classifier(str(tmp_path))


def test_a_network_without_a_linear_head_is_refused(tmp_path):
    make_vit(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    model.classifier = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"last nn\.Linear .* must give its 5 classes.*8 values"):
        ImageClassifier(model, VQVAEImageProcessorPil(), "cut")
