"""Models, configurations and image processor: the files that travel to the Hub.

The modules are imported when one of their names is first used: reading a config needs no modeling code.
"""

from importlib import import_module

_MODULES = {
    "configuration_image_generation": ["VQVAEForImageGenerationConfig"],
    "configuration_pixelcnn": ["PixelCNNConfig"],
    "configuration_vqvae": ["VQVAEConfig"],
    "image_processing_vqvae": ["VQVAEImageProcessorPil"],
    "modeling_image_generation": ["VQVAEForImageGeneration", "VQVAEForImageGenerationOutput", "VQVAESampleOutput"],
    "modeling_pixelcnn": ["PixelCNNModel", "PixelCNNOutput"],
    "modeling_vqvae": ["VQVAEEncoderOutput", "VQVAEModel", "VQVAEOutput"],
    "pipeline_image_generation": ["ImageGenerationPipeline"],
    "quantization": ["QuantizerOutput", "VectorQuantizer"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
