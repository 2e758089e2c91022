"""Images in arrays: idx, npz and CSV files, by path or folder, as people have MNIST."""

import gzip

import numpy as np
import pytest

from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.arrays import load_arrays
from hf_vqvae.data.sources import DataError
from hf_vqvae.data.splits import load_images
from hf_vqvae.models import VQVAEConfig

CONFIG = VQVAEConfig(image_size=8)
TRAIN, TEST = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8), dtype=np.uint8)
LABELS = {"train": [3, 0, 1, 1, 2], "test": [0, 1, 2, 3, 0]}


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_idx(folder, suffix="", pack=bytes):
    for split, prefix, images in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS[split])))


def write_csv(folder, header=True, labels=True):
    for split, images in (("train", TRAIN), ("test", TEST)):
        rows = np.column_stack([LABELS[split], images.reshape(5, -1)])[:, 0 if labels else 1 :]
        names = [*["label"] * labels, *(f"pixel{number}" for number in range(64))]
        text = [names] * header + rows.tolist()
        (folder / f"mnist_{split}.csv").write_text("\n".join(",".join(map(str, row)) for row in text))


def write_npz(folder, images="x_{}", labels="y_{}", shape=(5, 8, 8)):
    arrays = {images.format("train"): TRAIN.reshape(shape), images.format("test"): TEST}
    arrays |= {labels.format(split): np.array(values)[:, None] for split, values in LABELS.items()}
    np.savez(folder / "mnist.npz", **arrays)


def write_names(folder):
    write_npz(folder, "{}_images", "{}_labels", (5, 8, 8, 1))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "write, file",
    [
        (write_idx, None),
        (lambda folder: write_idx(folder, ".gz", gzip.compress), None),
        (write_csv, None),
        (lambda folder: write_csv(folder, header=False), None),
        (write_npz, "mnist.npz"),
        (write_names, None),
    ],
    ids=["idx", "gz", "csv", "csv without header", "npz", "npz of MedMNIST"],
)
def test_images_in_arrays_are_read_with_their_labels(tmp_path, write, file, streaming):
    write(tmp_path)
    path = tmp_path / file if file else tmp_path
    splits = load_images(DataArguments(dataset_name=str(path), streaming=streaming), CONFIG)
    assert (splits.eval.images[:, 0].numpy() == TEST).all()
    assert splits.eval.labels.tolist() == LABELS["test"]
    rows = list(splits.train)
    pixels = np.stack([row["pixel_values"][0].numpy() for row in rows])
    assert (np.rint((pixels + 0.5) * 255) == TRAIN).all()
    assert [int(row["labels"]) for row in rows] == LABELS["train"]
    assert splits.info["kind"] == "arrays" and splits.info["name"] == path.name


def test_colour_and_images_without_labels(tmp_path):
    np.savez(tmp_path / "colours.npz", x_train=np.stack([TRAIN] * 3, axis=-1))
    rows = load_arrays(tmp_path / "colours.npz")["train"]
    assert rows[0]["image"].mode == "RGB" and rows.column_names == ["image"]
    write_csv(tmp_path, labels=False)
    rows = load_arrays(tmp_path / "mnist_test.csv")
    assert list(rows) == ["test"] and (np.asarray(rows["test"][4]["image"]) == TEST[4]).all()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train-images-idx3-ubyte", idx(TRAIN)[:-1], "train-images-idx3-ubyte is no idx file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(TRAIN))[:50], "end-of-stream"),
        ("a.npz", {"x_train": TRAIN / 255}, r"in a\.npz must be uint8 .*got float64 \(5, 8, 8\)"),
        ("a.npz", {"x_train": TRAIN, "y_train": [1]}, "has 5 images and 1 labels"),
        ("a.npz", {"x_train": TRAIN, "train_images": TRAIN}, "is a second split 'train'"),
        ("a.npz", {"x_train": np.array([{}])}, "allow_pickle"),
    ],
)
def test_arrays_that_are_no_images_are_named(tmp_path, name, content, message):
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"`--dataset_name {tmp_path}`: .*{message}"):
        load_images(DataArguments(dataset_name=str(tmp_path)), CONFIG)


def test_a_table_of_other_numbers_is_one_short_line(tmp_path):
    """Of MNIST's size, but a value is no pixel."""
    names = ["label", *(f"x{number}" for number in range(784))]
    for split in ("train", "test"):
        rows = [",".join(names), ",".join(["0.5"] * 785)]
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    settings = {"dataset_name": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(DataError, match=r"No column has images; .*'x3' and 780 more") as error:
        load_images(DataArguments(**settings), CONFIG)
    assert len(str(error.value)) < 300
