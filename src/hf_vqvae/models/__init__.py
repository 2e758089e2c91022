"""Models, configurations and image processor: the files that travel to the Hub."""

from .configuration_image_generation import VQVAEForImageGenerationConfig
from .configuration_pixelcnn import PixelCNNConfig
from .configuration_vqvae import VQVAEConfig
from .image_processing_vqvae import VQVAEImageProcessorPil
from .modeling_image_generation import (
    VQVAEForImageGeneration,
    VQVAEForImageGenerationOutput,
    VQVAESampleOutput,
)
from .modeling_pixelcnn import PixelCNNModel, PixelCNNOutput
from .modeling_vqvae import VQVAEEncoderOutput, VQVAEModel, VQVAEOutput
from .pipeline_image_generation import ImageGenerationPipeline
from .quantization import QuantizerOutput, VectorQuantizer

__all__ = [
    "ImageGenerationPipeline",
    "PixelCNNConfig",
    "PixelCNNModel",
    "PixelCNNOutput",
    "QuantizerOutput",
    "VQVAEConfig",
    "VQVAEEncoderOutput",
    "VQVAEForImageGeneration",
    "VQVAEForImageGenerationConfig",
    "VQVAEForImageGenerationOutput",
    "VQVAEImageProcessorPil",
    "VQVAEModel",
    "VQVAEOutput",
    "VQVAESampleOutput",
    "VectorQuantizer",
]
