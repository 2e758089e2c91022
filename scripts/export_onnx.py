"""Write a model as ONNX: encoder, decoder and prior, each a file in its folder `onnx`.

python scripts/export_onnx.py outputs/mnist
python scripts/export_onnx.py me/vqvae-mnist --output_dir exported
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

from dataclasses import dataclass
from pathlib import Path

import hf_vqvae
from hf_vqvae.arguments import flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script


@dataclass
class ExportArguments:
    """What to export and where to."""

    model_revision: str | None = flag(None, "Branch, tag or commit of a model on the Hub.")
    output_dir: str | None = flag(None, "Where to make the folder `onnx` (default: in MODEL, if that is a folder).")


def main() -> None:
    parser = ScriptArgumentParser(ExportArguments, description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="A folder, or owner/name on the Hub.")
    arguments, rest = parser.parse()
    if arguments.output_dir is None and not Path(rest.model).is_dir():
        parser.error(f"--output_dir says where to write: there is no folder {rest.model}.")

    hf_vqvae.register()
    from hf_vqvae.export.onnx import check_packages, export_onnx
    from hf_vqvae.hub.download import load_model

    check_packages()
    model = load_model(rest.model, arguments.model_revision)
    for path in export_onnx(model, Path(arguments.output_dir or rest.model)):
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_script(main)
