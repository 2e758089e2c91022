"""Fixtures of all tests, in an environment and a folder that hold nothing of the user's."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from support.scripts import ScriptServer, load_script

# Settings of the libraries in use, of launchers and of Python, which a user's shell or notebook may have.
SETTINGS = ("ACCELERATE_", "DATASETS_", "HF_", "HUGGING", "TRANSFORMERS_", "WANDB_", "TRACKIO_")
SETTINGS += ("MPL", "MATPLOTLIB", "KMP_", "MKL_", "OMP_", "TORCH", "TQDM_")
SETTINGS += ("LOCAL_", "MASTER_", "RANK", "WORLD_SIZE", "PYTHON", "COLUMNS")
SOURCE = Path(__file__).parents[1] / "src"
# Files that take long come first, the longest at the start: so the processes of `make test` end at about the same time.
SLOW = ("hub_faults", "train", "survival", "sweep", "modeling_common", "processes", "hub", "data_sources")
home = tempfile.TemporaryDirectory(prefix="hf_vqvae_tests_")

# Before the tests import what reads them.
for name in [name for name in os.environ if name.startswith(SETTINGS)]:
    del os.environ[name]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = home.name  # also where the settings of `accelerate` are
os.environ["MATPLOTLIBRC"] = os.devnull
os.environ["PYTHONPATH"] = str(SOURCE)  # this package, whatever else is installed
sys.path.insert(0, str(SOURCE))
# Behind everything else: `import evaluate` is the library, not scripts/evaluate.py.
sys.path.append(str(SOURCE.with_name("scripts")))


def pytest_collection():
    """Leaves the checkout, so that no test finds what lies there beside the project's files."""
    current = Path(home.name, "current")
    current.mkdir()
    os.chdir(current)


def pytest_collection_modifyitems(items):
    """Puts the files in `SLOW` before the others; skips what needs a GPU where there is none."""
    import torch

    places = {f"test_{name}.py": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.name, len(SLOW)))
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    with ScriptServer(tmp_path_factory.mktemp("scripts")) as server:
        yield server


@pytest.fixture
def run_main(monkeypatch):
    """Runs a script in this process: `run_main("scripts/train.py", "--seed", 1)`."""
    from hf_vqvae.command_line import run_script

    def run(script, *arguments):
        module = load_script(script)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        run_script(module.main)

    return run


@pytest.fixture
def refusal(run_main, capsys):
    """Runs a script in this process that ends with one line, and returns that line."""

    def run(script, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            run_main(script, *arguments)
        code = exit_info.value.code
        text = capsys.readouterr().err if code == 2 else code  # what is no number goes to stderr, with status 1
        (line,) = text.splitlines()
        assert code == 2 or line.startswith("Error: ")
        return line

    return run


@pytest.fixture(scope="session")
def accelerator():
    """Of this process alone, on the CPU."""
    from accelerate import Accelerator

    return Accelerator(cpu=True)
