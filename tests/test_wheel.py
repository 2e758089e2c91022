"""The wheel: what is in it, and that it works where there is no checkout."""

import json
import subprocess
import sys
import zipfile

import pytest

import hf_vqvae
from hf_vqvae.model_card.card import template_path
from support.scripts import ROOT

SOURCE = ROOT / "src" / "hf_vqvae"

# What an installation without the checkout does; `installed` is its folder.
PROGRAM = """
import sys
from importlib.metadata import version
from pathlib import Path

installed, checkout, run_folder = map(Path, sys.argv[1:])
# The editable installation that the tests run in puts the checkout on the path, behind `installed`.
sys.path = [entry for entry in sys.path if not Path(entry or ".").resolve().is_relative_to(checkout / "src")]

sys.modules["matplotlib"] = None  # neither a model nor a card needs it
import hf_vqvae
from hf_vqvae.model_card.card import build_card, template_path

assert Path(hf_vqvae.__file__).is_relative_to(installed), hf_vqvae.__file__
assert not any(Path(module.__file__).is_relative_to(checkout / "src")
               for module in list(sys.modules.values()) if getattr(module, "__file__", None))
assert version("hf_vqvae") == hf_vqvae.__version__
for name in ("template.md", "notebook.md"):
    assert template_path(name) == installed / "hf_vqvae" / "model_card" / name

config = hf_vqvae.VQVAEForImageGenerationConfig(prior_config={"hidden_size": 8})
model = hf_vqvae.VQVAEForImageGeneration(config)
model.save_pretrained(run_folder)
hf_vqvae.VQVAEImageProcessorPil().save_pretrained(run_folder)
card = build_card(run_folder, "me/vqvae-made-up")
card.save(run_folder / "README.md")

# The code that travels to the Hub is found in an installed package, too.
model.save_for_hub(run_folder / "repo", "me/vqvae-made-up")
print(hf_vqvae.__version__)
"""


def pip(*arguments):
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    command = [sys.executable, "-m", "pip", *map(str, arguments), *quiet]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as `pip install` would: the backend comes from the package registry."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.iterdir()
    return path


@pytest.mark.timeout(60)
def test_the_wheel_holds_the_package_its_page_its_templates_and_nothing_else(wheel):
    assert wheel.name == f"hf_vqvae-{hf_vqvae.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    files = [path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts]
    files += (SOURCE / "export" / "space").iterdir()
    expected = {f"hf_vqvae/{path.relative_to(SOURCE).as_posix()}": path for path in files}
    for name in ("template.md", "notebook.md", "dataset_template.md"):
        expected[f"hf_vqvae/model_card/{name}"] = ROOT / "model_card" / name
    about = f"hf_vqvae-{hf_vqvae.__version__}.dist-info"
    expected[f"{about}/licenses/LICENSE"] = ROOT / "LICENSE"
    made = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    assert contents.keys() == expected.keys() | made
    for name, path in expected.items():
        assert contents[name] == path.read_bytes(), name


def test_an_editable_installation_takes_the_card_template_of_the_checkout():
    assert template_path() == ROOT / "model_card" / "template.md"


@pytest.mark.timeout(60)
def test_the_wheel_says_what_the_package_needs_and_what_is_extra(wheel):
    with zipfile.ZipFile(wheel) as archive:
        about = f"hf_vqvae-{hf_vqvae.__version__}.dist-info/METADATA"
        head, _, description = archive.read(about).decode().partition("\n\n")
    needed = [line for line in head.splitlines() if line.startswith("Requires-Dist: ")]
    bare = {line.split()[1].split(">")[0].split("<")[0] for line in needed if "extra ==" not in line}
    assert {name.replace("-", "_") for name in bare} == {"torch", "transformers", "huggingface_hub", "pillow"}
    extras = {line.split(": ")[1] for line in head.splitlines() if "Provides-Extra" in line}
    assert {"train", "plot", "demo", "dev"} <= extras
    assert description.strip() == (ROOT / "README.md").read_text("utf-8").strip()


@pytest.mark.timeout(60)
def test_an_installed_wheel_makes_models_and_cards_without_the_checkout(wheel, tmp_path):
    installed, run_folder = tmp_path / "site", tmp_path / "made-up"
    pip("install", "--no-deps", "--target", installed, wheel)
    (run_folder / "figures").mkdir(parents=True)
    mse = {"name": "Reconstruction MSE", "value": 0.0042, "split": "test", "count": 10}
    mse |= {"scale": "[0, 1]", "stage": "vqvae", "protocol": "mean over all pixels"}
    (run_folder / "metrics.json").write_text(json.dumps({"reconstruction_mse": mse}))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    finished = subprocess.run(
        [sys.executable, program, installed, ROOT, run_folder],
        env={"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.split()[-1] == hf_vqvae.__version__
    card = (run_folder / "README.md").read_text("utf-8")
    assert card.startswith("---\n") and "0.0042" in card and "me/vqvae-made-up" in card
    repo = {path.name for path in (run_folder / "repo").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_vqvae.py"} <= repo
