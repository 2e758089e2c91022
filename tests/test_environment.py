"""The environment that the tests run in: nothing of the user's shell, caches or checkout reaches them."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import torch
from accelerate.commands.config.config_args import default_config_file
from huggingface_hub import constants, get_token

import hf_vqvae
from support.scripts import ROOT


def test_nothing_of_the_users_is_seen():
    assert Path(hf_vqvae.__file__).is_relative_to(ROOT / "src")
    assert torch.get_num_threads() == 1
    assert get_token() is None
    assert not Path(default_config_file).exists()
    assert constants.ENDPOINT == "https://huggingface.co"
    assert not constants.is_offline_mode()
    assert matplotlib.get_backend().lower() == "agg"
    assert matplotlib.rcParams["axes.facecolor"] == "white"
    foreign = {"ACCELERATE_MIXED_PRECISION", "TRACKIO_SPACE_ID", "WANDB_API_KEY", "WORLD_SIZE"}
    assert foreign.isdisjoint(os.environ)
    assert not Path.cwd().is_relative_to(ROOT)


def test_nor_is_it_where_much_is_set(tmp_path):
    elsewhere = tmp_path / "hf_vqvae"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text("raise ImportError('another installation')")
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("mixed_precision: fp16")
    (tmp_path / "outputs" / "quickstart").mkdir(parents=True)
    settings = {
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_of_the_user",
        "MATPLOTLIBRC": str(tmp_path),
        "MPLBACKEND": "module://a_notebook",
        "OMP_NUM_THREADS": "7",
        "PYTHONPATH": str(tmp_path),
        "TRACKIO_SPACE_ID": "me/runs",
        "WANDB_API_KEY": "a key",
        "WORLD_SIZE": "2",
    }
    test = f"{__file__}::{test_nothing_of_the_users_is_seen.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={ROOT}", test],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
