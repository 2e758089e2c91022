"""`pipeline("unconditional-image-generation")`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

from hf_vqvae import ImageGenerationPipeline, VQVAEForImageGeneration, VQVAEImageProcessorPil
from support.models import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(image_size=(8, 16)).save_pretrained(folder)
    VQVAEImageProcessorPil(size={"height": 8, "width": 16}).save_pretrained(folder)
    return folder


def test_the_pipeline_draws_pil_images(folder):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    assert type(pipe) is ImageGenerationPipeline
    images = pipe(3, seed=0)
    assert all(isinstance(image, Image.Image) and image.size == (16, 8) for image in images)
    assert len(images) == 3 and len(pipe()) == 1


def test_its_images_are_those_of_sample(folder):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    first, second, other = pipe(2, seed=5), pipe(2, seed=5), pipe(2, seed=7)
    np.testing.assert_array_equal(np.stack(first), np.stack(second))
    assert not np.array_equal(np.stack(first), np.stack(other))
    model = VQVAEForImageGeneration.from_pretrained(folder)
    controls = {"temperature": 0.5, "top_k": 5, "top_p": 0.9}
    direct = model.sample(2, seeds=[5, 6], **controls)
    expected = VQVAEImageProcessorPil.from_pretrained(folder).postprocess(direct)
    np.testing.assert_array_equal(np.stack(pipe(2, seed=5, **controls)), np.stack(expected))
    greedy = pipe(2, temperature=0)
    np.testing.assert_array_equal(greedy[0], greedy[1])


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    names = {0: "cat", 1: "dog", 2: "7"}
    model = make_model({"architecture": "gated", "num_classes": 3, "id2label": names})
    for block in model.prior.blocks:  # as they begin, labels have no effect
        torch.nn.init.normal_(block.class_embedding.weight, std=3)
    model.save_pretrained(folder)
    VQVAEImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def test_labels_and_guidance_reach_the_model(conditional):
    pipe = pipeline("unconditional-image-generation", model=str(conditional))
    model = VQVAEForImageGeneration.from_pretrained(conditional)
    drawn = pipe(class_labels=["dog", 0, "7"], guidance_scale=2.0, seed=1)
    expected = model.sample(class_labels=[1, 0, 2], guidance_scale=2.0, seeds=[1, 2, 3], output_type="pil")
    assert len(drawn) == 3
    np.testing.assert_array_equal(np.stack(drawn), np.stack(expected))
    dogs, cats, any_class = (
        np.stack(pipe(8, seed=0, **which)) for which in ({"class_labels": "dog"}, {"class_labels": "cat"}, {})
    )
    assert not np.array_equal(dogs, cats) and not np.array_equal(dogs, any_class)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "`num_images` must be an integer of at least 1, got 0"),
        ({"seed": -1}, r"`seed` must be an integer from 0 to 2\*\*62 - 1, got -1"),
        ({"seed": "a"}, "`seed` must be an integer"),
        ({"top_q": 0.9}, "unexpected keyword argument 'top_q'"),
    ],
)
def test_wrong_arguments_are_refused(folder, arguments, message):
    pipe = pipeline("unconditional-image-generation", model=str(folder))
    with pytest.raises((ValueError, TypeError), match=message):
        pipe(**arguments)


# Saved again

# Where the package cannot be imported: loads a repo, saves each part in one folder and the pipeline in another.
PROGRAM = """
import sys

sys.modules["hf_vqvae"] = None  # `import hf_vqvae` raises ImportError from here on
from transformers import AutoImageProcessor, AutoModel, pipeline

repo, parts, whole = sys.argv[1:]
for cls in (AutoModel, AutoImageProcessor):
    cls.from_pretrained(repo, trust_remote_code=True).save_pretrained(parts)
pipeline(model=parts, trust_remote_code=True).save_pretrained(whole)
pipe = pipeline("unconditional-image-generation", model=whole, trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules.")
pipe(2, seed=5)[1].save(f"{whole}/image.png")
"""


@pytest.fixture
def repo(tmp_path):
    make_model().save_for_hub(tmp_path / "repo")
    return str(tmp_path / "repo")


def test_nothing_asks_for_trust_where_the_package_is_imported(repo, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    parts, whole = str(tmp_path / "parts"), str(tmp_path / "whole")
    AutoModel.from_pretrained(repo).save_pretrained(parts)
    AutoImageProcessor.from_pretrained(repo).save_pretrained(parts)
    pipeline(model=parts).save_pretrained(whole)
    for folder in (parts, whole):
        assert {path.name for path in Path(folder).iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }
        for name in ("config.json", "preprocessor_config.json"):
            assert not {"auto_map", "custom_pipelines"} & json.loads(Path(folder, name).read_text()).keys()
    expected = np.stack(pipeline("unconditional-image-generation", model=repo)(2, seed=5))
    for folder in (repo, parts, whole):
        for task in (None, "unconditional-image-generation"):
            pipe = pipeline(task, model=folder)
            assert type(pipe) is ImageGenerationPipeline
            np.testing.assert_array_equal(np.stack(pipe(2, seed=5)), expected)


def test_what_code_of_a_repo_saves_holds_that_code(repo, tmp_path):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    program = [sys.executable, "-c", PROGRAM, repo, parts, whole]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=os.environ | offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = pipeline("unconditional-image-generation", model=repo)(seed=6)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "image.png")), np.asarray(expected))
