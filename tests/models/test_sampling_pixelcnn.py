"""Cached sampling: equal to the plain loop, its controls, completion, bad input."""

import itertools
import math
import reprlib

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from accelerate.utils import offload_state_dict
from torch import nn
from transformers.utils import logging

from hf_vqvae import PixelCNNConfig, PixelCNNModel
from hf_vqvae.models.sampling_pixelcnn import DrawSettings
from support.models import seeded

ARCHITECTURES = ["plain", "gated"]
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


def make_prior(architecture="plain", trained=False, **settings):
    """A prior with weights all over; `trained` takes some steps on a pattern with noise."""
    torch.manual_seed(0)
    small = {"num_embeddings": 7, "grid_size": (4, 5), "hidden_size": 8, "num_gated_layers": 2}
    prior = PixelCNNModel(PixelCNNConfig(architecture=architecture, **{**small, **settings}))
    for name, parameter in prior.named_parameters():
        if not trained or name.endswith("class_embedding.weight"):
            nn.init.normal_(parameter, std=0.4)
    if trained:
        train(prior)
    return prior.eval()


def train(prior, steps=40):
    config = prior.train().config
    height, width = config.grid_size
    pattern = torch.arange(height)[:, None] + torch.arange(width)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(steps):
        codes = pattern + torch.randint(2, (8, height, width))
        codes = codes % config.num_embeddings
        labels = None
        if config.num_classes is not None:
            labels = torch.arange(8) % config.num_classes
            codes = (codes + labels[:, None, None]) % config.num_embeddings
        optimizer.zero_grad()
        prior(codes, class_labels=labels, return_loss=True).loss.backward()
        optimizer.step()


def filtered(logits, temperature=1.0, top_k=None, top_p=None):
    """Probabilities (B, K) by the definitions, one code at a time; a second hand for `DrawSettings.draw`."""
    probabilities = (logits / temperature).softmax(1)
    for row in probabilities:
        order = row.argsort(descending=True, stable=True)
        if top_k is not None:
            row[order[top_k:]] = 0
            row /= row.sum()
        if top_p is not None and top_p < 1:
            before = row[order].cumsum(0) - row[order]
            row[order[before >= top_p]] = 0
    return probabilities


def draw_one(logits, noise, temperature=1.0, **filters):
    """Codes (B,) from logits (B, K) and noise (B,)."""
    if temperature == 0:
        return logits.argmax(1)
    cumulative = filtered(logits.float(), temperature, **filters).cumsum(1)
    return torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)[:, 0]


def loop_logits(prior, codes, labels, guidance_scale):
    logits = prior(codes, class_labels=labels).logits
    if guidance_scale != 1:
        without = prior(codes).logits.float()
        logits = without + guidance_scale * (logits.float() - without)
    return logits


@torch.no_grad()
def plain_loop(prior, noise, labels=None, known=None, guidance_scale=1.0, **settings):
    """The reference: a forward pass of the whole network for each code."""
    codes = torch.zeros(noise.shape, dtype=torch.long, device=noise.device)
    for row, column in itertools.product(*map(range, noise.shape[1:])):
        logits = loop_logits(prior, codes, labels, guidance_scale)[:, :, row, column]
        drawn = draw_one(logits, noise[:, row, column], **settings)
        if known is not None:
            drawn = torch.where(known[1][:, row, column], known[0][:, row, column], drawn)
        codes[:, row, column] = drawn
    return codes


@torch.no_grad()
def assert_is_the_plain_loop_s(drawn, prior, noise, labels=None, guidance_scale=1.0, **settings):
    """What the plain loop draws is the one grid in which every code follows from those before it."""
    logits = loop_logits(prior, drawn, labels, guidance_scale)
    flat = logits.permute(0, 2, 3, 1).flatten(0, 2)
    again = draw_one(flat, noise.flatten(), **settings).view_as(drawn)
    assert torch.equal(again, drawn)


def noise_of(prior, count, seed=0):
    return torch.rand((count, *prior.config.grid_size), generator=seeded(seed))


CONTROLS = [
    {},
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("settings", CONTROLS)
def test_codes_are_those_of_the_plain_loop(architecture, trained, settings):
    prior = make_prior(architecture, trained)
    drawn = prior.sample(16, generator=seeded(), **settings)
    assert drawn.shape == (16, 4, 5) and drawn.dtype == torch.int64 and not drawn.is_inference()
    assert torch.equal(drawn, plain_loop(prior, noise_of(prior, 16), **settings))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("guidance_scale", [0, 0.5, 1, 3.0])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}])
def test_guided_codes_are_those_of_the_plain_loop(architecture, guidance_scale, settings):
    prior = make_prior(architecture, trained=True, num_classes=3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    settings = {**settings, "guidance_scale": guidance_scale}
    expected = plain_loop(prior, noise_of(prior, 5), labels, **settings)
    for batch_size in (256, 2):
        drawn = prior.sample(class_labels=labels, generator=seeded(), batch_size=batch_size, **settings)
        assert torch.equal(drawn, expected)


NETWORKS = [
    {"grid_size": grid_size, "kernel_size": kernel_size, "gated_kernel_size": gated}
    for grid_size in [(1, 1), (1, 6), (6, 1), (2, 2), (3, 8), (8, 3), (7, 7)]
    for kernel_size, gated in [(3, 5), (7, 3)]
]
NETWORKS += [
    {"grid_size": (32, 32), "num_embeddings": 32},
    {"num_residual_blocks": 0, "num_pixelcnn_layers": 0, "num_gated_layers": 1},
    {"num_residual_blocks": 3, "num_pixelcnn_layers": 1, "num_gated_layers": 4},
    {"hidden_size": 2, "num_embeddings": 2},
    {"kernel_size": 11, "gated_kernel_size": 9},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_draws_what_the_plain_loop_does(architecture, network, num_classes):
    prior = make_prior(architecture, num_classes=num_classes, **network).double()
    labels = None if num_classes is None else torch.tensor([2, 0])
    drawn = prior.sample(2, class_labels=labels, generator=seeded(), temperature=0.8)
    assert drawn.unique().numel() > 1 or prior.config.grid_size == (1, 1)
    assert_is_the_plain_loop_s(drawn, prior, noise_of(prior, 2), labels, temperature=0.8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prior_of_low_precision_draws(architecture, dtype):
    prior = make_prior(architecture, trained=True, num_classes=2)
    low = make_prior(architecture, trained=True, num_classes=2).to(dtype)
    drawn = low.sample(64, class_labels=1, guidance_scale=2.0, top_p=0.9, generator=seeded())
    full = prior.sample(64, class_labels=1, guidance_scale=2.0, top_p=0.9, generator=seeded())
    assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() < 7
    assert (drawn == full)[:, 0, 0].float().mean() > 0.8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_is_the_same_in_training_mode_under_autocast_and_in_inference_mode(architecture):
    prior = make_prior(architecture, dropout=0.5, num_classes=2, label_dropout=0.9)
    expected = prior.sample(4, class_labels=1, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.sample(4, class_labels=1, generator=seeded()), expected)
    with torch.inference_mode():
        assert torch.equal(prior.sample(4, class_labels=1, generator=seeded()), expected)
    prior.train()
    assert torch.equal(prior.sample(4, class_labels=1, generator=seeded()), expected)
    assert prior.training
    # Codes that were drawn can be trained on.
    prior(expected, return_loss=True).loss.backward()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_change_of_the_weights_is_seen_by_the_next_sample(architecture):
    prior = make_prior(architecture)
    before = prior.sample(8, generator=seeded())
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(-1)
    after = prior.sample(8, generator=seeded())
    assert not torch.equal(after, before)
    assert torch.equal(after, plain_loop(prior, noise_of(prior, 8)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_grid_depends_on_its_own_seed_alone(architecture):
    prior = make_prior(architecture, trained=True, num_classes=2)
    seeds, labels = [5, 0, 2**63 - 1, 7, 1234], [0, 1, 1, 0, 1]
    expected = torch.cat(
        [prior.sample(1, seeds=[seed], class_labels=label) for seed, label in zip(seeds, labels, strict=True)]
    )
    assert expected.unique(dim=0).shape == expected.shape
    for batch_size in (1, 2, 3, 256):
        drawn = prior.sample(seeds=seeds, class_labels=labels, batch_size=batch_size)
        assert torch.equal(drawn, expected)
    order = [3, 1, 4, 0, 2]
    drawn = prior.sample(seeds=torch.tensor(seeds)[order], class_labels=torch.tensor(labels)[order], batch_size=2)
    assert torch.equal(drawn, expected[order])
    arrays = {"seeds": np.array(seeds, np.uint64), "class_labels": np.array(labels, np.uint8)}
    assert torch.equal(prior.sample(**arrays, batch_size=np.int64(2)), expected)
    names = np.array(["1", "0"])
    drawn = prior.sample(np.int32(2), seeds=np.array([0, 7]), class_labels=names)
    assert torch.equal(drawn, expected[[1, 3]])
    twice = prior.sample(seeds=[5, 5], class_labels=np.int8(0))
    assert torch.equal(twice, expected[:1].expand(2, -1, -1))
    state = torch.get_rng_state()
    prior.sample(seeds=range(3), class_labels=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_makes_the_same_codes_in_any_batches_and_moves_on():
    prior = make_prior()
    generator = seeded()
    first = prior.sample(7, generator=generator)
    second = prior.sample(7, generator=generator)
    assert not torch.equal(first, second)
    for batch_size in (1, 3, 7, 100):
        generator = seeded()
        for expected in (first, second):
            drawn = prior.sample(7, generator=generator, batch_size=batch_size)
            assert torch.equal(drawn, expected)
    torch.manual_seed(0)
    default = [prior.sample(7) for _ in range(2)]
    assert torch.equal(default[0], first) and torch.equal(default[1], second)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_filters_that_leave_one_code_are_greedy_and_those_that_leave_all_change_nothing(architecture):
    prior = make_prior(architecture)
    greedy = prior.sample(5, temperature=0)
    assert torch.equal(greedy, greedy[:1].expand_as(greedy))
    one_code = [{"top_k": 1}, {"top_k": np.int8(1)}, {"top_p": 1e-9}, {"top_p": np.float32(1e-9)}]
    for settings in (*one_code, {"top_p": 1e-300}, {"temperature": 1e-300}):
        assert torch.equal(prior.sample(5, generator=seeded(), **settings), greedy)
    free = prior.sample(5, generator=seeded())
    for settings in ({"top_k": 7}, {"top_k": 10**20}, {"top_p": 1.0}, {"top_p": 1}, {"temperature": np.float32(1)}):
        assert torch.equal(prior.sample(5, generator=seeded(), **settings), free)


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.01}])
def test_a_code_of_probability_0_is_never_drawn(settings):
    draw = DrawSettings(**settings).draw
    generator = seeded()
    for size in (2, 5, 128, 512):
        logits = torch.randn(200, size, generator=generator) * 3
        logits[:, 0] = logits[:, -1] = -math.inf
        logits[:, size // 2] = 4.0
        allowed = filtered(logits, **settings) > 0
        for noise in (0.0, 2**-24, 0.5, BELOW_ONE):
            codes = draw(logits, torch.full((200, 1), noise))
            assert allowed.gather(1, codes[:, None]).all(), (size, noise)


@pytest.mark.parametrize("noise", [0.0, BELOW_ONE])
def test_the_extremes_of_the_noise_draw_the_first_and_the_last_code(noise):
    first = noise == 0
    for logits in (torch.zeros(1, 3), torch.tensor([[0.1, 0.7, 0.3]]), torch.zeros(1, 512)):
        last = logits.shape[1] - 1
        code = DrawSettings().draw(logits, torch.full((1, 1), noise)).item()
        assert code == (0 if first else last)
    only = torch.tensor([[-200.0, 0.0, -200.0]])  # their probability is 0 in float32
    assert DrawSettings().draw(only, torch.full((1, 1), noise)).item() == 1


def test_ties_at_the_threshold_are_all_kept():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]]).expand(3, 5)
    noise = torch.tensor([[0.1], [0.5], [0.9]])
    assert DrawSettings(top_k=2).draw(logits, noise).tolist() == [1, 2, 3]
    assert DrawSettings(top_k=1).draw(logits, noise).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.6}, {"top_k": 3, "temperature": 0.5, "top_p": 0.8}],
)
def test_samples_have_the_distribution_of_the_model_and_its_filters(settings):
    prior = make_prior("gated", num_embeddings=4, grid_size=(1, 2))
    grids = torch.cartesian_prod(torch.arange(4), torch.arange(4)).view(16, 1, 2)
    with torch.no_grad():
        logits = prior(grids).logits
    likelihood = torch.ones(16)
    for column in range(2):
        probabilities = filtered(logits[:, :, 0, column], **settings)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
        likelihood *= probabilities.gather(1, grids[:, :, column])[:, 0]
    torch.testing.assert_close(likelihood.sum().item(), 1.0, atol=1e-6, rtol=0)
    assert (likelihood == 0).any() == any(name.startswith("top") for name in settings)
    count = 20_000
    drawn = prior.sample(count, generator=seeded(), **settings)
    frequency = torch.bincount((drawn.flatten(1) * torch.tensor([4, 1])).sum(1), minlength=16)
    frequency = frequency / count
    error = (likelihood * (1 - likelihood) / count).sqrt()
    assert ((frequency - likelihood).abs() <= 5 * error).all()
    assert not frequency[likelihood == 0].any()


@pytest.mark.parametrize(
    "settings", [{"guidance_scale": 1e6}, {"temperature": 1e300}, {"temperature": 5e-324, "top_p": 0.5}]
)
def test_extreme_settings_draw_codes(settings):
    prior = make_prior("gated", num_classes=2)
    drawn = prior.sample(20, class_labels=1, generator=seeded(), **settings)
    assert drawn.min() >= 0 and drawn.max() < 7
    if settings.get("temperature", 0) > 1:  # uniform
        assert torch.bincount(drawn.flatten(), minlength=7).min() > 20


# Completion


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_completion_is_the_plain_loop_with_known_codes(architecture, share):
    prior = make_prior(architecture, trained=True)
    codes = torch.randint(7, (8, 4, 5), generator=seeded(3))
    mask = torch.rand(8, 4, 5, generator=seeded(4)) < share
    expected = plain_loop(prior, noise_of(prior, 8), known=(codes, mask))
    for batch_size in (3, 256):
        drawn = prior.sample(codes=codes, mask=mask, generator=seeded(), batch_size=batch_size)
        assert torch.equal(drawn, expected)
        assert torch.equal(drawn[mask], codes[mask])
    # What is not known has no influence, whatever it is.
    for other in (-1, 7, 2**62):
        anything = codes.masked_fill(~mask, other)
        assert torch.equal(prior.sample(codes=anything, mask=mask, generator=seeded()), expected)
    small = codes.to(torch.uint8)
    assert torch.equal(prior.sample(codes=small, mask=mask, generator=seeded()), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_guided_completion_is_the_plain_loop_with_known_codes(architecture):
    prior = make_prior(architecture, trained=True, num_classes=2)
    codes = torch.randint(7, (4, 4, 5), generator=seeded(3))
    mask = torch.rand(4, 4, 5, generator=seeded(4)) < 0.5
    labels = torch.tensor([0, 1, 1, 0])
    expected = plain_loop(prior, noise_of(prior, 4), labels, (codes, mask), guidance_scale=2.0)
    drawn = prior.sample(
        codes=codes, mask=mask, class_labels=labels, guidance_scale=2.0, generator=seeded(), batch_size=3
    )
    assert torch.equal(drawn, expected)


def test_the_number_of_grids_comes_from_what_has_one_entry_for_each():
    prior = make_prior(num_classes=3)
    codes, mask = torch.zeros(2, 4, 5).long(), torch.ones(2, 4, 5).bool()
    assert len(prior.sample()) == len(prior.sample(class_labels=2)) == 1
    assert len(prior.sample(class_labels=torch.tensor(2))) == 1
    assert len(prior.sample(class_labels=[0, 1, 2])) == 3
    assert len(prior.sample(class_labels=[1])) == 1
    assert len(prior.sample(seeds=range(4))) == 4
    assert len(prior.sample(codes=codes, mask=mask)) == 2
    assert len(prior.sample(codes=codes[0], mask=mask)) == 2
    assert len(prior.sample(codes=codes, mask=mask[0])) == 2
    assert len(prior.sample(codes=codes[:1], mask=mask[:1])) == 1
    assert len(prior.sample(5, codes=codes[:1], mask=mask[0])) == 5


def test_many_grids_are_drawn_in_batches_with_a_bar(capsys):
    logging.enable_progress_bar()  # a script that ran in this process may have switched it off
    prior = make_prior(grid_size=(1, 2))
    prior.sample(5, batch_size=5)
    assert "grids" not in capsys.readouterr().err
    prior.sample(5, batch_size=2)
    assert "sample" in (bar := capsys.readouterr().err) and "/5" in bar


# Weights elsewhere


def offload(prior, where, folder):
    if where == "whole":
        offload_state_dict(folder, prior.state_dict())
        return dispatch_model(prior, {"": "disk"}, main_device="cpu", offload_dir=folder, force_hooks=True)
    names = [name for name, _ in prior.named_children() if name != "blocks"]
    names += [f"blocks.{number}" for number in range(len(prior.blocks))]
    start = 0 if where == "mixed" else 1
    places = {name: ["cpu", "disk"][(i + start) % 2] for i, name in enumerate(names)}
    return dispatch_model(prior, places, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("where", ["whole", "mixed", "mixed other"])
def test_offloaded_weights_draw_the_same_codes(architecture, where, tmp_path):
    settings = {"num_classes": 2}
    prior = make_prior(architecture, **settings)
    expected = prior.sample(4, class_labels=1, guidance_scale=2.0, generator=seeded())
    moved = offload(make_prior(architecture, **settings), where, tmp_path)
    assert any(parameter.is_meta for parameter in moved.parameters())
    codes = moved.sample(4, class_labels=1, guidance_scale=2.0, generator=seeded())
    assert torch.equal(codes, expected)
    with torch.no_grad():  # and is left as it was
        torch.testing.assert_close(moved(codes).logits, prior(codes).logits)
    assert any(parameter.is_meta for parameter in moved.parameters())


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}])
def test_the_captured_graph_draws_what_the_plain_loop_does(architecture, num_classes, settings):
    prior = make_prior(architecture, trained=True, num_classes=num_classes).cuda()
    labels, arguments = None, dict(settings)
    if num_classes is not None:
        labels = torch.tensor([0, 2, 1, 1, 0], device="cuda")
        arguments["guidance_scale"] = 2.0
    codes = torch.randint(7, (5, 4, 5), generator=seeded(3)).cuda()
    mask = (torch.rand(5, 4, 5, generator=seeded(4)) < 0.5).cuda()
    for known in (None, (codes, mask)):
        generator = torch.Generator("cuda").manual_seed(0)
        noise = torch.rand((5, 4, 5), generator=generator, device="cuda")
        expected = plain_loop(prior, noise, labels, known, **arguments)
        for batch_size in (256, 2):
            extra = {} if known is None else {"codes": codes, "mask": mask}
            drawn = prior.sample(
                5, class_labels=labels, generator=generator.manual_seed(0), batch_size=batch_size, **arguments, **extra
            )
            assert torch.equal(drawn, expected)
    assert torch.equal(prior.sample(seeds=[3]).cpu(), prior.cpu().sample(seeds=[3]))


# Labels that are drawn


def test_each_grid_is_that_of_its_seed_and_of_a_label_drawn_by_the_frequencies():
    frequencies = [0.5, 0.0, 0.35, 0.15]
    prior = make_prior("gated", num_classes=4, class_frequencies=frequencies, label_dropout=0)
    drawn = prior.sample(seeds=range(600), temperature=2.0)
    by_label = [prior.sample(seeds=range(600), temperature=2.0, class_labels=label) for label in range(4)]
    fits = torch.stack([(own == drawn).all(2).all(1) for own in by_label], dim=1)
    assert fits.any(1).all()
    counts = fits[fits.sum(1) == 1].sum(0)  # of the grids that are those of one label only
    assert counts[1] == 0 and counts.sum() > 500
    expected = counts.sum() * torch.tensor(frequencies)
    present = expected > 0
    assert ((counts - expected) ** 2 / expected)[present].sum() < 13.8  # chi-square of 2 degrees of freedom: 99.9%


def test_a_grid_without_a_label_depends_on_its_own_seed_alone():
    prior = make_prior("gated", num_classes=3, class_frequencies=[0.2, 0.3, 0.5])
    together = prior.sample(seeds=range(9), batch_size=2)
    alone = torch.cat([prior.sample(seeds=[seed]) for seed in range(9)])
    assert torch.equal(together, alone)
    # The label's number is drawn after those of the grid.
    given, drawn = (prior.sample(9, generator=seeded(), **labels) for labels in ({"class_labels": 0}, {}))
    assert any(torch.equal(*pair) for pair in zip(given, drawn, strict=True)) and not torch.equal(given, drawn)


def test_without_frequencies_all_classes_are_equally_likely():
    prior = make_prior("gated", num_classes=3)
    even = make_prior("gated", num_classes=3, class_frequencies=[1 / 3] * 3)
    assert torch.equal(prior.sample(seeds=range(20)), even.sample(seeds=range(20)))


def test_guidance_needs_no_label_and_the_null_label_can_be_asked_for():
    prior = make_prior("gated", num_classes=3)
    guided = prior.sample(seeds=range(8), guidance_scale=3.0)
    by_label = [prior.sample(seeds=range(8), guidance_scale=3.0, class_labels=label) for label in range(3)]
    assert all(any(torch.equal(one[row], guided[row]) for one in by_label) for row in range(8))
    null = prior.sample(seeds=range(8), class_labels=-1)
    assert torch.equal(null, plain_loop(prior, torch.stack([noise_of(prior, 1, seed)[0] for seed in range(8)])))
    assert torch.equal(prior.sample(seeds=range(8), class_labels=[-1] * 7 + [2])[:7], null[:7])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_label_of_a_completion_is_drawn_given_the_known_codes(rows):
    prior = make_prior(num_classes=3, class_frequencies=[0.1, 0.2, 0.7]).train()
    codes = torch.randint(7, (4, 5), generator=seeded(1))
    mask = torch.zeros(4, 5).bool()
    mask[:rows] = True
    mask[rows, : 2 * rows] = rows < 3
    drawn = prior._draw_labels(torch.linspace(0, 0.9999, 1000), [x.expand(1000, 4, 5) for x in (codes, mask)], 600)
    assert prior.training
    with torch.no_grad():
        nats = torch.stack([prior.eval().log_likelihood(codes[None], label).nats[0] for label in range(3)])
    evidence = torch.tensor([0.1, 0.2, 0.7]).log() - (nats * mask).sum((1, 2))
    shares = torch.bincount(drawn, minlength=3) / 1000
    torch.testing.assert_close(shares, evidence.softmax(0), atol=3e-3, rtol=0)


def test_beside_other_known_codes_the_null_label_is_used():
    prior = make_prior(num_classes=3)
    codes = torch.randint(7, (2, 4, 5), generator=seeded(1))
    masks = torch.zeros(2, 4, 5).bool()
    masks[0, :2], masks[1, 2:] = True, True
    drawn = prior.sample(2, codes=codes, mask=masks, seeds=[3, 4])
    null = prior.sample(2, codes=codes, mask=masks, seeds=[3, 4], class_labels=-1)
    assert torch.equal(drawn[1], null[1]) and not torch.equal(drawn[0], null[0])
    by_label = [prior.sample(codes=codes[:1], mask=masks[:1], seeds=[3], class_labels=label) for label in range(3)]
    assert any(torch.equal(one[0], drawn[0]) for one in by_label)


# Bad input

RULES = {
    "temperature": ("must be at least 0 and finite", [-1e-9, math.nan, math.inf, 10**400, "1", True]),
    "top_k": ("must be an integer of at least 1", [0, 1.5, "3", True, math.nan]),
    "top_p": ("must be above 0 and at most 1", [0, -0.1, 1.5, math.nan, "0.9", True]),
    "guidance_scale": (r"must be from 0 to 1e\+06", [-1.0, math.nan, 1e7, 10**400, "2", None, True]),
    "num_grids": ("must be an integer of at least 1", [0, 2.0, "2", True, math.nan]),
    "batch_size": ("must be an integer of at least 1", [0, -3, 2.0, True]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, values) in RULES.items() for value in values])
def test_a_number_that_breaks_its_rule_is_refused(name, value):
    prior = make_prior(num_classes=2)
    with pytest.raises(ValueError, match=f"`{name}` {RULES[name][0]}.*got {reprlib.repr(value)}"):
        prior.sample(**{"num_grids": 1, "class_labels": 0, name: value})


def test_labels_and_guidance_need_classes():
    with pytest.raises(ValueError, match=r"`class_labels` were given to a prior without classes"):
        make_prior().sample(1, class_labels=[0])
    with pytest.raises(ValueError, match=r"`guidance_scale` must be 1 for a prior without classes, got 2.0"):
        make_prior().sample(1, guidance_scale=2.0)


def test_a_prior_that_never_saw_a_hidden_label_has_no_null_label():
    prior = make_prior(num_classes=2, label_dropout=0.0)
    lower = {"codes": CODES, "mask": torch.arange(4)[:, None].expand(4, 5) >= 2}
    for arguments in ({"class_labels": -1}, {"guidance_scale": 2.0}, lower):
        with pytest.raises(ValueError, match=r"`class_labels` must be classes, .*`label_dropout` 0 has no null label"):
            prior.sample(1, **arguments)
    for arguments in ({}, {"class_labels": 1}, {"codes": CODES, "mask": ~lower["mask"]}, {**lower, "class_labels": 1}):
        assert prior.sample(1, **arguments).shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (10, ValueError, r"`class_labels` must be in \[-1, 10\), the classes, and -1 for the null label, got 10"),
        (torch.tensor([3, -2]), ValueError, r"`class_labels` must be in .*got -2"),
        ("tree", ValueError, r"`class_labels` has no label 'tree' \(did you mean `three`\?\)"),
        (["one", "xyz"], ValueError, r"`class_labels` has no label 'xyz'; there are: \['zero', 'one',"),
        ({"one": 1}, TypeError, r"`class_labels` must be numbers or names .*got \{'one': 1\}"),
        ([0, 1, 2], ValueError, r"`class_labels` must have one entry .* 2 of `num_grids`, got 3"),
        ([], ValueError, r"`class_labels` must have at least one entry"),
    ],
)
def test_wrong_labels_are_refused(labels, error, message):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    prior = make_prior(num_classes=10, id2label=dict(enumerate(names)))
    with pytest.raises(error, match=message):
        prior.sample(2, class_labels=labels)


CODES, MASK = torch.zeros(4, 5).long(), torch.ones(4, 5).bool()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"codes": CODES}, ValueError, "`codes` and `mask` go together"),
        ({"mask": MASK}, ValueError, "`codes` and `mask` go together"),
        ({"codes": CODES, "mask": MASK.long()}, TypeError, "`mask` must be .*bool.*int64"),
        ({"codes": CODES, "mask": MASK[0]}, ValueError, r"`mask` must have the shape .*got \(5,\)"),
        ({"codes": CODES.T, "mask": MASK}, ValueError, r"`codes` must have the shape \(4, 5\)"),
        (
            {"codes": CODES.expand(2, 4, 5), "mask": MASK.expand(3, 4, 5)},
            ValueError,
            r"`mask` must have one entry for each of the 2 of `codes`, got 3",
        ),
        ({"codes": CODES.float(), "mask": MASK}, TypeError, "`codes` must be .*integers.*float32"),
        ({"codes": CODES + 7, "mask": MASK}, ValueError, r"`codes` must be in \[0, 7\).*got 7"),
        ({"codes": CODES[None][:0], "mask": MASK}, ValueError, "`codes` must have at least one entry"),
    ],
)
def test_known_codes_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_prior().sample(**arguments)


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        ([0, -1], ValueError, r"`seeds` must be integers from 0 to 2\*\*63 - 1, got -1"),
        ([0, 1, 2], ValueError, r"`seeds` must have one entry .* 2 of `num_grids`, got 3"),
        ([], ValueError, r"`seeds` must have at least one entry"),
        (0, TypeError, r"`seeds` must be a list or tensor of integers, got 0"),
    ],
)
def test_wrong_seeds_are_refused(seeds, error, message):
    with pytest.raises(error, match=message):
        make_prior().sample(2, seeds=seeds)


def test_a_wrong_generator_is_refused():
    prior = make_prior()
    with pytest.raises(ValueError, match="`generator` and `seeds` exclude each other"):
        prior.sample(2, seeds=[0, 1], generator=seeded())
    with pytest.raises(TypeError, match="generator"):
        prior.sample(2, generator=0)
