"""Nearest training images: exact distances."""

import pytest
import torch

from hf_vqvae.evaluation import nearest_neighbors as neighbours_module
from hf_vqvae.evaluation.nearest_neighbors import nearest_images


def some_images(number, seed=0, size=(1, 5, 4)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_the_nearest_are_those_of_all_differences(chunk, monkeypatch):
    monkeypatch.setattr(neighbours_module, "CHUNK", chunk)
    queries, images = some_images(7), some_images(50, seed=1)
    pairs = (queries[:, None].double() - images[None].double()).flatten(2).norm(dim=2) / 255
    expected, rows = pairs.sort(dim=1)
    distances, found = nearest_images(queries, images, 5)
    assert torch.equal(found, rows[:, :5])
    assert torch.allclose(distances.double(), expected[:, :5], atol=1e-5)


def test_a_copy_is_at_0_and_a_change_of_one_value_at_its_size():
    images = some_images(40, size=(3, 16, 16))
    changed = images.clone()
    changed[:, 1, 2, 3] ^= 1
    distances, rows = nearest_images(images, images)
    assert (distances == 0).all() and torch.equal(rows[:, 0], torch.arange(40))
    distances, rows = nearest_images(changed, images)
    assert torch.equal(rows[:, 0], torch.arange(40))
    assert torch.allclose(distances, torch.tensor(1 / 255), atol=1e-7)


def test_nearly_equal_images_come_in_the_right_order():
    # As matrix products in float32 see them, these are all at the same distance.
    images = torch.full((12, 1, 28, 28), 200, dtype=torch.uint8)
    for number in range(12):
        images[number, 0, 0, : 12 - number] = 201
    query = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    distances, rows = nearest_images(query, images, 4)
    assert rows[0].tolist() == [11, 10, 9, 8]
    assert torch.allclose(distances[0] * 255, torch.arange(1.0, 5).sqrt(), atol=1e-3)
