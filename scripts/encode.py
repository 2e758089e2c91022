"""Encode a dataset of images to codes: parquet files that `load_dataset` reads, and that a prior is trained on.

python scripts/encode.py me/vqvae-mnist --dataset_name ylecun/mnist --push_to_hub me/mnist-codes
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import hf_vqvae
from hf_vqvae.arguments import DataArguments, flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.files import atomic_replace, write_json
from hf_vqvae.hub.errors import PushError


@dataclass
class EncodeArguments:
    """What encodes, and where the codes go."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    batch_size: int = flag(256, "Images at a time.")
    output_dir: str = flag("outputs/codes", "Folder of the dataset.")
    push_to_hub: str | None = flag(None, "Dataset on the Hub to push to, as owner/name.")
    hub_private: bool = flag(False, "Make a new repository private.")


def main() -> None:
    parser = ScriptArgumentParser((EncodeArguments, DataArguments), description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, data, rest = parser.parse()
    name, repo_id, private = rest.model, arguments.push_to_hub, arguments.hub_private
    folder = Path(arguments.output_dir)
    if folder.exists():
        parser.error(f"--output_dir {folder} exists: remove it, or name another.")

    hf_vqvae.register()
    from hf_vqvae.data.codes import ENCODING, encode_dataset
    from hf_vqvae.distributed import init_distributed
    from hf_vqvae.hub.commit import commit_folder
    from hf_vqvae.hub.download import fetch_model, hash_weights, load_model
    from hf_vqvae.hub.preflight import check_can_push
    from hf_vqvae.model_card.card import write_dataset_card
    from hf_vqvae.publishing.push import explained_push

    repo_id = repo_id and check_can_push(repo_id, private=private, repo_type="dataset")
    source, accelerator = Path(fetch_model(name, arguments.model_revision)).resolve(), init_distributed()
    model = load_model(str(source)).to(accelerator.device)
    writing = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    (writing / "data").mkdir(parents=True)
    encoding = encode_dataset(model, data, arguments.batch_size, accelerator, writing)
    encoding["model"], encoding["model_revision"] = (source.name, None) if Path(name).is_dir() else (name, source.name)
    encoding["weights_sha256"] = hash_weights(model.base_model.state_dict())
    write_json(writing / ENCODING, encoding)
    write_dataset_card(writing, repo_id or f"./{folder.name}", model.config, encoding)
    atomic_replace(writing, folder)
    print(f"Wrote {folder}")
    if repo_id:
        words = ["hf", "upload", repo_id, str(folder), ".", "--repo-type", "dataset", *["--private"] * private]
        options = {"commit_message": f"Codes of {encoding['name']}", "private": private or None}
        with explained_push(shlex.join(words)):
            commit = commit_folder(folder, repo_id, repo_type="dataset", **options)
        print(f"Pushed to {commit.commit_url}")


if __name__ == "__main__":
    run_script(main, PushError)
