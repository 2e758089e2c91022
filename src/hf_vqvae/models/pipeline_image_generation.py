# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""`pipeline("unconditional-image-generation", model=repo)`: PIL images from a model of this package."""

from transformers import Pipeline

from .input_checks import count_grids, is_integer, require

TASK = "unconditional-image-generation"


class ImageGenerationPipeline(Pipeline):
    """Draws images from a [`VQVAEForImageGeneration`].

    ```python
    >>> pipe = pipeline(model="me/vqvae-mnist", trust_remote_code=True)
    >>> images = pipe(16, temperature=0.9, seed=0)  # a list of 16 PIL images
    >>> sevens = pipe(16, class_labels="7", guidance_scale=2.0)  # of a model with classes
    ```
    """

    _load_tokenizer = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_video_processor = False
    _load_processor = False

    def _sanitize_parameters(self, **arguments):
        return {}, {name: value for name, value in arguments.items() if value is not None}, {}

    def __call__(self, num_images: int | None = None, **kwargs):
        """Draws PIL images; arguments and errors are those of `VQVAEForImageGeneration.sample`.

        Args:
            num_images: how many; by default as many as `class_labels`, or 1.
            class_labels: number or name of a class for all, or a list with one for each image.
            guidance_scale, temperature, top_k, top_p: how codes are drawn.
            seed: image i is that of the seed `seed + i`, however many are drawn and on any device.
        """
        return super().__call__({"num_images": num_images}, **kwargs)

    def preprocess(self, inputs):
        return inputs

    def _forward(self, inputs, seed=None, **arguments):
        number = count_grids("num_images", inputs["num_images"], class_labels=arguments.get("class_labels"))
        if seed is not None:
            require(is_integer(seed) and 0 <= seed < 2**62, "seed", seed, "an integer from 0 to 2**62 - 1")
            arguments["seeds"] = range(int(seed), int(seed) + number)
        return {"images": self.model.sample(number, **arguments)}

    def postprocess(self, outputs):
        return self.image_processor.postprocess(outputs["images"])

    def save_pretrained(self, save_directory, **kwargs):
        """Save model and image processor, which load as this pipeline again."""
        # That of transformers adds the code of a registered pipeline, but not of the model.
        self.model.save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory, **kwargs)
