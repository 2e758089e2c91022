"""Figures of a run and of its models: plain functions from arrays, configs and a path to a PNG.

Every figure is 1280 dots wide on opaque white (legible on a phone and on a dark page), in the
colour-blind-safe colours of Okabe and Ito. Nothing here touches pyplot or the caller's backend.
Images are uint8 arrays (N, H, W, C); where C is neither 1 nor 3, the first three channels are shown
(of two, the first).

Shapes: N images, H x W pixels, C channels, h x w codes, K codes in the codebook, D numbers a code.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .models import PixelCNNConfig, VQVAEConfig

WIDTH, DPI = 1280, 200  # of every figure, in dots and dots an inch: 6.4 inches
MARGIN = 24  # dots around pictures
CODE_COLORS = "viridis"
INK, PALE = "#1a1a1a", "#d0d0d0"
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
_STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    **{f"{name}color": INK for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")},
}


@contextmanager
def _page(path: str | Path, height: int, layout: str | None = None) -> Iterator[Figure]:
    """A blank figure of `height` dots, written to `path` when the block ends."""
    # From matplotlib's defaults: a dark theme in the caller's rcParams would give dark on dark.
    with style.context(["default", _STYLE]):
        # Half a dot more: matplotlib cuts the size in dots down to whole numbers.
        size = ((WIDTH + 0.5) / DPI, (height + 0.5) / DPI)
        figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        if layout == "constrained":
            figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
        yield figure
        figure.savefig(path, format="png", dpi=DPI, facecolor="white")


def _displayable(image: np.ndarray) -> np.ndarray:
    """(H, W, C) of any C to what can be shown: (H, W, 3)."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)


def _check_images(images: np.ndarray, name: str = "images") -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"`{name}` must be uint8 of shape (N, H, W, C), none of them 0, got {images.dtype} "
            f"{images.shape}."
        )
    return images


def _shown_size(height: int, width: int, room: int) -> tuple[int, int]:
    """Size in dots of a picture in `room` dots of width: whole dots a pixel, all pixels alike."""
    scale = room // width or room / width
    return max(1, round(height * scale)), max(1, round(width * scale))


def _place(figure: Figure, left: float, top: float, height: int, width: int) -> Axes:
    """Axes without ticks at whole dots, counted from the upper left corner."""
    full_width, full_height = figure.bbox.width, figure.bbox.height
    bottom = int(full_height) - round(top) - height
    box = (round(left) / full_width, bottom / full_height, width / full_width, height / full_height)
    axes = figure.add_axes(box, xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=PALE, linewidth=0.8)
    return axes


def _show(axes: Axes, picture: np.ndarray, **colors) -> None:
    # Only a picture with more pixels than dots is smoothed: nearest would drop some of its pixels.
    enough_dots = axes.bbox.width >= picture.shape[1] - 0.5
    axes.imshow(
        picture, interpolation="nearest" if enough_dots else "antialiased", aspect="auto", **colors
    )


def _write(figure: Figure, x: float, y: float, text: str, **options) -> None:
    """Text at dots counted from the upper left corner."""
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, **options)


def _columns(number: int, width: int, at_most: int) -> int:
    """How many images of this width stand in a row: many, but so that whole dots fill it."""
    at_most = min(number, at_most, max(4, (WIDTH - 2 * MARGIN) // (width + 8)))
    choices = range(at_most, min(at_most, 4) - 1, -1)
    filled = {
        columns: _shown_size(1, width, _pitch(columns) - 8)[1] * columns for columns in choices
    }
    good = (columns for columns in choices if filled[columns] > 0.75 * WIDTH)
    return next(good, max(choices, key=filled.get))


def _pitch(columns: int) -> int:
    """From one picture in a row to the next."""
    return (WIDTH - 2 * MARGIN) // max(columns, 4)


def image_grid(images: np.ndarray, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """One picture of many, row by row, on white: for a tracker or a figure.

    Args:
        images: uint8 (N, H, W, C), N at least 1.
        columns: Images in a row; by default as many as make the picture about square.
        padding: White pixels around each image.

    Returns:
        uint8 (rows * (H + padding) + padding, columns * (W + padding) + padding, C).

    Raises:
        ValueError: if `images` is no such array or `columns` is below 1.
    """
    images = _check_images(images)
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    rows = math.ceil(number / columns)
    step_y, step_x = height + padding, width + padding
    grid = np.full((rows * step_y + padding, columns * step_x + padding, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * step_y + padding, index % columns * step_x + padding
        grid[top : top + height, left : left + width] = image
    return grid


def color_codes(codes: np.ndarray, num_embeddings: int, cell: int = 1) -> np.ndarray:
    """Codes (N, h, w) as pictures, uint8 (N, h * cell, w * cell, 3): one colour a code.

    The colours are those of `plot_codes`. With `cell` the VQ-VAE's downsampling factor the pictures
    are as large as the images they stand for.
    """
    levels = np.asarray(codes) / max(num_embeddings - 1, 1)
    colors = matplotlib.colormaps[CODE_COLORS](levels, bytes=True)[..., :3]
    return colors.repeat(cell, axis=1).repeat(cell, axis=2)


def plot_reconstructions(
    images: np.ndarray, reconstructions: np.ndarray, path: str | Path, num_columns: int = 10
) -> None:
    """Images above what the VQ-VAE makes of them, at most `num_columns` side by side.

    Args:
        images: uint8 (N, H, W, C).
        reconstructions: uint8 (N, H, W, C), in the same order.
    """
    images = _check_images(images)
    reconstructions = _check_images(reconstructions, "reconstructions")
    columns = _columns(len(images), images.shape[2], num_columns)
    room = _pitch(columns)
    height, width = _shown_size(*images.shape[1:3], room - 8)
    label, row = 56, height + 20
    with _page(path, 2 * (label + row) + MARGIN) as figure:
        for index, (name, pictures) in enumerate(
            (("Input", images), ("Reconstruction", reconstructions))
        ):
            top = index * (label + row) + label
            _write(figure, MARGIN, top - 12, name, weight="bold", va="bottom")
            for column in range(columns):
                axes = _place(figure, MARGIN + column * room, top, height, width)
                _show(axes, _displayable(pictures[column]))


def _draw_codes(axes: Axes, codes: np.ndarray, num_embeddings: int) -> None:
    """A grid of codes (h, w) as a heat map, with the codes' numbers where cells have room."""
    _show(axes, codes, cmap=CODE_COLORS, vmin=0, vmax=num_embeddings - 1)
    characters = len(str(num_embeddings - 1))
    points = axes.bbox.width / codes.shape[1] / (0.78 * max(characters, 2)) * 72 / DPI
    if points < 6:
        return
    for (row, column), code in np.ndenumerate(codes):
        # The upper part of viridis is light.
        color = INK if code > 0.6 * (num_embeddings - 1) else "white"
        font = {"size": min(points, 12), "color": color, "ha": "center", "va": "center"}
        axes.text(column, row, str(code), **font)


def plot_codes(
    images: np.ndarray,
    codes: np.ndarray,
    reconstructions: np.ndarray,
    num_embeddings: int,
    path: str | Path,
    num_rows: int = 3,
) -> None:
    """Each row an image, the codes it becomes and the reconstruction from these codes alone.

    Args:
        images: uint8 (N, H, W, C).
        codes: Integers (N, h, w) in [0, num_embeddings).
        reconstructions: uint8 (N, H, W, C).
    """
    images = _check_images(images)
    reconstructions = _check_images(reconstructions, "reconstructions")
    codes = np.asarray(codes)
    rows = min(num_rows, len(images))
    highest = int(720 * images.shape[2] / images.shape[1])
    height, width = _shown_size(*images.shape[1:3], min(344, highest))
    middle_size = _shown_size(*codes.shape[1:], min(508, highest))
    pitch, head, foot = max(middle_size[0], height) + 28, 64, 108
    centers = [MARGIN + 344 / 2, WIDTH / 2, WIDTH - MARGIN - 344 / 2]
    with _page(path, head + rows * pitch + foot) as figure:
        for center, name in zip(centers, ("Image", "Codes", "Reconstruction"), strict=True):
            _write(figure, center, head - 14, name, weight="bold", ha="center", va="bottom")
        for row in range(rows):
            sizes = [(height, width), middle_size, (height, width)]
            left, middle, right = (
                _place(
                    figure, x - size[1] / 2, head + (row + 0.5) * pitch - 14 - size[0] / 2, *size
                )
                for x, size in zip(centers, sizes, strict=True)
            )
            _show(left, _displayable(images[row]))
            _draw_codes(middle, codes[row], num_embeddings)
            _show(right, _displayable(reconstructions[row]))
        scale = _place(figure, WIDTH / 2 - 254, head + rows * pitch + 4, 28, 508)
        _show(scale, np.arange(num_embeddings)[None], cmap=CODE_COLORS)
        last = num_embeddings - 1
        scale.set_xticks([0, last], ["code 0", f"code {last:,}"])


def plot_samples(samples: np.ndarray, path: str | Path, num_columns: int = 8) -> None:
    """Images drawn from the prior, uint8 (N, H, W, C), in rows of at most `num_columns`."""
    samples = _check_images(samples, "samples")
    columns = _columns(len(samples), samples.shape[2], num_columns)
    room = _pitch(columns)
    height, width = _shown_size(*samples.shape[1:3], room - 8)
    rows = len(samples) // columns  # only full rows
    with _page(path, rows * (height + 8) + 2 * MARGIN) as figure:
        for index in range(rows * columns):
            left = MARGIN + index % columns * room + (room - width) / 2
            axes = _place(figure, left, MARGIN + index // columns * (height + 8), height, width)
            _show(axes, _displayable(samples[index]))


def plot_codebook_usage(counts: Sequence[int], path: str | Path) -> None:
    """How often each code was chosen, most frequent first; codes in use and their perplexity.

    Args:
        counts: K integers, one a code, over a whole split; at least one above 0.

    Raises:
        ValueError: if no code was ever chosen.
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total, number = ordered.sum(), len(ordered)
    if not total > 0:
        raise ValueError(f"`counts` must have at least one code above 0, got {number} zeros.")
    used = int((ordered > 0).sum())
    shares = ordered[:used] / total
    perplexity = math.exp(-(shares * np.log(shares)).sum())
    with _page(path, 800, layout="constrained") as figure:
        axes = figure.add_subplot(
            yscale="log", xlabel="codes, most frequent first", ylabel="times chosen"
        )
        axes.set_title(f"{used:,} of {number:,} codes in use, perplexity {perplexity:.1f}")
        edges = np.arange(number + 1)
        floor = max(0.5, 0.5 * ordered[used - 1])
        axes.stairs(ordered[:used], edges[: used + 1], baseline=floor, fill=True, color=BLUE)
        if used < number:
            label = f"not used: {number - used:,}"
            axes.axvspan(used, number, color=PALE, label=label)
        even = total / number
        label = f"if all were equal: {even:,.{0 if even >= 10 else 1}f}"
        axes.axhline(even, color=VERMILION, linestyle="--", label=label)
        axes.set(xlim=(0, number), ylim=(floor, 2 * ordered[0]))
        axes.grid(False, axis="x")
        _plain_log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", frameon=True, framealpha=1, edgecolor=PALE)


def _plain_log_axis(axes: Axes) -> None:
    """A logarithmic y axis in plain numbers (0.002, 5,000) and with at least two of them."""
    low, high = axes.get_ylim()
    wider = max(1, math.sqrt(4 / (high / low)))  # ticks lie at most a factor of 2.5 apart
    decades = math.log10(high / low)
    axes.set_ylim(low / wider, high * wider)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, epochs: list[dict], key: str, label: str, color: str, line: str) -> None:
    points = [(epoch["epoch"], epoch[key]) for epoch in epochs if epoch.get(key) is not None]
    if points:
        # A marker a point: one epoch alone draws no line.
        marker = "o" if len(points) <= 60 else None
        options = {"color": color, "linestyle": line, "marker": marker, "markersize": 4.5}
        axes.plot(*zip(*points, strict=True), label=label, **options)


def plot_training_curves(history: dict[str, list[dict]], path: str | Path) -> None:
    """Both stages from `history.json`: reconstruction error, codebook use, the prior's loss.

    Args:
        history: `{"vqvae": [{"epoch": 1, "reconstruction_mse": ...}, ...], "prior": [...]}`. A
            stage or a value that is missing is left out.

    Raises:
        ValueError: if no stage has an epoch.
    """
    train, held_out = ("training", BLUE, "-"), ("evaluation", VERMILION, "--")
    panels = {
        "VQ-VAE: reconstruction MSE": (
            "vqvae",
            {"reconstruction_mse": train, "eval_reconstruction_mse": held_out},
        ),
        "VQ-VAE: codebook": (
            "vqvae",
            {
                "codes_used": ("codes in use", GREEN, "-"),
                "perplexity": ("perplexity", PURPLE, "--"),
            },
        ),
        "Prior: nats per code": ("prior", {"loss": train, "eval_loss": held_out}),
    }
    panels = {title: panel for title, panel in panels.items() if history.get(panel[0])}
    if not panels:
        raise ValueError(f"`history` has no epoch of any stage, only {sorted(history)}.")
    with _page(path, 560 * len(panels), layout="constrained") as figure:
        for axes, (title, (stage, curves)) in zip(
            np.atleast_1d(figure.subplots(len(panels))), panels.items(), strict=True
        ):
            for key, (label, color, line) in curves.items():
                _curve(axes, history[stage], key, label, color, line)
            axes.set(title=title, xlabel="epoch")
            if title.endswith("MSE"):
                axes.set_yscale("log")
                _plain_log_axis(axes)
            elif title.endswith("codebook"):
                axes.set_ylim(bottom=0)
            first, last = (history[stage][index]["epoch"] for index in (0, -1))
            margin = max(0.5, 0.03 * (last - first))
            axes.set_xlim(first - margin, last + margin)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.legend(loc="best")


# The figure of the architecture: boxes in dots, drawn from the top down.
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
    with _page(path, total) as figure:
        canvas = _Canvas(figure)
        bottom = _draw_autoencoder(canvas, config, MARGIN)
        bottom = _draw_quantizer(canvas, config, bottom)
        bottom = _draw_grid(canvas, config, bottom)
        if prior_config is not None:
            _draw_prior(canvas, prior_config, bottom)
