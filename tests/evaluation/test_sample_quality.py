"""How good samples are: against numbers computed at once, on two processes, from the script."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import torch

from hf_vqvae import VQVAEImageProcessorPil
from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.splits import DecodedImages, load_split
from hf_vqvae.evaluation.classifier import ImageClassifier, SmallClassifier, SmallClassifierConfig, load_classifier
from hf_vqvae.evaluation.sample_quality import SampleQualityArguments, check_arguments, measure_samples
from hf_vqvae.metrics import FrechetDistance
from support.models import make_digit_model, make_images
from support.scripts import ROOT

SCRIPT = "scripts/evaluate.py"

UNCONDITIONAL = {
    "frechet_distance",
    "frechet_distance_floor",
    "frechet_distance_reconstructions",
    "sure_share",
    "class_perplexity",
    "classifier_accuracy",
}
CONDITIONAL = UNCONDITIONAL | {
    "frechet_distance_with_labels",
    "sure_share_with_labels",
    "class_perplexity_with_labels",
    "label_agreement",
}
NAMES = ["one", "two", "three"]


def make_classifier(num_classes=3):
    """Random weights, whose normalisation has seen images, so that it tells them apart."""
    torch.manual_seed(1)
    names = dict(enumerate(NAMES)) if num_classes == 3 else None
    config = SmallClassifierConfig(num_labels=num_classes, id2label=names, num_features=6)
    model = SmallClassifier(config).train()
    with torch.no_grad():
        model(make_images(64, seed=9).images / 255 - 0.5)
        model.classifier.weight.mul_(20)
    processor = VQVAEImageProcessorPil(do_resize=False)
    return ImageClassifier(model, processor, "a random classifier")


def labelled(count, seed):
    images = make_images(count, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return DecodedImages(images.images, torch.randint(0, 3, (count,), generator=generator))


@pytest.fixture(scope="module")
def model():
    return make_digit_model()


@pytest.fixture(scope="module")
def conditional_model():
    """A prior that draws code 5 under label 1 and code 9 under label 2, nearly always."""
    model = make_digit_model({"num_classes": 3, "id2label": dict(enumerate(NAMES))})
    return model


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


@pytest.fixture(scope="module")
def splits():
    return labelled(60, seed=1), labelled(45, seed=2)


def measure(model, splits, classifier, accelerator, batch_size=256, num_samples=20, **arguments):
    arguments = SampleQualityArguments(num_samples=num_samples, **arguments)
    return measure_samples(
        *(model, *splits, classifier, arguments, accelerator), label_names=NAMES, batch_size=batch_size
    )


def values(metrics):
    return {key: (record["value"], record.get("counts")) for key, record in metrics.items()}


def test_every_number_is_the_one_computed_over_all_images_at_once(model, splits, classifier, accelerator):
    metrics = measure(model, splits, classifier, accelerator, num_samples=20)
    train, test = splits
    references, probabilities = classifier.read(test.images)

    def distance(images):
        features, _ = classifier.read(images)
        return FrechetDistance(6).compute(predictions=features, references=references)["frechet_distance"]

    def rounded(images):
        return ((images + 0.5).clamp(0, 1) * 255).round().byte()

    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        samples = rounded(model.sample(20, generator=generator))
        chosen = torch.randperm(45, generator=torch.Generator().manual_seed(0))[:20]
        codes = model.vqvae.encode(test.images[chosen] / 255 - 0.5).codes
        reconstructions = rounded(model.vqvae.decode(codes))
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    draws = [distance(train.images[part]) for part in rows.split(20)]
    expected = {
        "frechet_distance": distance(samples),
        "frechet_distance_reconstructions": distance(reconstructions),
        "frechet_distance_floor": sum(draws) / 3,
    }
    assert len(set(draws)) == 3
    for key, value in expected.items():
        assert metrics[key]["value"] == pytest.approx(value, rel=1e-5), key
    read = classifier.read(samples)[1]
    counts = torch.bincount(read.argmax(1), minlength=3)
    assert metrics["class_perplexity"]["counts"] == counts.tolist()
    shares = counts[counts > 0] / 20
    perplexity = (-(shares * shares.log()).sum()).exp().item()
    assert metrics["class_perplexity"]["value"] == pytest.approx(perplexity, rel=1e-6)
    assert metrics["sure_share"]["value"] == (read.amax(1) >= 0.95).float().mean()
    accuracy = (probabilities.argmax(1) == test.labels).float().mean()
    assert metrics["classifier_accuracy"]["value"] == pytest.approx(accuracy.item())


def test_every_record_says_how_it_was_measured(model, splits, classifier, accelerator):
    metrics = measure(model, splits, classifier, accelerator, temperature=0.5)
    assert set(metrics) == UNCONDITIONAL
    for key, record in metrics.items():
        assert {"name", "value", "split", "count", "scale", "stage", "protocol"} <= set(record), key
        assert record["split"] == "test"
        assert record["count"] == (45 if key == "classifier_accuracy" else 20)
        assert "a random classifier" in record["protocol"]
    protocol = metrics["frechet_distance"]["protocol"]
    assert protocol == (
        "samples, temperature 0.5; against all 45 images of the split; 8-bit images; 6 features, "
        "the input of the last layer of a random classifier"
    )
    assert metrics["frechet_distance_floor"]["protocol"].startswith("mean of 3 draws (")
    assert metrics["class_perplexity"]["classes"] == NAMES
    assert sum(metrics["class_perplexity"]["counts"]) == 20
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_changes_nothing(model, splits, classifier, accelerator, batch_size):
    one = measure(model, splits, classifier, accelerator)
    other = measure(model, splits, classifier, accelerator, batch_size=batch_size)
    for key, record in one.items():
        assert other[key]["value"] == pytest.approx(record["value"], rel=1e-4), key


def test_the_seed_and_the_controls_change_the_samples_only(model, splits, classifier, accelerator):
    one = measure(model, splits, classifier, accelerator)
    cold = measure(model, splits, classifier, accelerator, temperature=0.0)
    assert cold["frechet_distance"]["value"] != one["frechet_distance"]["value"]
    assert max(cold["class_perplexity"]["counts"]) == 20  # all alike
    same = UNCONDITIONAL - {"frechet_distance", "sure_share", "class_perplexity"}
    assert all(cold[key] == one[key] for key in same)
    again = measure(model, splits, classifier, accelerator)
    assert again == one
    other = measure(model, splits, classifier, accelerator, seed=1)
    assert other["frechet_distance"]["value"] != one["frechet_distance"]["value"]


def test_more_samples_than_images_are_measured_with_their_counts(model, splits, classifier, accelerator):
    metrics = measure(model, splits, classifier, accelerator, num_samples=150)
    assert metrics["frechet_distance"]["count"] == 150  # in two parts
    assert metrics["frechet_distance_floor"]["count"] == 60
    assert metrics["frechet_distance_reconstructions"]["count"] == 45
    assert metrics["frechet_distance_floor"]["protocol"].startswith("as many real training images")


def test_a_vqvae_alone_has_no_samples(model, splits, classifier, accelerator):
    metrics = measure(model.vqvae, splits, classifier, accelerator)
    assert set(metrics) == {*("frechet_distance_floor", "frechet_distance_reconstructions", "classifier_accuracy")}


def test_a_classifier_of_other_classes_has_no_accuracy(model, splits, accelerator):
    metrics = measure(model, splits, make_classifier(num_classes=5), accelerator)
    assert set(metrics) == UNCONDITIONAL - {"classifier_accuracy"}
    assert len(metrics["class_perplexity"]["counts"]) == 5


def test_images_without_labels_are_measured_by_a_classifier_that_is_given(model, splits, classifier, accelerator):
    bare = [DecodedImages(split.images) for split in splits]
    without = measure(model, bare, classifier, accelerator)
    assert set(without) == UNCONDITIONAL - {"classifier_accuracy"}
    with_labels = measure(model, splits, classifier, accelerator)
    assert all(without[key] == with_labels[key] for key in without)


# With labels


def test_a_conditional_model_is_measured_with_and_without_labels(conditional_model, splits, classifier, accelerator):
    metrics = measure(conditional_model, splits, classifier, accelerator, guidance_scale=1.5)
    assert set(metrics) == CONDITIONAL
    assert "guidance_scale 1.5" in metrics["frechet_distance_with_labels"]["protocol"]
    assert "guidance_scale" not in metrics["frechet_distance"]["protocol"]
    assert "labels drawn by their frequencies" in metrics["frechet_distance"]["protocol"]
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:20]
    labels = splits[0].labels[rows]
    images = conditional_model.sample(
        20, class_labels=labels, guidance_scale=1.5, generator=torch.Generator().manual_seed(0)
    )
    read = classifier.read(((images + 0.5).clamp(0, 1) * 255).round().byte())[1].argmax(1)
    agreement = (read == labels).float().mean().item()
    assert metrics["label_agreement"]["value"] == pytest.approx(agreement)
    counts = torch.bincount(read, minlength=3).tolist()
    assert metrics["class_perplexity_with_labels"]["counts"] == counts


def test_labels_the_prior_does_not_have_are_replaced_by_all_of_its_own(
    conditional_model, splits, classifier, accelerator
):
    train, test = splits
    foreign = DecodedImages(train.images, train.labels + 7)
    metrics = measure(conditional_model, (foreign, test), classifier, accelerator)
    bare = measure(conditional_model, (DecodedImages(train.images), test), classifier, accelerator)
    assert metrics["label_agreement"]["value"] == bare["label_agreement"]["value"]


# Bad input


@pytest.mark.parametrize(
    "name, value, rule",
    [
        ("num_samples", 1, "0 or above 1"),
        ("guidance_scale", -1.0, "at least 0 and at most 1000000"),
    ],
)
def test_wrong_arguments_are_named(name, value, rule):
    with pytest.raises(ValueError, match=f"--{name} must be {rule}, got {value}"):
        SampleQualityArguments(**{name: value})


def test_guidance_needs_a_conditional_model(model):
    with pytest.raises(ValueError, match=r"--guidance_scale 2 needs a class-conditional prior"):
        check_arguments(model, SampleQualityArguments(guidance_scale=2.0))


# The script


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save_pretrained(folder)
    return folder


def test_the_script_trains_a_classifier_once_and_writes_the_numbers(
    model, model_folder, accelerator, tmp_path, run_main, capsys
):
    kept, output = tmp_path / "kept", tmp_path / "metrics.json"
    flags = ("--dataset_name", "digits", "--max_eval_samples", 30, "--max_train_samples", 120)
    flags += ("--num_samples", 10, "--classifier_dir", kept, "--output_file", output)
    run_main(SCRIPT, model_folder, *flags)
    first = capsys.readouterr()
    assert "Fréchet distance (floor)" in first.out
    (folder,) = kept.iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    measured = json.loads(output.read_text())
    assert set(measured) > UNCONDITIONAL
    run_main(SCRIPT, model_folder, *flags)
    assert capsys.readouterr().out == first.out
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    data = DataArguments(dataset_name="digits", max_train_samples=120, max_eval_samples=30)
    train, info = load_split(data, model.vqvae.config, "train")
    test, _ = load_split(data, model.vqvae.config, "eval")
    classifier = load_classifier(str(folder))
    expected = measure_samples(
        *(model, train, test, classifier, SampleQualityArguments(num_samples=10), accelerator),
        label_names=info["label_names"],
    )
    for key, record in expected.items():
        assert measured[key]["value"] == pytest.approx(record["value"], rel=1e-5), key


def test_the_script_takes_a_classifier_that_is_named(model_folder, classifier, tmp_path, run_main):
    make_classifier(num_classes=10).model.save_pretrained(tmp_path / "reader")
    output = tmp_path / "metrics.json"
    run_main(
        SCRIPT,
        *(model_folder, "--dataset_name", "digits", "--max_eval_samples", 20),
        *("--max_train_samples", 20, "--num_samples", 5, "--output_file", output),
        *("--classifier", tmp_path / "reader"),
    )
    measured = json.loads(output.read_text())
    assert "6 features, the input of the last layer of classifier reader" in (measured["frechet_distance"]["protocol"])
    assert str(tmp_path) not in output.read_text()


def write_images_without_labels(folder):
    folder.mkdir()
    features = datasets.Features(image=datasets.Image())
    for split, seed in (("train", 0), ("test", 1)):
        pixels = make_images(6, seed=seed).images[:, 0].numpy()
        rows = datasets.Dataset.from_dict({"image": list(pixels)}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


def test_the_script_says_what_it_leaves_out_without_labels(model_folder, tmp_path, run_main, capsys):
    data = write_images_without_labels(tmp_path / "data")
    output = tmp_path / "metrics.json"
    flags = ("--dataset_name", data, "--output_file", output, "--num_samples", 4)
    run_main(SCRIPT, model_folder, *flags)
    printed = capsys.readouterr()
    assert (
        "The Fréchet distance is left out: the training images have no labels" in printed.err
        and "--classifier" in printed.err
    )
    assert set(json.loads(output.read_text())).isdisjoint(CONDITIONAL)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--classifier", "no/such/classifier"], "cannot load the classifier 'no/such/classifier'"),
        (["--train_split", "nosuch"], "--num_samples 0 leaves out the Fréchet distance"),
        (["--guidance_scale", "2"], "--guidance_scale 2 needs a class-conditional prior"),
    ],
)
def test_the_script_names_what_is_wrong_without_a_traceback(model_folder, refusal, change, message):
    flags = ["--dataset_name", "digits", "--max_eval_samples", "5", "--max_train_samples", "5"]
    assert message in refusal(SCRIPT, model_folder, *flags, *change)


def test_wrong_values_are_found_before_a_model_is_looked_for(refusal):
    line = refusal(SCRIPT, "no/such/model", "--top_p", "2")
    assert "--top_p must be above 0 and at most 1, got 2.0" in line


def test_the_script_on_two_processes_writes_the_numbers_of_one(model_folder, tmp_path, scripts):
    """The one is started as a user does: the metrics find the library `evaluate` from a script of that very name."""
    outputs = [tmp_path / "one.json", tmp_path / "new" / "two.json"]
    flags = ["--dataset_name", "digits", "--max_eval_samples", 20, "--max_train_samples", 50]
    flags += ["--num_samples", 130, "--classifier_dir", tmp_path / "kept"]  # drawn in two parts
    flags += ["--batch_size", 8, "--output_file"]
    ended = scripts.run_together(SCRIPT, model_folder, *flags, outputs[1])
    assert not any(done.returncode for done in ended), ended[0].stderr
    printed = "".join(done.stdout for done in ended)
    assert printed.count("on test of digits, 20 images, number of processes: 2") == 1
    assert printed.count("Reconstruction MSE") == 1
    assert [path.name for path in outputs[1].parent.iterdir()] == ["two.json"]
    command = [sys.executable, ROOT / SCRIPT, model_folder, *flags, outputs[0]]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads(output.read_text()) for output in outputs)
    assert set(one) == set(two) > UNCONDITIONAL
    for key, record in one.items():
        assert two[key]["value"] == record["value"], key


# The end of a training run

TINY = ["--num_train_epochs", "1", "--prior_num_train_epochs", "1", "--train_batch_size", "16"]
TINY += ["--hidden_sizes", "4", "8", "--num_embeddings", "8", "--hidden_size", "8"]
TINY += ["--num_gated_layers", "1", "--num_eval_samples", "12"]


def test_a_run_measures_its_samples_and_shows_them_on_the_card(scripts, tmp_path):
    flags = [*TINY, "--dataset_name", "digits", "--max_train_samples", "64"]
    flags += ["--max_eval_samples", "32", "--output_dir", tmp_path / "run"]
    scripts.succeed("scripts/train.py", *flags)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) > CONDITIONAL
    assert metrics["frechet_distance_with_labels"]["count"] == 12
    card = (tmp_path / "run" / "README.md").read_text()
    for key in CONDITIONAL:
        assert f"| {metrics[key]['name']}" in card
    assert "Classes that the classifier reads in 12 samples with labels: `0` " in card


def test_a_run_on_a_stream_says_that_it_leaves_the_samples_out(scripts, tmp_path):
    data = write_images_without_labels(tmp_path / "data")
    flags = [*TINY, "--train_batch_size", "4", "--dataset_name", data, "--streaming", "true"]
    flags += ["--max_train_samples", "6"]
    done = scripts.succeed("scripts/train.py", *flags, "--output_dir", tmp_path / "run")
    assert "The Fréchet distance is left out: no training images are in memory" in done.stdout
