# ruff: noqa: RUF001, RUF002
"""The figure of the network: rows of boxes from the image down to the codes, and on to the prior's logits."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from ..models import PixelCNNConfig, VQVAEConfig
from .page import BLUE, GREEN, INK, MARGIN, ORANGE, WIDTH, fit_text, page, set_height

PLAIN = ("#ffffff", "#707070")  # fill and edge of boxes
ENCODER, DECODER = ("#dcedf8", BLUE), ("#d5efe6", GREEN)
QUANTIZER, PRIOR = ("#fdf0d2", "#a87400"), ("#f6e6ef", "#a2507f")
GAP, LINE = 48, 42  # dots between rows, where the arrows are, and between lines of text
PICTURE = 216  # side of the picture in a box
PLACES, WIDTHS = {1: (640,), 2: (318, 962)}, {1: 1228, 2: 584}  # middles and widths of one box, or of two

Box = Sequence[str]  # lines of text, the first one bold


class Drawing:
    """Rows of boxes on one page, each below the one before; in dots from the upper left corner."""

    def __init__(self, figure: Figure):
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_axis_off()
        self.bottom = MARGIN - GAP

    def row(self, *boxes: Box, colors: Sequence[tuple], arrows: str = "", picture: Sequence[Sequence[str]] = ()):
        """Draw one box or two of equal height.

        Args:
            arrows: one arrow or two from the row above, `v` down or `^` up.
            picture: colours of a table of cells beside the text.
        """
        above, top = self.bottom, self.bottom + GAP
        width, height = WIDTHS[len(boxes)], max(22 + LINE * max(map(len, boxes)), PICTURE + 36 if picture else 0)
        self.bottom, middle = top + height, top + height / 2
        for x, arrow in zip(PLACES.get(len(arrows), ()), arrows, strict=True):
            style = f"{'-|>' if arrow == 'v' else '<|-'},head_width=0.35,head_length=0.55"
            options = {"arrowstyle": style, "color": INK, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
            self.axes.annotate("", (x, top), (x, above), arrowprops=options)
        for x, lines, (fill, edge) in zip(PLACES[len(boxes)], boxes, colors, strict=True):
            shape = "round,pad=0,rounding_size=14"
            self.axes.add_patch(FancyBboxPatch((x - width / 2, top), width, height, shape, fc=fill, ec=edge, lw=1.6))
            room = width - 24 - (PICTURE + 100 if picture else 0)
            for index, line in enumerate(lines):
                place = (x - (width - 24 - room) / 2, middle + LINE * (index - (len(lines) - 1) / 2))
                weight = "normal" if index else "bold"
                fit_text(self.axes.text(*place, line, weight=weight, size=12, ha="center", va="center"), room)
        cell = PICTURE / max(len(picture), *map(len, picture)) if picture else 0
        for row, fills in enumerate(picture):
            for column, fill in enumerate(fills):
                x = WIDTH - 200 + cell * (column - len(fills) / 2)
                y = middle + cell * (row - len(picture) / 2)
                self.axes.add_patch(Rectangle((x, y), cell, cell, fc=fill, ec="#606060", lw=0.8))


def plot_architecture(config: VQVAEConfig, path: str | Path, prior_config: PixelCNNConfig | None = None) -> None:
    """Draw the blocks of a configuration with their sizes: VQ-VAE, grid of codes and any prior."""
    grid, codes = size_text(*config.grid_size), math.prod(config.grid_size)
    number, dimension = config.num_embeddings, config.embedding_dim
    pixels = codes * config.downsampling_factor**2 * config.num_channels
    quantizer = [
        "Vector quantizer",
        f"replaces each of the {grid} latents",
        f"by the nearest of K = {number:,} codebook",
        f"vectors of D = {dimension:,} numbers",
    ]
    bits = f"{count_text(codes, 'code')}, {codes * math.log2(number):,.0f} bits per image"
    # A few rows of the codebook, one of them the chosen one.
    codebook = [["white"] * min(dimension, 8) for _ in range(min(number, 6))]
    codebook[-2] = [ORANGE] * len(codebook[-2])
    rows, columns = (min(side, 24) for side in config.grid_size)
    with page(path, WIDTH) as figure:
        drawing = Drawing(figure)
        images, *levels = autoencoder_boxes(config)
        drawing.row(*images, colors=[PLAIN, PLAIN])
        for boxes in levels:
            drawing.row(*boxes, colors=[ENCODER, DECODER], arrows="v^")
        drawing.row(quantizer, colors=[QUANTIZER], arrows="v^", picture=codebook)
        box = [f"{grid} grid of codes", bits, f"(its 8-bit pixels: {8 * pixels:,} bits)"]
        drawing.row(box, colors=[PLAIN], arrows="v", picture=[["#fdf0d2"] * columns] * rows)
        if prior_config is not None:
            _draw_prior(drawing, prior_config)
        set_height(figure, round(drawing.bottom + MARGIN))
        drawing.axes.set_ylim(figure.bbox.height, 0)


def _draw_prior(drawing: Drawing, config: PixelCNNConfig) -> None:
    """Draw the prior, with the picture of its first kernel."""
    kernel, radius, gated = config.kernel_size, config.kernel_size // 2, config.architecture == "gated"
    fills = [[BLUE] * kernel for _ in range(radius)]
    fills += [[GREEN if gated else BLUE] * radius + [ORANGE] + ["white"] * radius]
    fills += [["white"] * kernel for _ in range(radius)]
    seen = ["blue: codes it may see"]
    if gated:
        seen = ["blue: seen by the vertical stack", "green: by the horizontal stack"]
    name = f"{'First kernels' if gated else 'Mask A'}, {size_text(kernel, kernel)}"
    title = f"{'Gated ' * gated}PixelCNN prior: which code comes next?"
    legend = [title, name, *seen, "orange: the code to predict", "white: hidden from it"]
    drawing.row(legend, colors=[PLAIN], arrows="v", picture=fills)
    for box in prior_boxes(config):
        drawing.row(box, colors=[PRIOR], arrows="v")


def size_text(*numbers: int) -> str:
    """Write sides as 7 × 7 × 64."""
    return " × ".join(map(str, numbers))


def count_text(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is one."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def autoencoder_boxes(config: VQVAEConfig) -> list[tuple[Box, Box]]:
    """Return the text of each encoder box and of the decoder box beside it, image first."""
    height, width = (side * config.downsampling_factor for side in config.grid_size)
    image = size_text(height, width, config.num_channels)
    blocks = count_text(config.num_residual_layers, "residual block")
    boxes = [(["Encoder", f"image, {image}"], ["Decoder", f"reconstruction, {image}"])]
    decoder = ["transposed 3 × 3, stride 1", image]
    for level, channels in enumerate(config.hidden_sizes):
        narrow, wide = (size_text(height >> at, width >> at, channels) for at in (level + 1, level))
        then, after = ([f"{when} {blocks}"] if config.num_residual_layers else [] for when in ("then", "after"))
        boxes.append((["3 × 3 convolution, stride 2", *then, narrow], decoder))
        decoder = ["transposed 3 × 3, stride 2", *after, wide]
    latents = size_text(*config.grid_size, config.embedding_dim)
    return [*boxes, (["1 × 1 convolution", latents], decoder)]


def prior_boxes(config: PixelCNNConfig) -> list[Box]:
    """Return the text of the boxes one below the other, down to the logits."""
    hidden, wide = (size_text(*config.grid_size, size) for size in (config.hidden_size, 2 * config.hidden_size))
    logits = ["1 × 1 convolution", f"{config.num_embeddings:,} logits for each cell"]
    classes = [f"+ embedding of {count_text(config.num_classes, 'class')}"] if config.num_classes else []
    if config.architecture == "gated":
        side, inner = config.kernel_size, config.gated_kernel_size
        above, rows = side // 2, inner // 2 + 1
        link = "+ 1 × 1 of the vertical stack"
        first = [f"vertical stack: {above} × {side} convolution", f"horizontal stack: 1 × {above} convolution {link}"]
        layers = [f"vertical stack: {rows} × {inner} convolution", f"horizontal stack: 1 × {rows} convolution {link}"]
        layers += [*classes, "gates: tanh × sigmoid of the halves", "each stack is added to its input"]
        return [
            ["first kernels", *first, f"{hidden} each"],
            [f"{count_text(config.num_gated_layers, 'layer')} of two stacks", *layers],
            ["skip connections", "gates of all layers, 1 × 1 convolution", wide],
            ["1 × 1 convolution", wide],
            logits,
        ]
    kernel = size_text(config.kernel_size, config.kernel_size)
    boxes = [[f"{kernel} convolution, mask A", *classes, hidden]]
    if config.num_residual_blocks:
        blocks = count_text(config.num_residual_blocks, "residual block")
        boxes.append([blocks, "1 × 1, 3 × 3 mask B, 1 × 1", hidden])
    if config.num_pixelcnn_layers:
        boxes.append([f"{count_text(config.num_pixelcnn_layers, 'layer')} of 1 × 1 convolution", hidden])
    return [*boxes, logits]
