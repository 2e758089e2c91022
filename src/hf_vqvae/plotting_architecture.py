"""The figure of the architecture: boxes in dots, drawn from the top down."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from .models import PixelCNNConfig, VQVAEConfig
from .plotting_page import BLUE, GREEN, INK, MARGIN, ORANGE, WIDTH, page

ENCODER, DECODER, QUANTIZER, PRIOR = (
    ("#dcedf8", BLUE),
    ("#d5efe6", GREEN),
    ("#fdf0d2", "#a87400"),
    ("#f6e6ef", "#a2507f"),
)
PLAIN = ("#ffffff", "#707070")
GAP, LINE = 48, 42  # between boxes, where the arrows are; between lines of text in a box


class _Canvas:
    """Boxes, arrows and text on one page, in dots counted from the upper left corner."""

    def __init__(self, figure: Figure):
        self.figure = figure
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, figure.bbox.width), ylim=(figure.bbox.height, 0))
        self.axes.set_axis_off()

    def text(self, x: float, y: float, text: str, room: float, **options) -> None:
        """Text that shrinks until it fits into `room` dots."""
        options = {"ha": "center", "va": "center", "size": 12, **options}
        label = self.axes.text(x, y, text, **options)
        needed = label.get_window_extent(self.figure.canvas.get_renderer()).width
        if needed > room:
            label.set_fontsize(options["size"] * room / needed)

    def box(
        self, x: float, top: float, width: float, height: float, lines: Sequence[str], colors: tuple
    ) -> None:
        """A box around `x` with lines of text, the first one bold."""
        fill, edge = colors
        shape = "round,pad=0,rounding_size=14"
        corner = (x - width / 2, top)
        self.axes.add_patch(FancyBboxPatch(corner, width, height, shape, fc=fill, ec=edge, lw=1.6))
        for index, line in enumerate(lines):
            y = top + height / 2 + LINE * (index - (len(lines) - 1) / 2)
            self.text(x, y, line, width - 24, weight="normal" if index else "bold")

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        options = {"arrowstyle": "-|>,head_width=0.35,head_length=0.55", "color": INK, "lw": 1.6}
        self.axes.annotate("", end, start, arrowprops={**options, "shrinkA": 0, "shrinkB": 0})

    def cells(self, left: float, top: float, cell: float, fills: Sequence[Sequence[str]]) -> None:
        """A table of coloured cells."""
        for row, colors in enumerate(fills):
            for column, color in enumerate(colors):
                corner = (left + column * cell, top + row * cell)
                self.axes.add_patch(Rectangle(corner, cell, cell, fc=color, ec="#606060", lw=0.8))


def _size(*numbers: int) -> str:
    return " × ".join(str(number) for number in numbers)  # noqa: RUF001


def _blocks(number: int, before: str) -> list[str]:
    return [f"{before} {number} residual block{'s' if number > 1 else ''}"] if number else []


def _autoencoder_rows(config: VQVAEConfig) -> list[tuple[list[str], list[str]]]:
    """Lines of text of each encoder box and of the decoder box beside it, image first."""
    height, width = (side * config.downsampling_factor for side in config.grid_size)
    image = _size(height, width, config.num_channels)
    then, after = (_blocks(config.num_residual_layers, word) for word in ("then", "after"))
    encoder, decoder = [["image", image]], [["reconstruction", image]]
    decoder.append([f"transposed {_size(3, 3)}, stride 1", image])
    for level, channels in enumerate(config.hidden_sizes):
        narrow = _size(height >> (level + 1), width >> (level + 1), channels)
        wide = _size(height >> level, width >> level, channels)
        encoder.append([f"{_size(3, 3)} convolution, stride 2", *then, narrow])
        decoder.append([f"transposed {_size(3, 3)}, stride 2", *after, wide])
    latents = _size(*config.grid_size, config.embedding_dim)
    encoder.append([f"{_size(1, 1)} convolution", latents])
    return list(zip(encoder, decoder, strict=True))


def _prior_boxes(config: PixelCNNConfig) -> list[list[str]]:
    """Lines of text of each box of the prior, from the codes to the logits."""
    kernel, hidden = config.kernel_size, _size(*config.grid_size, config.hidden_size)
    boxes = [["codes, one-hot", _size(*config.grid_size, config.num_embeddings)]]
    boxes.append([f"{_size(kernel, kernel)} convolution, mask A", hidden])
    if config.num_residual_blocks:
        inner = f"{_size(1, 1)}, {_size(3, 3)} mask B, {_size(1, 1)}"
        boxes.append([_blocks(config.num_residual_blocks, "")[0].strip(), inner, hidden])
    if config.num_pixelcnn_layers:
        plural = "s" if config.num_pixelcnn_layers > 1 else ""
        name = f"{config.num_pixelcnn_layers} layer{plural} of {_size(1, 1)} convolution"
        boxes.append([name, hidden])
    boxes.append([f"{_size(1, 1)} convolution", f"{config.num_embeddings} logits for each cell"])
    return boxes


def _box_height(*boxes: Sequence[str]) -> int:
    return 22 + LINE * max(len(lines) for lines in boxes)


def _draw_autoencoder(canvas: _Canvas, config: VQVAEConfig, top: int) -> int:
    """Encoder downwards on the left, decoder upwards on the right; returns where they end."""
    left, right, width = 324, WIDTH - 324, 596
    for x, name in ((left, "Encoder"), (right, "Decoder")):
        canvas.text(x, top + 16, name, width, weight="bold", size=14)
    top += 56
    for index, (encoder, decoder) in enumerate(_autoencoder_rows(config)):
        height = _box_height(encoder, decoder)
        canvas.box(left, top, width, height, encoder, ENCODER if index else PLAIN)
        canvas.box(right, top, width, height, decoder, DECODER if index else PLAIN)
        top += height + GAP
        canvas.arrow((left, top - GAP), (left, top))
        canvas.arrow((right, top), (right, top - GAP))
    return top


def _draw_quantizer(canvas: _Canvas, config: VQVAEConfig, top: int) -> int:
    rows, columns = config.grid_size
    number, dimension = config.num_embeddings, config.embedding_dim
    canvas.box(WIDTH / 2, top, WIDTH - 52, 252, [], QUANTIZER)
    lines = [
        f"each of the {_size(rows, columns)} latents",
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


def _draw_grid(canvas: _Canvas, config: VQVAEConfig, top: int) -> int:
    rows, columns = (min(side, 24) for side in config.grid_size)
    codes = math.prod(config.grid_size)
    bits = codes * math.log2(config.num_embeddings)
    pixels = codes * config.downsampling_factor**2 * config.num_channels
    canvas.arrow((260, top), (260, top + GAP))
    cell = min(216 / rows, 400 / columns)
    left, upper = 260 - cell * columns / 2, top + GAP + 10
    canvas.cells(left, upper, cell, [["#fdf0d2"] * columns] * rows)
    lines = [
        f"{_size(*config.grid_size)} grid of codes",
        f"{codes:,} codes, {bits:,.0f} bits an image",
        f"(its 8-bit pixels: {8 * pixels:,} bits)",
    ]
    for index, line in enumerate(lines):
        weight = "normal" if index else "bold"
        y = upper + 108 + 52 * (index - 1)
        canvas.text(500, y, line, 740, weight=weight, ha="left")
    return upper + 216 + 10


def _prior_height(boxes: list[list[str]]) -> int:
    # At least as high as the mask and its legend beside the boxes.
    return max(100 + sum(_box_height(lines) + GAP for lines in boxes), 734)


def _draw_prior(canvas: _Canvas, config: PixelCNNConfig, top: int) -> int:
    boxes = _prior_boxes(config)
    canvas.arrow((260, top), (260, top + GAP))
    top += GAP
    height = _prior_height(boxes)
    canvas.box(WIDTH / 2, top, WIDTH - 52, height, [], ("#fcf6f9", PRIOR[1]))
    title = "PixelCNN prior: which code comes next?"
    canvas.text(64, top + 48, title, 1150, weight="bold", size=14, ha="left")
    below = top + 100
    for index, lines in enumerate(boxes):
        box = _box_height(lines)
        canvas.box(400, below, 672, box, lines, PRIOR if index else PLAIN)
        below += box + GAP
        if index < len(boxes) - 1:
            canvas.arrow((400, below - GAP), (400, below))
    kernel, sizes = config.kernel_size, 364
    middle = (kernel * kernel - 1) // 2
    places = range(kernel * kernel)
    flat = [BLUE if place < middle else "white" for place in places]
    flat[middle] = ORANGE
    fills = [flat[row * kernel : (row + 1) * kernel] for row in range(kernel)]
    canvas.cells(820, top + 170, sizes / kernel, fills)
    center = 820 + sizes / 2
    canvas.text(center, top + 132, f"Mask A, {_size(kernel, kernel)}", sizes, weight="bold")
    for index, (color, meaning) in enumerate(
        ((BLUE, "codes it may see"), (ORANGE, "code to predict"), ("white", "hidden from it"))
    ):
        y = top + 170 + sizes + 24 + 52 * index
        canvas.cells(820, y, 34, [[color]])
        canvas.text(872, y + 17, meaning, sizes - 52, ha="left")
    return top + height


def plot_architecture(
    config: VQVAEConfig, path: str | Path, prior_config: PixelCNNConfig | None = None
) -> None:
    """The blocks of this very configuration, with sizes: VQ-VAE, grid of codes and any prior."""
    heights = [_box_height(*pair) + GAP for pair in _autoencoder_rows(config)]
    total = 2 * MARGIN + 56 + sum(heights) + 252 + GAP + 236
    if prior_config is not None:
        total += GAP + _prior_height(_prior_boxes(prior_config))
    with page(path, total) as figure:
        canvas = _Canvas(figure)
        bottom = _draw_autoencoder(canvas, config, MARGIN)
        bottom = _draw_quantizer(canvas, config, bottom)
        bottom = _draw_grid(canvas, config, bottom)
        if prior_config is not None:
            _draw_prior(canvas, prior_config, bottom)
