"""The measures of samples in the form of metrics.json, each with how it was taken, in words."""

import math
from statistics import fmean
from typing import Any

from .samples import SURE

Record = dict[str, Any]
SHARE = "share from 0 to 1"


def sample_records(
    results: dict[str, Any],
    *,
    split: str,
    classifier: Any,
    controls: dict[str, Any],
    guidance_scale: float,
) -> dict[str, Record]:
    """One record a metric: `name`, `value`, `split`, `count` (images), `scale`, `stage`, `protocol`.

    Args:
        results: what was measured of the sets `eval`, `floor`, `reconstructions` and, as far as they
            were drawn, `samples` (without labels) and `labelled`: the numbers of `FrechetDistance`
            and `ClassifiedImages`, and `count`; of `floor` a list of them, one for each draw.
        split: that of the set `eval`.
        controls, guidance_scale: what the samples were drawn with.
    """
    against = (
        f"against all {results['eval']['count']:,} images of the split; 8-bit images; "
        f"{classifier.num_features} features, the input of the last layer of "
        f"{classifier.description}"
    )
    drawn = ", ".join(f"{name} {value:g}" for name, value in controls.items())
    both = "labelled" in results and "samples" in results
    of_sets = {
        "samples": ("", " (without labels)" if both else "", drawn),
        "labelled": (
            "_with_labels",
            " (with labels)",
            f"{drawn}, guidance_scale {guidance_scale:g}",
        ),
    }
    records = {}
    for kind, (suffix, label, drawn_with) in of_sets.items():
        if kind in results:
            result = results[kind]
            records[f"frechet_distance{suffix}"] = {
                "name": f"Fréchet distance{label}",
                "value": result["frechet_distance"],
                "scale": "at least 0",
                "stage": "prior",
                "protocol": f"samples, {drawn_with}; {against}",
            }
    records |= _bounds(results, against)
    for kind, (suffix, label, drawn_with) in of_sets.items():
        if kind in results:
            how = f"samples, {drawn_with}; {classifier.description}"
            records |= _readings(kind, suffix, label, how, results, classifier)
    records = {key: record | {"count": _count(key, results)} for key, record in records.items()}
    accuracy = results["eval"]["class_accuracy"]
    if math.isfinite(accuracy):
        records["classifier_accuracy"] = {
            "name": "Classifier accuracy",
            "value": accuracy,
            "scale": SHARE,
            "stage": "classifier",
            "protocol": f"images of the split that are read as their label; {classifier.description}",
            "count": results["eval"]["count"],
        }
    return {key: record | {"split": split} for key, record in records.items()}


def _count(key: str, results: dict[str, Any]) -> int:
    """Images behind a number; of the floor, of each draw."""
    if key == "frechet_distance_floor":
        return results["floor"][0]["count"]
    if key == "frechet_distance_reconstructions":
        return results["reconstructions"]["count"]
    return results["labelled" if "samples" not in results else "samples"]["count"]


def _bounds(results: dict[str, Any], against: str) -> dict[str, Record]:
    """Between what samples may stand: as near as real images, or as the VQ-VAE's own images."""
    draws = [draw["frechet_distance"] for draw in results["floor"]]
    several = f"mean of {len(draws)} draws ({min(draws):.3g} to {max(draws):.3g}) of as many"
    return {
        "frechet_distance_floor": {
            "name": "Fréchet distance (floor)",
            "value": fmean(draws),
            "scale": "at least 0",
            "stage": "data",
            "protocol": f"{several if len(draws) > 1 else 'as many'} real training images in "
            f"place of samples; {against}",
        },
        "frechet_distance_reconstructions": {
            "name": "Fréchet distance (reconstructions)",
            "value": results["reconstructions"]["frechet_distance"],
            "scale": "at least 0",
            "stage": "vqvae",
            "protocol": f"reconstructions of as many images of the split in place of samples; {against}",
        },
    }


def _readings(
    kind: str,
    suffix: str,
    label: str,
    how: str,
    results: dict[str, Any],
    classifier: Any,
) -> dict[str, Record]:
    """What the classifier reads in samples, and in the real images of the floor."""
    result = results[kind]

    def protocol(rule: str, key: str) -> str:
        real = fmean(draw[key] for draw in results["floor"])
        return f"{rule}; {real:.4g} of real training images; {how}"

    names = classifier.model.config.id2label
    sure = f"likeliest class has a probability of {SURE:g} or more"
    records = {
        f"sure_share{suffix}": {
            "name": f"Share the classifier is sure of{label}",
            "value": result["sure_share"],
            "scale": SHARE,
            "stage": "prior",
            "protocol": protocol(sure, "sure_share"),
        },
        f"class_perplexity{suffix}": {
            "name": f"Class perplexity{label}",
            "value": result["class_perplexity"],
            "scale": f"of {classifier.num_classes} classes",
            "stage": "prior",
            "protocol": protocol(
                "exp(entropy) of the counts of likeliest classes", "class_perplexity"
            ),
            "classes": [str(names[number]) for number in range(classifier.num_classes)],
            "counts": result["class_counts"],
        },
    }
    if kind == "labelled" and math.isfinite(result["class_accuracy"]):
        records["label_agreement"] = {
            "name": "Samples read as their label",
            "value": result["class_accuracy"],
            "scale": SHARE,
            "stage": "prior",
            "protocol": protocol("likeliest class is the label asked for", "class_accuracy"),
        }
    return records
