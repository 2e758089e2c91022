# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""`pipeline("unconditional-image-generation", model=repo)`: PIL images from a model of this package."""

import torch
from transformers import Pipeline


class ImageGenerationPipeline(Pipeline):
    """Draws images from a [`VQVAEForImageGeneration`].

    ```python
    >>> pipe = pipeline(model="me/vqvae-mnist", trust_remote_code=True)
    >>> images = pipe(16, temperature=0.9, seed=0)  # a list of 16 PIL images
    ```
    """

    _load_tokenizer = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_processor = False

    def _sanitize_parameters(self, temperature=None, seed=None, **unknown):
        if unknown:
            raise ValueError(
                f"the pipeline has no argument {', '.join(unknown)}; it has temperature and seed."
            )
        parameters = {"temperature": temperature, "seed": seed}
        return {}, {key: value for key, value in parameters.items() if value is not None}, {}

    def __call__(self, num_images: int = 1, **kwargs):
        """Draws `num_images` PIL images; `temperature` and `seed` as of `VQVAEForImageGeneration.sample`."""
        return super().__call__({"num_images": num_images}, **kwargs)

    def preprocess(self, inputs):
        return inputs

    def _forward(self, inputs, temperature=1.0, seed=None):
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        images = self.model.sample(
            inputs["num_images"], temperature=temperature, generator=generator
        )
        return {"images": images}

    def postprocess(self, outputs):
        return self.image_processor.postprocess(outputs["images"])


__all__ = ["ImageGenerationPipeline"]
