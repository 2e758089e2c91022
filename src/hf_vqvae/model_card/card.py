"""Build and write the model card of a run, and its notebook, from its files; write the card of a dataset of codes."""

import json
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import yaml
from jinja2 import Template
from transformers import AutoConfig

from ..files import atomic_replace
from ..hub.card_signature import sign_card
from ..metrics.catalogue import METRICS
from ..models import VQVAEForImageGenerationConfig
from ..models.pipeline_image_generation import TASK
from . import context
from .escaping import as_code, as_duration, as_setting, as_string, clean
from .records import check_records, read_record


def template_path(name: str = "template.md") -> Path:
    """Return the path of the template of a card or of the notebook, in the installed package or in a checkout."""
    packaged = Path(__file__).with_name(name)
    if packaged.is_file():
        return packaged
    return Path(__file__).parents[3] / "model_card" / name


def build_card(run_folder: str | Path, repo_id: str | None = None) -> ModelCard:
    """Build the card of a run, without its signature and without writing it.

    Args:
        run_folder: folder with config.json. A section whose record or figure is missing is left out.
        repo_id: the name that the card's code loads; by default that of the folder. With it, or if config.json has an
            `auto_map`, the card also says how to load without hf_vqvae.

    Raises:
        ValueError: if there is no config.json, or a record is damaged or of other weights.
        ImportError: without Jinja2 (extra `train`).
    """
    run_folder = Path(run_folder).resolve()
    config = AutoConfig.from_pretrained(run_folder, trust_remote_code=False)
    check_records(run_folder)
    metrics, run = read_record(run_folder, "metrics.json"), read_record(run_folder, "run.json")
    arguments = read_record(run_folder, "arguments.json")
    name = repo_id or clean(run_folder.name.removesuffix(".partial"))
    dataset = context.describe_dataset(run.get("dataset") or {})
    has_prior = isinstance(config, VQVAEForImageGenerationConfig)
    base_model = run.get("base_model") if context.HUB_ID.fullmatch(str(run.get("base_model"))) else None
    pictures = context.gallery(run_folder, getattr(config, "prior_config", None))
    tracked = context.dashboard_tags(run)
    known_metrics = [one.hub_type for key, one in METRICS.items() if key in metrics and one.hub_type]
    data = ModelCardData(
        license=arguments.get("hub_license") or (None if run.get("converted_from") else "apache-2.0"),
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["vq-vae", *(["pixelcnn"] if has_prior else []), "hf_vqvae", *tracked],
        base_model=base_model,
        datasets=[dataset["name"]] if dataset["is_hub"] else None,
        metrics=known_metrics or None,
        model_name=name.split("/")[-1],
        eval_results=context.eval_results(metrics, dataset) or None,
        widget=pictures or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template_path()),
        model=context.describe_model(config),
        dataset=dataset,
        results=context.results_table(metrics) if metrics else None,
        metrics=metrics,
        stages=context.setting_tables(config, arguments),
        has_gallery=bool(pictures),
        has_arguments=bool(arguments),
        figures={path.stem for path in (run_folder / "figures").glob("*.png")},
        model_id=as_string(name),
        has_code=repo_id is not None or "auto_map" in read_record(run_folder, "config.json"),
        run=run,
        base_model=base_model,
        dashboard=run["dashboard"] if tracked else None,
        package=context.describe_package(),
        # Each value of a record goes through one of these.
        code=as_code,
        setting=as_setting,
        duration=as_duration,
    )
    # Sections that are left out leave empty lines behind.
    card.text = re.sub(r"\n{3,}", "\n\n", card.text)
    return card


def build_notebook(run_folder: str | Path) -> dict[str, Any]:
    """Build the notebook of a model, which loads it from the folder that it lies in; a push names the repo instead."""
    config = AutoConfig.from_pretrained(run_folder, trust_remote_code=False)
    template = Template(template_path("notebook.md").read_text("utf-8"))
    text = template.render(model=context.describe_model(config), package=context.describe_package())
    kinds = ({"cell_type": "markdown"}, {"cell_type": "code", "execution_count": None, "outputs": []})
    parts = re.split(r"^```(?:python)?\n", text, flags=re.MULTILINE)  # text and code in turn
    cells = [
        {**kinds[number % 2], "metadata": {}, "source": part.strip().splitlines(keepends=True)}
        for number, part in enumerate(parts)
        if part.strip()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def write_card(run_folder: str | Path, repo_id: str | None = None) -> None:
    """Write the card of a run as its README.md, atomically. Arguments and errors are those of `build_card`.

    If the card links to notebook.ipynb, which needs figures/test_images.png, that is written too.
    """
    card = str(build_card(run_folder, repo_id))
    texts = {"README.md": sign_card(card)}
    if "(notebook.ipynb)" in card:
        texts["notebook.ipynb"] = json.dumps(build_notebook(run_folder), indent=1, ensure_ascii=False) + "\n"
    for name, text in texts.items():
        partial = Path(run_folder, f"{name}.partial")
        partial.write_text(text, "utf-8", newline="\n")
        atomic_replace(partial, partial.with_name(name))


def write_dataset_card(folder: Path, repo_id: str, config: Any, encoding: dict[str, Any]) -> None:
    """Write the card of a dataset of codes with the record `encoding`; `repo_id` is its name, `config` the model's."""
    names = {str(number): name for number, name in enumerate(encoding["label_names"] or ())}
    text = Template(template_path("dataset_template.md").read_text("utf-8")).render(
        model=context.describe_model(config),
        dataset=context.describe_dataset(encoding),
        class_names=yaml.safe_dump(names, default_flow_style=True, width=math.inf),
        repo_id=repo_id,
        code=as_code,
        string=as_string,
    )
    (folder / "README.md").write_text(sign_card(text), "utf-8", newline="\n")
