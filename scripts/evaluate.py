"""Measure a trained model on a dataset: reconstruction, codebook use and, if it has one, its prior and its samples.

python scripts/evaluate.py outputs/mnist
accelerate launch scripts/evaluate.py me/vqvae-mnist --dataset_name ylecun/mnist --output_file metrics.json
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import sys
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_vqvae
from hf_vqvae.arguments import DataArguments, SampleQualityArguments, flag
from hf_vqvae.command_line import ScriptArgumentParser, format_table, run_script
from hf_vqvae.files import write_json, writing_errors

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class EvaluationArguments(SampleQualityArguments):
    """What to measure and where to write it."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    batch_size: int = flag(256, "Images per process at a time; changes no result.", at_least=1)
    output_file: str | None = flag(None, "JSON file for the metrics, in the form of metrics.json.")


def main() -> None:
    parser = ScriptArgumentParser((EvaluationArguments, DataArguments), description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    evaluation, data, rest = parser.parse()

    # Imported after the flags are parsed: this takes seconds.
    hf_vqvae.register()
    from hf_vqvae.distributed import init_distributed, named_distributed_errors

    accelerator = init_distributed()
    with named_distributed_errors():
        info, metrics = measure(rest.model, evaluation, data, accelerator)
    if accelerator.is_main_process:
        where = f"{data.eval_split} of {info['name']}, {info['count']:,} images"
        processes = f"number of processes: {accelerator.num_processes}"
        print(f"{rest.model} on {where}, {processes}\n")
        print(format_results(metrics))
        if evaluation.output_file:
            path = Path(evaluation.output_file)
            with writing_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, metrics)
    accelerator.end_training()


def measure(
    name_or_path: str, evaluation: EvaluationArguments, data: DataArguments, accelerator: "Accelerator"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the model; returns the description of the evaluation images, and the metrics."""
    from hf_vqvae.data.splits import load_split
    from hf_vqvae.evaluation.model_metrics import evaluate_model
    from hf_vqvae.evaluation.sample_quality import check_arguments, choose_classifier, class_names, measure_samples
    from hf_vqvae.evaluation.small_classifier import NoLabelsError
    from hf_vqvae.hub.download import load_model

    model = load_model(name_or_path, evaluation.model_revision)
    check_arguments(model, evaluation)
    with accelerator.main_process_first():  # one process fills the cache, the others read it
        names = class_names(model)
        train_images = None
        if evaluation.num_samples:
            try:
                train_images, train_info = load_split(data, model.config, "train", names)
            except ValueError as error:
                way_out = "--num_samples 0 leaves out the Fréchet distance, which needs this split."
                raise ValueError(f"{error} {way_out}") from error
            names = train_info["label_names"]
        images, info = load_split(data, model.config, "eval", names)
    names, classifier = info["label_names"], None
    if train_images is not None:
        try:
            classifier = choose_classifier(evaluation, train_images, names, accelerator)
        except NoLabelsError as error:
            accelerator.print(f"The Fréchet distance is left out: {error}", file=sys.stderr)
    model.to(accelerator.device)
    settings = {"batch_size": evaluation.batch_size, "split": data.eval_split}
    metrics, _ = evaluate_model(model, images, accelerator, **settings)
    if classifier is not None:
        metrics |= measure_samples(
            *(model, train_images, images, classifier, evaluation, accelerator), label_names=names, **settings
        )
    return info, metrics


def format_results(metrics: dict[str, dict[str, Any]]) -> str:
    """Format the card's table of results as text, with the notes that its rows refer to below it."""
    from hf_vqvae.model_card.context import results_table

    results = results_table(metrics)
    rows = [
        [unescape(row["name"]), f"{metrics[row['key']]['value']:.6g}", row["scale"], row["notes"]]
        for row in results["rows"]
    ]
    table = format_table(["name", "value", "unit", "notes"], rows, "<><<")
    notes = [f"({number}) {unescape(note)}" for number, note in enumerate(results["notes"], start=1)]
    return "\n".join([table, "", *notes])


if __name__ == "__main__":
    run_script(main)
