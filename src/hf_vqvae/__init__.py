"""VQ-VAE with a PixelCNN prior for the Hugging Face Hub.

Importing the package registers its models with `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `pipeline`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .models import *  # noqa: F403
from .models import (
    ImageGenerationPipeline,
    PixelCNNConfig,
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
    VQVAEModel,
)
from .models import __all__ as _models
from .models.pipeline_image_generation import TASK as _TASK

__version__ = "0.1.0"

for _config, _model in (
    (VQVAEConfig, VQVAEModel),
    (PixelCNNConfig, PixelCNNModel),
    (VQVAEForImageGenerationConfig, VQVAEForImageGeneration),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
for _config in (VQVAEConfig, VQVAEForImageGenerationConfig):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": VQVAEImageProcessorPil})
PIPELINE_REGISTRY.register_pipeline(
    _TASK,
    pipeline_class=ImageGenerationPipeline,
    pt_model=AutoModel,
    type="image",
)

__all__ = [*_models, "__version__"]
