"""Training in a Jupyter kernel, as the guide to the scripts describes it."""

import json
import socket
import sys

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from hf_vqvae import VQVAEForImageGeneration
from support.models import assert_same_state, state
from support.scripts import ROOT
from test_readme import TEXTS, blocks_of

pytestmark = pytest.mark.long
TINY = {"dataset_name": "digits", "num_train_epochs": 1, "prior_num_train_epochs": 1, "train_batch_size": 32}
TINY |= {"max_train_samples": 128, "max_eval_samples": 32, "num_eval_samples": 0, "hidden_sizes": [4, 8]}
TINY |= {"num_embeddings": 16, "embedding_dim": 4, "hidden_size": 8}
RUN, LAUNCH = (code for _, code in blocks_of(TEXTS["scripts/README.md"], "ipython"))
STOPPED = RUN.replace("outputs/one", "outputs/stopped")
# After every step; the first of several within a second counts.
INTERRUPT = """
import os, signal
from torch.optim.optimizer import register_optimizer_step_post_hook
handle = register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs cells in a new kernel, in a checkout with a tiny quickstart; returns the text and the error of each."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "model_card").symlink_to(ROOT / "model_card")
    for path in (ROOT / "scripts").glob("*.py"):
        (tmp_path / "scripts" / path.name).symlink_to(path)
    (tmp_path / "scripts/quickstart.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (tmp_path / "kernels/own").mkdir(parents=True)
    (tmp_path / "kernels/own/kernel.json").write_text(json.dumps({"argv": argv, "display_name": "own"}))

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        place = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, kernel_name="own", timeout=100, allow_errors=True, resources=place).execute()
        outputs = [cell.outputs for cell in notebook.cells]
        texts = ["".join(output.get("text", "") for output in cell) for cell in outputs]
        errors = [[f"{output.ename}: {output.evalue}" for output in cell if "ename" in output] for cell in outputs]
        return list(zip(texts, errors, strict=True))

    return run


def test_a_run_in_the_kernel_is_interrupted_and_resumed(run, tmp_path):
    resume = f"{STOPPED.strip()} --resume_from_checkpoint latest"
    first, _, stopped, _, resumed, again = run(RUN, INTERRUPT, STOPPED, "handle.remove()", resume, RUN)
    assert first[1] == resumed[1] == [] and "vqvae: epoch 1/1, step 3, loss" in first[0] and "Done." in resumed[0]
    assert stopped[1] == ["SystemExit: 130"] and "The run was stopped by SIGINT; saved" in stopped[0]
    assert again[1][0].startswith("SystemExit: Error: outputs/one exists and is not empty: choose another")
    models = [VQVAEForImageGeneration.from_pretrained(tmp_path / "outputs" / name) for name in ("one", "stopped")]
    assert_same_state(models[1], state(models[0]))


def test_notebook_launcher_trains_on_two_processes(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = LAUNCH.replace("num_processes=2", f"num_processes=2, use_port='{port}'")
    wrong, done = run(launch.replace("--output_dir", "--outputdir"), launch)
    assert "unknown argument --outputdir (did you mean --output_dir?)" in wrong[0]
    assert done[1] == [] and "Done. Look at:" in done[0]
    history = json.loads((tmp_path / "outputs/two/history.json").read_text())
    model = VQVAEForImageGeneration.from_pretrained(tmp_path / "outputs/two")
    assert history and model.sample(2).isfinite().all()
