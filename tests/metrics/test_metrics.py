"""The metrics against formulas written out in numpy, however the rows are cut into batches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vqvae.metrics import ClassifiedImages, CodebookUsage, CodeLikelihood, ReconstructionQuality, ssim_window


def random_pair(shape, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    references = torch.rand(shape, generator=generator)
    noise = noise * torch.randn(shape, generator=generator)
    return (references + noise).clamp(0, 1), references


def numpy_ssim(prediction, reference, window):
    """SSIM of two (H, W) float64 images: equation 13 of Wang et al. 2004, borders reflected."""
    radius = window // 2
    positions = np.arange(-radius, radius + 1)
    weights = np.exp(-(positions**2) / (2 * (1.5 * window / 11) ** 2))
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def blur(image):
        padded = np.pad(image, radius, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window))
        return (windows * weights).sum((-2, -1))

    mean_p, mean_r = blur(prediction), blur(reference)
    variance_p, variance_r = blur(prediction**2) - mean_p**2, blur(reference**2) - mean_r**2
    covariance = blur(prediction * reference) - mean_p * mean_r
    luminance = (2 * mean_p * mean_r + 0.01**2) / (mean_p**2 + mean_r**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_p + variance_r + 0.03**2)
    return (luminance * structure).mean()


def random_codes(shape, num_embeddings, seed=0):
    return np.random.default_rng(seed).integers(0, num_embeddings, shape)


def random_likelihoods(rows, num_embeddings=5, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "predictions": generator.integers(0, num_embeddings, (rows, 3, 2)),
        "references": generator.integers(0, num_embeddings, (rows, 3, 2)),
        "negative_log_likelihoods": generator.exponential(1.5, (rows, 3, 2)),
    }


def add_in_batches(metric, inputs, cuts):
    """Rows of `inputs` in batches that end at `cuts`."""
    rows = len(next(iter(inputs.values())))
    bounds = [0, *sorted(cuts), rows]
    for start, end in pairwise(bounds):
        metric.add_batch(**{name: value[start:end] for name, value in inputs.items()})
    return metric.compute()


# Reconstruction


@pytest.mark.parametrize(
    "shape, window", [((4, 1, 28, 28), 11), ((3, 3, 16, 12), 11), ((3, 2, 10, 30), 9), ((2, 1, 4, 4), 3)]
)
def test_reconstruction_quality_is_the_written_out_formula(shape, window):
    predictions, references = random_pair(shape)
    result = ReconstructionQuality().compute(predictions=predictions, references=references)
    p, r = predictions.double().numpy(), references.double().numpy()
    mse = ((p - r) ** 2).mean()
    ssim = np.mean([[numpy_ssim(p[i, c], r[i, c], window) for c in range(shape[1])] for i in range(shape[0])])
    assert result["reconstruction_mse"] == pytest.approx(mse, rel=1e-12)
    assert result["psnr"] == pytest.approx(10 * math.log10(1 / mse), rel=1e-12)
    assert result["ssim"] == pytest.approx(ssim, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=5), seed=st.integers(0, 99))
def test_no_metric_depends_on_how_the_rows_are_cut_into_batches(cuts, seed):
    predictions, references = random_pair((12, 1, 12, 13), seed)
    # Rows of very different error and very different codes, which a mean of means would show.
    predictions[:3] = 1 - references[:3]
    codes = random_codes((12, 3, 2), 7, seed)
    codes[:4] = 1
    cases = [
        (ReconstructionQuality(), {"predictions": predictions, "references": references}),
        (CodebookUsage(7), {"predictions": codes}),
        (CodeLikelihood(5), random_likelihoods(12, seed=seed)),
    ]
    for metric, inputs in cases:
        whole = metric.compute(**inputs)
        parts = add_in_batches(metric, inputs, cuts)
        assert parts.pop("codebook_counts", None) == whole.pop("codebook_counts", None)
        assert parts == pytest.approx(whole, rel=1e-7)


def test_a_perfect_reconstruction_has_no_error_and_similarity_1():
    images = torch.rand(2, 1, 14, 14)
    result = ReconstructionQuality().compute(predictions=images, references=images.clone())
    assert result == {"reconstruction_mse": 0.0, "psnr": math.inf, "ssim": pytest.approx(1.0)}


def test_half_precision_images_are_measured_in_float32():
    predictions, references = (x.bfloat16() for x in random_pair((3, 1, 12, 12)))
    half = ReconstructionQuality().compute(predictions=predictions, references=references)
    full = ReconstructionQuality().compute(predictions=predictions.float(), references=references.float())
    assert half == full


def test_autocast_around_the_metric_changes_nothing():
    predictions, references = random_pair((3, 1, 12, 12))
    plain = ReconstructionQuality().compute(predictions=predictions, references=references)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ReconstructionQuality().compute(predictions=predictions, references=references)
    assert cast == plain


@pytest.mark.parametrize("height, width, window", [(28, 28, 11), (11, 40, 11), (10, 10, 9), (9, 28, 9), (2, 2, 1)])
def test_the_ssim_window_is_the_largest_odd_side_up_to_11_that_fits(height, width, window):
    assert ssim_window(height, width) == window


# Codes


def test_codebook_usage_is_the_written_out_formula():
    codes = random_codes((9, 4, 3), 6)
    codes[codes == 2] = 3
    result = CodebookUsage(6).compute(predictions=codes)
    counts = np.array([(codes == code).sum() for code in range(6)])
    shares = counts[counts > 0] / codes.size
    assert result["codebook_counts"] == counts.tolist()
    assert result["codes_used"] == 5
    assert result["codebook_perplexity"] == pytest.approx(np.prod(shares**-shares), rel=1e-12)


def test_code_likelihood_is_the_written_out_formula():
    inputs = random_likelihoods(11)
    result = CodeLikelihood(5).compute(**inputs)
    nats = inputs["negative_log_likelihoods"]
    assert result["nll"] == pytest.approx(nats.mean(), rel=1e-12)
    assert result["bits_per_code"] == pytest.approx((nats / np.log(2)).mean(), rel=1e-12)
    per_image = (nats / np.log(2)).sum((1, 2))
    assert result["bits_per_image"] == pytest.approx(per_image.mean(), rel=1e-12)
    right = inputs["predictions"] == inputs["references"]
    assert result["code_accuracy"] == right.mean()


# The behaviour of an `evaluate` module


def test_the_metrics_are_modules_of_evaluate():
    import evaluate

    for metric in (ReconstructionQuality(), CodebookUsage(4), CodeLikelihood(4)):
        assert isinstance(metric, evaluate.Metric)
        assert "predictions" in metric.features
        assert metric.description
        assert "Result" in metric.inputs_description
    both = evaluate.combine([CodebookUsage(4), CodebookUsage(4)], force_prefix=True)
    both.add_batch(predictions=[[0, 1]])
    assert both.compute()["codebook_usage_0_codes_used"] == 2


def test_rows_one_by_one_batches_and_compute_add_up_and_compute_starts_anew():
    predictions, references = random_pair((6, 1, 8, 8))
    metric = ReconstructionQuality()
    whole = metric.compute(predictions=predictions, references=references)
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:4].numpy(), references=references[1:4].tolist())
    assert len(metric) == 4
    parts = metric.compute(predictions=predictions[4:], references=references[4:])
    assert parts == pytest.approx(whole, rel=1e-6)
    assert len(metric) == 0
    # Another size is welcome after `compute`.
    other = torch.rand(1, 3, 6, 6)
    assert metric.compute(predictions=other, references=other)["reconstruction_mse"] == 0


def test_nothing_is_written_to_the_cache_folder(tmp_path):
    metric = CodebookUsage(3, cache_dir=str(tmp_path / "cache"))
    metric.add_batch(predictions=[[0, 1]])
    assert metric.compute()["codebook_counts"] == [1, 1, 0]
    assert not (tmp_path / "cache").exists()


# Errors


@pytest.mark.parametrize(
    "metric", [ReconstructionQuality(), CodebookUsage(4), CodeLikelihood(4)], ids=lambda m: m.name
)
def test_computing_without_a_row_is_an_error(metric):
    with pytest.raises(ValueError, match=r"needs at least 1 row, got 0\. Call `add` or `add_batch`"):
        metric.compute()


@pytest.mark.parametrize(
    "predictions, references, message",
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9), r"shape \(2, 1, 8, 8\), got \(2, 1, 8, 9\)"),
        (torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), r"got \(2, 8, 8\)"),
        (torch.full((2, 1, 8, 8), 1.5), torch.zeros(2, 1, 8, 8), "lie in 0 to 1, got 1.5"),
        (torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), -0.5), "`references` .* got -0.5"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), "uint8. Divide 8-bit"),
        (torch.full((2, 1, 8, 8), math.nan), torch.zeros(2, 1, 8, 8), "finite, got nan.*in row 0"),
        ([[[[0.0, 1.0], [0.0]]]], [[[[0.0, 1.0], [0.0]]]], "array or even nested lists"),
    ],
)
def test_bad_images_are_refused_and_add_nothing(predictions, references, message):
    metric = ReconstructionQuality()
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=predictions, references=references)
    assert len(metric) == 0
    images = torch.rand(1, 1, 9, 9)
    assert metric.compute(predictions=images, references=images)["reconstruction_mse"] == 0


def test_images_of_two_sizes_weigh_by_their_pixels_and_by_their_number():
    metric = ReconstructionQuality()
    sizes = [((2, 1, 8, 8), 0.5), ((1, 3, 12, 12), 1.0)]
    for shape, value in sizes:
        metric.add_batch(predictions=torch.full(shape, value), references=torch.zeros(shape))
    mse = (128 * 0.25 + 432) / 560
    assert metric.compute()["reconstruction_mse"] == pytest.approx(mse)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32])
def test_codes_and_classes_of_any_integers_are_counted(dtype):
    codes, zeros = torch.tensor([[[0, 1], [2, 3]]]), torch.zeros(1, 2, 2)
    usage = CodebookUsage(4).compute(predictions=codes.to(dtype))
    assert usage["codebook_counts"] == [1, 1, 1, 1]
    given = {"predictions": codes.to(dtype), "references": codes.to(dtype)}
    metric = CodeLikelihood(4)
    assert metric.compute(**given, negative_log_likelihoods=zeros)["code_accuracy"] == 1
    read = ClassifiedImages(2).compute(predictions=torch.eye(2), references=torch.tensor([0, 1]).to(dtype))
    assert read["class_accuracy"] == 1


@pytest.mark.parametrize(
    "codes, message",
    [
        ([[0, 128]], "in 0 to 127, got 128"),
        ([[0.0, 1.0]], "must be integers, got torch.float64"),
        ([0, 1], r"of shape \(number, \.\.\.\), got \(2,\)"),
        (torch.full((1, 2, 2), 300, dtype=torch.uint16), "in 0 to 127, got 300"),
        ([["a"]], "must be a tensor, array or even nested lists"),
    ],
)
def test_bad_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        CodebookUsage(128).compute(predictions=codes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"negative_log_likelihoods": [[0.1, math.nan]]}, "finite, got nan"),
        ({"negative_log_likelihoods": [[0.1, -0.5]]}, r"lie in -0\.001 to inf, got -0\.5"),
        ({"negative_log_likelihoods": [[1, 2]]}, "must be floating point, got torch.int64"),
        ({"negative_log_likelihoods": [[0.1]]}, r"of shape \(1, 2\), got \(1, 1\)"),
        ({"references": [[0, 4]]}, "`references` must lie in 0 to 3, got 4"),
    ],
)
def test_bad_likelihoods_are_refused(change, message):
    good = {"predictions": [[0, 1]], "references": [[0, 3]], "negative_log_likelihoods": [[0.1, 2.0]]}
    with pytest.raises(ValueError, match=message):
        CodeLikelihood(4).compute(**(good | change))
