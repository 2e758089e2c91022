"""PixelCNN: causality, the masked convolutions against plain ones, sampling."""

import math

import pytest
import torch
from torch import nn

from hf_vqvae import PixelCNNConfig, PixelCNNModel
from hf_vqvae.models.modeling_pixelcnn import CodeConv2d, MaskedConv2d


def make_prior(**settings):
    torch.manual_seed(0)
    small = {"num_embeddings": 6, "grid_size": (4, 5), "hidden_size": 16}
    prior = PixelCNNModel(PixelCNNConfig(**{**small, **settings}))
    for name, parameter in prior.named_parameters():
        if name.endswith("bias"):  # so that no ReLU hides a dependence
            nn.init.normal_(parameter, mean=1.0, std=0.3)
        else:
            nn.init.normal_(parameter, std=0.2)
    return prior.eval()


def make_codes(config, batch=3):
    return torch.randint(config.num_embeddings, (batch, *config.grid_size))


def test_the_default_has_the_parameters_of_the_example():
    prior = PixelCNNModel(PixelCNNConfig())
    assert sum(p.numel() for p in prior.parameters()) == 1_049_728 == prior.num_parameters()


def one_hot(codes, planes):
    return nn.functional.one_hot(codes, planes).permute(0, 3, 1, 2).float()


def masked(weight, sees_centre):
    """The weight (C, I, k, k) with zeros at every tap after the centre, and there unless `sees_centre`."""
    weight = weight.clone()
    centre = weight.shape[-1] // 2
    weight[:, :, centre + 1 :] = 0
    weight[:, :, centre, centre + sees_centre :] = 0
    return weight


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 3), (7, 7)])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_code_convolution_equals_the_masked_one_over_one_hot_planes(kernel_size, size):
    layer = CodeConv2d(6, 4, kernel_size)
    nn.init.normal_(layer.bias)
    assert layer.weight.shape == (4, 6, kernel_size, kernel_size)
    codes = torch.randint(6, (3, *size))
    weight = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    expected = nn.functional.conv2d(
        one_hot(codes, 6), masked(weight, False), bias, padding=kernel_size // 2
    )
    output = layer(codes)
    above = torch.randn_like(expected)
    output.backward(above)
    expected.backward(above)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 3), (7, 7)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_masked_convolution_equals_the_plain_one_with_a_masked_kernel(kernel_size, size):
    layer = MaskedConv2d(3, 4, kernel_size)
    hidden = torch.randn(2, 3, *size, requires_grad=True)
    plain = hidden.detach().clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    expected = nn.functional.conv2d(
        plain, masked(weight, True), layer.bias.detach(), padding=kernel_size // 2
    )
    output = layer(hidden)
    above = torch.randn_like(expected)
    output.backward(above)
    expected.backward(above)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(hidden.grad, plain.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)


@pytest.mark.parametrize(("mask", "sees_centre"), [("A", False), ("B", True)])
def test_a_single_layer_sees_its_whole_past_and_nothing_else(mask, sees_centre):
    size = 7
    seen = torch.zeros(size, size, dtype=torch.bool)
    if mask == "B":
        image = torch.zeros(1, 1, size, size, requires_grad=True)
        MaskedConv2d(1, 1, kernel_size=5)(image)[0, 0, 3, 3].backward()
        seen = image.grad[0, 0] != 0
    else:
        layer = CodeConv2d(2, 1, kernel_size=5)
        codes = torch.zeros(1, size, size, dtype=torch.long)
        for i in range(size):
            for j in range(size):
                changed = codes.clone()
                changed[0, i, j] = 1
                seen[i, j] = (layer(changed) != layer(codes))[0, 0, 3, 3]
    expected = torch.zeros(size, size, dtype=torch.bool)
    expected[1:3, 1:6] = True
    expected[3, 1:3] = True
    expected[3, 3] = sees_centre
    assert torch.equal(seen, expected)


class PlanesConv2d(nn.Module):
    """The masked convolution over one-hot planes that `CodeConv2d` stands for: its input has a gradient."""

    def __init__(self, layer, planes):
        super().__init__()
        self.layer, self.planes = layer, planes

    def forward(self, codes):
        weight = masked(self.layer.weight, False)
        padding = self.layer.weight.shape[-1] // 2
        return nn.functional.conv2d(self.planes, weight, self.layer.bias, padding=padding)


def assert_causal(prior):
    """By gradient: the logits at every position depend on all codes before it that are in reach, on no other."""
    height, width = prior.config.grid_size
    codes = make_codes(prior.config, batch=1)
    with torch.no_grad():
        direct = prior(codes).logits
    planes = one_hot(codes, prior.config.num_embeddings).requires_grad_()
    layer = prior.conv_in
    prior.conv_in = PlanesConv2d(layer, planes)
    logits = prior(codes).logits
    torch.testing.assert_close(logits, direct)
    for position in range(height * width):
        row, column = divmod(position, width)
        (gradient,) = torch.autograd.grad(
            logits[0, :, row, column].square().sum(), planes, retain_graph=True
        )
        seen = gradient.abs().sum(dim=(0, 1)).flatten() > 0
        assert not seen[position:].any(), f"({row}, {column}) sees itself or the future"
        if position:
            assert seen[max(0, position - 1)] or column == 0, f"({row}, {column}) is blind"
        if row:
            assert seen[position - width], f"({row}, {column}) does not see above itself"
    prior.conv_in = layer


@pytest.mark.parametrize("grid_size", [(7, 7), (4, 4), (3, 8), (8, 3), (1, 6), (6, 1), (1, 1)])
def test_no_position_sees_itself_or_the_future(grid_size):
    assert_causal(make_prior(grid_size=grid_size))


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3}, {"num_residual_blocks": 0}, {"num_residual_blocks": 4, "kernel_size": 5}],
)
def test_every_setting_is_causal(settings):
    assert_causal(make_prior(**settings))


def test_a_reloaded_prior_is_causal_and_the_same(tmp_path):
    prior = make_prior(grid_size=(5, 4))
    prior.save_pretrained(tmp_path)
    loaded = PixelCNNModel.from_pretrained(tmp_path)
    assert_causal(loaded)
    codes = make_codes(prior.config)
    assert torch.equal(loaded(codes).logits, prior(codes).logits)


def test_changing_a_code_changes_only_what_comes_after_it():
    prior = make_prior()
    codes = make_codes(prior.config, batch=1)
    before = prior(codes).logits.flatten(2)
    for position in range(20):
        changed = codes.clone().flatten(1)
        changed[0, position] = (changed[0, position] + 1) % 6
        after = prior(changed.view_as(codes)).logits.flatten(2)
        assert torch.equal(after[..., : position + 1], before[..., : position + 1])
        assert position == 19 or not torch.equal(after, before)


def test_the_loss_is_the_mean_negative_log_likelihood_in_nats():
    prior = make_prior()
    codes = make_codes(prior.config)
    output = prior(codes, return_loss=True)
    log_probabilities = output.logits.double().log_softmax(1)
    nats = -log_probabilities.gather(1, codes[:, None]).mean()
    torch.testing.assert_close(output.loss.double(), nats, atol=1e-6, rtol=1e-6)
    assert prior(codes).loss is None
    untrained = PixelCNNModel(PixelCNNConfig(num_embeddings=6, grid_size=(4, 5)))
    nn.init.zeros_(untrained.conv_out.weight)
    torch.testing.assert_close(untrained(codes, return_loss=True).loss.item(), math.log(6))


def test_a_prior_learns_a_pattern_and_draws_it():
    prior = PixelCNNModel(PixelCNNConfig(num_embeddings=3, grid_size=(3, 4), hidden_size=16))
    pattern = torch.arange(12).view(1, 3, 4) % 3
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = prior(pattern.to(torch.int32), return_loss=True).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    assert torch.equal(prior.eval().sample(2, temperature=0), pattern.expand(2, 3, 4))


def test_sampling_is_reproduced_by_its_generator():
    prior = make_prior()
    first, second, third = (
        prior.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (5, 4, 5) and first.dtype == torch.int64
    assert torch.equal(first, second) and not torch.equal(first, third)
    torch.manual_seed(3)
    default = prior.sample(5)
    torch.manual_seed(3)
    assert torch.equal(prior.sample(5), default)


def test_temperature_zero_and_almost_zero_take_the_likeliest_code():
    prior = make_prior()
    greedy = prior.sample(1, temperature=0)
    for position in range(20):
        logits = prior(greedy).logits.flatten(2)[0, :, position]
        assert greedy.flatten()[position] == logits.argmax()
    for temperature in (1e-6, 1e-30, 1e-300):
        assert torch.equal(prior.sample(3, temperature=temperature), greedy.expand(3, 4, 5))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_distribution_of_the_model(temperature):
    prior = make_prior(num_embeddings=3, grid_size=(1, 3))
    grids = torch.cartesian_prod(*[torch.arange(3)] * 3).view(27, 1, 3)
    logits = prior(grids).logits.double() / temperature
    log_likelihood = logits.log_softmax(1).gather(1, grids[:, None]).sum(dim=(1, 2, 3))
    likelihood = log_likelihood.exp()
    torch.testing.assert_close(likelihood.sum().item(), 1.0, atol=1e-6, rtol=0)
    count = 20_000
    drawn = prior.sample(count, temperature=temperature, generator=torch.Generator().manual_seed(0))
    numbers = (drawn.flatten(1) * torch.tensor([9, 3, 1])).sum(1)
    frequency = torch.bincount(numbers, minlength=27) / count
    error = (likelihood * (1 - likelihood) / count).sqrt()
    assert ((frequency - likelihood).abs() <= 5 * error + 1e-9).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_grids": 0}, "`num_grids` must be an integer of at least 1, got 0"),
        ({"num_grids": 2.0}, "`num_grids` must be an integer of at least 1, got 2.0"),
        ({"temperature": -1.0}, "`temperature` must be at least 0 and finite, got -1.0"),
        ({"temperature": float("inf")}, "`temperature` must be at least 0 and finite, got inf"),
        ({"temperature": float("nan")}, "`temperature` must be at least 0 and finite, got nan"),
    ],
)
def test_sample_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_prior().sample(**{"num_grids": 1, **arguments})


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.zeros(2, 4, 5), TypeError, "tensor of integers, got torch.float32"),
        (torch.zeros(2, 5, 4, dtype=torch.long), ValueError, r"\(batch, 4, 5\).*\(2, 5, 4\)"),
        (torch.full((2, 4, 5), 6), ValueError, r"in \[0, 6\), the codebook's range, got 6"),
        (torch.full((2, 4, 5), -1), ValueError, r"got -1"),
    ],
)
def test_codes_of_another_shape_dtype_or_range_are_refused(codes, error, message):
    with pytest.raises(error, match=message):
        make_prior()(codes)
