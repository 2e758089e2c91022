"""Read datasets of images in arrays: idx and npz files, and CSV files of pixels."""

import gzip
import math
import re
from collections.abc import Iterator
from pathlib import Path
from zipfile import is_zipfile

import datasets
import numpy as np
import pandas as pd
from PIL import Image

IDX_IMAGES = re.compile(r"images([-.])idx3-ubyte(\.gz)?$")
SMALLEST = 8  # side of the images of a CSV file, lest another table is taken for one

Part = tuple[str, np.ndarray, np.ndarray | None]  # name, images and labels of a split


def load_arrays(path: str | Path) -> datasets.DatasetDict | None:
    """Load the images of one file, or of all files in a folder; None if no file holds images in an array.

    - idx, as MNIST is published: `train-images-idx3-ubyte`, also with `.gz`, with the labels in a file beside it.
    - npz: `x_train` and `y_train` as Keras names them, or `train_images` and `train_labels`, and so for other splits.
    - CSV, as Kaggle has MNIST: each row a square grey image, with its label before it if it has one, header or not.

    The name of the file, or of the array in an npz file, tells the split: `test` (or `t10k`), `validation`, or `train`.

    Raises:
        ValueError: if a file is damaged, its arrays are not images of 8 bits, or two files are the same split.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.iterdir())
    splits = datasets.DatasetDict()
    for file in files:
        for name, images, labels in _read(file):
            split = "test" if re.search("test|t10k", name.lower()) else "train"
            split = "validation" if "val" in name.lower() else split
            if split in splits:
                raise ValueError(f"{file.name} is a second split {split!r}: name one of the files.")
            splits[split] = _as_rows(file.name, images, labels)
    return splits or None


def _read(file: Path) -> Iterator[Part]:
    if IDX_IMAGES.search(file.name):
        labels = IDX_IMAGES.sub(r"labels\1idx1-ubyte\2", file.name)
        beside = file.with_name(labels)
        yield file.name, _read_idx(file), _read_idx(beside) if beside.exists() else None
    elif file.suffix == ".npz":
        if not is_zipfile(file):
            raise ValueError(f"{file.name} is no npz file, or is damaged.")
        with np.load(file) as arrays:  # of no Python objects
            for name in arrays.files:
                if re.match("x_|.*images?$", name):
                    beside = name.replace("x_", "y_").replace("image", "label")
                    yield name, arrays[name], arrays[beside] if beside in arrays.files else None
    elif re.search(r"\.csv(\.gz)?$", file.name):
        yield from _read_csv(file)


def _read_idx(file: Path) -> np.ndarray:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        content = stream.read()
    kind, dimensions = content[2:4]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    if kind != 8 or len(content) != 4 + 4 * dimensions + shape.prod(dtype=int):
        raise ValueError(f"{file.name} is no idx file of bytes, or is damaged.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _read_csv(file: Path) -> Iterator[Part]:
    try:
        first = pd.read_csv(file, header=None, nrows=1)
    except ValueError:  # no table: that is for `datasets` to say
        return
    columns = first.shape[1]
    has_label = math.isqrt(columns) ** 2 != columns
    side = math.isqrt(columns - has_label)
    if side < SMALLEST or side**2 + has_label != columns:
        return
    is_header = isinstance(first.iloc[0, -1], str)
    table = pd.read_csv(file, header=0 if is_header else None)
    pixels = table.iloc[:, int(has_label) :].to_numpy()
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        labels = table.iloc[:, 0].to_numpy() if has_label else None
        yield file.name, pixels.astype(np.uint8).reshape(-1, side, side), labels


def _as_rows(name: str, images: np.ndarray, labels: np.ndarray | None) -> datasets.Dataset:
    if images.shape[3:] == (1,):
        images = images[..., 0]
    is_colored = images.shape[3:] in ((3,), (4,))
    if images.dtype != np.uint8 or images.ndim - is_colored != 3:
        raise ValueError(
            f"the images in {name} must be uint8 of shape (N, H, W) or (N, H, W, 1, 3 or 4), got "
            f"{images.dtype} {images.shape}."
        )
    columns = {"image": [Image.fromarray(image) for image in images]}
    if labels is not None:
        if labels.size != len(images):
            raise ValueError(f"{name} has {len(images)} images and {labels.size} labels.")
        columns["label"] = labels.flatten().tolist()
    return datasets.Dataset.from_dict(columns)
