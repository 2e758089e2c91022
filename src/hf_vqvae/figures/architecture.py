"""The figure of the network: VQ-VAE, grid of codes and prior, drawn from the top down.

Every `_draw` function starts at a height in dots from the upper border and returns where it ends.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from ..models import PixelCNNConfig, VQVAEConfig
from .page import BLUE, GREEN, INK, MARGIN, ORANGE, WIDTH, fit_text, page, set_height

# Fill and edge of boxes.
PLAIN, QUANTIZER, PRIOR = ("#ffffff", "#707070"), ("#fdf0d2", "#a87400"), ("#f6e6ef", "#a2507f")
ENCODER = VERTICAL = ("#dcedf8", BLUE)
DECODER = HORIZONTAL = ("#d5efe6", GREEN)
PANEL, PLATE = ("#fcf6f9", PRIOR[1]), ("#ffffff", PRIOR[1])
GAP, LINE = 48, 42  # between boxes, where the arrows are; between lines of text in a box
LEFT, RIGHT, STACK = 334, 946, 540  # middles and width of the boxes of a gated prior's two stacks
COLUMN = 400  # middle of the boxes that stand one below the other in a prior
MASK = 364  # side of the picture of the first kernel

Box = Sequence[str]  # lines of text, the first one bold


class Canvas:
    """Boxes, arrows and text on one page, in dots from the upper left corner."""

    def __init__(self, figure: Figure):
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_axis_off()

    def end(self, bottom: float) -> None:
        """End the page at `bottom`."""
        set_height(self.axes.figure, round(bottom))
        self.axes.set_ylim(self.axes.figure.bbox.height, 0)

    def text(self, x: float, y: float, text: str, room: float, **options) -> None:
        """Write text that shrinks until it fits into `room` dots."""
        options = {"ha": "center", "va": "center", "size": 12, **options}
        fit_text(self.axes.text(x, y, text, **options), room)

    def lines(self, x: float, y: float, lines: Box, room: float, step: int = 52, **options) -> None:
        """Write lines one below the other, the first one bold."""
        for index, line in enumerate(lines):
            weight = "normal" if index else "bold"
            self.text(x, y + step * index, line, room, weight=weight, **options)

    def box(self, x: float, top: float, width: float, lines: Box, colors: tuple, height: float = 0) -> float:
        """Draw a box around `x`, at least `height` high, and return where it ends."""
        height = max(height, box_height(lines))
        self.rounded(x - width / 2, top, width, height, colors)
        first = top + height / 2 - LINE * (len(lines) - 1) / 2
        self.lines(x, first, lines, width - 24, LINE)
        return top + height

    def rounded(self, left: float, top: float, width: float, height: float, colors: tuple, zorder: int = 1) -> None:
        """Draw an empty box; below those of a higher `zorder`."""
        shape = "round,pad=0,rounding_size=14"
        style = {"fc": colors[0], "ec": colors[1], "lw": 1.6, "zorder": zorder}
        self.axes.add_patch(FancyBboxPatch((left, top), width, height, shape, **style))

    def column(self, x: float, top: float, width: float, boxes: Sequence[tuple]) -> float:
        """Draw boxes `(lines, colors)` downwards, with arrows between them."""
        for index, (lines, colors) in enumerate(boxes):
            if index:
                self.arrow((x, top), (x, top + GAP))
                top += GAP
            top = self.box(x, top, width, lines, colors)
        return top

    def pair(self, top: float, lines: tuple[Box, Box]) -> float:
        """Draw a box of the vertical stack, one of the horizontal stack, and arrows to and between them."""
        height = max(map(box_height, lines))
        for x, text, colors in zip((LEFT, RIGHT), lines, (VERTICAL, HORIZONTAL), strict=True):
            self.box(x, top, STACK, text, colors, height)
        middle = top + height / 2
        self.arrow((LEFT + STACK / 2, middle), (RIGHT - STACK / 2, middle))
        return top + height

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw an arrow."""
        options = {"arrowstyle": "-|>,head_width=0.35,head_length=0.55", "color": INK, "lw": 1.6}
        self.axes.annotate("", end, start, arrowprops={**options, "shrinkA": 0, "shrinkB": 0})

    def cells(self, left: float, top: float, cell: float, fills: Sequence[Sequence[str]]) -> None:
        """Draw a table of coloured cells."""
        for row, colors in enumerate(fills):
            for column, color in enumerate(colors):
                corner = (left + column * cell, top + row * cell)
                style = {"fc": color, "ec": "#606060", "lw": 0.8}
                self.axes.add_patch(Rectangle(corner, cell, cell, **style))


def plot_architecture(config: VQVAEConfig, path: str | Path, prior_config: PixelCNNConfig | None = None) -> None:
    """Draw the blocks of a configuration with their sizes: VQ-VAE, grid of codes and any prior."""
    with page(path, WIDTH) as figure:
        canvas = Canvas(figure)
        bottom = _draw_autoencoder(canvas, config, MARGIN)
        bottom = _draw_quantizer(canvas, config, bottom)
        bottom = _draw_grid(canvas, config, bottom)
        if prior_config is not None:
            canvas.arrow((260, bottom), (260, bottom + GAP))
            bottom = _draw_prior(canvas, prior_config, bottom + GAP)
        canvas.end(bottom + MARGIN)


def box_height(lines: Box) -> int:
    """Return the dots that a box with these lines of text needs."""
    return 22 + LINE * len(lines)


def size_text(*numbers: int) -> str:
    """Write sides as 7 x 7 x 64, with the sign for times."""
    return " × ".join(str(number) for number in numbers)  # noqa: RUF001


def count_text(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is one."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def autoencoder_boxes(config: VQVAEConfig) -> list[tuple[Box, Box]]:
    """Return the text of each encoder box and of the decoder box beside it, image first."""
    height, width = (side * config.downsampling_factor for side in config.grid_size)
    image = size_text(height, width, config.num_channels)
    blocks = count_text(config.num_residual_layers, "residual block")
    then = [f"then {blocks}"] if config.num_residual_layers else []
    after = [f"after {blocks}"] if config.num_residual_layers else []
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


def _draw_autoencoder(canvas: Canvas, config: VQVAEConfig, top: float) -> float:
    """Draw the encoder downwards on the left and the decoder upwards on the right."""
    left, right, width = 324, WIDTH - 324, 596
    for x, name in ((left, "Encoder"), (right, "Decoder")):
        canvas.text(x, top + 16, name, width, weight="bold", size=14)
    top += 56
    for index, (encoder, decoder) in enumerate(autoencoder_boxes(config)):
        height = max(box_height(encoder), box_height(decoder))
        canvas.box(left, top, width, encoder, ENCODER if index else PLAIN, height)
        canvas.box(right, top, width, decoder, DECODER if index else PLAIN, height)
        top += height + GAP
        canvas.arrow((left, top - GAP), (left, top))
        canvas.arrow((right, top), (right, top - GAP))
    return top


def _draw_quantizer(canvas: Canvas, config: VQVAEConfig, top: float) -> float:
    number, dimension = config.num_embeddings, config.embedding_dim
    canvas.rounded(26, top, WIDTH - 52, 252, QUANTIZER)
    canvas.text(64, top + 48, "Vector quantizer", 690, weight="bold", size=14, ha="left")
    lines = [
        f"replaces each of the {size_text(*config.grid_size)} latents",
        f"by the nearest of K = {number:,} codebook",
        f"vectors of D = {dimension:,} numbers",
    ]
    for index, line in enumerate(lines, start=1):
        canvas.text(64, top + 48 + 52 * index, line, 690, ha="left")
    # A few rows of the codebook, one of them the chosen one.
    fills = [["white"] * min(dimension, 8) for _ in range(min(number, 5))]
    fills[-2] = [ORANGE] * len(fills[-2])
    canvas.cells(812, top + 66, 32, fills)
    canvas.text(812 + 16 * len(fills[0]), top + 36, f"D = {dimension:,}", 260)
    beside = 812 + 32 * len(fills[0]) + 16
    canvas.text(beside, top + 66 + 16 * len(fills), f"K = {number:,}", 150, ha="left")
    return top + 252


def _draw_grid(canvas: Canvas, config: VQVAEConfig, top: float) -> float:
    rows, columns = (min(side, 24) for side in config.grid_size)
    codes = math.prod(config.grid_size)
    bits = codes * math.log2(config.num_embeddings)
    pixels = codes * config.downsampling_factor**2 * config.num_channels
    canvas.arrow((260, top), (260, top + GAP))
    cell = min(216 / rows, 400 / columns)
    upper = top + GAP + 10
    canvas.cells(260 - cell * columns / 2, upper, cell, [["#fdf0d2"] * columns] * rows)
    lines = [
        f"{size_text(*config.grid_size)} grid of codes",
        f"{count_text(codes, 'code')}, {bits:,.0f} bits per image",
        f"(its 8-bit pixels: {8 * pixels:,} bits)",
    ]
    canvas.lines(500, top + GAP + 66, lines, 740, ha="left")
    return upper + 216 + 10


def _draw_prior(canvas: Canvas, config: PixelCNNConfig, top: float) -> float:
    """Draw the panel of the prior, with the picture of its first kernel beside the last boxes."""
    gated = config.architecture == "gated"
    title = f"{'Gated ' * gated}PixelCNN prior: which code comes next?"
    canvas.text(64, top + 48, title, 1150, weight="bold", size=14, ha="left")
    below = top + 100
    if gated:
        below = _draw_stacks(canvas, config, below)
    boxes = [(lines, PRIOR) for lines in prior_boxes(config)]
    if not gated:
        boxes[0] = (boxes[0][0], PLAIN)
    ends = [canvas.column(COLUMN, below, 672, boxes), _draw_mask(canvas, config, below + 32)]
    height = max(ends) + 30 - top
    canvas.rounded(26, top, WIDTH - 52, height, PANEL, zorder=-1)
    return top + height


def prior_boxes(config: PixelCNNConfig) -> list[Box]:
    """Return the text of the boxes in one column, down to the logits; gated: those after the layers."""
    grid, one = config.grid_size, size_text(1, 1)
    logits = [f"{one} convolution", f"{config.num_embeddings:,} logits for each cell"]
    if config.architecture == "gated":
        wide = size_text(*grid, 2 * config.hidden_size)
        skip = ["skip connections", f"gates of all layers, {one} convolution", wide]
        return [skip, [f"{one} convolution", wide], logits]
    hidden, kernel = size_text(*grid, config.hidden_size), config.kernel_size
    boxes = [["codes, one-hot", size_text(*grid, config.num_embeddings)]]
    classes = [f"+ {_classes(config)}"] if config.num_classes else []
    boxes.append([f"{size_text(kernel, kernel)} convolution, mask A", *classes, hidden])
    if config.num_residual_blocks:
        inner = f"{one}, {size_text(3, 3)} mask B, {one}"
        boxes.append([count_text(config.num_residual_blocks, "residual block"), inner, hidden])
    if config.num_pixelcnn_layers:
        layers = count_text(config.num_pixelcnn_layers, "layer")
        boxes.append([f"{layers} of {one} convolution", hidden])
    return [*boxes, logits]


def stack_boxes(config: PixelCNNConfig) -> tuple[tuple[Box, Box], tuple[Box, Box]]:
    """Return the text of the vertical and the horizontal box of the first kernels and of a layer."""
    hidden, one = size_text(*config.grid_size, config.hidden_size), size_text(1, 1)
    side, radius = config.kernel_size, config.kernel_size // 2
    inner, inner_rows = config.gated_kernel_size, config.gated_kernel_size // 2 + 1
    link = f"+ {one} of the vertical stack"
    first = (
        ["rows above", f"{size_text(radius, side)} convolution", hidden],
        ["left in its row", f"{size_text(1, radius)} convolution", link, hidden],
    )
    down = f"{size_text(inner_rows, inner)} convolution"
    across = f"{size_text(1, inner_rows)} convolution"
    layer = (
        ["vertical stack", down, "gate", "added to its input"],
        ["horizontal stack", across, link, "gate, skip connection", f"{one}, added to its input"],
    )
    return first, layer


def _classes(config: PixelCNNConfig) -> str:
    return f"embedding of {count_text(config.num_classes, 'class')}, or none"


def _draw_stacks(canvas: Canvas, config: PixelCNNConfig, top: float) -> float:
    """Draw the codes, the first kernels, and the plate around the two stacks of a gated layer."""
    codes = ["codes", f"{size_text(*config.grid_size)}, each one of {config.num_embeddings:,}"]
    first, layer = stack_boxes(config)
    top = canvas.box(WIDTH / 2, top, RIGHT - LEFT + STACK, codes, PLAIN)
    for x in (LEFT, RIGHT):
        canvas.arrow((x, top), (x, top + GAP))
    top = canvas.pair(top + GAP, first)
    plate, inside = top + GAP, top + GAP + 72
    for x in (LEFT, RIGHT):
        canvas.arrow((x, top), (x, inside))
    title = count_text(config.num_gated_layers, "gated layer")
    canvas.text(WIDTH / 2, plate + 36, title, 400, weight="bold")
    below = canvas.pair(inside, layer) + 40
    notes = ["gate: tanh of one half × sigmoid of the other"]  # noqa: RUF001
    if config.num_classes:
        notes.append(f"bias before each gate: {_classes(config)}")
    for note in notes:
        canvas.text(WIDTH / 2, below, note, RIGHT - LEFT + STACK)
        below += 48
    canvas.rounded(44, plate, WIDTH - 88, below - 12 - plate, PLATE, zorder=0)
    canvas.arrow((COLUMN, below - 12), (COLUMN, below - 12 + GAP))
    return below - 12 + GAP


def _draw_mask(canvas: Canvas, config: PixelCNNConfig, top: float) -> float:
    """Draw which codes the first kernel sees, and a legend."""
    kernel, gated = config.kernel_size, config.architecture == "gated"
    radius = kernel // 2
    fills = [[BLUE] * kernel for _ in range(radius)]
    row = [GREEN if gated else BLUE] * radius + [ORANGE] + ["white"] * radius
    fills += [row, *(["white"] * kernel for _ in range(radius))]
    name = f"{'First kernels' if gated else 'Mask A'}, {size_text(kernel, kernel)}"
    canvas.text(820 + MASK / 2, top, name, 400, weight="bold")
    canvas.cells(820, top + 38, MASK / kernel, fills)
    legend = [(BLUE, "codes it may see")]
    if gated:
        legend = [(BLUE, "vertical stack sees"), (GREEN, "horizontal stack sees")]
    y = top + 38 + MASK + 24
    for color, meaning in [*legend, (ORANGE, "code to predict"), ("white", "hidden from it")]:
        canvas.cells(820, y, 34, [[color]])
        canvas.text(872, y + 17, meaning, 350, ha="left")
        y += 52
    return y
