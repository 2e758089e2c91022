"""Muon: orthogonal updates for the kernels between hidden layers, AdamW for all else."""

import copy

import pytest
import torch

from hf_vqvae import VQVAEConfig, VQVAEModel
from hf_vqvae.training.muon import UPDATE_RMS, Muon, is_hidden_kernel, orthogonalize

KERNELS = ("encoder.levels.1.conv", "encoder.conv_out", "decoder.levels.0.conv", "decoder.levels.1.conv")


@pytest.mark.parametrize("shape", [(64, 288), (288, 64), (16, 16), (5, 5), (1, 9)])
def test_an_update_is_about_orthogonal_and_points_the_same_way(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-6
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.4 and values.max() < 1.3  # the coefficients do not converge to 1, on purpose
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.cosine_similarity(orthogonalize(matrix).flatten(), (left @ right).flatten(), dim=0)
    assert cosine > 0.95
    assert torch.equal(orthogonalize(torch.zeros(shape)), torch.zeros(shape))


def train(model, optimizer, steps):
    for step in range(steps):
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)) - 0.5
        optimizer.zero_grad()
        model.train()(images, return_loss=True).loss.backward()
        optimizer.step()


def make_model(channels_last=False):
    torch.manual_seed(0)
    model = VQVAEModel(VQVAEConfig(image_size=8, num_embeddings=8, embedding_dim=8, hidden_sizes=(8, 16)))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def make_optimizer(model, kind=Muon, **options):
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return kind(learned, lr=0.01, weight_decay=0.1, **options)


def test_only_kernels_between_hidden_layers_differ_from_adamw_after_a_step():
    models = []
    for kind in (Muon, torch.optim.AdamW):
        models.append(make_model())  # the seed also starts the codebook
        train(models[-1], make_optimizer(models[-1], kind), 1)
    pairs = zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    differ = {name for (name, one), other in pairs if not torch.equal(one, other)}
    kernels = {name for name, parameter in models[0].named_parameters() if is_hidden_kernel(parameter)}
    assert differ == kernels
    # Not the kernels from and to pixels, nor biases and codebook.
    assert kernels == {f"{name}.weight" for name in KERNELS}


def test_an_update_has_the_size_of_one_of_adamw():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    train(model, make_optimizer(model), 1)
    name = "encoder.levels.1.conv.weight"  # a matrix (16, 72)
    moved = model.state_dict()[name] - before[name] * (1 - 0.01 * 0.1)
    rms = moved.square().mean().sqrt() / 0.01
    assert rms == pytest.approx(UPDATE_RMS, rel=0.4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_restored_state_goes_on_to_the_same_bits(channels_last):
    whole = make_model(channels_last)
    train(whole, make_optimizer(whole), 6)
    first = make_model(channels_last)
    optimizer = make_optimizer(first)
    train(first, optimizer, 3)
    second = make_model(channels_last)
    second.load_state_dict(first.state_dict())
    restored = make_optimizer(second)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)) - 0.5
        restored.zero_grad()
        second.train()(images, return_loss=True).loss.backward()
        restored.step()
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), second.parameters(), strict=True))
