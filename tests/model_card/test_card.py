"""The card of a run: complete, true to the run's files, safe to print, and never lost."""

import ast
import html
import json
import math
import re
import shutil
import tempfile
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from hf_vqvae.arguments import TrainingArguments
from hf_vqvae.data.decoding import DecodedImages
from hf_vqvae.hub.card_signature import is_as_signed, sign_card
from hf_vqvae.model_card.card import build_card, write_card
from hf_vqvae.model_card.run_figures import write_figures
from hf_vqvae.models import (
    PixelCNNConfig,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from hf_vqvae.models.configuration_utils import own_fields
from hf_vqvae.publishing.staging import add_code

EXAMPLE = Path(__file__).parents[2] / "model_card" / "example"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "cards"
HOME = "/home/somebody"
VALUES = {"reconstruction_mse": 0.0031234, "psnr": 25.05, "ssim": 0.9512}
VALUES |= {"codebook_perplexity": 27.31, "codes_used": 15}
PRIOR_VALUES = {"nll": 1.0791, "bits_per_code": 1.5568, "bits_per_image": 6.227}
PRIOR_VALUES |= {"code_accuracy": 0.6512}
FIGURES = {"architecture", "reconstructions", "codes", "training_curves", "codebook_usage"}
HOSTILE = [
    "a|b|c",
    "<script>alert(1)</script>",
    "**bold** _it_ [x](http://evil.example) `tick`",
    "two\nlines\r\n---\n# title",
    "{{ 7 * 7 }} {% for %}",
    '"; import os; x = "',
    "```\nfence",
    "<!-- comment --> &lt; \\| \u202e",
    "--- | --- |",
]


SAMPLE_KEYS = {
    f"{key}{suffix}": value
    for suffix in ("", "_with_labels")
    for key, value in (("frechet_distance", 12.5), ("sure_share", 0.9), ("class_perplexity", 1.9))
}
SAMPLE_VALUES = SAMPLE_KEYS | {"label_agreement": 0.97, "classifier_accuracy": 0.995}
SAMPLE_VALUES |= {"frechet_distance_floor": 3.6, "frechet_distance_reconstructions": 2.6}


def tiny_model(prior=True, channels=1, classes=None, **prior_settings):
    torch.manual_seed(0)
    vqvae = VQVAEConfig(image_size=8, num_channels=channels, hidden_sizes=[4, 8], num_embeddings=16, embedding_dim=4)
    if not prior:
        return VQVAEModel(vqvae)
    if classes is not None:
        prior_settings |= {"num_classes": len(classes), "id2label": dict(enumerate(classes))}
    pixelcnn = PixelCNNConfig(
        num_embeddings=16, grid_size=(2, 2), hidden_size=8, num_residual_blocks=1, **prior_settings
    )
    return VQVAEForImageGeneration(VQVAEForImageGenerationConfig(vqvae_config=vqvae, prior_config=pixelcnn))


def some_images(number=30, labels=True, channels=1):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (number, channels, 8, 8), dtype=torch.uint8)
    return DecodedImages(images, torch.arange(number) % 7 if labels else None)


def write_json(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def metrics_of(values):
    return {
        key: {"name": key.replace("_", " ").capitalize(), "value": value, "split": "test"}
        | {"count": 10000, "scale": f"scale of {key}", "stage": "vqvae"}
        | {"protocol": f"measured for {key}"}
        for key, value in values.items()
    }


def dataset_of(**changes):
    return {
        "name": "ylecun/mnist",
        "kind": "hub",
        "config": "mnist",
        "revision": "77f3279092a1c1579b2250db8eafed0ad422088c",
        "train_split": "train",
        "train_count": 60000,
        "eval_split": "test",
        "eval_count": 10000,
        "image_column": "image",
        "label_column": "label",
        "label_names": ["zero", "one"],
    } | changes


def make_run(folder, prior=True, dataset=None, channels=1, model=None, **arguments):
    """A finished run's folder, with made-up numbers and a real, tiny model."""
    model = model or tiny_model(prior, channels)
    model.save_pretrained(folder)
    VQVAEImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    history = {
        "vqvae": [{"epoch": 1, "reconstruction_mse": 0.1, "perplexity": 3.0, "codes_used": 5}],
        "prior": [{"epoch": 1, "loss": 2.0, "eval_loss": 2.1}] if prior else [],
    }
    run = {
        "dataset": dataset_of(**(dataset or {})),
        "versions": {"hf_vqvae": "0.1.0", "torch": "2.13.0+cpu"},
        "hardware": "2-core CPU",
        "num_processes": 1,
        "mixed_precision": "bf16",
        "seconds": {"vqvae": 812.0, "prior": 4200.0 if prior else None},
        "seed": 0,
        "codebook_counts": [100, 50, 3, *[1] * 12, 0],
    }
    flags = vars(TrainingArguments(output_dir=f"{HOME}/outputs/{folder.name}"))
    flags = {**flags, "dataset_name": f"{HOME}/data", "cache_dir": f"{HOME}/.cache", **arguments}
    metrics = metrics_of(VALUES | (PRIOR_VALUES if prior else {}))
    write_json(folder, history=history, run=run, arguments=flags, metrics=metrics)
    return model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of a run with a prior and one without, with all figures."""
    folders = {}
    for prior in (True, False):
        folder = tmp_path_factory.mktemp("runs") / ("mnist" if prior else "alone")
        model = make_run(folder, prior)
        write_figures(folder, model, some_images(), torch.Generator().manual_seed(0))
        folders[prior] = folder
    return folders


@pytest.fixture
def run_folder(finished, tmp_path):
    return Path(shutil.copytree(finished[True], tmp_path / "mnist"))


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def check_text(text):
    """What must hold of every card, whatever is in the run."""
    assert text.startswith("---\n")
    body = text.split("\n---\n", 1)[1]
    for leftover in ("{{", "}}", "{%", "%}", "{#"):
        assert leftover not in body
    assert not re.search(r"\b(None|NaN|nan|Undefined|inf)\b", text)
    assert HOME not in text and "somebody" not in text
    assert "/tmp" not in text and "\\Users" not in text
    assert not re.search(r"\n{3,}", text)
    for block in code_blocks(text):
        ast.parse(block)
    for path in re.findall(r"!\[[^\]]+\]\(([^)]*)\)", text):
        assert re.fullmatch(r"figures/\w+\.png", path)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        columns = {row.count("|") for row in rows}
        assert len(columns) == 1 and len(rows) > 2, f"a broken table: {table}"
    assert text.count("```") % 2 == 0
    titles = re.findall(r"^##+ (.+)$", body, re.MULTILINE)
    anchors = {title.lower().replace(":", "").replace(" ", "-") for title in titles}
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= anchors, "a link at the top leads nowhere"
    # Only line breaks, code and references to notes are HTML of our own.
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    tags = set(re.findall(r"<[^>]*>", prose)) - {"<br>", "<Gallery />", "<code>", "</code>", "<sup>", "</sup>"}
    assert all(tag.startswith("<!-- hf_vqvae: this card was generated") for tag in tags), tags


def write_example(folder):
    """The run of model_card/example, whose records are there, with its config.json."""
    shutil.copytree(EXAMPLE, folder)
    flags = json.loads((folder / "arguments.json").read_text())

    def settings(config_class):
        names = [field.name for field in own_fields(config_class)]
        return {name: flags[name] for name in names if flags.get(name) is not None}

    names = json.loads((folder / "run.json").read_text())["dataset"]["label_names"]
    classes = {"num_classes": len(names), "id2label": dict(enumerate(names))}
    vqvae = settings(VQVAEConfig) | {"image_size": 28, "data_variance": 0.0949304}
    VQVAEForImageGenerationConfig(
        vqvae_config=vqvae, prior_config={**settings(PixelCNNConfig), **classes}
    ).save_pretrained(folder)
    return build_card(folder, repo_id="outputs/mnist")


def write_golden(folder, prior):
    make_run(folder, prior)
    (folder / "figures").mkdir()
    for name in FIGURES | ({"samples", "completions", "likelihoods"} if prior else set()):
        (folder / "figures" / f"{name}.png").touch()
    return build_card(folder)


GOLDEN = {
    EXAMPLE / "README.md": write_example,
    FIXTURES / "plain.md": lambda folder: write_golden(folder, True),
    FIXTURES / "vqvae.md": lambda folder: write_golden(folder, False),
}


def without_help(card):
    """A card without what may change with every flag or requirement: the tables of settings, what pip installs."""
    text = re.sub(r"(?<=\n\| Setting \| Value \|\n)(\|.*\n)+|(?<=\npip install ).*", "", str(card))
    return re.sub(r"\n<!-- hf_vqvae: this card was generated.*", "", text).rstrip()


@pytest.mark.parametrize("path", GOLDEN, ids=["gated", "plain", "vqvae"])
def test_a_card_reads_as_it_did(path, tmp_path):
    """`python tests/model_card/test_card.py` writes new ones: read what changed."""
    card = GOLDEN[path](tmp_path / "mnist")
    check_text(str(card))
    assert without_help(card) == without_help(path.read_text("utf-8"))
    assert is_as_signed(path.read_text("utf-8"))
    again = ModelCard(str(card))
    assert isinstance(again.data, ModelCardData)
    assert again.data.to_dict() == card.data.to_dict() and str(again) == str(card)


@pytest.mark.parametrize("name", ["example", "example_cifar10"])
def test_the_numbers_of_an_example_are_those_of_its_record(name):
    card = ModelCard((EXAMPLE.with_name(name) / "README.md").read_text("utf-8"))
    metrics = json.loads((EXAMPLE.with_name(name) / "metrics.json").read_text())
    assert len(card.data.eval_results) == len(metrics)
    for metric, result in zip(metrics.values(), card.data.eval_results, strict=True):
        assert result.metric_value == metric["value"] and result.metric_name == metric["name"]
        assert result.metric_args["protocol"] == metric["protocol"]


def test_every_part_of_a_protocol_is_said_once_and_every_metric_refers_to_its_parts():
    text = (EXAMPLE / "README.md").read_text("utf-8").split("## Results")[1]
    notes = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| (.+?)(?: [↓↑])? <sup>(.+?)</sup> \|", text, re.MULTILINE)
    metrics = json.loads((EXAMPLE / "metrics.json").read_text())
    assert len(rows) == len(metrics)
    parts = [part for note in notes.values() for part in note.split("; ")]
    assert len(parts) == len(set(parts))
    said = {name: "; ".join(notes[number] for number in ns.split(", ")) for name, ns in rows}
    for metric in metrics.values():
        parts = set(metric["protocol"].split("; "))
        parts |= {f"{metric['count']:,} images"} if metric["count"] != 10_000 else set()
        assert set(said[metric["name"]].split("; ")) == parts


def test_settings_are_those_of_the_run(finished):
    text = build_card(finished[True]).text
    settings = dict(re.findall(r"^\| `(\w+)`<br>.+ \| (.+) \|$", text, re.MULTILINE))
    assert settings["num_embeddings"] == "16" and settings["hidden_sizes"] == "4, 8"
    assert settings["learning_rate"] == f"{TrainingArguments.learning_rate:g}"
    assert {"num_residual_blocks", "num_pixelcnn_layers"} <= settings.keys()
    unused = {"output_dir", "log_with", "num_gated_layers", "gated_kernel_size", "label_dropout"}
    assert settings.keys().isdisjoint(unused)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_code_of_the_card_runs_with_the_package(channels, prior, monkeypatch, tmp_path):
    make_run(tmp_path / "mnist", prior, channels=channels)
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks(build_card(tmp_path / "mnist").text)
    (block,) = (block for block in blocks if "from hf_vqvae import" in block)
    names = {}
    exec(block, names)
    assert names["codes"].shape == (1, 2, 2)
    assert names["reconstruction"].shape == (1, 8, 8, channels)
    assert (tmp_path / "sample.png").is_file() == (prior and channels != 2)


# Conditional priors, and samples that were measured


def conditional_run(folder, classes=("zero", "one"), **settings):
    """A run of a gated, conditional prior whose samples were measured."""
    model = tiny_model(classes=classes, architecture="gated", **settings)
    model = make_run(folder, model=model, dataset={"label_names": list(classes)})
    metrics = metrics_of(VALUES | PRIOR_VALUES | SAMPLE_VALUES)
    counts = {"classes": list(classes), "counts": list(range(1, len(classes) + 1))}
    metrics["class_perplexity"] |= counts
    metrics["class_perplexity_with_labels"] |= counts
    write_json(folder, metrics=metrics)
    return model


def test_a_hundred_classes_are_counted_in_one_line(tmp_path):
    conditional_run(tmp_path / "run", classes=[f"class {number}" for number in range(100)])
    text = build_card(tmp_path / "run").text
    assert "`class 19` 20 and 80 more classes." in text and "`class 20`" not in text


@pytest.mark.parametrize("label_dropout", [0.1, 0.0])
@pytest.mark.parametrize("name", ["zero", 'a "b" \\ c', "two\nlines", "<b>{x}`"])
def test_code_for_a_conditional_prior_runs_whatever_the_classes_are_called(name, label_dropout, tmp_path, monkeypatch):
    folder = tmp_path / "labelled"
    conditional_run(folder, classes=[name, "other"], label_dropout=label_dropout)
    add_code(folder, VQVAEForImageGeneration)
    monkeypatch.chdir(tmp_path)
    card = build_card(folder)
    check_text(str(card))
    blocks = [block for block in code_blocks(card.text) if "model_id = " in block]
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        exec(block, names)
        assert len(names["images"]) == 16
        if "labelled" in names:
            assert len(names["labelled"]) == 16 and len(names["completions"]) == 4
            assert ("guidance_scale" in block) == (label_dropout > 0)


def test_before_a_push_the_code_names_the_folder_and_after_it_the_repo(run_folder):
    going = run_folder.rename(run_folder.with_name("mnist.partial"))
    text = build_card(going).text
    assert re.findall(r"^model_id = (.+)$", text, re.MULTILINE) == ['"mnist"']
    assert ".partial" not in text
    pushed = build_card(going, repo_id="me/vqvae-mnist")
    check_text(str(pushed))
    ids = re.findall(r"^model_id = (.+)$", pushed.text, re.MULTILINE)
    assert set(ids) == {'"me/vqvae-mnist"'} and len(ids) == 3
    assert "trust_remote_code=True" in pushed.text
    assert pushed.data.model_name == "vqvae-mnist"


def test_the_card_says_where_the_package_comes_from_and_what_loading_needs(run_folder, monkeypatch):
    facts = Message()
    facts["Version"], facts["Project-URL"] = "0.2", "Repository, https://git.example/hf_vqvae"
    facts["Requires-Dist"] = "torch>=2.6"
    facts["Requires-Dist"] = "datasets>=5; extra == 'train'"
    monkeypatch.setattr("hf_vqvae.model_card.context.metadata", lambda name: facts)
    text = build_card(run_folder, "me/run").text
    assert "version 0.2 or later: `pip install git+https://git.example/hf_vqvae`." in text
    assert '\npip install "torch>=2.6"\n' in text

    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hf_vqvae.model_card.context.metadata", not_installed)
    text = build_card(run_folder, "me/run").text
    assert "or later: `pip install .` in a clone" in text
    assert "\npip install torch transformers pillow\n" in text


def test_an_autoencoder_with_its_code_says_how_to_load_it_without_the_package(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[False], tmp_path / "coded")
    add_code(folder, VQVAEModel)
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in code_blocks(build_card(folder).text) if "trust_remote_code" in block)
    names = {}
    exec(block, names)
    assert len(names["images"]) == 1


@pytest.mark.parametrize(
    "dataset, code",
    [
        ({}, 'dataset = load_dataset("ylecun/mnist", "mnist", revision="77f3279092a1c1579b2250db8eafed0ad422088c")'),
        # Records of older runs.
        ({"config": None, "revision": None}, 'dataset = load_dataset("ylecun/mnist")'),
        ({"name": "digits", "kind": "digits", "revision": None}, "dataset = hf_vqvae.digits.load_digits()"),
        (
            {"name": f"{HOME}/my data", "kind": "folder", "revision": None, "config": None},
            'dataset = load_dataset("./my data")',
        ),
        (
            {"name": "C:\\Users\\me\\cats", "kind": "folder", "revision": None, "config": None},
            'dataset = load_dataset("./cats")',
        ),
        (
            {"name": "../owner/looks-like-one", "kind": "folder", "config": None, "revision": None},
            'dataset = load_dataset("./looks-like-one")',
        ),
    ],
)
def test_the_card_says_how_to_load_the_data_without_paths_of_the_machine(dataset, code, tmp_path):
    make_run(tmp_path / "run", dataset=dataset)
    card = build_card(tmp_path / "run")
    check_text(str(card))
    assert code in [line for block in code_blocks(card.text) for line in block.splitlines()]
    is_hub = "kind" not in dataset
    assert card.data.datasets == (["ylecun/mnist"] if is_hub else None)
    assert ("huggingface.co/datasets/" in card.text) == is_hub
    for result in card.data.eval_results:
        assert is_hub or " " in result.dataset_type, "that could be a dataset of somebody else"
        assert is_hub or result.dataset_revision is None


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "arguments.json"])
@pytest.mark.parametrize("content", ["[]", "[1]", "5", '"x"', "null", "{", "[" * 10**5, "\0"])
def test_a_record_that_is_no_object_is_named(tmp_path, name, content):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} in run is damaged"):
        build_card(tmp_path / "run")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_break_neither_tables_nor_html_nor_code(hostile, tmp_path):
    folder = tmp_path / "run"
    dataset = dict.fromkeys(("name", "config", "revision", "image_column", "label_column"), hostile)
    dataset |= {"train_split": hostile, "eval_split": f"{hostile}2", "label_names": [hostile] * 30}
    dataset["license"] = hostile
    flags = {"lr_scheduler_type": hostile, "vqvae_name_or_path": f"{HOME}/{hostile}"}
    make_run(folder, dataset=dataset, model=tiny_model(classes=[hostile, "other"]), **flags)
    metrics = metrics_of(VALUES)
    for metric in metrics.values():
        metric |= {"name": hostile, "split": hostile, "scale": hostile, "protocol": hostile}
    run = json.loads((folder / "run.json").read_text())
    run |= {"hardware": hostile, "versions": {hostile: hostile}, "mixed_precision": hostile}
    run |= {"num_processes": hostile}
    write_json(folder, metrics=metrics, run=run)
    card = build_card(folder)
    text = str(card)
    check_text(text)
    assert "<script" not in card.text
    assert "](http://evil" not in re.sub(r"```.*?```", "", card.text, flags=re.DOTALL)
    assert "\n# title" not in text
    importing, loading = ast.parse(code_blocks(card.text)[0]).body
    assert importing.module == "datasets" and loading.value.func.id == "load_dataset"
    words = [*loading.value.args, *(word.value for word in loading.value.keywords)]
    assert all(isinstance(word, ast.Constant) for word in words) and len(words) == 3
    again = ModelCard(text)
    assert again.data.to_dict() == card.data.to_dict()
    assert len(again.data.eval_results) == len(VALUES)


@pytest.mark.parametrize(
    "address", ["https://evil.example", "http://a", "ftp://a.b", "www.evil.example", "WWW.a.b", "me@evil.example"]
)
def test_addresses_in_results_become_no_links(address, tmp_path):
    make_run(tmp_path / "run")
    metrics = metrics_of({"psnr": VALUES["psnr"]})
    metrics["psnr"] |= {"name": f"x {address}", "scale": address, "protocol": f"{address}, y"}
    write_json(tmp_path / "run", metrics=metrics)
    text = build_card(tmp_path / "run").text
    assert address not in text
    assert html.unescape(text).count(address) == 3, "they are there to be read"


def test_a_folder_of_a_hostile_name_makes_a_card_that_compiles(tmp_path):
    folder = tmp_path / 'a"b`<i>{{x}}'
    make_run(folder)
    (block,) = (b for b in code_blocks(build_card(folder).text) if "model_id = " in b)
    assigned = [node for node in ast.parse(block).body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(assigned[0].value) == folder.name


def test_a_number_that_is_not_finite_stays_out_of_the_model_index(run_folder):
    metrics = metrics_of(VALUES)
    metrics["psnr"]["value"] = math.inf
    metrics["ssim"]["value"] = math.nan
    write_json(run_folder, metrics=metrics)
    card = build_card(run_folder)
    check_text(str(card))
    assert {result.metric_type for result in card.data.eval_results} == {*("mse", "codebook_perplexity", "codes_used")}
    assert card.text.count("**not finite**") == 2


def test_a_model_without_a_run_gets_a_card_without_results(tmp_path):
    tiny_model().save_pretrained(tmp_path / "bare")
    card = build_card(tmp_path / "bare", repo_id="me/bare")
    check_text(str(card))
    assert card.data.eval_results is None and card.data.datasets is None
    for absent in ("## Results", "## Training and evaluation data", "Hardware", "![", ".json"):
        assert absent not in card.text


def test_evaluation_on_the_training_split_is_admitted(tmp_path):
    make_run(tmp_path / "run", dataset={"eval_split": "train"})
    assert "say nothing about new images" in build_card(tmp_path / "run").text
    make_run(tmp_path / "run")
    assert "say nothing about new images" not in build_card(tmp_path / "run").text


@pytest.mark.parametrize(
    "classes, texts",
    [
        (None, [f"sample {number}" for number in range(1, 11)]),
        (["zero", "two\nlines: ---"], ["zero", "two lines: ---"]),
        ([*"abcdefghijkl"], [*"abcdefghij"]),
    ],
)
def test_the_gallery_has_a_sample_of_each_class_with_its_pixels_as_squares(classes, texts, tmp_path):
    model = make_run(tmp_path, model=tiny_model(classes=classes))
    model.vqvae.quantizer.embedding.weight.data.normal_(0, 3)
    write_figures(tmp_path, model, some_images(), torch.Generator().manual_seed(0))
    card = build_card(tmp_path)
    check_text(str(card))
    assert "\n\n<Gallery />\n\n" in card.text
    widget = ModelCard(str(card)).data.widget
    assert [entry["text"] for entry in widget] == texts
    labels = (
        None
        if classes is None
        else torch.arange(min(10, len(classes))).repeat_interleave(8 * max(1, 8 // len(classes)))
    )
    samples = model.sample(
        64 if classes is None else None, class_labels=labels, generator=torch.Generator().manual_seed(0)
    )
    step = 1 if classes is None else len(labels) // len(texts)
    for entry, sample in zip(widget, samples[::step], strict=False):
        pixels = np.asarray(Image.open(tmp_path / entry["output"]["url"]))
        expected = VQVAEImageProcessorPil().postprocess(sample[None], "np")[0]
        assert pixels.shape == (512, 512, 3) and pixels.std() > 5
        assert np.array_equal(pixels, np.rint(expected * 255).repeat(64, 0).repeat(64, 1).repeat(3, 2))


def test_a_model_without_a_prior_has_no_gallery(finished):
    card = build_card(finished[False])
    assert card.data.get("widget") is None and "Gallery" not in card.text


def test_the_license_is_that_of_the_flags(tmp_path):
    make_run(tmp_path / "run", hub_license="cc-by-4.0")
    assert build_card(tmp_path / "run").data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    "base, trained, text",
    [
        ("me/__vqvae__", False, "The VQ-VAE is that of [`me/__vqvae__`](https://huggingface.co/me/__vqvae__)."),
        ("me/vqvae", True, "began with the weights of [`me/vqvae`]("),
        ("outputs", True, None),
        ("me/x](http://evil.example)", True, None),
        (None, True, None),
    ],
)
def test_the_base_model_is_a_repo_on_the_hub(base, trained, text, run_folder):
    run = json.loads((run_folder / "run.json").read_text())
    write_json(run_folder, run=run | {"base_model": base, "kept_epochs": {"vqvae": 1} if trained else {"prior": 1}})
    card = build_card(run_folder)
    check_text(str(card))
    assert card.data.base_model == (base if text else None)
    assert text in card.text if text else ("The VQ-VAE is" not in card.text and "http://evil" not in card.text)


@pytest.mark.parametrize("space", ["me/runs", "me/runs) <script>", "runs", None, 3])
def test_the_dashboard_is_a_space_on_the_hub(space, run_folder):
    write_json(run_folder, run=json.loads((run_folder / "run.json").read_text()) | {"dashboard": space})
    card = build_card(run_folder)
    check_text(str(card))
    tags = ["trackio", "trackio:https://huggingface.co/spaces/me/runs"] if space == "me/runs" else []
    assert [tag for tag in card.data.tags if "trackio" in tag] == tags
    assert ("[me/runs](https://huggingface.co/spaces/me/runs)" in card.text) == bool(tags)


@pytest.mark.parametrize("license, text", [("mit", "`mit`"), (["mit", "other"], "`mit`, `other`"), (None, None)])
def test_the_license_of_a_dataset_is_what_its_card_says(license, text, run_folder):
    write_json(run_folder, run={"dataset": dataset_of(license=license)})
    card = build_card(run_folder)
    assert f"Its license, by its dataset card: {text}." in card.text if text else "Its license" not in card.text
    assert card.data.license == "apache-2.0"


def test_a_folder_without_a_model_has_no_card(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        build_card(tmp_path)


def test_a_card_is_written_atomically_and_signed(run_folder):
    write_card(run_folder)
    first = (run_folder / "README.md").read_text("utf-8")
    check_text(first)
    assert is_as_signed(first) and is_as_signed(first.replace("\n", "\r\n"))  # git on Windows is no edit
    write_card(run_folder)
    assert (run_folder / "README.md").read_text("utf-8") == first
    assert not list(run_folder.glob("*.partial"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("How it works", "How it really works"),
        lambda text: text.replace("license: apache-2.0", "license: mit"),
        lambda text: text + "\nOne more word.\n",
        lambda text: text[: text.rindex("<!--")],
        lambda text: "# mine\n",
    ],
)
def test_an_edit_by_hand_breaks_the_signature(run_folder, edit):
    write_card(run_folder)
    assert not is_as_signed(edit((run_folder / "README.md").read_text("utf-8")))


def test_figures_leave_the_model_as_it_was_and_follow_the_seed(tmp_path):
    model = make_run(tmp_path / "run")
    folder = tmp_path / "run" / "figures"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = write_figures(tmp_path / "run", model, some_images(), torch.Generator().manual_seed(1))
    assert {path.stem for path in drawn} == FIGURES | {"samples", "completions", "likelihoods", "test_images"}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    first = {path: path.read_bytes() for path in folder.rglob("*.png")}
    write_figures(tmp_path / "run", model, some_images(), torch.Generator().manual_seed(1))
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == first


def test_figures_of_a_model_without_a_run_are_those_of_the_model(tmp_path):
    drawn = write_figures(tmp_path, tiny_model(False), some_images(2, labels=False))
    assert {path.stem for path in drawn} == {"architecture", "reconstructions", "codes", "test_images"}


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for path, write in GOLDEN.items():
        with tempfile.TemporaryDirectory() as folder:
            path.write_text(sign_card(str(write(Path(folder) / "mnist"))), "utf-8", newline="\n")
