"""Convert the networks of the Keras example "Vector-Quantized Variational Autoencoders" (Sayak Paul)."""

import re
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path

import numpy as np
import torch

from ..files import atomic_replace, write_json
from ..hub.card_signature import sign_card, unsigned
from ..hub.download import fetch_model
from ..model_card.card import write_card
from ..models import PixelCNNConfig, PixelCNNModel, VQVAEConfig, VQVAEModel
from ..models import VQVAEForImageGeneration as FullModel
from ..models import VQVAEForImageGenerationConfig as FullConfig
from ..models.hub_mixin import check_finite
from ..publishing.push import RECORDS
from ..publishing.staging import NO_RESULTS, save_for_hub
from .keras_files import SAVED_MODEL, Variables, read_variables

EXPECTED = """The VQ-VAE of the Keras example has 3x3 convolutions, a 1x1 convolution to D channels, a codebook (D, K) \
and transposed 3x3 convolutions; its PixelCNN a convolution of K planes, blocks of 1x1, 3x3 and 1x1, and 1x1 layers"""
FILES = (SAVED_MODEL, "variables/variables.data-*", "*.keras", "*.h5")
WAY_OUT = "Name a SavedModel, a .keras or .h5 file, a folder with one, or owner/name on the Hub."


@dataclass(eq=False, frozen=True)
class Layer:
    """A convolution, or a codebook without bias, and its place in the file."""

    place: int
    path: tuple[str, ...]
    kernel: np.ndarray  # HWIO; of a transposed convolution HWOI
    bias: np.ndarray | None = None


class Layers:
    """The codebook and the convolutions of a file in its order, from which `take` removes one after the other."""

    def __init__(self, variables: Variables):
        self.codebook: Layer | None = None
        self.convolutions: list[Layer] = []
        found = sorted(variables.items(), key=_order)
        while found:
            (path, array), *found = found
            if array.ndim == 2 and self.codebook is None:
                self.codebook = Layer(-len(found), path[:-1], array)
            elif array.ndim == 4 and found and found[0][1].ndim == 1 and found[0][0][:-1] == path[:-1]:
                self.convolutions.append(Layer(-len(found), path[:-1], array, found.pop(0)[1]))
            elif array.ndim:
                raise LookupError(f"{'/'.join(path)} is neither a kernel with a bias nor the codebook")

    def find(self, side: int, inputs: int | None, outputs: int | None, transposed: bool = False) -> list[Layer]:
        """List the convolutions of these sizes (None: any)."""

        def fits(layer: Layer) -> bool:
            *sides, first, second = layer.kernel.shape
            into, out = (second, first) if transposed else (first, second)
            is_one = sides == [side, side] and out == len(layer.bias)
            return is_one and inputs in (None, into) and outputs in (None, out)

        return [layer for layer in self.convolutions if fits(layer)]

    def take(self, *sizes: int | None, near: Layer | None = None, transposed: bool = False) -> Layer:
        """Remove and return the first convolution of these sizes, or that nearest to `near`, by path, then by place."""
        found = self.find(*sizes, transposed=transposed)
        if not found:
            kind = "transposed convolution" if transposed else "convolution"
            side, inputs, outputs = ("any" if size is None else size for size in sizes)
            raise LookupError(f"there is no {side}x{side} {kind} from {inputs} to {outputs} channels")
        if near is not None:
            shared = {one: len(commonprefix([one.path, near.path])) for one in found}  # noqa: RUF071 (not of strings)
            found.sort(key=lambda one: (-shared[one], abs(one.place - near.place)))
        self.convolutions.remove(found[0])
        return found[0]


def _order(variable: tuple[tuple[str, ...], np.ndarray]) -> tuple:
    """Sort variables by path, with its numbers as numbers, and kernels before biases."""
    path, array = variable
    *parents, name = (re.sub("[0-9]+", lambda digits: digits[0].zfill(9), part) for part in path)
    return parents, 0 if name.isdecimal() else -array.ndim, name


def convert(
    variables: Variables, image_size: int | tuple[int, ...] = 28, grid_size: tuple[int, ...] = (7, 7)
) -> VQVAEModel | PixelCNNModel | FullModel:
    """Build the model with these weights: a VQ-VAE, a PixelCNN, or both.

    Args:
        image_size: of the VQ-VAE, which its weights do not say.
        grid_size: rows and columns of codes of a PixelCNN without a VQ-VAE.

    Raises:
        LookupError: if the weights are of another architecture.
        ValueError: if a size does not fit it, or a weight is not finite.
    """
    layers = Layers(variables)
    if layers.codebook is None:
        taken, config = _take_prior(layers, grid_size)
        model = PixelCNNModel(config)
    else:
        taken, config = _take_vqvae(layers, layers.codebook, image_size)
        model = VQVAEModel(config)
        if layers.convolutions:
            prior, prior_config = _take_prior(layers, config.grid_size)
            taken += prior
            model = FullModel(FullConfig(vqvae_config=config, prior_config=prior_config))
    if layers.convolutions:
        raise LookupError(f"{len(layers.convolutions)} convolutions are left over")
    with torch.no_grad():
        modules = [module for module in model.modules() if getattr(module, "bias", None) is not None]
        for module, layer in zip(modules, taken, strict=True):
            module.weight.copy_(torch.tensor(layer.kernel).permute(3, 2, 0, 1))  # OIHW, transposed IOHW
            module.bias.copy_(torch.tensor(layer.bias))
        if layers.codebook is not None:
            model.base_model.quantizer.embedding.weight.copy_(torch.tensor(layers.codebook.kernel).T)
    check_finite(model)
    return model.eval()


def _take_vqvae(layers: Layers, codebook: Layer, image_size: int | tuple[int, ...]) -> tuple[list[Layer], VQVAEConfig]:
    dim, num_embeddings = codebook.kernel.shape
    encoder = [layers.take(1, None, dim, near=codebook)]  # from its end to its beginning
    channels = [encoder[0].kernel.shape[2]]
    # Until as many layers are left as the decoder has; they must be one at least.
    while len(encoder) == 1 or (
        layers.find(3, None, channels[-1]) and len(layers.find(3, None, None, transposed=True)) > len(encoder)
    ):
        encoder.append(layers.take(3, None, channels[-1], near=encoder[-1]))
        channels.append(encoder[-1].kernel.shape[2])
    decoder = [layers.take(3, *sizes, transposed=True) for sizes in pairwise([dim, *channels])]
    sizes = {"hidden_sizes": channels[-2::-1], "embedding_dim": dim, "num_embeddings": num_embeddings}
    sizes |= {"image_size": image_size, "num_channels": channels[-1]}
    config = VQVAEConfig(**sizes, codebook_update="gradient", codebook_init="uniform")  # as the example learns
    return [*reversed(encoder), *decoder], config


def _take_prior(layers: Layers, grid_size: tuple[int, ...]) -> tuple[list[Layer], PixelCNNConfig]:
    side = max((layer.kernel.shape[0] for layer in layers.convolutions), default=7)
    first = layers.take(side, None, None)
    num_embeddings, channels = first.kernel.shape[2:]
    blocks = []
    while layers.find(3, channels, channels // 2):
        masked = layers.take(3, channels, channels // 2)
        conv1, conv2 = (layers.take(1, size, channels, near=masked) for size in (channels, channels // 2))
        blocks += [conv1, masked, conv2]
    # With as many codes as channels, the last layer has the sizes of those before it. It is no part of another layer,
    # as masked ones are; in a SavedModel, that shows only by another path than the first's; else it is the last.
    outputs = layers.find(1, channels, num_embeddings)
    kind = {one: re.sub("_?[0-9]+", "", "/".join(one.path)) for one in (first, *outputs)}
    outputs.sort(key=lambda one: (len(one.path), kind[one] == kind[first], -one.place))
    last = layers.take(1, channels, num_embeddings, near=next(iter(outputs), None))
    between = [layers.take(1, channels, channels) for _ in layers.find(1, channels, channels)]
    sizes = {"grid_size": grid_size, "hidden_size": channels, "kernel_size": side, "num_embeddings": num_embeddings}
    config = PixelCNNConfig(**sizes, num_residual_blocks=len(blocks) // 3, num_pixelcnn_layers=len(between))
    return [first, *blocks, *between, last], config


def convert_sources(names: list[str], output_dir: Path, **sizes: int | tuple[int, ...]) -> str:
    """Convert one or two sources to one model, written to `output_dir` as a finished run; returns what it is.

    Args:
        names: paths, or `owner/name` on the Hub, also with `@revision` and `/path` as in the addresses `hf://`.
        sizes: `image_size` and `grid_size` of [`convert`].

    Raises:
        ValueError: if `output_dir` is there, a source cannot be read, or is of another architecture.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty: choose another --output_dir.")
    variables, sources = {}, []
    for number, name in enumerate(names):
        path, source = _fetch(name)
        sources.append(source)
        variables |= {(str(number), *place): array for place, array in read_variables(path).items()}
    try:
        model = convert(variables, **sizes)
    except LookupError as error:
        found = ", ".join(str(array.shape) for _, array in sorted(variables.items(), key=_order))
        raise ValueError(f"cannot convert {' and '.join(names)}: {error}. {EXPECTED}. Found: {found}.") from error
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}.", dir=output_dir.parent) as writing:
        folder = Path(writing, output_dir.name)
        save_for_hub(model, folder)
        base_model = next((source["name"] for source in sources if "revision" in source), None)
        for name in RECORDS:
            write_json(folder / name, {})
        write_json(folder / "run.json", {"converted_from": sources, "base_model": base_model})
        if isinstance(model, PixelCNNModel):  # which has a plain card
            text = unsigned((folder / "README.md").read_text("utf-8"))
            text = text.replace(NO_RESULTS, f"Converted from {sources[0]['name']}, a PixelCNN of the Keras example.")
            (folder / "README.md").write_text(sign_card(text), "utf-8")
        else:
            write_card(folder, None if output_dir.is_absolute() else output_dir.as_posix())
        atomic_replace(folder, output_dir)
    return f"{type(model).__name__} of {model.num_parameters():,} parameters"


def _fetch(name: str) -> tuple[Path, dict[str, str]]:
    """Return the path of a source, downloaded if it is on the Hub, and its record for the card."""
    if Path(name).exists():
        return Path(name), {"name": Path(name).resolve().name}
    found = re.fullmatch("([^@/]+/[^@/]+)(?:@([^/]+))?(?:/(.+))?", name)
    repo, revision, inside = found.groups("") if found else (name, "", "")
    files = (inside, *(str(Path(inside, file)) for file in FILES))
    snapshot = Path(fetch_model(repo, revision or None, files=files, way_out=WAY_OUT))
    return snapshot / inside, {"name": repo, "revision": snapshot.name}
