"""The embedded dataset: the handwritten digits that scikit-learn ships, at MNIST's size."""

import datasets
import numpy as np
from PIL import Image

NUM_TEST_DIGITS = 300


def load_digits() -> datasets.DatasetDict:
    """Load the 1,797 handwritten digits of scikit-learn (Alpaydin and Kaynak 1998, UCI), 8x8 pixels of 17 greys,
    enlarged to 28x28: `train` (1,497 rows) and `test` (300, stratified by class), in a fixed random order.

    `image` is 8-bit grey, white on black, `label` the digit. They come with scikit-learn (extra `demo`).
    """
    from sklearn.datasets import load_digits as load_small_digits

    digits = load_small_digits()
    # numpy keeps the stream of RandomState fixed, unlike that of newer generators.
    order = np.random.RandomState(0).permutation(len(digits.target))
    by_class = order[np.argsort(digits.target[order], kind="stable")]
    test = by_class[np.arange(NUM_TEST_DIGITS) * len(order) // NUM_TEST_DIGITS]
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    )

    def as_rows(indices: np.ndarray) -> datasets.Dataset:
        images = [_enlarge_digit(digits.images[index]) for index in indices]
        rows = {"image": images, "label": digits.target[indices].tolist()}
        return datasets.Dataset.from_dict(rows, features=features)

    in_test = np.isin(order, test)
    return datasets.DatasetDict(train=as_rows(order[~in_test]), test=as_rows(order[in_test]))


def _enlarge_digit(digit: np.ndarray) -> Image.Image:
    """Enlarge (8, 8) with values 0 to 16 to 28x28 pixels with strokes and margins as in MNIST."""
    # An empty border of one pixel gives soft edges to strokes that touch the border; 10 -> 26 makes digits about 20
    # pixels high, as in MNIST.
    grey = np.pad(np.rint(digit * (255 / 16)).astype(np.uint8), 1)
    enlarged = Image.fromarray(grey).resize((26, 26), Image.Resampling.BICUBIC)
    return Image.fromarray(np.pad(np.asarray(enlarged), 1))
