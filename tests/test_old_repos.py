"""Repos as `save_for_hub` of commit a750bcd wrote them load to the same numbers; see fixtures/README.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

FIXTURES = Path(__file__).parent / "fixtures" / "old_repos"
REPOS = ["plain", "gated"]
# The labels of the gated repo by their names, and one that is not known.
LABELS = {"plain": None, "gated": ["cat", "owl", "dog", None]}

# Loads a repo in a process where the package cannot be imported, and writes the numbers to a file.
PROGRAM = """
import importlib.util, sys
from pathlib import Path

sys.modules["hf_vqvae"] = None  # `import hf_vqvae` raises ImportError from here on
tests, repo, name, file = sys.argv[1:]
sys.path.insert(0, tests)
from safetensors.torch import save_file
from test_old_repos import load, numbers_of

loaded = load(Path(repo), trust_remote_code=True)
for one in loaded:
    assert type(one).__module__.startswith("transformers_modules."), type(one)
assert not any(module.split(".")[0] == "hf_vqvae" and there for module, there in sys.modules.items())
save_file(numbers_of(*loaded, name), file)
"""


def load(repo, **options):
    """Model, image processor and pipeline of a repo."""
    pipe = pipeline(model=str(repo), trust_remote_code=True)
    model = AutoModel.from_pretrained(repo, **options)
    return model, AutoImageProcessor.from_pretrained(repo, **options), pipe


@torch.no_grad()
def numbers_of(model, processor, pipe, name):
    """What the reference holds: tensors by name, codes as int64 and all others as float32."""
    labels = LABELS[name]
    height, width = processor.size["height"], processor.size["width"]
    ramp = np.add.outer(np.arange(30) * 5, np.arange(40) * 2).astype(np.uint8)
    processed = processor(Image.fromarray(ramp), return_tensors="pt").pixel_values
    pixels = load_file(FIXTURES / name / "inputs.safetensors")["pixel_values"]
    numbers = {"processed": processed, "codes": model.vqvae.encode(pixels).codes}
    numbers["reconstruction"] = model.vqvae(pixels).reconstruction
    numbers["decoded"] = model.vqvae.decode(numbers["codes"].flip(0))
    label2id = model.config.prior_config.label2id
    known = labels and torch.tensor([label2id.get(label, -1) for label in labels])
    output = model(pixels, class_labels=known, return_loss=True)
    numbers |= {"logits": output.logits, "loss": output.loss[None]}
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[: height // 2] = True
    label = labels and labels[0]
    # The repo's own code draws with the null label where no label is named; the package where it is asked to.
    null = -1 if labels and type(model).__module__.startswith("hf_vqvae") else None
    samples = {
        "generator": {"num_images": 6, "generator": torch.Generator().manual_seed(3), "class_labels": null},
        "seeds": {"seeds": list(range(20, 26)), "class_labels": label},
        "controls": {"seeds": [4, 5, 6, 7], "temperature": 0.8, "top_k": 9, "top_p": 0.9, "class_labels": null},
        "completion": {"seeds": [1, 2], "pixel_values": pixels[0], "pixel_mask": mask, "class_labels": null},
    }
    if labels:
        guided = {"seeds": [8, 9], "class_labels": labels[:2], "guidance_scale": 2.0}
        samples["guidance"] = guided
    for kind, options in samples.items():
        drawn = model.sample(**options, return_dict=True)
        numbers |= {f"sample.{kind}.codes": drawn.codes, f"sample.{kind}.images": drawn.images}
    # Those of the pipeline are 8-bit: equal to those of `sample` in this process.
    expected = processor.postprocess(model.sample(seeds=[5, 6]), output_type="pil")
    np.testing.assert_array_equal(np.stack(pipe(2, seed=5)), np.stack(expected))
    return {key: value.contiguous() for key, value in numbers.items()}


def assert_as_in_the_reference(numbers, name):
    reference = load_file(FIXTURES / name / "reference.safetensors")
    assert numbers.keys() == reference.keys()
    for key, value in reference.items():
        # What other instructions of a CPU change (measured with AVX2 and SSE4.1: 7e-6 of logits).
        tolerance = {"rtol": 1e-5, "atol": 2e-5} if value.is_floating_point() else {}
        torch.testing.assert_close(numbers[key], value, **tolerance, msg=lambda m, k=key: f"{k}: {m}")


@pytest.fixture(params=REPOS)
def name(request):
    return request.param


@pytest.fixture
def repo(name, tmp_path):
    """The repo as it lay on the Hub: both have the same code, which is kept once."""
    folder = shutil.copytree(FIXTURES / name, tmp_path / name)
    for own in ("inputs.safetensors", "reference.safetensors"):
        (folder / own).unlink()
    return shutil.copytree(FIXTURES / "code", folder, dirs_exist_ok=True)


def test_the_reference_is_not_trivial(name):
    reference = load_file(FIXTURES / name / "reference.safetensors")
    assert len(reference["codes"].unique()) >= 8
    assert len(reference["sample.seeds.codes"].unique()) >= 8
    for key in ("reconstruction", "logits", "sample.seeds.images"):
        assert reference[key].std() > 0.05 and (reference[key][0] != reference[key][1]).any()
    assert len(list((FIXTURES / "code").glob("*.py"))) == 21


def test_a_repo_loads_with_the_package(repo, name):
    import hf_vqvae

    loaded = load(repo)
    assert type(loaded[0]) is hf_vqvae.VQVAEForImageGeneration
    assert type(loaded[1]) is hf_vqvae.VQVAEImageProcessorPil
    assert_as_in_the_reference(numbers_of(*loaded, name), name)


def test_a_repo_loads_where_the_package_cannot_be_imported(repo, name, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM, Path(__file__).parent, repo, name]
    done = subprocess.run([*program, tmp_path / "numbers"], env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_as_in_the_reference(load_file(tmp_path / "numbers"), name)


def test_the_config_of_a_repo_alone_makes_the_same_model(repo, name, tmp_path):
    import hf_vqvae

    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copyfile(repo / "config.json", folder / "config.json")
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is hf_vqvae.VQVAEForImageGenerationConfig
    model = AutoModel.from_config(config).eval()
    model.load_state_dict(load_file(repo / "model.safetensors"))  # strict: the same names and shapes
    _, processor, pipe = load(repo)
    assert_as_in_the_reference(numbers_of(model, processor, pipe, name), name)
    saved = json.loads((repo / "config.json").read_text())
    ours = config.to_dict()
    for part in ("vqvae_config", "prior_config"):
        there = {key: value for key, value in saved[part].items() if key != "transformers_version"}
        assert there.items() <= json.loads(json.dumps(ours[part])).items()
