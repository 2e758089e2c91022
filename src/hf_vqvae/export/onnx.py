"""Export a model to ONNX: the encoder, the decoder and the prior, a file each."""

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..files import atomic_replace
from ..hub.download import Model, load_model
from ..models import VQVAEModel
from ..models.configuration_vqvae import as_pair

FOLDER = "onnx"
# Absolute errors that are allowed between ONNX Runtime and the model; codes must be equal.
TOLERANCES = {"encoder": 0, "decoder": 1e-5, "prior": 1e-4}


class _Part(nn.Module):
    """What a model computes of some inputs, as the `forward` that the exporter wants."""

    def __init__(self, model: nn.Module, compute: Callable[..., Tensor]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(*inputs)


def check_packages() -> None:
    """Raise `ModuleNotFoundError` if a package of the extra `onnx` is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        importlib.import_module(name)


def write_onnx(folder: str | Path) -> list[Path]:
    """Export the model in `folder` into its folder `onnx`; see [`export_onnx`]."""
    return export_onnx(load_model(str(folder)), folder)


def export_onnx(model: Model, folder: str | Path) -> list[Path]:
    """Write the parts of a model into the folder `onnx` of `folder`; nothing is written if one of them fails.

    | file | inputs | output |
    |---|---|---|
    | encoder.onnx | `pixel_values` (B, C, H, W) float32 in [-0.5, 0.5] | `codes` (B, h, w) int64 |
    | decoder.onnx | `codes` (B, h, w) int64 | `pixel_values` (B, C, H, W) float32, about in [-0.5, 0.5] |
    | prior.onnx | `codes`, and with classes `class_labels` (B,) int64, -1 for none | `logits` (B, K, h, w) float32 |

    The batch B is free. `logits[:, :, i, j]` sees only the codes before (i, j). The weights are inside the files.

    Args:
        model: on the CPU, in float32 and eval mode, as [`load_model`] loads it.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: if onnx, onnxscript or onnxruntime is not installed.
        ValueError: if ONNX Runtime computes something else than the model.
    """
    target = Path(folder, FOLDER)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=folder) as writing:
        for name, (part, inputs, output) in _parts(model).items():
            _export(part, inputs, output, Path(writing, f"{name}.onnx"), TOLERANCES[name])
        target.mkdir(exist_ok=True)
        files = [target / path.name for path in sorted(Path(writing).iterdir())]
        for path in files:
            atomic_replace(Path(writing, path.name), path)
    return files


def _parts(model: Model) -> dict[str, tuple[_Part, dict[str, Tensor], str]]:
    """Return each part with two examples of its inputs by name, and the name of its output."""
    vqvae = model if isinstance(model, VQVAEModel) else model.vqvae
    config, generator = vqvae.config, torch.Generator().manual_seed(0)
    pixels = torch.rand(3, config.num_channels, *as_pair(config.image_size), generator=generator) - 0.5
    codes = torch.randint(config.num_embeddings, (3, *config.grid_size), generator=generator)
    encoder, decoder = _Part(vqvae, lambda pixels: vqvae.encode(pixels).codes), _Part(vqvae, vqvae.decode)
    parts = {
        "encoder": (encoder, {"pixel_values": pixels}, "codes"),
        "decoder": (decoder, {"codes": codes}, "pixel_values"),
    }
    if model is not vqvae:
        inputs = {"codes": codes}
        if model.config.prior_config.num_classes:
            inputs["class_labels"] = torch.tensor([-1, 0, model.config.prior_config.num_classes - 1])
        prior = _Part(model.prior, lambda *inputs: model.prior(*inputs, return_loss=False).logits)
        parts["prior"] = prior, inputs, "logits"
    return parts


def _export(part: _Part, inputs: dict[str, Tensor], output: str, path: Path, tolerance: float) -> None:
    """Write a part to `path`, and compare what ONNX Runtime computes from the file for one input and for several."""
    import onnxruntime

    any_batch = (tuple({0: torch.export.Dim("batch")} for _ in inputs),)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # of torch, about its own code
        torch.onnx.export(
            part.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=any_batch,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        some = {name: values[:count] for name, values in inputs.items()}
        (computed,) = session.run(None, {name: values.numpy() for name, values in some.items()})
        with torch.no_grad():
            expected = part(*some.values()).numpy()
        error = np.abs(computed.astype(np.float64) - expected).max()
        if not error <= tolerance:
            raise ValueError(
                f"{path.name} was not written: ONNX Runtime {onnxruntime.__version__} computes {output} that differ by "
                f"{error:.3g} from the model's, where {tolerance:g} is allowed."
            )
