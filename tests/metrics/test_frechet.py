"""Fréchet distance and classified images against formulas written out, however rows come in."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from hf_vqvae.metrics import ClassifiedImages, FrechetDistance


def random_features(rows, columns, seed=0, shift=0.0):
    """Correlated Gaussian features, float64 (rows, columns)."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(columns, columns)) / columns**0.5
    return generator.normal(size=(rows, columns)) @ mixing + shift


def by_scipy(predictions, references):
    """Equation 6 of Heusel et al. 2017 as it stands there."""
    means = [side.mean(0) for side in (predictions, references)]
    covariances = [np.cov(side.T) for side in (predictions, references)]
    root = sqrtm(covariances[0] @ covariances[1])
    distance = ((means[0] - means[1]) ** 2).sum()
    return distance + np.trace(covariances[0] + covariances[1] - 2 * root.real)


def by_rows(predictions, references):
    """The same from the rows alone: tr (S1 S2)^(1/2) is the nuclear norm of X1 X2^T, centred."""
    centred = [(side - side.mean(0)) / (len(side) - 1) ** 0.5 for side in (predictions, references)]
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    distance = ((predictions.mean(0) - references.mean(0)) ** 2).sum()
    return distance + sum((side**2).sum() for side in centred) - 2 * shared


def distance_of(predictions, references):
    metric = FrechetDistance(predictions.shape[1])
    return metric.compute(predictions=predictions, references=references)["frechet_distance"]


def test_it_is_the_formula_of_the_paper():
    predictions, references = random_features(300, 12), random_features(500, 12, seed=1, shift=0.3)
    expected = by_scipy(predictions, references)
    assert distance_of(predictions, references) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("rows", [(2, 2), (2, 50), (5, 5), (10, 1000), (40, 40), (1000, 3)])
def test_fewer_rows_than_features_cost_no_digits(rows):
    predictions, references = random_features(rows[0], 96), random_features(rows[1], 96, seed=1)
    expected = by_rows(predictions, references)
    assert distance_of(predictions, references) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("rows", [2, 20, 500])
def test_equal_sets_have_no_distance_and_a_shift_its_square(rows):
    features = random_features(rows, 96)
    assert 0 <= distance_of(features, features[::-1].copy()) < 1e-10
    assert distance_of(features, features + 0.5) == pytest.approx(96 * 0.25, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 30), max_size=5), st.lists(st.integers(0, 50), max_size=5), st.booleans())
def test_the_batches_change_nothing_and_sides_may_come_alone(cuts, other_cuts, together):
    predictions, references = random_features(30, 6), random_features(50, 6, seed=1)
    metric = FrechetDistance(6)
    for part in np.split(predictions, sorted(cuts)):
        metric.add_batch(predictions=part)
        if together:
            metric.add_batch(predictions=part[:0], references=references[:0])
    for part in np.split(references, sorted(other_cuts)):
        metric.add_batch(references=torch.from_numpy(part))
    assert len(metric) == 80
    whole = distance_of(predictions, references)
    assert metric.compute()["frechet_distance"] == pytest.approx(whole, rel=1e-11)
    assert len(metric) == 0


def test_float32_features_are_summed_in_float64():
    features = (1000 + random_features(4000, 3)).astype(np.float32)
    exact = by_rows(features.astype(np.float64)[:2000], features.astype(np.float64)[2000:])
    assert distance_of(features[:2000], features[2000:]) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "needs at least 1 row, got 0"),
        ({"predictions": np.ones((5, 4))}, "at least 2 rows of `references`, got 0"),
        ({"predictions": np.ones((1, 4)), "references": np.ones((5, 4))}, "`predictions`, got 1"),
        ({"predictions": np.ones((5, 3))}, r"`predictions` must be of shape \(number, 4\)"),
        ({"references": np.ones((5, 4), int)}, "`references` must be floating point"),
        ({"references": np.full((5, 4), np.nan)}, "`references` must be finite"),
    ],
)
def test_wrong_features_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        FrechetDistance(4).compute(**inputs)


def test_nothing_is_added_where_one_side_is_wrong():
    metric = FrechetDistance(4)
    with pytest.raises(ValueError, match="`references` must be finite"):
        metric.add_batch(predictions=np.ones((5, 4)), references=np.full((5, 4), np.inf))
    assert len(metric) == 0


# Classified images


def test_counts_perplexity_sureness_and_accuracy():
    probabilities = torch.tensor([[0.95, 0.05, 0], [0.9499, 0.0501, 0], [0.4, 0.6, 0], [0.0, 0.0, 1.0]])
    metric = ClassifiedImages(3)
    metric.add_batch(predictions=probabilities[:3], references=[0, 1, -1])
    result = metric.compute(predictions=probabilities[3:], references=torch.tensor([2]))
    assert result.pop("class_counts") == [2, 1, 1]
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert result == pytest.approx({"class_perplexity": math.exp(entropy), "sure_share": 0.5, "class_accuracy": 2 / 3})


def test_without_a_reference_there_is_no_accuracy():
    result = ClassifiedImages(2).compute(predictions=np.eye(2), references=[-1, -1])
    assert math.isnan(result["class_accuracy"])
    assert result["class_perplexity"] == pytest.approx(2)


@pytest.mark.parametrize(
    "predictions, references, message",
    [
        (np.ones((2, 3)), [0, 0], "`predictions` must be probabilities"),
        (np.eye(3), [0, 1, 3], "`references` must lie in -1 to 2, got 3"),
        (np.eye(3), [0, 1], r"`references` must be of shape \(3\), got \(2,\)"),
        (np.eye(3), [0.0, 1, 2], "`references` must be integers, got torch.float64"),
        (np.eye(4), [0, 1, 2, 3], r"`predictions` must be of shape \(number, 3\)"),
    ],
)
def test_wrong_readings_are_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        ClassifiedImages(3).compute(predictions=predictions, references=references)
