"""Measure a trained model on a dataset: reconstruction, codebook use and, if it has one, its prior
and how good its samples are.

    python scripts/evaluate.py outputs/mnist
    accelerate launch scripts/evaluate.py me/vqvae-mnist --dataset_name ylecun/mnist \\
        --eval_split test --output_file metrics.json
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_vqvae
from hf_vqvae.arguments import DataArguments, SampleQualityArguments, check_bounds, flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.files import output_file, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_vqvae.data.decoding import DecodedImages

LONG = 50  # characters of a clause that the table prints once if protocols share it


@dataclass
class EvaluationArguments:
    """What to measure and where to write it."""

    model_name_or_path: str | None = flag(None, "The same as MODEL: a folder, or owner/name on the Hub.")
    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    batch_size: int = flag(256, "Images per process at a time; changes no result.", at_least=1)
    output_file: str | None = flag(None, "JSON file for the metrics, in the form of metrics.json.")

    def __post_init__(self):
        check_bounds(self)


def main() -> None:
    evaluation, sampling, data = parse_arguments()

    # Imported after the flags are parsed: this takes seconds.
    hf_vqvae.register()
    from hf_vqvae.distributed import init_distributed, named_distributed_errors

    accelerator = init_distributed()
    with named_distributed_errors():
        info, metrics = measure(evaluation, sampling, data, accelerator)
    if accelerator.is_main_process:
        where = f"{data.eval_split} of {info['name']}, {info['count']:,} images"
        processes = f"number of processes: {accelerator.num_processes}"
        print(f"{evaluation.model_name_or_path} on {where}, {processes}\n")
        print(format_table(metrics))
        if evaluation.output_file:
            with output_file(Path(evaluation.output_file)):
                write_json(Path(evaluation.output_file), metrics)
    accelerator.end_training()


def measure(
    evaluation: EvaluationArguments, sampling: SampleQualityArguments, data: DataArguments, accelerator: "Accelerator"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the model; returns the description of the evaluation images, and the metrics."""
    from hf_vqvae.data.splits import load_split
    from hf_vqvae.evaluation.model_metrics import evaluate_model
    from hf_vqvae.evaluation.sample_quality import check_arguments, choose_classifier, class_names, measure_samples
    from hf_vqvae.evaluation.small_classifier import NoLabelsError
    from hf_vqvae.hub.download import load_model

    model = load_model(evaluation.model_name_or_path, evaluation.model_revision)
    check_arguments(model, sampling)
    with accelerator.main_process_first():  # one process fills the cache, the others read it
        names = class_names(model)
        train_images = None
        if sampling.num_samples:
            train_images, names = load_train_images(data, model, names)
        images, info = load_split(data, model.config, "eval", names)
    names, classifier = info["label_names"], None
    if train_images is not None:
        try:
            classifier = choose_classifier(sampling, train_images, names, accelerator)
        except NoLabelsError as error:
            accelerator.print(f"The Fréchet distance is left out: {error}", file=sys.stderr)
    model.to(accelerator.device)
    settings = {"batch_size": evaluation.batch_size, "split": data.eval_split}
    metrics, _ = evaluate_model(model, images, accelerator, **settings)
    if classifier is not None:
        metrics |= measure_samples(
            *(model, train_images, images, classifier, sampling, accelerator), label_names=names, **settings
        )
    return info, metrics


def load_train_images(
    data: DataArguments, model: Any, label_names: list[str] | None
) -> "tuple[DecodedImages, list[str] | None]":
    """Load the training split for the Fréchet distance, and the names of its classes."""
    from hf_vqvae.data.splits import load_split

    try:
        images, info = load_split(data, model.config, "train", label_names)
        return images, info["label_names"]
    except ValueError as error:
        raise ValueError(
            f"{error} (The Fréchet distance needs the training split, `--train_split`; "
            "`--num_samples 0` leaves it out.)"
        ) from error


def parse_arguments() -> tuple[EvaluationArguments, SampleQualityArguments, DataArguments]:
    """The flags, with MODEL also as a positional argument anywhere among them."""
    kinds = (EvaluationArguments, SampleQualityArguments, DataArguments)
    parser = ScriptArgumentParser(kinds, description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="A folder, or owner/name.")
    evaluation, sampling, data, rest = parser.parse()
    named = [name for name in (rest.model, evaluation.model_name_or_path) if name is not None]
    if len(named) != 1:
        parser.error(f"name one model, as MODEL or --model_name_or_path, got {len(named)}: {named}")
    evaluation.model_name_or_path = named[0]
    return evaluation, sampling, data


def format_table(metrics: dict[str, dict[str, Any]]) -> str:
    """One line per metric: name, value, unit, protocol; long clauses that protocols share are numbered notes."""
    clauses = [metric["protocol"].split("; ") for metric in metrics.values()]
    counts = Counter(clause for protocol in clauses for clause in protocol)
    shared = [clause for clause, count in counts.items() if count > 1 and len(clause) > LONG]
    notes = {clause: f"({number})" for number, clause in enumerate(shared, start=1)}
    rows = [("name", "value", "unit", "protocol")]
    for metric, protocol in zip(metrics.values(), clauses, strict=True):
        value = f"{metric['value']:.6g}"
        short = "; ".join(notes.get(clause, clause) for clause in protocol)
        rows.append((metric["name"], value, metric["scale"], short))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    rows.insert(1, (*("-" * width for width in widths), "-" * len("protocol")))
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}  {protocol}"
        for name, value, unit, protocol in rows
    ]
    lines += ["", *(f"{number} {clause}" for clause, number in notes.items())] if notes else []
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
