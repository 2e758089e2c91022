"""Keras weights: what Keras computed from its files is what the converted models compute."""

import json
import re
import shutil
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModel

from hf_vqvae import PixelCNNModel, VQVAEForImageGeneration, VQVAEModel
from hf_vqvae.export.keras import convert
from hf_vqvae.export.keras_files import read_variables
from support.hub import HubServer, read_card_metadata
from support.pushes import TOKEN, hub_client
from support.scripts import ROOT

SCRIPT = "scripts/convert_keras.py"
FIXTURES = ROOT / "tests" / "fixtures" / "keras"
SIZES = ["--image_size", "12", "16", "--grid_size", "3", "4"]
VQVAES = ["keras2/trainer_saved_model", "keras2/vqvae_sharded", "keras2/trainer.keras", "keras2/vqvae.h5"]
VQVAES += ["keras3/trainer.keras", "keras3/trainer_saved_model", "keras3/vqvae_exported"]
PRIORS = ["keras2/pixelcnn_saved_model", "keras2/pixelcnn_weights.h5", "keras3/pixelcnn.weights.h5"]


def check(model, keras):
    """Compares what a model computes with what Keras did, for the parts that it has."""
    arrays = np.load(FIXTURES / keras / "reference.npz")
    reference = {name: torch.tensor(arrays[name]) for name in arrays}
    codes, vqvae, prior = reference["codes"], model, model
    if isinstance(model, VQVAEForImageGeneration):
        vqvae, prior = model.vqvae, model.prior
    assert len(codes.unique()) == 6
    with torch.no_grad():
        if not isinstance(model, PixelCNNModel):
            images = reference["images"].permute(0, 3, 1, 2)
            assert torch.equal(vqvae.encode(images).codes, codes)
            expected = reference["reconstructions"].permute(0, 3, 1, 2)
            torch.testing.assert_close(vqvae(images).reconstruction, expected, atol=1e-5, rtol=0)
        if not isinstance(model, VQVAEModel):
            expected = reference["logits"].permute(0, 3, 1, 2)
            torch.testing.assert_close(prior(codes).logits, expected, atol=1e-5, rtol=0)


def converted(*files):
    variables = {}
    for number, file in enumerate(files):
        variables |= {(str(number), *path): array for path, array in read_variables(file).items()}
    return convert(variables, (12, 16), (3, 4))


@pytest.fixture
def copy(tmp_path):
    def make(name):
        source, target = FIXTURES / name, tmp_path / name.split("/")[1]
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        return target

    return make


# Files of Keras


@pytest.mark.parametrize("file", VQVAES + PRIORS)
def test_every_form_computes_what_keras_did(file):
    model = converted(FIXTURES / file)
    assert type(model) is (PixelCNNModel if file in PRIORS else VQVAEModel)
    check(model, file.split("/")[0])


def test_sizes_are_those_of_the_shapes():
    config = converted(FIXTURES / VQVAES[0], FIXTURES / PRIORS[0]).config
    vqvae, prior = config.vqvae_config, config.prior_config
    assert (vqvae.hidden_sizes, vqvae.num_channels, vqvae.embedding_dim, vqvae.num_embeddings) == ((4, 6), 1, 5, 6)
    assert (prior.kernel_size, prior.hidden_size, prior.num_embeddings, prior.grid_size) == (7, 6, 6, (3, 4))
    assert (prior.architecture, prior.num_residual_blocks, prior.num_pixelcnn_layers) == ("plain", 2, 2)


def test_masks_are_applied_to_what_the_last_step_of_training_left_behind_them():
    for file in PRIORS:
        kernels = [array for array in read_variables(FIXTURES / file).values() if array.shape[:2] == (7, 7)]
        assert len(kernels) == 1 and np.abs(kernels[0][4:]).max() > 1e-3


def test_both_networks_may_be_in_one_file_and_in_any_order(tmp_path):
    for order in (["vqvae", "prior"], ["prior", "vqvae"]):
        with h5py.File(tmp_path / "both.h5", "w") as both:
            both.attrs["layer_names"] = order
            for name, file in (("vqvae", "vqvae.h5"), ("prior", "pixelcnn_weights.h5")):
                with h5py.File(FIXTURES / "keras2" / file) as source:
                    root = source.get("model_weights", source)
                    groups = [root[layer] for layer in root.attrs["layer_names"]]
                    arrays = [group[weight][()] for group in groups for weight in group.attrs["weight_names"]]
                names = [f"no name {number}" for number in range(len(arrays))]
                group = both.create_group(name)
                group.attrs["weight_names"] = names
                for place, array in zip(names, arrays, strict=True):
                    group[place] = array
        check(convert(read_variables(tmp_path / "both.h5"), (12, 16)), "keras2")


@pytest.mark.parametrize(
    ("file", "names"),
    [
        # Other names of attributes and classes, which sort the decoder before the encoder, and layers otherwise.
        ("keras3/trainer.keras", {"functional_1": "a", "functional": "z", "conv2d": "m", "vector_quantizer": "b"}),
        ("keras3/pixelcnn.weights.h5", {"conv1": "third", "pixel_conv": "first", "conv2": "second", "conv2d": "zz"}),
        (
            "keras3/pixelcnn.weights.h5",
            {"pixel_conv_layer": "z", "residual_block": "a", "conv2d": "mm", "layers": "l10"},
        ),
    ],
)
def test_layers_are_found_by_other_names(file, names):
    def renamed(part):
        base, number = re.fullmatch(r"(.*?)((?:_\d+)?)", part).groups()
        return names.get(part, names.get(base, base) + number)

    variables = read_variables(FIXTURES / file)
    moved = {tuple(map(renamed, path)): array for path, array in reversed(variables.items())}
    assert len(moved) == len(variables) and moved.keys() != variables.keys()
    check(convert(moved, (12, 16), (3, 4)), "keras3")


# Files that cannot be read


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_changed_byte_is_found_by_its_checksum_in_data_and_index(copy):
    for name, place in (("variables.data-00000-of-00001", 2000), ("variables.index", 100)):
        folder = copy("keras2/trainer_saved_model")
        flip(folder / "variables" / name, place)
        with pytest.raises(ValueError, match=r"cannot read .*variables\.index \(the checksum of .* is wrong\)"):
            read_variables(folder)
        shutil.rmtree(folder)


def test_a_compressed_block_is_named(copy):
    index = copy("keras2/trainer_saved_model") / "variables" / "variables.index"
    content = index.read_bytes()
    kind = len(content) - 48 - 5  # of the last block: before its checksum and the footer
    index.write_bytes(content[:kind] + b"\1" + content[kind + 1 :])
    with pytest.raises(ValueError, match=r"a block of the index is compressed \(type 1; 1 is Snappy\)"):
        read_variables(index)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2663\n",
            "no index of a TensorFlow checkpoint",
        ),
        (b"", "no index of a TensorFlow checkpoint"),
    ],
)
def test_a_pointer_of_git_lfs_and_an_empty_file_are_named(copy, content, reason):
    folder = copy("keras2/trainer_saved_model")
    (folder / "variables" / "variables.index").write_bytes(content)
    with pytest.raises(ValueError, match=f"{reason}.*Git LFS"):
        read_variables(folder)
    for name in ("weights.h5", "weights.keras"):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*{name}.*Git LFS"):
            read_variables(folder / name)


@pytest.mark.parametrize("file", ["keras2/vqvae.h5", "keras3/trainer.keras", "keras2/vqvae_sharded"])
def test_a_file_that_was_cut_off_is_an_error(copy, file):
    path = copy(file)
    cut = path / "variables" / "variables.data-00001-of-00002" if path.is_dir() else path
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot read the Keras weights"):
        read_variables(path)
    cut.unlink()
    if path.is_dir():
        with pytest.raises(ValueError, match=r"variables\.data-00001-of-00002"):
            read_variables(path)


def test_an_archive_without_weights_and_a_folder_with_several_files_are_errors(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"a\.keras .*model\.weights\.h5"):
        read_variables(tmp_path)
    shutil.copyfile(FIXTURES / "keras2/vqvae.h5", tmp_path / "b.h5")
    with pytest.raises(ValueError, match=r"got a\.keras, b\.h5: name the file"):
        read_variables(tmp_path)


# Other networks


def other(change):
    variables = read_variables(FIXTURES / "keras2/trainer.keras")
    change(variables)
    return variables


def key(variables, *shape):
    return next(path for path, array in variables.items() if array.shape == shape)


CHANGES = {
    "no codebook": lambda v: v.pop(key(v, 5, 6)),
    "no 1x1": lambda v: [v.pop(key(v, 1, 1, 6, 5)), v.pop(key(v, 5))],
    "no last layer": lambda v: [v.pop(key(v, 3, 3, 1, 4)), v.pop(key(v, 4))],
    "a bias less": lambda v: v.pop(key(v, 1)),
    "a dense layer": lambda v: v.update({("dense", "0"): np.zeros((4, 4), "f4"), ("dense", "1"): np.zeros(4, "f4")}),
    "normalization": lambda v: v.update({("norm", str(n)): np.zeros(4, "f4") for n in range(4)}),
    "5x5 kernels": lambda v: v.update({key(v, 3, 3, 4, 6): np.zeros((5, 5, 4, 6), "f4")}),
    "another decoder": lambda v: v.update({key(v, 3, 3, 6, 5): np.zeros((3, 3, 9, 5), "f4")}),
    "one layer more": lambda v: v.update(
        {("more", "0"): np.zeros((3, 3, 6, 6), "f4"), ("more", "1"): np.zeros(6, "f4")}
    ),
    "nothing": lambda v: v.clear(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_architecture_is_an_error_that_names_what_was_found(change, tmp_path, refusal):
    variables = other(CHANGES[change])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        for path, array in variables.items():
            file["/".join(path)] = array
    line = refusal(SCRIPT, tmp_path / "other.h5", "--output_dir", tmp_path / "out", *SIZES)
    assert "cannot convert" in line and "other.h5: " in line and "The VQ-VAE of the Keras example has" in line
    shapes = sorted(str(array.shape) for array in variables.values())
    assert sorted(re.findall(r"\([\d, ]+\)", line.split("Found: ")[1])) == [s for s in shapes if s != "()"]
    assert [path.name for path in tmp_path.iterdir()] == ["other.h5"]


def test_weights_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match=r"not finite"):
        convert(other(lambda v: v.update({key(v, 5, 6): np.full((5, 6), np.nan, "f4")})), (12, 16))


# The script


def test_sizes_that_do_not_fit_and_what_is_there_already_are_errors(refusal, tmp_path):
    vqvae, to = FIXTURES / "keras2/vqvae.h5", ["--output_dir", tmp_path / "out"]
    assert "`image_size` must be a multiple of 4" in refusal(SCRIPT, vqvae, *to, "--image_size", "30")
    assert "is no name of a repo. Name a SavedModel" in refusal(SCRIPT, tmp_path / "nowhere", *to)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "exists and is not empty" in refusal(SCRIPT, vqvae, *to)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_missing_package_is_one_line(refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    line = refusal(SCRIPT, FIXTURES / "keras2/vqvae.h5", "--output_dir", tmp_path / "out")
    assert "h5py" in line and ",keras]'" in line
    assert not list(tmp_path.iterdir())


def test_a_repo_of_the_hub_is_converted_and_pushed(tmp_path):
    saved = FIXTURES / "keras2/trainer_saved_model/variables"
    files = {f"variables/{path.name}": path.read_bytes() for path in saved.iterdir()}
    files |= {"saved_model.pb": b"never read", "keras_metadata.pb": b"never read", "README.md": b"# A VQ-VAE\n"}
    files["old/pixelcnn.h5"] = (FIXTURES / "keras2/pixelcnn_weights.h5").read_bytes()
    with HubServer() as hub, hub_client(hub, tmp_path) as client:
        hub.add_token(TOKEN)
        hub.add_repo("lab/vq-vae", files=files)
        words = ["--prior", "lab/vq-vae@main/old/pixelcnn.h5", "--output_dir", "outputs/keras", *SIZES]
        done = client.run(SCRIPT, "lab/vq-vae", *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "outputs/keras: VQVAEForImageGeneration of 3,218 parameters\n"
        read = {path.split("/resolve/")[1].split("/", 1)[1] for _, path in hub.requests if "/resolve/" in path}
        assert read == {name for name in files if name.startswith("variables/") or name.endswith(".h5")}

        pushing = ["scripts/push_to_hub.py", "outputs/keras", "--hub_model_id", "me/vq-vae", "--hub_license", "mit"]
        done = client.run(*pushing, folder=tmp_path, environment={"HF_TOKEN": TOKEN})
        assert done.returncode == 0, done.stderr
        pushed = hub.repo("me/vq-vae").find("main").files
    card = pushed["README.md"].content.decode()
    metadata = read_card_metadata(card)
    assert (metadata["base_model"], metadata["license"]) == ("lab/vq-vae", "mit")
    source = f"[`lab/vq-vae`](https://huggingface.co/lab/vq-vae) (commit `{hub.repo('lab/vq-vae').find('main').oid}`)"
    assert f"converted by `scripts/convert_keras.py` from {source} and [`lab/vq-vae`]" in card
    assert "keras.io/examples/generative/vq_vae" in card and 'model_id = "me/vq-vae"' in card
    assert str(tmp_path) not in card
    model = VQVAEForImageGeneration.from_pretrained(tmp_path / "outputs" / "keras")
    check(model, "keras2")
    assert model.sample(2, output_type="pil")[0].size == (16, 12)


def test_a_prior_alone_is_a_model_with_a_card(run_main, tmp_path, capsys):
    run_main(SCRIPT, FIXTURES / PRIORS[0], "--output_dir", tmp_path / "out", *SIZES)
    check(AutoModel.from_pretrained(tmp_path / "out"), "keras2")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "Converted from pixelcnn_saved_model, a PixelCNN of the Keras example." in card
    model = PixelCNNModel.from_pretrained(tmp_path / "out")
    model.save_for_hub(tmp_path / "again", "me/prior")  # as a push does
    assert "Converted from" in (tmp_path / "again" / "README.md").read_text("utf-8")


def test_a_converted_vqvae_is_measured(scripts, tmp_path):
    words = [FIXTURES / VQVAES[0], "--output_dir", tmp_path / "vqvae"]
    assert scripts.run(SCRIPT, *words, folder=tmp_path).returncode == 0
    measured = ["--dataset_name", "digits", "--num_samples", "0", "--output_file", tmp_path / "metrics.json"]
    done = scripts.run("scripts/evaluate.py", tmp_path / "vqvae", *measured, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["codes_used"]["value"] >= 1
