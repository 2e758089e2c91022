"""Folders of models from anywhere: nothing is executed, nothing outside is touched, nothing absurd takes memory."""

import json
import os
import pickle
import re
import resource
import struct
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

from hf_vqvae import (
    PixelCNNModel,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from hf_vqvae.hub.download import load_model
from hf_vqvae.publishing.staging import copy_files, copy_run_files
from support import models as support_models

MARKUP = "a|b`c`</td><script>alert(1)</script>\n```\n# title [x](http://evil.example) {{7*7}}"


def make_model():
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_sizes": [4, 8], "num_embeddings": 16, "embedding_dim": 4}
    config = VQVAEForImageGenerationConfig(vqvae_config=sizes, prior_config={"hidden_size": 8})
    return VQVAEForImageGeneration(config)


@pytest.fixture
def folder(tmp_path):
    """A whole model."""
    path = tmp_path / "models" / "mine"
    make_model().save_pretrained(path)
    VQVAEImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(path)
    return path


@pytest.fixture
def bomb(tmp_path):
    """A pickle, and some Python code, that leave a mark when they are run, and the mark."""
    mark = tmp_path / "mark"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(mark),))

    pickled = pickle.dumps({"weight": Payload()})
    pickle.loads(pickled)
    assert mark.is_dir(), "this bomb would go off"
    mark.rmdir()
    return pickled, f"import os\nos.mkdir({str(mark)!r})\n", mark


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def loaders(folder):
    """All ways to load a folder, without `trust_remote_code`."""
    return {
        "AutoConfig": lambda: AutoConfig.from_pretrained(folder),
        "AutoModel": lambda: AutoModel.from_pretrained(folder),
        "AutoImageProcessor": lambda: AutoImageProcessor.from_pretrained(folder),
        "pipeline": lambda: pipeline("unconditional-image-generation", model=str(folder)),
        "load_model": lambda: load_model(str(folder)),
        "VQVAEForImageGeneration": lambda: VQVAEForImageGeneration.from_pretrained(folder),
        "VQVAEModel": lambda: VQVAEModel.from_pretrained(folder),
        "PixelCNNModel": lambda: PixelCNNModel.from_pretrained(folder),
        "VQVAEImageProcessorPil": lambda: VQVAEImageProcessorPil.from_pretrained(folder),
    }


def test_pickles_beside_the_weights_are_never_read(folder, bomb):
    pickled, _, mark = bomb
    for name in ("pytorch_model.bin", "optimizer.bin", "training_args.bin", "scheduler.pt"):
        (folder / name).write_bytes(pickled)
    torch.save({"vqvae.quantizer.embedding.weight": torch.zeros(16, 4)}, folder / "model.pt")
    expected = make_model().state_dict()
    for name, load in loaders(folder).items():
        load()
        assert not mark.exists(), name
    loaded = VQVAEForImageGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_folder_that_has_but_pickles_has_no_weights(folder, bomb):
    pickled, _, mark = bomb
    good = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in (pickled, None):
        if content is None:  # harmless, but nothing tells it from the other
            torch.save(good, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)
        for model_class in (VQVAEForImageGeneration, VQVAEModel, PixelCNNModel, AutoModel):
            with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
                model_class.from_pretrained(folder)
        with pytest.raises(ValueError, match="`use_safetensors` must be True, got False"):
            VQVAEModel.from_pretrained(folder, use_safetensors=False)
        with pytest.raises(ValueError, match="cannot load the model"):
            load_model(str(folder))
        assert not mark.exists()


@pytest.mark.parametrize("part", ["pytorch_model.bin", "../other/model.safetensors", "{absolute}"])
def test_an_index_of_parts_leads_neither_to_pickles_nor_out_of_the_folder(folder, bomb, part):
    pickled, _, mark = bomb
    (folder / "pytorch_model.bin").write_bytes(pickled)
    other = folder.parent / "other"
    other.mkdir()
    (folder / "model.safetensors").rename(other / "model.safetensors")
    part = part.format(absolute=other / "model.safetensors")
    names = load_file(other / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (load_model, VQVAEForImageGeneration.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="must name safetensors files in the same folder, got"):
            load(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"metadata": {}}'])
def test_a_damaged_index_of_parts_is_named(folder, content):
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"the index model\.safetensors\.index\.json is damaged"):
        load_model(str(folder))


@pytest.mark.parametrize("where", ["", "evil-owner/evil-repo--"], ids=["folder", "other_repo"])
@pytest.mark.parametrize("registered", [True, False])
def test_code_that_comes_along_is_not_executed(folder, bomb, monkeypatch, where, registered):
    _, code, mark = bomb
    for name in ("evil", "__init__", "conftest", "modeling_vqvae", "configuration_vqvae"):
        (folder / f"{name}.py").write_text(code)
    classes = ("AutoConfig", "AutoModel", "AutoImageProcessor")
    auto_map = dict.fromkeys(classes, f"{where}evil.Evil")
    task = "unconditional-image-generation"
    pipelines = {task: {"impl": "evil.Evil", "pt": ["AutoModel"], "type": "image"}}

    def change(content):
        content |= {"auto_map": auto_map, "custom_pipelines": pipelines}
        if not registered:
            content |= {"model_type": "evil", "image_processor_type": "Evil"}

    for name in ("config.json", "preprocessor_config.json"):
        edit(folder / name, change)
    answers = []
    # A question on the terminal is no refusal: whoever starts a script has pressed Enter before.
    monkeypatch.setattr("builtins.input", lambda *args: answers.append(args) or "y")
    for name, load in loaders(folder).items():
        if not registered and name in ("AutoConfig", "AutoModel", "AutoImageProcessor", "pipeline"):
            continue  # transformers' own, which ask
        try:
            load()
        except ValueError as error:
            assert not registered or name == "pipeline", (name, error)
        assert not mark.exists() and not answers, name
    if not registered:
        for auto in (AutoConfig, AutoModel, AutoImageProcessor):
            with pytest.raises((ValueError, OSError)):
                auto.from_pretrained(folder, trust_remote_code=False)
        assert not mark.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize(
    "settings",
    [
        *({"num_embeddings": size} for size in (2**24, 10**12)),
        *({"hidden_sizes": [2**16] * 2}, {"embedding_dim": 2**16}),
    ],
)
def test_refusing_takes_no_memory(folder, settings):
    """The largest sizes that a config may name, where there is no memory for a hundredth of them."""
    edit(folder / "config.json", lambda config: config["vqvae_config"].update(settings))
    status = Path("/proc/self/status").read_text()
    in_use = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + 2**28, before[1]))
    try:
        with pytest.raises(ValueError, match=r"ignore_mismatched_sizes|must be at most|must equal"):
            load_model(str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("key", ["__class__", "save_pretrained", "_auto_class"])
def test_keys_of_a_config_that_would_replace_its_own_parts_are_ignored(folder, key):
    for part in ("vqvae_config", "prior_config"):
        edit(folder / "config.json", lambda config, part=part: config[part].update({key: {"a": 1}}))
    edit(folder / "config.json", lambda config: config.update({key: {"a": 1}}))
    model = AutoModel.from_pretrained(folder)
    assert type(model) is VQVAEForImageGeneration and callable(model.config.save_pretrained)
    assert key not in vars(model.config)
    model.save_pretrained(folder.parent / "again")
    assert model.sample(1).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", ["attn_implementation", "experts_implementation"])
def test_a_saved_config_names_no_code_of_another_repo(folder, name):
    edit(folder / "config.json", lambda config: config.update({name: "evil-owner/evil-kernel"}))
    model = AutoModel.from_pretrained(folder)
    assert "evil" not in json.dumps(model.config.to_dict())


@pytest.mark.parametrize("key", ["name_or_path", "_name_or_path"])
def test_where_a_model_comes_from_is_not_the_file_s_to_say(folder, key, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()

    def change(config):
        for one in (config, config["vqvae_config"], config["prior_config"]):
            one[key] = str(secret)

    edit(folder / "config.json", change)
    model = VQVAEForImageGeneration.from_pretrained(folder)
    for config in (model.config, model.vqvae.config, model.prior.config):
        assert config.name_or_path in ("", str(folder))


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_config_that_is_no_mapping_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="cannot load the model"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-100],
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda whole: struct.pack("<Q", 2**62) + whole[8:],
        lambda whole: whole.replace(b'"shape":[', b'"shape":[9,', 1),
    ],
    ids=["empty", "truncated", "pointer", "huge_header", "shape"],
)
def test_a_damaged_file_of_weights_is_refused_by_name(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"weights of '?.*{folder.name}.* are damaged"):
        VQVAEForImageGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match=rf"cannot load the model .*{folder.name}"):
        load_model(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["vqvae.quantizer.embedding.weight", "prior.conv_out.bias", "vqvae.quantizer.ema_steps"]
)
def test_weights_that_are_not_finite_are_refused_by_name(folder, name, value):
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"'{name}' has 1 values that are not finite.*{value}"):
        VQVAEForImageGeneration.from_pretrained(folder)


def test_weights_of_another_shape_are_refused_and_drawn_anew_only_when_told(folder):
    weights = load_file(folder / "model.safetensors")
    name = "vqvae.quantizer.embedding.weight"
    weights[name] = torch.zeros(17, 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load, error in ((load_model, ValueError), (VQVAEForImageGeneration.from_pretrained, RuntimeError)):
        with pytest.raises(error, match="ignore_mismatched_sizes"):  # below a table of the shapes
            load(str(folder))
    loaded = VQVAEForImageGeneration.from_pretrained(folder, ignore_mismatched_sizes=True)
    codebook = loaded.vqvae.quantizer.embedding.weight
    assert codebook.shape == (16, 4) and 0 < codebook.abs().max() <= 1 / 16


def test_labels_with_markup_stay_words(folder, tmp_path):
    labels = {0: MARKUP, 1: "../../x", 2: "\u202e\0"}
    model = VQVAEForImageGeneration.from_pretrained(folder)
    model.config.id2label = labels
    model.config.label2id = {name: number for number, name in labels.items()}
    model.config.name_or_path = ""
    model.save_for_hub(tmp_path / "repo", "me/mine")
    assert VQVAEForImageGeneration.from_pretrained(tmp_path / "repo").config.id2label == labels
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "repo"]


@pytest.mark.parametrize("repo_id", [MARKUP, 'a"; import os; "', "../../x", "a/b/c", "me/<i>", "/"])
def test_a_name_that_is_none_of_the_hub_goes_into_no_card(folder, tmp_path, repo_id):
    model = VQVAEForImageGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"(?i)repo"):
        model.save_for_hub(tmp_path / "repo", repo_id)
    assert not (tmp_path / "repo").exists()


def test_links_that_lead_out_of_a_run_are_not_published(tmp_path):
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "key.png").write_text("secret")
    (tmp_path / "run" / "figures" / "leak.png").symlink_to(tmp_path / "key.png")
    with pytest.raises(ValueError, match=r"figures/leak\.png is a link out of the folder"):
        copy_run_files(tmp_path / "run", tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_paths_of_this_machine_go_out_nowhere_in_the_arguments(tmp_path):
    paths = ["/home/me/secret/x", "~/secret/x", "~bob/secret/x", "file:///home/secret/x"]
    paths += [r"C:\Users\secret\x", r"\\secret\share\x", "../secret/x", "a/../secret/x", "/secret/x/"]
    plain = ["me/data", "mnist", "cosine", "1e-3", 3, 0.5, None, True, ""]
    values = {"one": paths[0], "list": paths + plain, "deep": {"a": [{"b": paths}]}, "c": plain[0]}
    for name in ("run", "repo"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "arguments.json").write_text(json.dumps(values))
    copy_run_files(tmp_path / "run", tmp_path / "repo")
    x = ["x"] * len(paths)
    expected = {"one": "x", "list": x + plain, "deep": {"a": [{"b": x}]}, "c": "me/data"}
    assert json.loads((tmp_path / "repo" / "arguments.json").read_text()) == expected


def test_links_within_the_cache_of_the_hub_are_files(tmp_path):
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "metrics.json").symlink_to(blobs / "abc")
    (tmp_path / "repo").mkdir()
    copy_files(snapshot, tmp_path / "repo", ("metrics.json",))
    assert (tmp_path / "repo" / "metrics.json").read_text() == "{}"


NAMES = ["../../x", "<script>alert(1)</script>", "{{ 7*7 }} {% raw %}", "a\nb\r\n# title", "x" * 1000]
NAMES += ["\0\a\x1b[31m", "$\\frac{1}{$", "| `code` </td>", "\u202e---\n```", "/etc/passwd%s"]
TINY = "--image_size 8 --hidden_sizes 4 8 --num_embeddings 8 --embedding_dim 4 --hidden_size 8"
TINY += " --num_residual_blocks 1 --num_train_epochs 1 --prior_num_train_epochs 1 --train_batch_size 8"


@pytest.mark.long
def test_a_whole_run_on_classes_and_columns_with_hostile_names(scripts, tmp_path):
    """Figures, card, records: all are written, within the folder, with names as words."""
    data, run = tmp_path / "data <script>{{7*7}}", tmp_path / "run <script>{{7*7}}"
    data.mkdir()
    column = "a|b`</td><script>x</script>\n# t {{7*7}} ../../y"
    features = datasets.Features({column: datasets.Image(), f"{column}2": datasets.ClassLabel(names=NAMES)})
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        rows = {column: list(map(Image.fromarray, noise)), f"{column}2": list(range(10)) * 4}
        file = data / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    flags = [*TINY.split(), "--class_conditional", "--dataset_name", data, "--output_dir", run]
    scripts.succeed("scripts/train.py", *flags, "--cache_dir", tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} == {data.name, run.name, "cache"}
    names = {path.name for path in run.rglob("*")}
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names), names
    config = json.loads((run / "config.json").read_text())
    assert list(config["prior_config"]["id2label"].values()) == NAMES
    card = (run / "README.md").read_text("utf-8")
    body = card.split("\n---\n", 1)[1]
    for bad in ("<script", "{{", "{%", "\0", "\x1b", "\u202e", "\n# title", "\n# t "):
        assert bad not in body, bad
    assert VQVAEForImageGeneration.from_pretrained(run).sample(1).shape == (1, 1, 8, 8)


@pytest.fixture
def numbered(tmp_path):
    """Flags of a run on few images with a column of labels of a kind, the largest of which is given."""

    def make(kind, largest):
        folder = tmp_path / "numbered"
        folder.mkdir(exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
        features = datasets.Features({"image": datasets.Image(), "who": kind})
        rows = {"image": [Image.fromarray(pixels) for pixels in noise], "who": [0, 1, 2, largest]}
        table = datasets.Dataset.from_dict(rows, features=features)
        for split in ("train", "test"):
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        flags = ["--dataset_name", folder, "--label_column", "who", "--image_size", "8"]
        flags += ["--hidden_sizes", "4", "8", "--num_embeddings", "8", "--hidden_size", "8"]
        flags += ["--num_train_epochs", "1", "--prior_num_train_epochs", "1"]
        flags += ["--train_batch_size", "4", "--max_train_samples", "4"]
        flags += ["--cache_dir", tmp_path / "cache"]
        return [*flags, "--output_dir", tmp_path / "run"]

    return make


MANY = 70_000


TIMES = (datasets.Value("int64"), 1_700_000_000, ["row 3 of split", "1700000000", "'who'", "65535"])


@pytest.mark.parametrize(
    ("kind", "largest", "words", "streaming"),
    [
        (*TIMES, []),
        (*TIMES, ["--streaming"]),
        (datasets.ClassLabel(MANY), 3, ["70,000 classes", "65,536", "--no_class_conditional"], []),
    ],
    ids=["times", "times in a stream", "names"],
)
def test_labels_that_can_be_no_classes_are_refused_before_training(
    scripts, numbered, tmp_path, kind, largest, words, streaming
):
    done = scripts.run("scripts/train.py", *numbered(kind, largest), *streaming)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), last
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("run")]


@pytest.mark.long
def test_more_classes_than_a_prior_can_have_are_no_matter_to_one_without_labels(scripts, numbered, tmp_path):
    flags = numbered(datasets.ClassLabel(MANY), MANY - 1)
    scripts.succeed("scripts/train.py", *flags, "--no_class_conditional")
    model = load_model(str(tmp_path / "run"))
    assert model.config.prior_config.num_classes is None


@pytest.mark.parametrize("label, said", [("two lines", r"`two\nlines`"), ("\x1b[32m", r"'\x1b[31m'")])
def test_names_reach_the_terminal_on_one_line_and_without_escape_sequences(tmp_path, run_main, label, said):
    prior = {"num_classes": 2, "id2label": {0: "\x1b[31m", 1: "two\nlines"}}
    support_models.make_model(prior).save_pretrained(tmp_path)
    for words in ([tmp_path, "--class_labels", label], [f"no/{label}/model"]):
        with pytest.raises(SystemExit) as exit_info:
            run_main("scripts/sample.py", *words, "--output_file", tmp_path / "samples.png")
        assert exit_info.value.code.isprintable()
        assert said in exit_info.value.code or words[0] != tmp_path
