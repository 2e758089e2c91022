"""Images encoded to codes: by one process and by several, from memory and from a stream, and read again."""

from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vqvae import VQVAEConfig, VQVAEModel
from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.codes import CodesDataset, encode_split
from hf_vqvae.data.decoding import DecodedImages
from hf_vqvae.data.splits import StreamedImages, load_images
from hf_vqvae.training.run_directory import RunDirectory

COUNTS = (1, 12, 17)  # in batches of 4: fewer rows, whole batches, an uneven one


@cache
def load_all(streaming):
    data = DataArguments("digits", max_train_samples=20, max_eval_samples=1, streaming=streaming)
    return load_images(data, VQVAEConfig()).train


def load(count, streaming):
    images = load_all(streaming)
    if streaming:
        return StreamedImages(images.rows.take(count), images.decoder)
    return DecodedImages(images.images[:count], images.labels[:count])


def encode(vqvae, count, streaming, accelerator, output):
    """Into OUTPUT/<count>-<streaming>.partial/codes/train."""
    folder = RunDirectory(output / f"{count}-{streaming}")
    if accelerator.is_main_process:
        folder.partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    return encode_split(vqvae, load(count, streaming), "train", 4, accelerator, folder.partial)


@pytest.fixture(scope="module")
def vqvae():
    torch.manual_seed(0)
    vqvae = VQVAEModel(VQVAEConfig(hidden_sizes=(4, 8), embedding_dim=4, num_embeddings=16)).eval()
    with torch.no_grad():
        vqvae.quantizer.embedding.weight.normal_(0, 0.05)
    return vqvae


@pytest.fixture(scope="module")
def one_process(vqvae, accelerator, tmp_path_factory):
    """What one process writes of the images in memory."""
    output = tmp_path_factory.mktemp("one")
    for count in COUNTS:
        encode(vqvae, count, False, accelerator, output)
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_codes_on_disk_are_those_of_the_model_with_the_features_they_always_had(vqvae, one_process):
    folder = one_process / "17-False.partial" / "codes" / "train"
    table = datasets.load_from_disk(str(folder))
    grid = datasets.Array2D((7, 7), "int32")
    assert table.features == datasets.Features(codes=grid, label=datasets.Value("int64"))
    images = load(17, False)
    with torch.no_grad():
        expected = vqvae.encode(images.__getitems__(list(range(17)))["pixel_values"]).codes
    codes = torch.tensor(table["codes"][:])
    assert torch.equal(codes, expected) and len(codes.unique()) > 4
    assert table["label"][:] == images.labels.tolist()
    assert [path.name for path in folder.parent.iterdir()] == ["train"]


def test_a_stream_is_encoded_to_the_same_files(vqvae, accelerator, one_process, tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for count in COUNTS:
        encode(vqvae, count, True, accelerator, tmp_path)
        streamed = tmp_path / f"{count}-True.partial" / "codes" / "train"
        expected = one_process / f"{count}-False.partial" / "codes" / "train"
        assert contents(streamed) == contents(expected)
    # A resumed run finds the codes, and must find the same random numbers after them.
    assert torch.equal(torch.get_rng_state(), before)


def encode_together(model, output):
    accelerator = Accelerator(cpu=True)
    vqvae = VQVAEModel.from_pretrained(model)
    for count in COUNTS:
        for streaming in (False, True):
            assert len(encode(vqvae, count, streaming, accelerator, Path(output))) == count
    accelerator.end_training()


def test_several_processes_read_the_files_of_one(vqvae, one_process, scripts, tmp_path):
    vqvae.save_pretrained(tmp_path / "model")
    scripts.call_together(encode_together, tmp_path / "model", tmp_path)
    for count in COUNTS:
        expected = contents(one_process / f"{count}-False.partial" / "codes" / "train")
        for streaming in (False, True):
            folder = tmp_path / f"{count}-{streaming}.partial" / "codes"
            assert contents(folder / "train") == expected, (count, streaming)
            assert [path.name for path in folder.iterdir()] == ["train"]


def test_images_without_labels_have_codes_alone(vqvae, accelerator, tmp_path):
    images = load(5, False)
    images.labels = None
    folder = RunDirectory(tmp_path / "run")
    folder.partial.mkdir()
    codes = encode_split(vqvae, images, "train", 256, accelerator, folder.partial)
    assert set(codes.__getitems__([4, 0])) == {"codes"} and codes.labels is None


def test_what_a_killed_session_left_half_written_is_written_anew(vqvae, accelerator, tmp_path):
    folder = RunDirectory(tmp_path / "run")
    codes = folder.partial / "codes"
    (codes / "train.writing").mkdir(parents=True)
    (codes / "train.writing" / "data-00000-of-00001.arrow").write_bytes(b"half")
    (codes / "train.arrow.writing").write_bytes(b"half")
    images = load(5, False)
    assert len(encode_split(vqvae, images, "train", 256, accelerator, folder.partial)) == 5
    assert [path.name for path in codes.iterdir()] == ["train"]


def test_a_row_that_cannot_be_encoded_leaves_no_codes(accelerator, vqvae, tmp_path):
    images = load(9, True)
    images.rows = images.rows.map(break_row_7, with_indices=True)
    folder = RunDirectory(tmp_path / "run")
    folder.partial.mkdir()
    with pytest.raises(ValueError, match="row 7 of split 'train'"):
        encode_split(vqvae, images, "train", 4, accelerator, folder.partial)
    assert not (folder.partial / "codes" / "train").exists()


def break_row_7(row, number):
    return {"image": {"bytes": b"no image", "path": None}} if number == 7 else {}


def test_frequencies_are_those_of_the_rows_with_a_label():
    codes = CodesDataset([np.zeros((6, 2, 3), np.int32)], np.array([0, 2, -1, 0, 2, 2]))
    assert codes.class_frequencies(4) == [0.4, 0, 0.6, 0]


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.integers(1, 5), min_size=1, max_size=5), labelled=st.booleans(), data=st.data())
def test_rows_are_found_in_whatever_parts_they_lie_on_disk(tmp_path_factory, parts, labelled, data):
    """Against the same rows in memory: repeated, backwards, over the borders of the parts."""
    random = np.random.default_rng(0)
    total = sum(parts)
    codes = random.integers(0, 9, (total, 2, 3))
    labels = random.integers(-1, 4, total)
    columns, features = {"codes": codes}, {"codes": datasets.Array2D((2, 3), "int32")}
    if labelled:
        columns["label"], features["label"] = labels, datasets.Value("int64")
    ends = np.cumsum(parts)
    tables = [
        datasets.Dataset.from_dict(
            {name: values[end - size : end] for name, values in columns.items()}, features=datasets.Features(features)
        )
        for size, end in zip(parts, ends, strict=True)
    ]
    folder = tmp_path_factory.mktemp("codes") / "train"
    datasets.concatenate_datasets(tables).save_to_disk(str(folder), num_shards=len(parts))
    opened = CodesDataset.open(datasets.load_from_disk(str(folder)))
    inside = CodesDataset([codes], labels if labelled else None)
    rows = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=9))
    here, there = opened.__getitems__(rows), inside.__getitems__(rows)
    assert len(opened) == len(inside) == total and set(here) == set(there)
    for name, values in here.items():
        assert values.dtype == torch.int64 and torch.equal(values, there[name])
    assert torch.equal(here["codes"], torch.from_numpy(codes[rows]))
