"""Read the records of a run, and check that they belong to its weights."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..arguments import HubArguments
from ..hub.commit import WEIGHTS
from ..hub.download import hash_saved_weights
from ..models.configuration_utils import shown


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of the run; a missing file is empty, and `ValueError` says that one is not an object."""
    path = folder / name
    try:
        record = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} in {folder.name} is damaged ({error}).") from error
    if not isinstance(record, dict):
        raise ValueError(f"{name} in {folder.name} is damaged: it must be an object, got {shown(record)}.")
    return record


def training_alone(arguments: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of arguments.json that repeat the training alone, on the commit of the dataset in run.json."""
    others = {one.name: one.default for one in fields(HubArguments) if one.name != "hub_license"}
    others |= {"resume_from_checkpoint": None, "resume_with_changes": False}
    others |= {"overwrite_output_dir": False, "cache_dir": None, "trackio_space_id": None}
    if dataset.get("revision"):
        others["dataset_revision"] = dataset["revision"]
    return {name: others.get(name, value) for name, value in arguments.items()}


def check_records(folder: Path) -> None:
    """Raise `ValueError` if run.json names other weights than those beside it; that of an older run names none."""
    recorded = read_record(folder, "run.json").get("weights_sha256")
    if recorded is None or not any(folder.glob(WEIGHTS[0])):
        return
    if recorded != hash_saved_weights(folder):
        raise ValueError(
            f"run.json in {folder.name} describes other weights than those beside it: put the weights of the run back, "
            "or push these from Python (model.push_to_hub), with a card without results."
        )
