"""The figure of the architecture: boxes in dots, drawn from the top down."""

import math
from pathlib import Path

from ..models import PixelCNNConfig, VQVAEConfig
from .architecture_prior import draw_prior, prior_height
from .canvas import GAP, PLAIN, Canvas, blocks_text, box_height, size_text
from .page import BLUE, GREEN, MARGIN, ORANGE, WIDTH, page

ENCODER, DECODER, QUANTIZER = ("#dcedf8", BLUE), ("#d5efe6", GREEN), ("#fdf0d2", "#a87400")


def _autoencoder_rows(config: VQVAEConfig) -> list[tuple[list[str], list[str]]]:
    """Lines of text of each encoder box and of the decoder box beside it, image first."""
    height, width = (side * config.downsampling_factor for side in config.grid_size)
    image = size_text(height, width, config.num_channels)
    then, after = (blocks_text(config.num_residual_layers, word) for word in ("then", "after"))
    encoder, decoder = [["image", image]], [["reconstruction", image]]
    decoder.append([f"transposed {size_text(3, 3)}, stride 1", image])
    for level, channels in enumerate(config.hidden_sizes):
        narrow = size_text(height >> (level + 1), width >> (level + 1), channels)
        wide = size_text(height >> level, width >> level, channels)
        encoder.append([f"{size_text(3, 3)} convolution, stride 2", *then, narrow])
        decoder.append([f"transposed {size_text(3, 3)}, stride 2", *after, wide])
    latents = size_text(*config.grid_size, config.embedding_dim)
    encoder.append([f"{size_text(1, 1)} convolution", latents])
    return list(zip(encoder, decoder, strict=True))


def _draw_autoencoder(canvas: Canvas, config: VQVAEConfig, top: int) -> int:
    """Encoder downwards on the left, decoder upwards on the right; returns where they end."""
    left, right, width = 324, WIDTH - 324, 596
    for x, name in ((left, "Encoder"), (right, "Decoder")):
        canvas.text(x, top + 16, name, width, weight="bold", size=14)
    top += 56
    for index, (encoder, decoder) in enumerate(_autoencoder_rows(config)):
        height = box_height(encoder, decoder)
        canvas.box(left, top, width, height, encoder, ENCODER if index else PLAIN)
        canvas.box(right, top, width, height, decoder, DECODER if index else PLAIN)
        top += height + GAP
        canvas.arrow((left, top - GAP), (left, top))
        canvas.arrow((right, top), (right, top - GAP))
    return top


def _draw_quantizer(canvas: Canvas, config: VQVAEConfig, top: int) -> int:
    rows, columns = config.grid_size
    number, dimension = config.num_embeddings, config.embedding_dim
    canvas.box(WIDTH / 2, top, WIDTH - 52, 252, [], QUANTIZER)
    lines = [
        f"each of the {size_text(rows, columns)} latents",
        "becomes the nearest of",
        f"K = {number:,} codes of D = {dimension} numbers",
    ]
    for index, line in enumerate(["Vector quantizer", *lines]):
        weight, size = ("normal", 12) if index else ("bold", 14)
        y = top + 48 + 52 * index
        canvas.text(64, y, line, 690, weight=weight, size=size, ha="left")
    # A few rows of the codebook, one of them the chosen one.
    fills = [["white"] * min(dimension, 8) for _ in range(min(number, 5))]
    fills[-2] = [ORANGE] * len(fills[-2])
    canvas.cells(812, top + 66, 32, fills)
    middle = 812 + 16 * len(fills[0])
    canvas.text(middle, top + 36, f"D = {dimension}", 260)
    beside = 812 + 32 * len(fills[0]) + 16
    canvas.text(beside, top + 66 + 16 * len(fills), f"K = {number:,}", 150, ha="left")
    return top + 252


def _draw_grid(canvas: Canvas, config: VQVAEConfig, top: int) -> int:
    rows, columns = (min(side, 24) for side in config.grid_size)
    codes = math.prod(config.grid_size)
    bits = codes * math.log2(config.num_embeddings)
    pixels = codes * config.downsampling_factor**2 * config.num_channels
    canvas.arrow((260, top), (260, top + GAP))
    cell = min(216 / rows, 400 / columns)
    left, upper = 260 - cell * columns / 2, top + GAP + 10
    canvas.cells(left, upper, cell, [["#fdf0d2"] * columns] * rows)
    lines = [
        f"{size_text(*config.grid_size)} grid of codes",
        f"{codes:,} codes, {bits:,.0f} bits an image",
        f"(its 8-bit pixels: {8 * pixels:,} bits)",
    ]
    for index, line in enumerate(lines):
        weight = "normal" if index else "bold"
        y = upper + 108 + 52 * (index - 1)
        canvas.text(500, y, line, 740, weight=weight, ha="left")
    return upper + 216 + 10


def plot_architecture(
    config: VQVAEConfig, path: str | Path, prior_config: PixelCNNConfig | None = None
) -> None:
    """The blocks of this very configuration, with sizes: VQ-VAE, grid of codes and any prior."""
    heights = [box_height(*pair) + GAP for pair in _autoencoder_rows(config)]
    total = 2 * MARGIN + 56 + sum(heights) + 252 + GAP + 236
    if prior_config is not None:
        total += GAP + prior_height(prior_config)
    with page(path, total) as figure:
        canvas = Canvas(figure)
        bottom = _draw_autoencoder(canvas, config, MARGIN)
        bottom = _draw_quantizer(canvas, config, bottom)
        bottom = _draw_grid(canvas, config, bottom)
        if prior_config is not None:
            canvas.arrow((260, bottom), (260, bottom + GAP))
            draw_prior(canvas, prior_config, bottom + GAP)
