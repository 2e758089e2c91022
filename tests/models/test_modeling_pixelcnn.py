"""PixelCNN: causality, the masked convolutions against plain ones, sampling."""

import math

import pytest
import torch
from torch import nn

from hf_vqvae import PixelCNNConfig, PixelCNNModel
from hf_vqvae.models.pixelcnn_layers import CodeConv2d, MaskedConv2d, dropout

ARCHITECTURES = ["plain", "gated"]


def make_prior(**settings):
    torch.manual_seed(0)
    small = {"num_embeddings": 6, "grid_size": (4, 5), "hidden_size": 16}
    prior = PixelCNNModel(PixelCNNConfig(**{**small, **settings}))
    for name, parameter in prior.named_parameters():
        if name.endswith("class_embedding.weight"):  # as if learned: each label matters
            nn.init.normal_(parameter)
        elif name.endswith("bias"):  # so that no ReLU hides a dependence
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


SIZES = [(1, 1), (2, 7), (6, 3), (7, 7)]


def assert_same_output_and_gradients(output, expected, pairs):
    """Of a layer and its reference; `pairs` are tensors of the one and the other that have gradients."""
    above = torch.randn_like(expected)
    output.backward(above)
    expected.backward(above)
    torch.testing.assert_close(output, expected)
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_code_convolution_equals_the_masked_one_over_one_hot_planes(kernel_size, size):
    layer = CodeConv2d(6, 4, kernel_size)
    nn.init.normal_(layer.bias)
    assert layer.weight.shape == (4, 6, kernel_size, kernel_size)
    codes = torch.randint(6, (3, *size))
    weight, bias = (one.detach().clone().requires_grad_() for one in (layer.weight, layer.bias))
    expected = nn.functional.conv2d(one_hot(codes, 6), masked(weight, False), bias, padding=kernel_size // 2)
    pairs = [(layer.weight, weight), (layer.bias, bias)]
    assert_same_output_and_gradients(layer(codes), expected, pairs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_masked_convolution_equals_the_plain_one_with_a_masked_kernel(kernel_size, size):
    layer = MaskedConv2d(3, 4, kernel_size)
    hidden = torch.randn(2, 3, *size, requires_grad=True)
    plain, weight = (one.detach().clone().requires_grad_() for one in (hidden, layer.weight))
    expected = nn.functional.conv2d(plain, masked(weight, True), layer.bias.detach(), padding=kernel_size // 2)
    pairs = [(hidden, plain), (layer.weight, weight)]
    assert_same_output_and_gradients(layer(hidden), expected, pairs)


class PlanesConv2d(nn.Module):
    """The convolution over one-hot planes that a lookup stands for: its input, the planes, has a gradient."""

    def __init__(self, layer, planes):
        super().__init__()
        self.layer, self.planes = layer, planes

    def forward(self, codes):
        layer, side = self.layer, self.layer.kernel_size
        rows = layer.table().view(len(layer.taps), layer.num_codes, -1)
        kernel = rows.new_zeros(side, side, *rows.shape[1:])
        for (y, x), row in zip(layer.taps, rows, strict=True):
            kernel[y, x] = row
        return nn.functional.conv2d(self.planes, kernel.permute(3, 2, 0, 1), layer.bias, padding=side // 2)


def seen_by_gradient(prior, labels=None):
    """(h * w, h * w) bool: which codes each position's logits depend on, by gradient through one-hot planes."""
    codes = make_codes(prior.config, batch=1)
    with torch.no_grad():
        direct = prior(codes, class_labels=labels).logits
    planes = one_hot(codes, prior.config.num_embeddings).to(prior.dtype).requires_grad_()
    names = [name for name in ("conv_in", "conv_left") if hasattr(prior, name)]
    layers = {name: getattr(prior, name) for name in names}
    for name, layer in layers.items():
        setattr(prior, name, PlanesConv2d(layer, planes))
    logits = prior(codes, class_labels=labels).logits
    torch.testing.assert_close(logits, direct)
    for name, layer in layers.items():
        setattr(prior, name, layer)
    seen = []
    for position in range(logits[0, 0].numel()):
        (gradient,) = torch.autograd.grad(logits.flatten(2)[0, :, position].square().sum(), planes, retain_graph=True)
        seen.append(gradient.abs().sum(dim=(0, 1)).flatten() > 0)
    return torch.stack(seen)


def assert_causal(prior):
    """By gradient: the logits at every position depend on all codes before it that are in reach, on no other."""
    width = prior.config.grid_size[1]
    for position, seen in enumerate(seen_by_gradient(prior)):
        row, column = divmod(position, width)
        assert not seen[position:].any(), f"({row}, {column}) sees itself or the future"
        if position:
            assert seen[max(0, position - 1)] or column == 0, f"({row}, {column}) is blind"
        if row:
            assert seen[position - width], f"({row}, {column}) does not see above itself"


def past_in_reach(grid_size, reach):
    """(h * w, h * w) bool: the codes before each position, at most `reach` rows and columns away."""
    height, width = grid_size
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    past = torch.ones(height * width, height * width).tril(-1).bool()
    down, right = (one[:, None] - one for one in (rows, columns))
    return past & (down <= reach) & (right.abs() <= reach)


def make_gated(**settings):
    small = {"architecture": "gated", "num_gated_layers": 2, "hidden_size": 8}
    # In float64 no product of small gradients is lost.
    return make_prior(**{**small, **settings}).double()


GRIDS = [(7, 7), (8, 8), (4, 6), (6, 4), (3, 8), (1, 6), (6, 1), (1, 1)]


@pytest.mark.parametrize("grid_size", GRIDS)
@pytest.mark.parametrize(("kernel_size", "layers"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_gated_prior_sees_the_whole_past_and_nothing_else(grid_size, kernel_size, layers, num_classes):
    prior = make_gated(
        grid_size=grid_size, gated_kernel_size=kernel_size, num_gated_layers=layers, num_classes=num_classes
    )
    labels = None if num_classes is None else torch.tensor([1])
    positions = grid_size[0] * grid_size[1]
    past = torch.ones(positions, positions).tril(-1).bool()
    assert torch.equal(seen_by_gradient(prior, labels), past)


@pytest.mark.parametrize(("kernel_size", "gated", "layers"), [(3, 3, 1), (3, 5, 2), (5, 3, 2)])
def test_a_gated_prior_sees_exactly_the_past_in_reach(kernel_size, gated, layers):
    prior = make_gated(grid_size=(8, 9), kernel_size=kernel_size, gated_kernel_size=gated, num_gated_layers=layers)
    reach = kernel_size // 2 + layers * (gated // 2)
    assert torch.equal(seen_by_gradient(prior), past_in_reach((8, 9), reach))


def test_the_default_gated_prior_sees_its_whole_past():
    torch.manual_seed(0)
    config = PixelCNNConfig(architecture="gated", num_embeddings=8, num_classes=10)
    prior = PixelCNNModel(config).double().eval()
    assert torch.equal(seen_by_gradient(prior), torch.ones(49, 49).tril(-1).bool())


@pytest.mark.parametrize(
    "settings",
    [{"grid_size": size} for size in [(7, 7), (4, 4), (3, 8), (8, 3), (1, 6), (6, 1), (1, 1)]]
    + [{"kernel_size": 3}, {"num_residual_blocks": 0}, {"num_residual_blocks": 4, "kernel_size": 5}],
)
def test_no_position_sees_itself_or_the_future(settings):
    assert_causal(make_prior(**settings))


def test_the_loss_is_the_mean_negative_log_likelihood_in_nats():
    prior = make_prior()
    codes = make_codes(prior.config)
    output = prior(codes, return_loss=True)
    log_probabilities = output.logits.double().log_softmax(1)
    nats = -log_probabilities.gather(1, codes[:, None]).mean()
    torch.testing.assert_close(output.loss.double(), nats, atol=1e-6, rtol=1e-6)
    assert prior(codes, return_loss=False).loss is None
    untrained = PixelCNNModel(PixelCNNConfig(num_embeddings=6, grid_size=(4, 5)))
    nn.init.zeros_(untrained.conv_out.weight)
    torch.testing.assert_close(untrained(codes, return_loss=True).loss.item(), math.log(6))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("frequencies", [None, [0.7, 0.0, 0.3]])
def test_the_likelihood_without_labels_is_the_sum_over_the_classes(architecture, frequencies):
    prior = make_prior(architecture=architecture, num_classes=3, class_frequencies=frequencies)
    codes = make_codes(prior.config, batch=5).byte()
    output = prior.log_likelihood(codes)
    by_class = torch.stack([prior.log_likelihood(codes, label).nats for label in range(3)]).double()
    weights = torch.tensor(frequencies or [1 / 3] * 3).double().log()[:, None, None]
    before = nn.functional.pad(by_class.flatten(2).neg().cumsum(2), (1, 0)) + weights
    expected = -before.logsumexp(0).diff(dim=1)  # -log p(code | the codes before), code by code
    torch.testing.assert_close(output.nats.flatten(1).double(), expected, atol=2e-6, rtol=1e-5)
    whole = -before[:, :, -1].logsumexp(0)
    torch.testing.assert_close(output.bits.double() * math.log(2), whole, atol=1e-5, rtol=1e-6)
    # The distributions sum to 1, and those of the first code are the means over the classes.
    torch.testing.assert_close(output.logits.exp().sum(1), torch.ones(5, 4, 5))
    first = [prior.log_likelihood(codes, label).logits[..., 0, 0].softmax(1) for label in range(3)]
    mean = sum(share * one for share, one in zip(weights.exp().flatten(), first, strict=True))
    torch.testing.assert_close(output.logits[..., 0, 0].exp(), mean.float())


def test_the_likelihood_with_labels_is_that_of_forward():
    prior, plain = make_prior(num_classes=3, id2label={0: "a", 1: "b", 2: "c"}), make_prior()
    codes = make_codes(prior.config)
    for labels, same in ((torch.tensor([2, 0, -1]), ["c", 0, -1]), (torch.full((3,), -1), -1)):
        logits = prior(codes, class_labels=labels).logits
        nats = nn.functional.cross_entropy(logits, codes, reduction="none")
        for given in (labels, same):
            assert torch.equal(prior.log_likelihood(codes, class_labels=given).nats, nats)
    output, loss = plain.log_likelihood(codes), plain(codes, return_loss=True).loss
    torch.testing.assert_close(output.nats.mean(), loss)
    torch.testing.assert_close(output.bits.mean() * math.log(2) / 20, loss)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "one entry for each of the 3 of `codes`, got 2"), ([0, 1, 3], r"in \[-1, 3\)"), ("d", "no label 'd'")],
)
def test_the_likelihood_refuses_labels_that_do_not_fit(labels, message):
    prior = make_prior(num_classes=3)
    with pytest.raises(ValueError, match=message):
        prior.log_likelihood(make_codes(prior.config), labels)
    with pytest.raises(ValueError, match="`codes` must have the shape"):
        prior.log_likelihood(torch.zeros(3, 5, 4).long())


def class_weights(prior):
    return [p for name, p in prior.named_parameters() if name.endswith("class_embedding.weight")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_label_matters_from_the_first_code_on(architecture):
    prior = make_prior(architecture=architecture, num_classes=3)
    codes = make_codes(prior.config)
    logits = [prior(codes, class_labels=torch.full((3,), label)).logits for label in (0, 1, 2, -1)]
    for one in range(4):
        for other in range(one):
            assert (logits[one] != logits[other]).any(dim=1).all()
    mixed = prior(codes, class_labels=torch.tensor([2, -1, 0])).logits
    for i, label in enumerate([2, 3, 0]):
        torch.testing.assert_close(mixed[i], logits[label][i])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_label_is_minus_one_is_the_last_row(architecture):
    prior = make_prior(architecture=architecture, num_classes=3)
    codes = make_codes(prior.config)
    unknown = prior(codes, class_labels=torch.full((3,), -1)).logits
    assert torch.equal(prior(codes).logits, unknown)
    with torch.no_grad():
        for weight in class_weights(prior):
            assert len(weight) == 4
            weight[:3] = math.nan
    assert torch.equal(prior(codes).logits, unknown)
    with torch.no_grad():
        for weight in class_weights(prior):
            weight[:3] = weight[3]
    assert torch.equal(prior(codes, class_labels=torch.tensor([0, 1, 2])).logits, unknown)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_prior_s_labels_have_no_effect_yet_and_learn(architecture):
    torch.manual_seed(0)
    prior = PixelCNNModel(
        PixelCNNConfig(architecture=architecture, num_classes=3, num_embeddings=6, grid_size=(4, 5), hidden_size=8)
    ).eval()
    codes, labels = make_codes(prior.config), torch.tensor([0, 1, 0])
    output = prior(codes, class_labels=labels, return_loss=True)
    assert torch.equal(output.logits, prior(codes).logits)
    output.loss.backward()
    for weight in class_weights(prior):
        assert weight.grad[:2].abs().sum(1).all() and not weight.grad[2:].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_are_dropped_in_training_only(architecture):
    settings = {"architecture": architecture, "num_classes": 3, "dropout": 0.0}
    prior = make_prior(**settings, label_dropout=1.0)
    codes, labels = make_codes(prior.config), torch.tensor([0, 1, 2])
    without, with_labels = prior(codes).logits, prior(codes, class_labels=labels).logits
    assert torch.equal(prior.train()(codes, class_labels=labels).logits, without)
    assert torch.equal(prior.eval()(codes, class_labels=labels).logits, with_labels)
    kept = make_prior(**settings, label_dropout=0.0).train()
    assert torch.equal(kept(codes, class_labels=labels).logits, with_labels)


def test_the_share_of_dropped_labels_is_the_setting_s():
    prior = make_prior(num_classes=1, label_dropout=0.25, grid_size=(1, 1), num_residual_blocks=0).train()
    count = 4000
    codes, labels = torch.zeros(count, 1, 1, dtype=torch.long), torch.zeros(count).long()
    without = prior(codes[:1]).logits

    def dropped():
        return torch.isclose(prior(codes, class_labels=labels).logits, without).all(dim=1)

    first = dropped()
    share = first.float().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5
    assert not torch.equal(dropped(), first)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_acts_in_training_only(architecture):
    prior = make_prior(architecture=architecture, dropout=0.5)
    codes = make_codes(prior.config)
    assert torch.equal(prior(codes).logits, prior(codes).logits)
    prior.train()
    assert not torch.equal(prior(codes).logits, prior(codes).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    features = torch.ones(64, 8, 7, 9, dtype=dtype, requires_grad=True)
    dropped = dropout(features, 0.3)
    assert dropped.dtype == dtype
    kept = dropped != 0
    share = 1 - kept.double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / kept.numel()) ** 0.5
    torch.testing.assert_close(dropped[kept].float().unique(), torch.tensor([1 / 0.7]), rtol=5e-3, atol=0)
    dropped.sum().backward()
    assert torch.equal(features.grad, dropped)
    assert dropout(features, 0.0) is features


def make_two_classes(count=32):
    """Codes (count, 3, 4) of two classes, and labels: class 0 counts up from a random code, class 1 down."""
    labels = torch.arange(count) % 2
    start = torch.randint(4, (count, 1), generator=torch.Generator().manual_seed(0))
    steps = torch.arange(12) * (1 - 2 * labels[:, None])
    return ((start + steps) % 4).view(count, 3, 4), labels


def follows(codes):
    """What each grid of `codes` does: 0 counts up, 1 down, -1 neither."""
    steps = codes.flatten(1).diff(dim=1) % 4
    up, down = (steps == 1).all(dim=1), (steps == 3).all(dim=1)
    return torch.where(up, 0, torch.where(down, 1, -1))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def learned(request):
    """A prior that has learned two classes, with labels and without."""
    torch.manual_seed(0)
    config = PixelCNNConfig(
        architecture=request.param,
        num_embeddings=4,
        grid_size=(3, 4),
        hidden_size=16,
        num_gated_layers=2,
        num_classes=2,
        id2label={0: "up", 1: "down"},
        label_dropout=0.2,
    )
    prior = PixelCNNModel(config).train()
    codes, labels = make_two_classes()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        prior(codes, class_labels=labels, return_loss=True).loss.backward()
        optimizer.step()
    return prior.eval()


def test_a_conditional_prior_learns_its_classes_and_draws_them(learned):
    draws = []
    for labels in (
        [0, 1, 1, 0] * 8,
        ["up", 1, torch.tensor(1), 0] * 8,
        torch.tensor([0, 1, 1, 0] * 8, dtype=torch.int32),
        ("up", "down", "down", "up") * 8,
    ):
        draws.append(learned.sample(class_labels=labels, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(draws[-1], draws[0])
    right = follows(draws[0]) == torch.tensor([0, 1, 1, 0] * 8)
    assert right.float().mean() > 0.8
    for label, number in (("up", 0), (1, 1), (torch.tensor(1), 1)):
        drawn = learned.sample(20, class_labels=label)
        assert (follows(drawn) == number).float().mean() > 0.8
    both = follows(learned.sample(40))
    assert (both == 0).any() and (both == 1).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_every_parameter_gets_a_gradient_in_a_training_step(architecture, num_classes):
    """One without would stop training on several processes (DistributedDataParallel)."""
    torch.manual_seed(0)
    prior = PixelCNNModel(
        PixelCNNConfig(
            architecture=architecture, num_classes=num_classes, num_embeddings=6, grid_size=(4, 5), hidden_size=8
        )
    ).train()
    codes = make_codes(prior.config)
    for labels in (None,) if num_classes is None else (None, torch.tensor([0, -1, 2])):
        prior.zero_grad()
        prior(codes, class_labels=labels, return_loss=True).loss.backward()
        without = [name for name, p in prior.named_parameters() if p.grad is None]
        assert not without
        zero = [name for name, p in prior.named_parameters() if not p.grad.any()]
        assert not zero


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32])
def test_codes_and_labels_of_any_integer_dtype(architecture, dtype):
    prior = make_prior(architecture=architecture, num_classes=3)
    codes, labels = make_codes(prior.config), torch.tensor([0, 2, 1])
    expected = prior(codes, class_labels=labels, return_loss=True)
    output = prior(codes.to(dtype), class_labels=labels.to(dtype), return_loss=True)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 1, 3]), ValueError, r"`class_labels` must be in \[-1, 3\).* got 3"),
        (torch.tensor([0, 1]), ValueError, r"`class_labels` must have the shape \(3,\).* \(2,\)"),
        (torch.zeros(3), TypeError, "`class_labels` must be a tensor of integers, .*float32"),
        ([0, 1, 2], TypeError, "`class_labels` must be a tensor of integers, got list"),
    ],
)
def test_forward_refuses_labels_and_codes_that_do_not_fit(labels, error, message):
    prior = make_prior(num_classes=3)
    with pytest.raises(error, match=message):
        prior(make_codes(prior.config), class_labels=labels)
    with pytest.raises(ValueError, match=r"in \[0, 6\), the codebook's range, got 6"):
        prior(torch.full((2, 4, 5), 6))
    plain = make_prior()
    with pytest.raises(ValueError, match=r"`class_labels` were given to a prior without classes"):
        plain(make_codes(plain.config), class_labels=torch.tensor([0, 1, 2]))
