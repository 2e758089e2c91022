"""VQ-VAE with a PixelCNN prior for the Hugging Face Hub.

Importing the package registers its models with `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `pipeline`.
"""

import sys
from functools import cache

from . import models

__version__ = "0.1.0"
__all__ = [*models.__all__, "__version__"]


def __getattr__(name: str):
    return getattr(models, name)


class _RegisteredTask(dict):
    """`custom_pipelines` of a config: `pipeline(model=...)` reads the task from its key, does not find the task to be
    custom, and so takes the registered pipeline instead of code in the repo."""

    def __contains__(self, task) -> bool:
        return False


@cache
def register() -> None:
    """Registers the models with transformers' Auto classes and the pipeline with its registry."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.pipeline_image_generation import TASK

    for config, model in (
        (models.VQVAEConfig, models.VQVAEModel),
        (models.PixelCNNConfig, models.PixelCNNModel),
        (models.VQVAEForImageGenerationConfig, models.VQVAEForImageGeneration),
    ):
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
    for config in (models.VQVAEConfig, models.VQVAEForImageGenerationConfig):
        classes = {"pil": models.VQVAEImageProcessorPil}
        AutoImageProcessor.register(config, image_processor_classes=classes)
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=models.ImageGenerationPipeline, pt_model=AutoModel, type="image"
    )
    # An attribute of the class: it is not saved.
    models.VQVAEForImageGenerationConfig.custom_pipelines = _RegisteredTask({TASK: {}})


# Registering imports transformers' modeling code, which takes seconds. A script with this name in it parses its flags
# first and then calls `register`.
if not hasattr(sys.modules["__main__"], "__registers_after_parsing__"):
    register()
