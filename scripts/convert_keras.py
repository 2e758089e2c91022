"""Convert weights of the Keras example, its VQ-VAE, its PixelCNN or both, to a model of this package.

python scripts/convert_keras.py keras-io/vq-vae --output_dir outputs/keras
python scripts/convert_keras.py vqvae.h5 --prior pixelcnn.keras --output_dir outputs/keras
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

from dataclasses import dataclass
from pathlib import Path

import hf_vqvae
from hf_vqvae.arguments import flag
from hf_vqvae.command_line import ScriptArgumentParser, run_script


@dataclass
class ConversionArguments:
    """What to convert and where to write it."""

    output_dir: str = flag("outputs/keras", "Folder of the model, which must not be there yet.")
    prior: str | None = flag(None, "The PixelCNN, if it is not in SOURCE.")
    image_size: list[int] = flag([28], "Height and width of the VQ-VAE's images, which the weights do not say.")
    grid_size: list[int] = flag([7, 7], "Rows and columns of codes of a PixelCNN without a VQ-VAE.")


def main() -> None:
    parser = ScriptArgumentParser(ConversionArguments, description=__doc__)
    meaning = "A SavedModel, a .keras or .h5 file, or owner/name[@revision][/path] on the Hub."
    parser.add_argument("source", metavar="SOURCE", help=meaning)
    arguments, rest = parser.parse()

    hf_vqvae.register()
    from hf_vqvae.export.keras import convert_sources

    names = [rest.source, arguments.prior] if arguments.prior else [rest.source]
    size = arguments.image_size
    sizes = {"image_size": tuple(size) if len(size) > 1 else size[0], "grid_size": tuple(arguments.grid_size)}
    print(f"{arguments.output_dir}: {convert_sources(names, Path(arguments.output_dir), **sizes)}")


if __name__ == "__main__":
    run_script(main)
