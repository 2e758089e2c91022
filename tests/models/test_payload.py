"""What a repo on the Hub receives: its files, what they import, and what they override."""

import ast
import inspect
from pathlib import Path

from hf_vqvae import VQVAEForImageGeneration, VQVAEForImageGenerationConfig, models

FOLDER = Path(models.__file__).parent
FILES = {
    "autoencoder.py",
    "configuration_image_generation.py",
    "configuration_pixelcnn.py",
    "configuration_utils.py",
    "configuration_vqvae.py",
    "hub_mixin.py",
    "image_processing_vqvae.py",
    "input_checks.py",
    "modeling_image_generation.py",
    "modeling_pixelcnn.py",
    "modeling_vqvae.py",
    "pipeline_image_generation.py",
    "pixelcnn_cache.py",
    "pixelcnn_layers.py",
    "quantization.py",
    "sampling_pixelcnn.py",
}
LINES = 2800
# What their documentation tells a subclass to override.
HOOKS = {"_init_weights", "_preprocess", "_sanitize_parameters", "_forward"}


def test_a_repo_receives_these_files_of_code(tmp_path):
    config = VQVAEForImageGenerationConfig(prior_config={"hidden_size": 8})
    VQVAEForImageGeneration(config).save_for_hub(tmp_path, "me/made-up")
    assert {path.name for path in tmp_path.glob("*.py")} == FILES
    assert len(FILES) <= 16
    lines = sum(len((tmp_path / name).read_text("utf-8").splitlines()) for name in FILES)
    assert lines <= LINES


def test_only_public_names_are_imported():
    for name in FILES:
        for node in ast.walk(ast.parse((FOLDER / name).read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(one.name for one in node.names)]
                parts = [part for dotted in names for part in dotted.split(".") if part]
                private = [part for part in parts if part.startswith("_") and part != "__future__"]
                assert not private, (name, node.lineno, private)


def test_no_private_method_of_a_library_is_overridden():
    for name in FILES:
        module = __import__(f"hf_vqvae.models.{name[:-3]}", fromlist=["x"])
        for _, own in inspect.getmembers(module, inspect.isclass):
            if own.__module__ == module.__name__:
                for method in vars(own):
                    theirs = [base for base in own.__mro__[1:] if method in vars(base)]
                    libraries = [b for b in theirs if not b.__module__.startswith("hf_vqvae")]
                    callable_ = inspect.isfunction(vars(own)[method])
                    if method.startswith("_") and not method.startswith("__") and callable_:
                        assert method in HOOKS or not libraries, (name, own.__name__, method)
