"""The vector quantizer against its formulas (van den Oord et al. 2017, eq. 1-3 and appendix A.1)."""

import copy
import itertools

import pytest
import torch

from hf_vqvae import VectorQuantizer, VQVAEConfig, VQVAEModel
from hf_vqvae.models.quantization import kmeans, nearest_rows
from support.models import assert_same_state, state


def make_quantizer(codes=11, dim=5, codebook_init="uniform", **settings):
    config = VQVAEConfig(num_embeddings=codes, embedding_dim=dim, codebook_init=codebook_init, **settings)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(config)
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def make_latents(seed=1, shape=(4, 5, 3, 2), scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def rows_of(latents):
    """(B, D, h, w) -> (B * h * w, D), written out."""
    batch, _, height, width = latents.shape
    places = itertools.product(range(batch), range(height), range(width))
    return torch.stack([latents[b, :, i, j] for b, i, j in places])


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_codes_are_the_nearest_by_brute_force(offset):
    quantizer = make_quantizer().eval()
    with torch.no_grad():
        quantizer.embedding.weight += offset
    latents = make_latents() + offset
    output = quantizer(latents)
    codebook = quantizer.codebook.double()
    for row, code, vector in zip(rows_of(latents), output.codes.flatten(), rows_of(output.quantized), strict=True):
        distances = (codebook - row.double()).square().sum(1)
        assert distances[code] <= distances.min() * (1 + 1e-6)
        assert torch.equal(vector, quantizer.codebook[code])
    assert torch.equal(output.codes, quantizer.encode(latents))
    assert torch.equal(output.quantized, quantizer.decode(output.codes))
    assert output.codes.dtype == torch.int64 and output.codes.shape == (4, 3, 2)


def test_the_gradient_goes_straight_through():
    for training in (True, False):
        for update in ("ema", "gradient"):
            quantizer = make_quantizer(codebook_update=update).train(training)
            latents = make_latents().requires_grad_()
            above = make_latents(seed=2)
            quantizer(latents).quantized.backward(above)
            assert torch.equal(latents.grad, above)
            assert quantizer.embedding.weight.grad is None or not (quantizer.embedding.weight.grad.any())


def test_each_loss_moves_its_own_side_only():
    quantizer = make_quantizer(codebook_update="gradient").eval()
    weight = quantizer.embedding.weight
    latents = make_latents().requires_grad_()
    output = quantizer(latents)
    gap = output.quantized.detach() - latents.detach()
    torch.testing.assert_close(output.codebook_loss, gap.square().mean())
    torch.testing.assert_close(output.commitment_loss, gap.square().mean())

    output.codebook_loss.backward(retain_graph=True)
    assert latents.grad is None
    expected = torch.zeros_like(weight).index_add_(0, output.codes.flatten(), rows_of(gap) * 2 / gap.numel())
    torch.testing.assert_close(weight.grad, expected)

    weight.grad = None
    output.commitment_loss.backward()
    assert weight.grad is None
    torch.testing.assert_close(latents.grad, -gap * 2 / gap.numel())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_codebook_is_the_mean_of_its_latents_weighted_by_age(decay):
    quantizer = make_quantizer(codes=4, codebook_update="ema", ema_decay=decay)
    counts, sums = [], []
    for step in range(6):
        latents = make_latents(seed=step)
        rows = rows_of(latents)
        before = quantizer.codebook.clone()
        codes = quantizer(latents).codes.flatten()
        counts.append(torch.stack([(codes == k).sum() for k in range(4)]).double())
        sums.append(torch.stack([rows[codes == k].sum(0) for k in range(4)]).double())
        ages = torch.tensor([(1 - decay) * decay ** (step - i) for i in range(step + 1)]).double()
        number = (ages[:, None] * torch.stack(counts)).sum(0)
        total = (ages[:, None, None] * torch.stack(sums)).sum(0)
        expected = torch.where(number[:, None] > 0, total / number[:, None], before.double())
        torch.testing.assert_close(quantizer.ema_cluster_size, number.float())
        torch.testing.assert_close(quantizer.ema_embed_sum, total.float())
        torch.testing.assert_close(quantizer.codebook, expected.float())
    assert quantizer.ema_steps == 6


def test_a_code_that_nobody_chooses_keeps_its_place():
    quantizer = make_quantizer(codebook_update="ema")
    with torch.no_grad():
        quantizer.embedding.weight[3] = 1e3
    for step in range(200):
        quantizer(make_latents(seed=step % 7))
    assert quantizer.codebook[3].eq(1e3).all() and quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_dead_codes_become_latents_of_the_batch_with_fresh_averages(update):
    quantizer = make_quantizer(codes=6, codebook_update=update, dead_code_threshold=0.5)
    dead = torch.tensor([False, True, False, False, True, False])
    with torch.no_grad():
        quantizer.embedding.weight[:] = make_latents().permute(0, 2, 3, 1).reshape(-1, 5)[:6]
        quantizer.embedding.weight[dead] = 1e3
    latents = make_latents()
    rows = rows_of(latents)
    codes = quantizer(latents).codes.flatten()
    counts = torch.bincount(codes, minlength=6)
    assert torch.equal(counts == 0, dead)
    # The first step's average is (1 - decay) of its counts.
    sizes = 0.1 * counts
    torch.testing.assert_close(quantizer.ema_cluster_size, torch.where(dead, sizes.mean(), sizes.float()))
    for code in dead.nonzero().flatten():
        vector = quantizer.codebook[code]
        assert (rows == vector).all(1).any()
        if update == "ema":
            torch.testing.assert_close(quantizer.ema_embed_sum[code] / quantizer.ema_cluster_size[code], vector)
    moved = quantizer.codebook.clone()
    quantizer.eval()(latents)
    assert torch.equal(quantizer.codebook, moved)


def test_kmeans_finds_separate_clusters():
    centres = torch.eye(3) * 100
    rows = centres.repeat(20, 1) + make_latents(shape=(60, 3))
    for seed in range(20):
        torch.manual_seed(seed)
        found = kmeans(rows, 3)
        # Lloyd's algorithm may merge clusters; what it returns is a fixed point all the same.
        nearest = nearest_rows(rows, found)
        for k in nearest.unique():
            torch.testing.assert_close(found[k], rows[nearest == k].mean(0))
        if len(nearest.unique()) == 3 and (found.max(1).values > 90).all():
            break
    else:
        pytest.fail("none of 20 starts separated three clusters")


def test_kmeans_takes_fewer_latents_than_codes():
    quantizer = make_quantizer(codes=50, codebook_init="kmeans")
    output = quantizer(make_latents())
    assert quantizer.codebook.isfinite().all()
    assert output.commitment_loss < 1e-10  # a code for each of the 24 latents


def test_the_codebook_starts_from_data_once_and_a_reload_does_not_start_it_again(tmp_path):
    config = VQVAEConfig(image_size=8, num_embeddings=7, codebook_init="kmeans")
    torch.manual_seed(0)
    model = VQVAEModel(config)
    pixels = torch.rand(3, 1, 8, 8) - 0.5
    untouched = state(model)
    model.eval()(pixels)
    assert_same_state(model, untouched)
    model.train()(pixels)
    assert model.quantizer.initialized == 1
    assert not torch.equal(model.quantizer.codebook, untouched["quantizer.embedding.weight"])
    model.save_pretrained(tmp_path)
    for loaded in (VQVAEModel.from_pretrained(tmp_path).train(), VQVAEModel(config)):
        loaded.load_state_dict(model.state_dict())
        twin = copy.deepcopy(model)
        for seed in range(3):
            torch.manual_seed(seed)  # a second k-means would draw from it
            expected = twin(pixels)
            torch.manual_seed(seed + 100)
            assert torch.equal(loaded(pixels).quantized, expected.quantized)
        assert_same_state(loaded, state(twin))


def test_a_reload_of_an_untrained_model_starts_from_data(tmp_path):
    config = VQVAEConfig(image_size=8, num_embeddings=7, codebook_init="kmeans")
    model = VQVAEModel(config)
    model.save_pretrained(tmp_path)
    loaded = VQVAEModel.from_pretrained(tmp_path).train()
    before = loaded.quantizer.codebook.clone()
    loaded(torch.rand(3, 1, 8, 8) - 0.5)
    assert loaded.quantizer.initialized == 1
    assert not torch.equal(loaded.quantizer.codebook, before)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_eval_and_encode_change_nothing(update):
    quantizer = make_quantizer(codebook_update=update, codebook_init="kmeans", dead_code_threshold=2.0)
    before = state(quantizer)
    quantizer.train().encode(make_latents())
    quantizer.eval()(make_latents())
    quantizer.decode(torch.zeros(1, 2, 2, dtype=torch.long))
    assert_same_state(quantizer, before)
    quantizer.train()(make_latents())
    assert any(not torch.equal(value, before[name]) for name, value in state(quantizer).items())


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_inside_is_float32_whatever_is_outside(update, dtype):
    settings = {"codebook_update": update, "codebook_init": "kmeans", "dead_code_threshold": 0.5}
    latents = make_latents().to(dtype)
    exact, autocast, low = (make_quantizer(**settings) for _ in range(3))
    torch.manual_seed(3)
    expected = exact(latents.float())
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype):
        output = autocast(latents)
    assert output.quantized.dtype == dtype and output.commitment_loss.dtype == torch.float32
    assert torch.equal(output.codes, expected.codes)
    assert torch.equal(output.commitment_loss, expected.commitment_loss)
    assert_same_state(autocast, state(exact))

    torch.manual_seed(3)
    low.embedding.to(dtype)
    output = low(latents)
    assert output.commitment_loss.dtype == torch.float32
    assert all(buffer.dtype == torch.float32 for buffer in low.buffers())
    torch.testing.assert_close(low.codebook, exact.codebook, atol=2e-2, rtol=2e-2)
