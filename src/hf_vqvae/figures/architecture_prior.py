"""The part of the figure of the network that shows the prior: a plain or a gated PixelCNN."""

from ..models import PixelCNNConfig
from .canvas import GAP, PLAIN, Canvas, blocks_text, box_height, size_text
from .page import BLUE, GREEN, ORANGE, WIDTH

PRIOR = ("#f6e6ef", "#a2507f")  # fill and edge
VERTICAL, HORIZONTAL = ("#dcedf8", BLUE), ("#d5efe6", GREEN)
PANEL = "#fcf6f9"
HEAD, FOOT = 100, 4  # above and, besides a gap, below the boxes
LEFT, RIGHT, STACK = 334, 946, 540  # middles and width of the boxes of the two stacks
MASK = 364  # side of the first kernel's picture


def draw_prior(canvas: Canvas, config: PixelCNNConfig, top: int) -> None:
    """The prior's panel, `prior_height(config)` dots high."""
    height, gated = prior_height(config), config.architecture == "gated"
    canvas.box(WIDTH / 2, top, WIDTH - 52, height, [], (PANEL, PRIOR[1]))
    title = f"{'Gated ' * gated}PixelCNN prior: which code comes next?"
    canvas.text(64, top + 48, title, 1150, weight="bold", size=14, ha="left")
    below = top + HEAD
    if gated:
        below = _draw_stacks(canvas, config, below)
    boxes = prior_boxes(config)
    for index, lines in enumerate(boxes):
        box = box_height(lines)
        canvas.box(400, below, 672, box, lines, PLAIN if index == 0 and not gated else PRIOR)
        below += box + GAP
        if index < len(boxes) - 1:
            canvas.arrow((400, below - GAP), (400, below))
    _draw_mask(canvas, config, top + height - _single_height(config) + HEAD - 68)


def prior_height(config: PixelCNNConfig) -> int:
    """Dots that the prior's panel takes."""
    if config.architecture == "plain":
        return _single_height(config)
    first, layer = stack_boxes(config)
    plate = box_height(*layer) + _plate_rest(config)
    boxes = 3 * GAP + box_height(_codes_lines(config)) + box_height(*first) + plate
    return boxes + _single_height(config)


def _single_height(config: PixelCNNConfig) -> int:
    """The boxes that stand one below the other, or the mask beside them where that is higher."""
    boxes = sum(box_height(lines) + GAP for lines in prior_boxes(config))
    return HEAD + max(boxes + FOOT, MASK + 114 + 52 * len(_legend(config)))


def prior_boxes(config: PixelCNNConfig) -> list[list[str]]:
    """Lines of text of the boxes in one column, down to the logits; gated: those behind the layers."""
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
        boxes.append([blocks_text(config.num_residual_blocks, "")[0].strip(), inner, hidden])
    if config.num_pixelcnn_layers:
        plural = "s" if config.num_pixelcnn_layers > 1 else ""
        boxes.append([f"{config.num_pixelcnn_layers} layer{plural} of {one} convolution", hidden])
    return [*boxes, logits]


def stack_boxes(config: PixelCNNConfig) -> tuple[tuple[list[str], ...], tuple[list[str], ...]]:
    """Gated: lines of the vertical and of the horizontal box, of the first kernels and of a layer."""
    hidden, one = size_text(*config.grid_size, config.hidden_size), size_text(1, 1)
    side, reach = config.kernel_size, config.kernel_size // 2
    inner, inner_rows = config.gated_kernel_size, config.gated_kernel_size // 2 + 1
    link = f"+ {one} of the vertical stack"
    first = (
        ["rows above", f"{size_text(reach, side)} convolution", hidden],
        ["left in its row", f"{size_text(1, reach)} convolution", link, hidden],
    )
    down = f"{size_text(inner_rows, inner)} convolution"
    across = f"{size_text(1, inner_rows)} convolution"
    layer = (
        ["vertical stack", down, "gate", "added to its input"],
        ["horizontal stack", across, link, "gate, skip connection", f"{one}, added to its input"],
    )
    return first, layer


def _codes_lines(config: PixelCNNConfig) -> list[str]:
    return ["codes", f"{size_text(*config.grid_size)}, each one of {config.num_embeddings:,}"]


def _classes(config: PixelCNNConfig) -> str:
    plural = "es" if config.num_classes > 1 else ""
    return f"embedding of {config.num_classes:,} class{plural}, or none"


def _plate_lines(config: PixelCNNConfig) -> list[str]:
    """What stands below the two stacks of a layer."""
    gate = "gate: tanh of one half × sigmoid of the other"  # noqa: RUF001
    return [gate] + ([f"bias before each gate: {_classes(config)}"] if config.num_classes else [])


def _plate_rest(config: PixelCNNConfig) -> int:
    """Dots of the plate around the layers besides the boxes in it."""
    return 72 + 16 + 48 * len(_plate_lines(config)) + 12


def _draw_stacks(canvas: Canvas, config: PixelCNNConfig, top: int) -> int:
    """Codes, first kernels and the plate of layers; returns where what reads them begins."""
    codes, (first, layer) = _codes_lines(config), stack_boxes(config)
    canvas.box(WIDTH / 2, top, RIGHT - LEFT + STACK, box_height(codes), codes, PLAIN)
    top += box_height(codes) + GAP
    for x, lines, colors in zip((LEFT, RIGHT), first, (VERTICAL, HORIZONTAL), strict=True):
        canvas.arrow((x, top - GAP), (x, top))
        canvas.box(x, top, STACK, box_height(*first), lines, colors)
    _across(canvas, top + box_height(*first) / 2)
    top += box_height(*first) + GAP
    plate = box_height(*layer) + _plate_rest(config)
    canvas.box(WIDTH / 2, top, WIDTH - 88, plate, [], ("#ffffff", PRIOR[1]))
    plural = "s" if config.num_gated_layers > 1 else ""
    title = f"{config.num_gated_layers} gated layer{plural}"
    canvas.text(WIDTH / 2, top + 36, title, 400, weight="bold")
    inside = top + 72
    for x, lines, colors in zip((LEFT, RIGHT), layer, (VERTICAL, HORIZONTAL), strict=True):
        canvas.arrow((x, top - GAP), (x, inside))
        canvas.box(x, inside, STACK, box_height(*layer), lines, colors)
    _across(canvas, inside + box_height(*layer) / 2)
    under = inside + box_height(*layer) + 16
    for index, line in enumerate(_plate_lines(config)):
        canvas.text(WIDTH / 2, under + 24 + 48 * index, line, RIGHT - LEFT + STACK)
    bottom = top + plate
    canvas.arrow((400, bottom), (400, bottom + GAP))
    return bottom + GAP


def _across(canvas: Canvas, y: float) -> None:
    """From the vertical to the horizontal stack."""
    canvas.arrow((LEFT + STACK / 2, y), (RIGHT - STACK / 2, y))


def _legend(config: PixelCNNConfig) -> list[tuple[str, str]]:
    sees = [(BLUE, "codes it may see")]
    if config.architecture == "gated":
        sees = [(BLUE, "vertical stack sees"), (GREEN, "horizontal stack sees")]
    return [*sees, (ORANGE, "code to predict"), ("white", "hidden from it")]


def _draw_mask(canvas: Canvas, config: PixelCNNConfig, top: int) -> None:
    """Which codes the first kernel sees, beside the boxes."""
    kernel, gated = config.kernel_size, config.architecture == "gated"
    middle = kernel // 2
    fills = [[BLUE] * kernel for _ in range(middle)]
    own = [GREEN if gated else BLUE] * middle + [ORANGE] + ["white"] * middle
    fills += [own, *(["white"] * kernel for _ in range(middle))]
    name = "First kernels" if gated else "Mask A"
    canvas.text(
        820 + MASK / 2, top + 100, f"{name}, {size_text(kernel, kernel)}", 400, weight="bold"
    )
    canvas.cells(820, top + 138, MASK / kernel, fills)
    for index, (color, meaning) in enumerate(_legend(config)):
        y = top + 138 + MASK + 24 + 52 * index
        canvas.cells(820, y, 34, [[color]])
        canvas.text(872, y + 17, meaning, 350, ha="left")
