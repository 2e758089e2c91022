"""The page's network trained by this package and by others, for scripts/benchmark.py.

Shapes: B images, C channels, H x W pixels, D dimension of a latent, h x w grid of codes.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers.utils import logging

from hf_vqvae.arguments import RunArguments, TrainingArguments
from hf_vqvae.command_line import progress_bar
from hf_vqvae.data.loaders import local_batches
from hf_vqvae.data.splits import ImageSplits, load_images
from hf_vqvae.distributed import make_accelerator
from hf_vqvae.metrics import CodebookUsage, ReconstructionQuality
from hf_vqvae.models import VQVAEConfig, VQVAEModel
from hf_vqvae.models.quantization import QuantizerOutput
from hf_vqvae.training.run_directory import Run, RunDirectory
from hf_vqvae.training.stages import train_vqvae

# Pixel values (B, C, H, W) to reconstructions, not clipped, and codes (B, h, w).
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]


def train_and_measure(name: str, arguments: Any) -> dict[str, float]:
    """Train one of `PEERS` with the flags of `benchmark.py peers`, in a process of its own, and measure it."""
    # Keras and Accelerate read these.
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": arguments.device}
    os.environ["ACCELERATE_USE_CPU"] = str(arguments.device == "cpu").lower()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    config = VQVAEConfig()
    images = load_images(arguments, config)
    config.data_variance = images.data_variance
    training = TrainingArguments(
        num_train_epochs=arguments.epochs, seed=arguments.seed, mixed_precision=arguments.mixed_precision
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder, "run"))
        directory.start(resume=False)
        accelerator = make_accelerator(training, directory.partial)
        run = Run(RunArguments(data=arguments, training=training), accelerator, directory)
        started = time.monotonic()
        reconstruct = PEERS[name](config, images, run)
        seconds = time.monotonic() - started
    quality, usage = ReconstructionQuality(), CodebookUsage(config.num_embeddings)
    for batch in local_batches(images.eval, accelerator, training.eval_batch_size, "evaluate"):
        with torch.no_grad():
            reconstructions, codes = reconstruct(batch["pixel_values"])
        pairs = (reconstructions, batch["pixel_values"])
        predictions, references = ((pixels.float() + 0.5).clamp(0, 1) for pixels in pairs)
        quality.add_batch(predictions=predictions, references=references)
        usage.add_batch(predictions=codes)
    use = usage.compute()
    return {
        "MSE": quality.compute()["reconstruction_mse"],
        "perplexity": use["codebook_perplexity"],
        "codes used": use["codes_used"],
        "images/s": len(images.train) * arguments.epochs / seconds,
    }


def train_ours(config: VQVAEConfig, images: ImageSplits, run: Run) -> Reconstruct:
    """Stage 1 of scripts/train.py, without validation rows, since the others have none."""
    return partial(_reconstruct, train_vqvae(config, images, run).eval())


def _reconstruct(model: VQVAEModel, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    output = model(pixel_values)
    return output.reconstruction, output.codes


def train_vector_quantize(config: VQVAEConfig, images: ImageSplits, run: Run, **settings: Any) -> Reconstruct:
    """The page's network around a `VectorQuantize` with these settings, by Adam 1e-3."""
    from vector_quantize_pytorch import VectorQuantize

    training, device = run.arguments.training, run.accelerator.device
    set_seed(training.seed)
    config.commitment_cost = 1.0  # the layer weights its loss itself
    model = VQVAEModel(config)
    model.quantizer = VectorQuantize(config.embedding_dim, config.num_embeddings, accept_image_fmap=True, **settings)
    model.quantizer.register_forward_hook(lambda _, __, out: QuantizerOutput(out[0], out[1], None, out[2]))
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    size, count = training.train_batch_size, len(images.train)
    parts = [part for _ in range(training.num_train_epochs) for part in torch.randperm(count).split(size)]
    for part in progress_bar(parts, unit=" batches"):
        pixel_values = images.train.__getitems__(part)["pixel_values"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision == "bf16"):
            loss = model(pixel_values, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return partial(_reconstruct, model.eval())


def train_keras(config: VQVAEConfig, images: ImageSplits, run: Run) -> Reconstruct:
    """The page's network in Keras, with the recipe of its example: codebook by gradient, uniform start, Adam 1e-3."""
    import keras
    from keras import layers, ops

    training = run.arguments.training
    keras.utils.set_random_seed(training.seed)
    if training.mixed_precision == "bf16":
        keras.config.set_dtype_policy("mixed_bfloat16")

    class Quantizer(layers.Layer):
        def build(self, _):
            shape = (config.num_embeddings, config.embedding_dim)
            self.codebook = self.add_weight(shape=shape, initializer="uniform")

        def codes(self, latents):  # (B, h, w, D) -> (B, h, w)
            products = ops.matmul(latents, ops.transpose(self.codebook))
            return ops.argmax(products - ops.sum(ops.square(self.codebook), axis=-1) / 2, axis=-1)

        def call(self, latents):
            quantized = ops.take(self.codebook, self.codes(latents), axis=0)
            codebook_loss = ops.mean(ops.square(quantized - ops.stop_gradient(latents)))
            commitment_loss = ops.mean(ops.square(latents - ops.stop_gradient(quantized)))
            self.add_loss(codebook_loss + config.commitment_cost * commitment_loss)
            return latents + ops.stop_gradient(quantized - latents)

    options = {"kernel_size": 3, "padding": "same"}
    halving = options | {"strides": 2, "activation": "relu"}
    encoder = [layers.Conv2D(width, **halving) for width in config.hidden_sizes]
    encoder = keras.Sequential([*encoder, layers.Conv2D(config.embedding_dim, 1)])
    quantizer = Quantizer(dtype="float32")
    decoder = [layers.Conv2DTranspose(width, **halving) for width in reversed(config.hidden_sizes)]
    decoder = keras.Sequential([*decoder, layers.Conv2DTranspose(config.num_channels, **options)])
    model = keras.Sequential([encoder, quantizer, decoder])
    model.compile("adam", "mse", loss_weights=1 / config.data_variance)
    pixels = images.train.__getitems__(range(len(images.train)))["pixel_values"].permute(0, 2, 3, 1).numpy()
    model.fit(pixels, pixels, training.train_batch_size, training.num_train_epochs, verbose=0)

    def reconstruct(pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        latents = encoder(pixel_values.permute(0, 2, 3, 1)).float()
        return decoder(quantizer(latents)).permute(0, 3, 1, 2), quantizer.codes(latents)

    return reconstruct


PEERS = {
    "hf_vqvae": train_ours,
    "vector_quantize_pytorch": train_vector_quantize,
    "vector_quantize_pytorch:kmeans": partial(
        train_vector_quantize, kmeans_init=True, threshold_ema_dead_code=2, rotation_trick=False
    ),
    "keras": train_keras,
}
