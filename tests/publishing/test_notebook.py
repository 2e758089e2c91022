"""The notebook of a model: every cell runs, in its folder, and pushed in a Jupyter kernel without this package."""

import base64
import io
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vqvae.data.decoding import to_8_bits
from hf_vqvae.figures.image_tables import save_strip
from hf_vqvae.model_card.card import write_card
from support.hub import HubServer
from support.models import make_images, make_model
from support.pushes import TOKEN, hub_client, make_run

# A kernel that cannot import the package, wherever it is installed.
KERNEL = """
import sys
sys.modules["hf_vqvae"] = None
from ipykernel.kernelapp import launch_new_instance
launch_new_instance()
"""
PUSH = """
from hf_vqvae import VQVAEForImageGeneration
VQVAEForImageGeneration.from_pretrained({folder!r}).push_to_hub({name!r})
"""
CLASSES = ["cat", 'a "dog"', "bird"]


def finished_run(folder, model):
    """A finished run with its test images, 5 of noise."""
    make_run(folder, model)
    shape = model.base_model.config.image_size
    images = make_images(5, image_size=shape).images.permute(0, 2, 3, 1).numpy()
    save_strip(images, folder / "figures" / "test_images.png")
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def models():
    classes = {"num_classes": 3, "id2label": dict(enumerate(CLASSES)), "architecture": "gated"}
    models = {"vqvae": make_model(), "prior": make_model(num_embeddings=8), "classes": make_model(classes)}
    for model in models.values():
        model.vqvae.quantizer.embedding.weight.data.normal_(0, 3)
    return models | {"vqvae": models["vqvae"].vqvae}


@pytest.fixture(scope="module")
def published(models, tmp_path_factory):
    """The Hub with a repo for each model: two pushed by the script, one from Python."""
    outputs = tmp_path_factory.mktemp("outputs")
    with HubServer() as hub, hub_client(hub, outputs) as client:
        hub.add_token(TOKEN)
        for name, model in models.items():
            folder = finished_run(outputs / name, model)
            before = (folder / "notebook.ipynb").read_bytes()
            if name == "classes":
                program = outputs / "push.py"
                program.write_text(PUSH.format(folder=str(folder), name=f"me/{name}"))
                done = client.run(program, environment={"HF_TOKEN": TOKEN})
            else:
                words = [folder, "--hub_model_id", f"me/{name}"]
                done = client.run("scripts/push_to_hub.py", *words, environment={"HF_TOKEN": TOKEN})
            assert done.returncode == 0, done.stderr
            assert (folder / "notebook.ipynb").read_bytes() == before
        yield hub


def notebook_in(hub, name):
    content = hub.repo(f"me/{name}").find("main").files["notebook.ipynb"].content
    return json.loads(content)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs cells in one kernel and returns them with their outputs."""
    import nbformat  # here, since only long tests need them
    from nbclient import NotebookClient

    spec = {"argv": [sys.executable, "-c", KERNEL, "-f", "{connection_file}"], "display_name": "bare"}
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(cells, environment):
        (tmp_path / "kernels" / "bare").mkdir(parents=True)
        (tmp_path / "kernels" / "bare" / "kernel.json").write_text(json.dumps(spec | {"env": environment}))
        whole = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        notebook = nbformat.reads(json.dumps(whole), as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        NotebookClient(notebook, kernel_name="bare", timeout=100, resources={"metadata": {"path": tmp_path}}).execute()
        return notebook.cells

    return run


def pictures_of(cells):
    """The pictures that cells show, as arrays."""
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
    data = [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.data]
    return [np.asarray(Image.open(io.BytesIO(png))) for png in data]


def printed_by(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures_expected_of(name, model):
    """What a notebook shows: tables of rows of images, each pixel as 12 x 12 dots."""
    inputs = make_images(5, image_size=8).__getitems__(range(5))["pixel_values"]
    codes = model.base_model.encode(inputs).codes
    tables = [(inputs, model.base_model.decode(codes))]
    if name == "vqvae":
        mixed = torch.cat([codes[:, :1], codes.roll(-1, dims=0)[:, 1:]], dim=1)
        tables.append((inputs, model.decode(mixed)))
    else:
        tables.append(model.sample(seeds=range(20)).split(10))
    if name == "classes":
        tables.append([model.sample(class_labels=[0, 1, 2], seeds=range(3), guidance_scale=1.5)])
    if name != "vqvae":
        known = torch.arange(8)[:, None].expand(8, 8) < 4
        completions = model.sample(pixel_values=inputs[-1:], pixel_mask=known, seeds=range(9))
        tables.append([torch.cat([inputs[-1:], completions])])
    for table in tables:
        rows = [np.concatenate(to_8_bits(row)[..., 0], axis=1) for row in table]
        yield np.concatenate(rows).repeat(12, axis=0).repeat(12, axis=1)


def check(name, model, pictures, text):
    """The pictures are those of the model, and so is the error that was printed."""
    for picture, expected in zip(pictures, pictures_expected_of(name, model), strict=True):
        assert np.array_equal(picture, expected) and picture.std() > 5
    (error,) = re.findall(r"^mean squared error: (.+)$", text, re.MULTILINE)
    inputs, outputs = pictures[0][:96] / 255, pictures[0][96:] / 255
    assert float(error) == pytest.approx(((inputs - outputs) ** 2).mean(), rel=0.01)
    assert (str(CLASSES) in text) == (name == "classes")


def run_code(folder, monkeypatch):
    """The pictures that the code of a notebook shows, run in its folder, without the installation."""
    cells = json.loads((folder / "notebook.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.chdir(folder)
    pictures = []
    exec("\n".join(code[1:]), {"display": pictures.append})
    return pictures


@pytest.mark.parametrize("name", ["vqvae", "prior", "classes"])
def test_the_code_of_a_notebook_runs_in_the_folder_of_the_run(name, models, tmp_path, monkeypatch, capsys):
    pictures = run_code(finished_run(tmp_path / name, models[name]), monkeypatch)
    check(name, models[name], [np.asarray(picture) for picture in pictures], capsys.readouterr().out)


@pytest.mark.long
def test_every_cell_of_a_pushed_notebook_runs_without_the_package(models, published, execute, tmp_path):
    parts = {name: notebook_in(published, name)["cells"] for name in models}
    installations = [part.pop(1) for part in parts.values()]
    assert all(cell["source"][0].startswith("%pip install -q ") for cell in installations)
    for part in parts.values():  # no notebook uses what the one before has made
        part.append({**installations[0], "source": ["%reset -f"]})
    cells = [installations[0], *(cell for part in parts.values() for cell in part)]
    done = iter(execute(cells, published.environment(tmp_path / "home"))[1:])
    for name, model in models.items():
        part = [next(done) for _ in parts[name]]
        check(name, model, pictures_of(part), printed_by(part))


@pytest.mark.long
@pytest.mark.parametrize("name", ["vqvae", "prior", "classes"])
def test_a_pushed_notebook_loads_the_repo_that_it_is_in(published, name):
    code = "".join(line for cell in notebook_in(published, name)["cells"] for line in cell["source"])
    assert re.findall(r"^model_id = (.*)$", code, re.MULTILINE) == [f'"me/{name}"']
    card = published.repo(f"me/{name}").find("main").files["README.md"].content.decode()
    assert "[notebook.ipynb](notebook.ipynb)" in card


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_a_notebook_is_for_images_that_a_file_can_hold(channels, tmp_path, monkeypatch):
    """Of a single row of codes, the left half is completed."""
    labels = {"num_classes": 2, "label_dropout": 0}
    make_run(tmp_path / "run", make_model(labels, num_channels=channels, image_size=(4, 16)))
    assert not (tmp_path / "run" / "notebook.ipynb").exists(), "it has no test images"
    save_strip(np.zeros((2, 4, 16, channels), np.uint8), tmp_path / "run" / "figures" / "test_images.png")
    write_card(tmp_path / "run")
    assert (tmp_path / "run" / "notebook.ipynb").exists() == (channels in (1, 3, 4))
    if channels in (1, 3, 4):
        sizes = [(picture.height / 24, picture.width / 96) for picture in run_code(tmp_path / "run", monkeypatch)]
        assert sizes == [(2, 2), (2, 10), (1, 2), (1, 10)]
