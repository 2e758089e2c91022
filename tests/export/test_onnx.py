"""ONNX files: what ONNX Runtime computes from them is what the model computes."""

import statistics
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hf_vqvae.export.onnx import export_onnx
from hf_vqvae.models.configuration_vqvae import as_pair
from support.models import make_model, seeded
from support.pushes import digest
from support.runs import TINY

SCRIPT = "scripts/export_onnx.py"
PLAIN = {"kernel_size": 3, "num_residual_blocks": 1}
GATED = {"architecture": "gated", "kernel_size": 3, "num_gated_layers": 2}
# The network of the MNIST run, whose time counts.
MNIST = {"image_size": 28, "prior": {"architecture": "gated", "hidden_size": 64, "num_classes": 10}}
MODELS = {
    "gated with classes": MNIST,
    "gated, colour": {"prior": GATED, "image_size": (8, 16), "num_channels": 3},
    "plain with classes": {"prior": {**PLAIN, "num_classes": 3}, "image_size": (16, 8)},
}
FILES = ("decoder.onnx", "encoder.onnx", "prior.onnx")
CONTROL = {"Loop", "If", "Scan"}  # and whatever works on sequences: slow in ONNX Runtime, slower in a browser


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A model, and the folder with its ONNX files."""
    model = make_model(**MODELS[request.param])
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(model, folder)
    return model, folder


def test_the_files_are_all_there_without_control_flow(exported):
    _, folder = exported
    assert sorted(digest(folder)) == [str(folder / "onnx" / name) for name in FILES]
    for name in FILES:
        parts = onnx.load(folder / "onnx" / name)
        kinds = {node.op_type for graph in (parts.graph, *parts.functions) for node in graph.node}
        assert not {kind for kind in kinds if kind in CONTROL or "Sequence" in kind}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_is_computed_as_the_model_does(exported, batch):
    model, folder = exported
    config = model.vqvae.config
    pixels = torch.rand(batch, config.num_channels, *as_pair(config.image_size), generator=seeded()) - 0.5
    with torch.no_grad():
        expected = model.vqvae.encode(pixels).codes
        decoded = model.vqvae.decode(expected)
    (codes,) = session(folder / "onnx/encoder.onnx").run(None, {"pixel_values": pixels.numpy()})
    assert codes.dtype == np.int64 and (codes == expected.numpy()).all()
    (images,) = session(folder / "onnx/decoder.onnx").run(None, {"codes": codes})
    assert np.abs(images - decoded.numpy()).max() < 1e-5
    inputs = {"codes": codes}
    labels = torch.arange(batch) % 4 - 1  # -1: none
    if model.config.prior_config.num_classes:
        inputs["class_labels"] = labels.numpy()
    (logits,) = session(folder / "onnx/prior.onnx").run(None, inputs)
    with torch.no_grad():
        wanted = model.prior(*map(torch.from_numpy, inputs.values())).logits
    assert logits.shape == wanted.shape and np.abs(logits - wanted.numpy()).max() < 1e-4


@pytest.mark.parametrize("exported", ["gated with classes"], indirect=True)
def test_a_pass_of_one_grid_takes_less_than_3_ms(exported):
    network = session(exported[1] / "onnx/prior.onnx")
    inputs = {"codes": np.zeros((1, 7, 7), np.int64), "class_labels": np.array([3])}
    times = []
    for _ in range(101):
        start = time.perf_counter()
        network.run(None, inputs)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.003


def test_a_model_that_would_compute_something_else_is_refused_and_nothing_is_written(tmp_path):
    model = make_model(PLAIN)
    with torch.no_grad():
        next(model.vqvae.decoder.parameters()).fill_(torch.nan)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decoder.onnx").write_bytes(b"as it was")
    before = digest(tmp_path)
    with pytest.raises(ValueError, match=r"decoder\.onnx was not written.*nan.*1e-05"):
        export_onnx(model, tmp_path)
    assert digest(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_the_script_writes_the_two_files_of_a_vqvae_into_another_folder(run_main, refusal, tmp_path, capsys):
    make_model(PLAIN, num_residual_layers=1).vqvae.save_pretrained(tmp_path / "model")
    run_main(SCRIPT, tmp_path / "model", "--output_dir", tmp_path / "to" / "this")
    written = sorted((tmp_path / "to/this/onnx").iterdir())
    assert [path.name for path in written] == list(FILES[:2])
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()] == list(map(str, written))
    assert not (tmp_path / "model" / "onnx").exists()
    assert "--output_dir says where to write: there is no folder me/nowhere" in refusal(SCRIPT, "me/nowhere")


def test_a_missing_package_is_one_line_before_any_work(refusal, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    to = ["--output_dir", tmp_path / "run"]
    for words in (["scripts/train.py", *TINY, "--onnx", *to], [SCRIPT, "no model", *to]):
        line = refusal(*words)
        assert "onnxscript" in line and "pip install 'hf_vqvae[train,plot,demo,onnx,keras]'" in line
    assert not list(tmp_path.iterdir())
