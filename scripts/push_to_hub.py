"""Push the folder of a finished run to the Hub.

    python scripts/push_to_hub.py outputs/mnist --hub_model_id me/vqvae-mnist

The token is that of HF_TOKEN or `hf auth login`.
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

from dataclasses import dataclass
from pathlib import Path

import hf_vqvae
from hf_vqvae.arguments import HubTargetArguments, flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.hub.errors import PushError


@dataclass
class PushArguments(HubTargetArguments):
    """What to push it as."""

    # The card has the license of the run already: only a flag changes it.
    hub_license: str | None = flag(None, "License on the card (default: the card's is kept).")
    overwrite_card: bool = flag(False, "Overwrite a README.md that was written or edited by hand on the Hub.")


def main() -> None:
    parser = ScriptArgumentParser(PushArguments, description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Folder of a finished run, as scripts/train.py leaves it.")
    hub, rest = parser.parse()
    if not hub.hub_model_id:
        parser.error("--hub_model_id says where to push: name or owner/name.")

    # Imported after the flags are parsed: this takes seconds.
    hf_vqvae.register()
    from hf_vqvae.export.onnx import check_packages, write_onnx
    from hf_vqvae.hub.preflight import check_can_push
    from hf_vqvae.publishing import push

    options = push.options_of(hub) | {"overwrite_card": hub.overwrite_card}
    command = push.push_command(rest.folder, hub.hub_model_id, **options) + " --onnx" * hub.onnx
    push.check_finished(Path(rest.folder))
    if hub.onnx:
        check_packages()
    with push.push_stopped_by_signals(command):
        try:
            repo_id = check_can_push(hub.hub_model_id, **push.target_of(hub))
        except PushError as error:
            raise PushError(f"{error}\nNothing was pushed. This tries again:\n\n    {command}\n") from error
        if hub.onnx:
            write_onnx(rest.folder)
        url = push.push_folder(rest.folder, repo_id, **options)
    print(f"Pushed to {url}")


if __name__ == "__main__":
    run_script(main, PushError)
