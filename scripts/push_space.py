"""Make a static Space on the Hub, free and without a server, whose page shows a model in the browser.

    python scripts/push_space.py me/vqvae-mnist --space_id me/vqvae-mnist-demo

The model must be on the Hub, with ONNX files (`push_to_hub.py --onnx`). Its card then links to the Space. The token is
that of HF_TOKEN or `hf auth login`.
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import shlex
import sys
import tempfile
from dataclasses import dataclass

import hf_vqvae
from hf_vqvae.arguments import flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.hub.errors import PushError


@dataclass
class SpaceArguments:
    """What to make."""

    space_id: str | None = flag(None, "The Space, as owner/name.")
    model_revision: str | None = flag(None, "Branch, tag or commit of the model that the page shows.")
    hub_private: bool = flag(False, "Make a new Space private.")
    hub_license: str = flag("apache-2.0", "License on the card of the Space.")
    overwrite_card: bool = flag(False, "Overwrite a README.md that was written or edited by hand on the Hub.")


def main() -> None:
    parser = ScriptArgumentParser(SpaceArguments, description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="owner/name on the Hub.")
    arguments, rest = parser.parse()
    if not arguments.space_id:
        parser.error("--space_id says which Space to make: owner/name.")

    hf_vqvae.register()
    from hf_vqvae.publishing.push import explained_push

    with explained_push(shlex.join(["python", *sys.argv])):
        push(rest.model, arguments)


def push(model: str, arguments: SpaceArguments) -> None:
    """Check everything, push the Space in one commit, and link to it from the model's card."""
    from hf_vqvae.export.page import check_model, link_from_card, write_space
    from hf_vqvae.hub.commit import commit_folder
    from hf_vqvae.hub.preflight import check_can_push

    license, private, revision = arguments.hub_license, arguments.hub_private, arguments.model_revision
    check_model(model, revision)
    space_id = check_can_push(arguments.space_id, private=private, license=license, repo_type="space")
    with tempfile.TemporaryDirectory() as folder:
        write_space(folder, model, revision, space_id, license)
        commit = commit_folder(
            folder,
            space_id,
            commit_message=f"Show {model}",
            private=private or None,
            edited_card="overwrite" if arguments.overwrite_card else "refuse",
            repo_type="space",
        )
    print(f"Pushed to {commit.commit_url}")
    print(link_from_card(model, commit.repo_url))


if __name__ == "__main__":
    run_script(main, PushError)
