"""What each number of metrics.json means: name, unit, direction, group, protocol. One entry a key."""

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Record = dict[str, Any]

CONFIDENT = 0.95  # a classifier is confident of a class of at least this probability


@dataclass(frozen=True)
class Metric:
    """A metric. `name`, `scale` (unit or range) and `protocol` are format strings of the facts of a measurement.

    Args:
        stage: what is measured: "vqvae", "prior", "data" or "classifier".
        group: heading in the card's table of results.
        better: "↓" or "↑", the direction of improvement, if there is one.
        hub_type: the Hub's name of the metric, if the Hub knows it.
    """

    name: str
    stage: str
    scale: str
    group: str
    protocol: str
    better: str = ""
    hub_type: str | None = None

    def record(self, value: Any, *, split: str, count: int, **facts: Any) -> Record:
        """Its entry in metrics.json, of a `value` over `count` images of `split`."""
        texts = ("name", "scale", "protocol")
        filled = {key: getattr(self, key).format(**facts) for key in texts}
        return {**filled, "value": value, "split": split, "count": count, "stage": self.stage}


RECONSTRUCTIONS, CODEBOOK, PRIOR = "Reconstructions", "Codebook", "Prior"
REFERENCES, SAMPLES = "To compare the samples with", "Samples"
GROUPS = (RECONSTRUCTIONS, CODEBOOK, PRIOR, REFERENCES, SAMPLES, "Other")

CLIPPED = "clipped to [0, 1], not rounded to 8 bits"
WINDOWS = f"mean over images, {{window}}x{{window}} Gaussian window, sigma {{sigma:.3g}}; {CLIPPED}"
SHARE = "share from 0 to 1"
OF_CODES = "of {num_embeddings} codes"
NATS = "mean over all codes, each {given}"
IMAGE_BITS = "sum over its {height}x{width} codes, each {given}; mean over images"
NOISE = "uniform noise in place of images, without labels; images of the split have {low:.4g} to {high:.4g} bits"
AGAINST = (
    "against all {eval_count:,} images of the split; 8-bit images; {num_features} features, the "
    "input of the last layer of {classifier}"
)
FLOOR = f"{{draws}} real training images in place of samples; {AGAINST}"
RECONSTRUCTED = f"reconstructions of as many images of the split in place of samples; {AGAINST}"
READ_RIGHT = "images of the split that are read as their label; {classifier}"
# What the classifier makes of the samples, and of real images.
READ = "{real:.4g} of real training images; samples, {controls}; {classifier}"
SURE = f"likeliest class has a probability of {CONFIDENT:g} or more; {READ}"
CLASSES = f"exp(entropy) of the counts of likeliest classes; {READ}"

METRICS = {
    "reconstruction_mse": Metric(
        "Reconstruction MSE", "vqvae", "[0, 1]", RECONSTRUCTIONS, f"mean over all pixels; {CLIPPED}", "↓", "mse"
    ),
    "psnr": Metric(
        "PSNR", "vqvae", "dB", RECONSTRUCTIONS, f"of the MSE over all pixels, data range 1; {CLIPPED}", "↑"
    ),
    "ssim": Metric("SSIM", "vqvae", "at most 1", RECONSTRUCTIONS, WINDOWS, "↑"),
    "codebook_perplexity": Metric(
        "Codebook perplexity", "vqvae", OF_CODES, CODEBOOK, "exp(entropy) of one histogram of all codes"
    ),
    "codes_used": Metric("Codes used", "vqvae", OF_CODES, CODEBOOK, "codes that occur at least once"),
    "nll": Metric("Negative log-likelihood{labels}", "prior", "nats per code", PRIOR, NATS, "↓"),
    "bits_per_code": Metric("Bits per code", "prior", "bits per code", PRIOR, "nats per code / ln 2", "↓"),
    "bits_per_image": Metric("Bits per image{labels}", "prior", "bits per image", PRIOR, IMAGE_BITS, "↓"),
    "bits_per_image_noise": Metric("Bits per image of noise", "prior", "bits per image", PRIOR, NOISE),
    "code_accuracy": Metric(
        "Next-code accuracy", "prior", SHARE, PRIOR, "codes that were the most probable one {given}", "↑", "accuracy"
    ),
    "frechet_distance_floor": Metric("Fréchet distance (floor)", "data", "at least 0", REFERENCES, FLOOR),
    "frechet_distance_reconstructions": Metric(
        "Fréchet distance (reconstructions)", "vqvae", "at least 0", REFERENCES, RECONSTRUCTED, "↓"
    ),
    "classifier_accuracy": Metric("Classifier accuracy", "classifier", SHARE, REFERENCES, READ_RIGHT),
    "frechet_distance": Metric(
        "Fréchet distance{labels}", "prior", "at least 0", SAMPLES, f"samples, {{controls}}; {AGAINST}", "↓"
    ),
    "sure_share": Metric("Share the classifier is sure of{labels}", "prior", SHARE, SAMPLES, SURE),
    "class_perplexity": Metric("Class perplexity{labels}", "prior", "of {num_classes} classes", SAMPLES, CLASSES),
    "label_agreement": Metric(
        "Samples read as their label", "prior", SHARE, SAMPLES, f"likeliest class is the label asked for; {READ}", "↑"
    ),
}
for _key in ("frechet_distance", "sure_share", "class_perplexity"):
    METRICS[f"{_key}_with_labels"] = METRICS[_key]
for _key in ("nll", "bits_per_image"):
    # Of p(codes) = sum_y p(y) p(codes | y); and, in runs of before, those with the null label.
    METRICS[f"{_key}_marginal"] = METRICS[f"{_key}_without_labels"] = METRICS[_key]
OTHER = Metric("", "", "", "Other", "")  # of a key that is not in the catalogue


def sample_records(
    results: dict[str, Any], classifier: Any, split: str, controls: str, guidance_scale: float
) -> dict[str, Record]:
    """The records of measured samples, by key.

    Args:
        results: numbers of `FrechetDistance` and `ClassifiedImages`, and `count`, of the sets "eval", "floor" (a list,
            of each draw), "reconstructions" and, where they were drawn, "samples" (without labels) and "labelled".
        classifier: the `ImageClassifier` that computed them.
        controls: what the samples were drawn with, as text.
        guidance_scale: that of the samples with labels.
    """
    floor = results["floor"]
    records: dict[str, Record] = {}

    def add(key: str, result: dict[str, Any], measure: str, **facts: Any) -> None:
        records[key] = METRICS[key].record(
            result[measure],
            split=split,
            count=result["count"],
            real=fmean(draw[measure] for draw in floor),
            eval_count=results["eval"]["count"],
            num_features=classifier.num_features,
            num_classes=classifier.num_classes,
            classifier=classifier.description,
            **facts,
        )

    guided = f"{controls}, guidance_scale {guidance_scale:g}"
    drawn = {"labels": "", "controls": controls}
    if "labelled" in results:
        drawn = {"labels": " (without labels)", "controls": f"{controls}, labels drawn by their frequencies"}
    sets = {"samples": ("", drawn), "labelled": ("_with_labels", {"labels": " (with labels)", "controls": guided})}
    samples = [(results[kind], *how) for kind, how in sets.items() if kind in results]
    for result, suffix, how in samples:
        add(f"frechet_distance{suffix}", result, "frechet_distance", **how)
    draws = [draw["frechet_distance"] for draw in floor]
    mean = floor[0] | {"frechet_distance": fmean(draws)}
    several = f"mean of {len(draws)} draws ({min(draws):.3g} to {max(draws):.3g}) of "
    several = f"{several if len(draws) > 1 else ''}as many"
    add("frechet_distance_floor", mean, "frechet_distance", draws=several)
    add("frechet_distance_reconstructions", results["reconstructions"], "frechet_distance")
    names = classifier.model.config.id2label
    for result, suffix, how in samples:
        add(f"sure_share{suffix}", result, "sure_share", **how)
        add(f"class_perplexity{suffix}", result, "class_perplexity", **how)
        records[f"class_perplexity{suffix}"] |= {
            "classes": [str(names[number]) for number in range(classifier.num_classes)],
            "counts": result["class_counts"],
        }
    if math.isfinite(results.get("labelled", {}).get("class_accuracy", math.nan)):
        add("label_agreement", results["labelled"], "class_accuracy", controls=guided)
    if math.isfinite(results["eval"]["class_accuracy"]):
        add("classifier_accuracy", results["eval"], "class_accuracy")
    return records
