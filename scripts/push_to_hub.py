"""Push the folder of a finished run to the Hub.

    python scripts/push_to_hub.py outputs/mnist --hub_model_id me/vqvae-mnist

The token is that of HF_TOKEN or `hf auth login`.
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

import sys
from dataclasses import dataclass, field
from pathlib import Path

import hf_vqvae
from hf_vqvae.arguments import HubTargetArguments
from hf_vqvae.command_line import ScriptArgumentParser


@dataclass
class PushArguments(HubTargetArguments):
    """What to push it as."""

    # The card has the license of the run already: only a flag changes it.
    hub_license: str | None = field(
        default=None, metadata={"help": "License on the card (default: the card's is kept)."}
    )


def main() -> None:
    parser = ScriptArgumentParser(PushArguments, description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Folder of a finished run, as scripts/train.py leaves it.")
    parser.add_argument(
        "--overwrite_card",
        action="store_true",
        help="Overwrite a README.md that was written or edited by hand on the Hub.",
    )
    hub, rest = parser.parse()
    if not hub.hub_model_id:
        parser.error("--hub_model_id says where to push: name or owner/name.")

    # Imported after the flags are parsed: this takes seconds.
    hf_vqvae.register()
    from hf_vqvae.publishing.push import (
        PushError,
        check_can_push,
        check_finished,
        push_command,
        push_folder,
        push_stopped_by_signals,
    )

    target = {
        "private": hub.hub_private,
        "revision": hub.hub_revision,
        "create_pr": hub.hub_create_pr,
    }
    options = {
        "commit_message": hub.hub_commit_message,
        "license": hub.hub_license,
    }
    flags = {f"hub_{name}": value for name, value in (target | options).items()}
    command = push_command(
        rest.folder, hub.hub_model_id, **flags, overwrite_card=rest.overwrite_card
    )
    try:
        check_finished(Path(rest.folder))
        with push_stopped_by_signals(command):
            try:
                repo_id = check_can_push(hub.hub_model_id, **target)
            except PushError as error:
                sys.exit(f"{error}\nNothing was pushed. This tries again:\n\n    {command}\n")
            url = push_folder(
                rest.folder, repo_id, **target, **options, overwrite_card=rest.overwrite_card
            )
    except (PushError, ValueError) as error:
        sys.exit(f"{error}")
    print(f"Pushed to {url}")


if __name__ == "__main__":
    main()
