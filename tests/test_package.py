"""What `import hf_vqvae` brings, and what it does not."""

import ast
import subprocess
import sys
from pathlib import Path

import hf_vqvae

SOURCE = Path(hf_vqvae.__file__).parent

# Installed with the extras; a bare installation has none of them.
OPTIONAL = {
    "accelerate",
    "datasets",
    "evaluate",
    "jinja2",
    "matplotlib",
    "pyarrow",
    "sklearn",
    "tensorboard",
    "torchmetrics",
}


def test_everything_public_is_there_and_documented():
    assert len(set(hf_vqvae.__all__)) == len(hf_vqvae.__all__)
    for name in hf_vqvae.__all__:
        thing = getattr(hf_vqvae, name)
        assert isinstance(thing, str) or thing.__doc__, name


def test_importing_and_using_the_package_needs_no_extra(tmp_path):
    program = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.metadata as metadata
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in {OPTIONAL!r} else find(name, *rest)

import hf_vqvae
import torch

config = hf_vqvae.VQVAEForImageGenerationConfig(prior_config={{"hidden_size": 8}})
model = hf_vqvae.VQVAEForImageGeneration(config)
processor = hf_vqvae.VQVAEImageProcessorPil()
model.save_pretrained({str(tmp_path)!r})
processor.save_pretrained({str(tmp_path)!r})
from transformers import AutoImageProcessor, AutoModel
images = AutoModel.from_pretrained({str(tmp_path)!r}).sample(1)
AutoImageProcessor.from_pretrained({str(tmp_path)!r}).postprocess(images)
model.save_for_hub({str(tmp_path / "repo")!r}, "me/made-up")
loaded = {OPTIONAL!r} & {{name.split(".")[0] for name in sys.modules}}
assert not loaded, loaded
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_importing_the_package_loads_no_extra_even_where_it_is_installed():
    program = (
        "import sys, torch, transformers, transformers.pipelines\n"
        "from transformers import AutoModel, AutoConfig, AutoImageProcessor, PreTrainedModel, Pipeline\n"
        "import transformers.image_processing_backends\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import hf_vqvae\n"
        "after = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(after - before - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "['hf_vqvae']", (result.stdout, result.stderr[-2000:])


def test_the_models_import_only_what_the_hub_has():
    # What transformers needs, and torch and pillow.
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "PIL", "safetensors"}
    allowed |= set(sys.stdlib_module_names)
    for path in sorted((SOURCE / "models").glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        # The Hub's loader does not ask for what is imported inside of `try`.
        tried = [node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in block.body]
        for node in ast.walk(tree):
            if node in tried and getattr(node, "module", None) == "hf_vqvae.publishing.staging":
                continue
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, (path.name, node.module)
            elif isinstance(node, ast.ImportFrom):
                # The Hub's loader finds `from .name import x` and nothing else.
                assert node.level == 1 and node.module and "." not in node.module, path.name
                assert (SOURCE / "models" / f"{node.module}.py").exists(), (path.name, node.module)


def test_every_model_file_starts_with_the_copyright_line():
    for path in (SOURCE / "models").glob("[!_]*.py"):
        # transformers reads the year, and skips checks without it.
        assert path.read_text("utf-8").startswith("# Copyright 2026 "), path.name
