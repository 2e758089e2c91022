"""scripts/encode.py, and a prior trained on what it writes: real processes, real clients, a loopback Hub."""

import io
import json
import re
import shlex
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.codes import ENCODING
from hf_vqvae.data.decoding import to_8_bits
from hf_vqvae.data.splits import load_images
from hf_vqvae.hub.card_signature import is_as_signed
from hf_vqvae.hub.download import load_model
from support.hub import HubServer, read_card_metadata
from support.pushes import TOKEN, hub_client
from support.runs import INT, LATEST, TINY, TRAIN, assert_refused, assert_same_run, read
from support.scripts import ROOT

ENCODE = str(ROOT / "scripts/encode.py")
MODEL, IMAGES, CODES = "me/vqvae", "me/images", "me/codes"
# Names that YAML, Markdown or Python could read as something else.
NAMES = ["yes", "a: 'b' \"c\"", "# 3", "😀 `x`", "null"]
# Of a prior alone: stage 1 is that of the model.
PRIOR = ["--vqvae_name_or_path", MODEL, *TINY[TINY.index("--hidden_size") :], "--prior_shift", "0"]


def make_images(count, seed, names=NAMES):
    """Rows of a dataset: the digits of another package, an unknown label among them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    pixels[:, 4:20, 4:20] //= 8
    labels = [-1 if row == 3 else row % len(names) for row in range(count)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels}
    file = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add_token(TOKEN)
        server.add_token("hf_read", role="read")
        parts = {f"data/{name}-00000-of-00001.parquet": make_images(*how) for name, how in SPLITS.items()}
        server.add_repo(IMAGES, {"README.md": b"---\nlicense: mit\n---\n", **parts}, kind="dataset")
        yield server


SPLITS = {"train": (70, 1), "test": (33, 2)}


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with hub_client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def online(client):
    """Runs a script with that Hub, to status 0 unless told otherwise."""

    def run(*words, status=0, token=TOKEN, **options):
        done = client.run(*words, environment={"HF_TOKEN": token} if token else {}, **options)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def model(online, outputs, hub):
    """A VQ-VAE with a prior of that dataset, on the Hub."""
    flags = [*TINY, "--dataset_name", IMAGES, "--prior_shift", "0", "--num_train_epochs", "1"]
    folder = outputs / "model"
    online(TRAIN, *flags, "--output_dir", folder, "--push_to_hub", "--hub_model_id", MODEL)
    return folder


@pytest.fixture(scope="module")
def codes(online, outputs, model):
    """The folder of its codes, which are on the Hub, too."""
    folder = outputs / "codes"
    online(ENCODE, MODEL, "--dataset_name", IMAGES, "--output_dir", folder, "--push_to_hub", CODES)
    return folder


@pytest.fixture(scope="module")
def of_images(online, outputs, codes):
    """A prior trained on the images."""
    folder = outputs / "of-images"
    online(TRAIN, *PRIOR, "--dataset_name", IMAGES, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def of_codes(online, outputs, codes, hub):
    """The same, trained on their codes."""
    folder = outputs / "of-codes"
    hub.requests.clear()
    online(TRAIN, *PRIOR, "--codes_dataset_name", CODES, "--output_dir", folder)
    return folder


def head(hub, name, kind="dataset"):
    return hub.repo(name, kind).find("main")


def test_a_dataset_of_codes_is_one_commit_with_the_files_of_the_folder(hub, codes):
    commit, first = hub.repo(CODES, "dataset").history()
    assert (commit.title, first.title) == (f"Codes of {IMAGES}", "initial commit")
    files = {path.relative_to(codes).as_posix(): path.read_bytes() for path in codes.rglob("*") if path.is_file()}
    parts = {f"data/{name}-00000-of-00001.parquet" for name in SPLITS}
    assert files.keys() == {"README.md", ENCODING, *parts}
    assert {path: blob.content for path, blob in commit.files.items() if path != ".gitattributes"} == files
    assert not codes.with_name("codes.writing").exists()


def test_load_dataset_gives_the_codes_of_the_rows_in_their_order_with_labels_and_names(hub, codes, model):
    vqvae = load_model(str(model)).base_model
    found = datasets.load_dataset(str(codes))
    assert list(found) == ["train", "test"]
    data = DataArguments(str(codes.parent / "images"))
    for name in SPLITS:
        file = codes.parent / "images" / "data" / f"{name}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(head(hub, IMAGES).files[f"data/{file.name}"].content)
    images = load_images(data, vqvae.config)
    for name, part in (("train", images.train), ("test", images.eval)):
        assert found[name].features == datasets.Features(
            codes=datasets.Array2D((7, 7), "int32"), label=datasets.ClassLabel(names=NAMES)
        )
        with torch.no_grad():
            expected = vqvae.encode(part.__getitems__(list(range(len(part))))["pixel_values"]).codes
        assert torch.equal(torch.tensor(found[name]["codes"][:]), expected)
        assert found[name]["label"][:] == part.labels.tolist() and -1 in found[name]["label"][:4]
    assert len(found["train"].with_format("numpy")["codes"][:].reshape(70, -1)) == 70
    info = datasets.load_dataset_builder(str(codes)).info  # of the card alone
    assert info.features == found["train"].features and info.splits["test"].num_examples == 33


def test_streaming_writes_the_same_bytes(online, outputs, codes):
    folder = outputs / "streamed"
    flags = ["--dataset_name", IMAGES, "--streaming", "--batch_size", "16"]
    online(ENCODE, MODEL, *flags, "--output_dir", folder)
    for name in SPLITS:
        file = f"data/{name}-00000-of-00001.parquet"
        assert (folder / file).read_bytes() == (codes / file).read_bytes()
    assert (folder / ENCODING).read_bytes() == (codes / ENCODING).read_bytes()


def test_the_card_names_model_images_license_and_sizes(hub, codes):
    text = head(hub, CODES).files["README.md"].content.decode()
    data = read_card_metadata(text)
    assert is_as_signed(text) and data["license"] == "mit" and data["source_datasets"] == [IMAGES]
    for kind, name in (("model", MODEL), ("dataset", IMAGES)):
        assert re.search(rf"\[`{name}`\].*, revision `{head(hub, name, kind).oid}`", text)
    # 7 x 7 codes of 8, and 28 x 28 grey pixels
    assert "147 bits: 49 codes of log2 8 bits" in text and "6,272 bits" in text
    assert "70 rows, in the order of `train`" in text and "33 rows, in the order of `test`" in text
    record = json.loads((codes / ENCODING).read_text())
    assert (record["model"], record["model_revision"]) == (MODEL, head(hub, MODEL, "model").oid)
    assert (record["name"], record["revision"]) == (IMAGES, head(hub, IMAGES).oid)


def test_the_code_of_the_card_decodes_rows(hub, online, codes, model, tmp_path):
    text = head(hub, CODES).files["README.md"].content.decode()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "card.py").write_text(block)
    online(tmp_path / "card.py", folder=tmp_path)
    rows = torch.tensor(datasets.load_dataset(str(codes), split="test")[:1]["codes"])
    with torch.no_grad():
        expected = to_8_bits(load_model(str(model)).base_model.decode(rows))[0, ..., 0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "decoded.png")), expected)


def test_a_prior_on_codes_is_the_prior_on_their_images_and_sees_no_image(of_images, of_codes, hub):
    for name in ("model.safetensors", "config.json", "history.json", "preprocessor_config.json"):
        assert (of_codes / name).read_bytes() == (of_images / name).read_bytes(), name
    metrics, expected = read(of_codes, "metrics"), read(of_images, "metrics")
    assert expected.keys() - metrics.keys() == {"reconstruction_mse", "psnr", "ssim"}
    assert {"nll", "bits_per_image", "nll_marginal", "codebook_perplexity"} < metrics.keys()
    assert all(metrics[name] == expected[name] for name in metrics)
    figures = {path.stem for path in (of_codes / "figures").glob("*.png")}
    assert figures == {"architecture", "codebook_usage", "samples", "training_curves"}
    assert not any(IMAGES in url for _, url in hub.requests)
    dataset = read(of_codes, "run")["dataset"]
    assert (dataset["name"], dataset["revision"]) == (CODES, head(hub, CODES).oid)
    assert (dataset["train_count"], dataset["validation_count"], dataset["eval_count"]) == (65, 5, 33)


def test_its_card_says_what_it_was_trained_on(of_codes, hub):
    text = (of_codes / "README.md").read_text("utf-8")
    data = read_card_metadata(text)
    assert data["datasets"] == [CODES] and data["base_model"] == MODEL
    assert f"codes of images of `{IMAGES}`" in text and head(hub, IMAGES).oid in text
    assert "Reconstruction MSE" not in text and "figures/reconstructions.png" not in text
    assert "Images come from the column" not in text


def test_it_resumes_to_the_same_bits(online, outputs, codes, of_codes):
    folder, flags = outputs / "resumed", [*PRIOR, "--codes_dataset_name", CODES]
    online(TRAIN, *flags, "--output_dir", folder, signals=[(6, INT)], status=130)
    online(TRAIN, *flags, "--output_dir", folder, *LATEST)
    assert_same_run(folder, of_codes)


def test_two_processes_train_what_one_does(client, outputs, codes, of_codes):
    flags = [*PRIOR, "--vqvae_name_or_path", outputs / "model", "--codes_dataset_name", codes]
    for done in client.run_together(TRAIN, *flags, "--output_dir", outputs / "two"):
        assert done.returncode == 0, done.stderr
    for ours, theirs in zip(
        read(outputs / "two", "history")["prior"], read(of_codes, "history")["prior"], strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.long
def test_rows_are_held_out_as_of_streamed_images_too(online, outputs, codes):
    """The first ones: a VQ-VAE that was trained on a stream has not seen them."""
    for data, folder in (("--dataset_name", IMAGES), ("--codes_dataset_name", CODES)):
        words = [*PRIOR, data, folder, "--streaming", "--max_train_samples", "70"]
        online(TRAIN, *words, "--output_dir", outputs / f"stream{data}")
    assert_same = ("model.safetensors", "history.json")
    for name in assert_same:
        ours, theirs = (outputs / f"stream{data}" / name for data in ("--dataset_name", "--codes_dataset_name"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_slices_of_one_split_are_train_and_test(online, outputs, codes, tmp_path):
    slices = {"train": "train[10:60]", "test": "train[60:]"}
    flags = ["--dataset_name", IMAGES, "--label_column", "none", "--max_train_samples", "40"]
    online(
        *(ENCODE, outputs / "model", *flags, "--output_dir", tmp_path / "codes"),
        *("--train_split", slices["train"], "--eval_split", slices["test"]),
    )
    found, whole = datasets.load_dataset(str(tmp_path / "codes")), datasets.load_dataset(str(codes), split="train")
    assert found["train"].column_names == ["codes"] == found["test"].column_names
    assert found["train"]["codes"][:] == whole["codes"][10:50] and found["test"]["codes"][:] == whole["codes"][60:]
    assert "the local model `model`" in (tmp_path / "codes" / "README.md").read_text("utf-8")
    # A prior without labels, on the folder.
    words = [*PRIOR, "--codes_dataset_name", tmp_path / "codes", "--num_eval_samples", "8"]
    done = online(TRAIN, *words, "--output_dir", tmp_path / "prior")
    assert "Dataset 'codes': codes, no labels" in done.stdout and "The Fréchet distance is left out" in done.stdout
    assert read(tmp_path / "prior", "config")["prior_config"]["num_classes"] is None


@pytest.mark.long
def test_codes_are_read_without_a_network_and_at_the_commit_that_is_named(hub, online, codes, of_codes, tmp_path):
    words = [*PRIOR, "--vqvae_name_or_path", codes.parent / "model", "--codes_dataset_name", CODES]
    cut = hub.fail("GET|HEAD", "/", status="cut", times=999)
    online(TRAIN, *words, "--output_dir", tmp_path / "offline")
    assert cut.times < 999
    hub.failures.clear()
    commit = head(hub, CODES)
    record = json.dumps(json.loads(commit.files[ENCODING].content) | {"weights_sha256": "0" * 64}).encode()
    files = commit.files | {ENCODING: hub._blob(ENCODING, record)}
    hub.repo(CODES, "dataset").add_commit("main", files, "Of another model", "", "me", commit.oid)
    assert_refused(online(TRAIN, *words, "--output_dir", tmp_path / "main", status=1), "--vqvae_name_or_path", MODEL)
    online(TRAIN, *words, "--dataset_revision", commit.oid, "--output_dir", tmp_path / "pinned")
    for name in ("offline", "pinned"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == (of_codes / "model.safetensors").read_bytes()
        assert read(tmp_path / name, "run")["dataset"]["revision"] == commit.oid


def test_codes_of_another_model_are_refused(refuse_codes, hub, codes, model, tmp_path):
    """By its weights first: another VQ-VAE of the same sizes would be trained on noise."""
    state = load_model(str(model))
    state.base_model.quantizer.embedding.weight.data[0] += 1
    state.save_pretrained(tmp_path / "other")
    line = refuse_codes(codes, tmp_path / "other")
    assert MODEL in line and head(hub, MODEL, "model").oid in line and "--vqvae_name_or_path" in line


@pytest.fixture
def refuse_codes(refusal, model, tmp_path):
    """The line with which a run on codes ends."""

    def refuse(codes, name=model, *flags):
        words = ["--codes_dataset_name", codes, "--output_dir", tmp_path / "refused", *flags]
        line = refusal(TRAIN, "--vqvae_name_or_path", name, *words)
        assert not (tmp_path / "refused").exists() and not (tmp_path / "refused.partial").exists()
        return line

    return refuse


def write_codes(folder, values, labels=None):
    """A dataset of codes that another program made."""
    values = np.asarray(values)
    features = datasets.Features(codes=datasets.Array2D(values.shape[1:], "int32"))
    rows = {"codes": values}
    if labels is not None:
        rows["label"], features["label"] = labels, datasets.Value("int64")
    for name in SPLITS:
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    "values, words",
    [
        (np.zeros((4, 7, 6)), ["must be grids of (7, 7)", "(7, 6)"]),
        (np.full((4, 7, 7), 8), ["must be 0 to 7", "got 8"]),
        (np.full((4, 7, 7), -1), ["must be 0 to 7", "got -1"]),
    ],
)
def test_codes_that_the_model_cannot_decode_are_refused(refuse_codes, model, tmp_path, values, words):
    line = refuse_codes(write_codes(tmp_path / "made", values))
    assert all(word in line for word in [*words, str(model), "made"]), line


def test_codes_of_another_program_are_taken(online, model, tmp_path):
    values = np.random.default_rng(0).integers(0, 8, (20, 7, 7))
    folder = write_codes(tmp_path / "made", values, labels=[0, 2] * 10)
    flags = ["--vqvae_name_or_path", model, "--codes_dataset_name", folder, "--train_batch_size", "8"]
    flags += ["--prior_num_train_epochs", "1", "--hidden_size", "8", "--validation_samples", "0"]
    online(TRAIN, *flags, "--output_dir", tmp_path / "run")
    assert read(tmp_path / "run", "config")["prior_config"]["class_frequencies"] == [0.5, 0, 0.5]
    assert "nll" in read(tmp_path / "run", "metrics")


def test_what_is_no_dataset_of_codes_is_named(refuse_codes, codes, tmp_path):
    assert "--codes_dataset_name no/such/folder" in refuse_codes("no/such/folder")
    assert "--eval_split other" in refuse_codes(codes, *(str(codes.parent / "model"), "--eval_split", "other"))
    images = datasets.Dataset.from_dict({"pixels": [[[1]]]})
    for name in SPLITS:
        images.to_parquet(tmp_path / "images" / f"{name}.parquet")
    line = refuse_codes(tmp_path / "images")
    assert "images has no column 'codes', there are 'pixels'" in line


@pytest.mark.parametrize("flags", [(), ("--train_vqvae",), ("--prior_shift", "1")])
def test_flags_that_need_images_are_refused_with_codes(refusal, codes, model, flags):
    given = ("--vqvae_name_or_path", model) if flags else ()
    line = refusal(TRAIN, "--codes_dataset_name", codes, *given, *flags)
    assert "--codes_dataset_name" in line and "--vqvae_name_or_path" in line


def test_what_cannot_be_pushed_is_found_out_before_encoding(hub, online, codes, tmp_path):
    words = [ENCODE, MODEL, "--dataset_name", IMAGES, "--output_dir", tmp_path / "codes", "--push_to_hub"]
    hub.requests.clear()
    assert_refused(online(*words, CODES, token="hf_read", status=1), "can only read")
    assert_refused(online(*words, "you/codes", status=1), "may not create repos under you")
    assert_refused(online(*words, "not a name", status=1), "Repo id must", "'not a name'")
    assert_refused(online(*words, CODES, token=None, status=1), "no token")
    assert not any("resolve" in url for _, url in hub.requests)
    done = online(ENCODE, MODEL, "--output_dir", codes, status=2)
    assert_refused(done, "exists", "--output_dir", status=2)
    assert not (tmp_path / "codes").exists()


def test_a_push_that_fails_leaves_the_codes_and_a_command_that_pushes_them(hub, online, tmp_path):
    hub.fail("POST", r"/api/datasets/me/failed/commit/", status=503, times=9, Retry_After="0")
    words = [ENCODE, MODEL, "--dataset_name", IMAGES, "--output_dir", tmp_path / "codes"]
    done = online(*words, "--push_to_hub", "me/failed", "--hub_private", status=1)
    hub.failures.clear()
    assert "the Hub answered 503" in done.stderr and ("dataset", "me/failed") not in hub.repos
    assert datasets.load_dataset(str(tmp_path / "codes"), split="test").num_rows == 33
    (command,) = re.findall(r"^    (hf upload .*)$", done.stderr, re.MULTILINE)
    program = tmp_path / "hf.py"
    program.write_text("from huggingface_hub.cli.hf import main\n\nmain()\n")
    online(program, *shlex.split(command)[1:])
    repo = hub.repo("me/failed", "dataset")
    assert repo.private and {"README.md", ENCODING} < set(repo.find("main").files)


def test_a_card_that_was_edited_is_not_overwritten(hub, online, codes, tmp_path):
    files = {"README.md": b"By hand.\n", "data/old-00000-of-00001.parquet": b"old"}
    hub.add_repo("me/edited", files, kind="dataset")
    folder = tmp_path / "codes"
    words = [ENCODE, MODEL, "--dataset_name", IMAGES, "--output_dir", folder, "--push_to_hub", "me/edited"]
    done = online(*words, status=1)
    assert "written or edited by hand" in done.stderr
    assert len(hub.repo("me/edited", "dataset").history()) == 2
    shutil.rmtree(folder)
