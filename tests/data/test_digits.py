"""The embedded digits."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits as load_small_digits

from hf_vqvae.data.digits import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def pixels_of(rows):
    return np.stack([np.asarray(image) for image in rows["image"]])


def test_the_digits_have_a_train_and_a_test_part_of_mnist_like_images(digits):
    assert {name: len(rows) for name, rows in digits.items()} == {"train": 1497, "test": 300}
    pixels = pixels_of(digits["train"])
    assert pixels.shape == (1497, 28, 28) and pixels.dtype == np.uint8
    assert pixels.min() == 0 and pixels.max() == 255
    assert not pixels[:, [0, -1]].any() and not pixels[:, :, [0, -1]].any(), "an empty margin"


def test_every_digit_of_scikit_learn_is_in_exactly_one_part(digits):
    small = load_small_digits()
    labels = [*digits["train"]["label"], *digits["test"]["label"]]
    assert np.bincount(labels).tolist() == np.bincount(small.target).tolist()
    # No two of the originals are equal, nor are the enlarged ones.
    pixels = np.concatenate([pixels_of(digits["train"]), pixels_of(digits["test"])])
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(small.target)


def test_the_digits_are_the_same_on_every_machine_and_call(digits):
    again = load_digits()
    for split in digits:
        assert (pixels_of(again[split]) == pixels_of(digits[split])).all()
        assert list(again[split]["label"]) == list(digits[split]["label"])
    labels = bytes(digits["test"]["label"])
    assert hashlib.sha256(labels).hexdigest()[:16] == "463542173558abe8"
