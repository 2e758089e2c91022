"""Tables of pictures: reconstructions, codes, samples, completions and nearest neighbours.

Shapes: N images, H x W pixels, C channels, h x w codes, R rows and Q columns of a table. Images are
uint8; where C is neither 1 nor 3, the first three channels are shown (of two, the first).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

from .page import DPI, INK, MARGIN, WIDTH, fit_text, page, write_text

CODE_COLORS = "viridis"
SPACE, GAP = 4, 16  # dots between pictures; between large ones and groups of columns
NAMES = 280  # the most dots that the names of rows take
LINE = 38  # dots for a line of text
GALLERY = 512  # the most dots of a picture alone, if it is enlarged
FRAME = 208  # grey of the line around a picture


class Table:
    """Layout of pictures in rows and columns: whole dots per pixel, so that pixels stay sharp.

    Args:
        pictures: uint8 (R, Q, H, W, C).
        groups: headings, each with the number of columns below it.
        row_names: R names at the left, of one line or more.
        captions: R rows of Q captions below the pictures.

    Attributes:
        canvas: uint8 (height, WIDTH, 3), the page without its text.
        texts: `(x, y, text, room, options)` in dots from the upper left corner; text shrinks to fit into `room`.
        lefts, tops: corners of the pictures, by column and by row.
        size: height and width of every picture in dots.
    """

    def __init__(
        self,
        pictures: np.ndarray,
        *,
        groups: Sequence[tuple[str, int]] = (),
        row_names: Sequence[str] = (),
        captions: Sequence[Sequence[str]] = (),
    ):
        rows, columns = pictures.shape[:2]
        # A name is about as wide as its characters; what is wider shrinks.
        names = min(NAMES, 26 * max(map(len, "\n".join(row_names).split("\n"))))
        beside, gaps = names + GAP if names else 0, GAP * max(0, len(groups) - 1)
        room = (WIDTH - 2 * MARGIN - beside - gaps) // max(columns, 3) - SPACE
        self.size = height, width = shown_size(*pictures.shape[2:4], room)
        start = (WIDTH - beside - columns * (width + SPACE) + SPACE - gaps) // 2 + beside
        head = MARGIN + (LINE + 12 if groups else 0)
        row = max(height, LINE * max((len(name.splitlines()) for name in row_names), default=0))
        pitch = row + (SPACE if columns > 4 else GAP) + (LINE if captions else 0)
        self.tops = [head + index * pitch + (row - height) // 2 for index in range(rows)]
        self.canvas = np.full((head + rows * pitch + MARGIN, WIDTH, 3), 255, np.uint8)
        self.lefts: list[int] = []
        self.texts: list[tuple[float, float, str, float, dict]] = []
        for name, count in groups or [("", columns)]:
            self.lefts += range(start, start + count * (width + SPACE), width + SPACE)
            middle, room = start + (count * (width + SPACE) - SPACE) / 2, count * (width + SPACE)
            self.texts.append((middle, head - 12, name, room, {"weight": "bold", "size": 10, "va": "bottom"}))
            start += room + GAP
        for index, top in enumerate(self.tops):
            if row_names:
                right = self.lefts[0] - GAP
                self.texts.append((right, top + height / 2, row_names[index], names, {"ha": "right"}))
            for column, left in enumerate(self.lefts):
                picture = Image.fromarray(displayable(pictures[index, column]))
                # Only a picture with more pixels than dots is smoothed: nearest would drop some of them.
                way = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.BOX
                self.canvas[top - 1 : top + height + 1, left - 1 : left + width + 1] = FRAME
                self.canvas[top : top + height, left : left + width] = picture.resize((width, height), way)
                if captions:
                    below = (left + width / 2, top + height + 5)
                    self.texts.append((*below, captions[index][column], width + SPACE, {"size": 10, "va": "top"}))

    def draw(self, figure: Figure) -> None:
        """Draw the table on the lowest part of a page."""
        figure.figimage(self.canvas, 0, 0)
        above = int(figure.bbox.height) - len(self.canvas)
        for x, y, text, room, options in self.texts:
            options = {"ha": "center", "va": "center", "size": 12, **options}
            fit_text(write_text(figure, x, above + y, text, **options), room)

    def save(self, path: str | Path) -> None:
        """Write the table alone to `path`, a PNG."""
        with page(path, len(self.canvas)) as figure:
            self.draw(figure)


def displayable(images: np.ndarray) -> np.ndarray:
    """Turn (..., C) of any C into what can be shown: (..., 3)."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def shown_size(height: int, width: int, room: int) -> tuple[int, int]:
    """Return the height and width in dots of a picture at most `room` dots wide.

    Where there is room, every pixel takes the same whole number of dots. A picture is at most twice as high as `room`.
    """
    room = max(1, min(room, 2 * room * width // height))
    scale = room // width or room / width
    return max(1, round(height * scale)), max(1, round(width * scale))


def _rows_of(images: np.ndarray, most: int) -> np.ndarray:
    """Put images (N, H, W, C) into full rows of at most `most`: (R, Q, H, W, C)."""
    columns = min(most, len(images))
    rows = len(images) // columns
    return images[: rows * columns].reshape(rows, columns, *images.shape[1:])


def plot_reconstructions(images: np.ndarray, reconstructions: np.ndarray, path: str | Path) -> None:
    """Draw rows of images (N, H, W, C), each above a row of their reconstructions."""
    both = (_rows_of(pictures, 5) for pictures in (images, reconstructions))
    pictures = [row for pair in zip(*both, strict=True) for row in pair]
    names = ["Input", "Reconstruction"] * (len(pictures) // 2)
    Table(np.stack(pictures), row_names=names).save(path)


def plot_codes(
    images: np.ndarray, codes: np.ndarray, reconstructions: np.ndarray, num_embeddings: int, path: str | Path
) -> None:
    """Draw three rows of an image, its codes (h, w), H a multiple of h, and the reconstruction from them."""
    codes, last = codes[:3], num_embeddings - 1
    colors = color_codes(codes, num_embeddings, images.shape[1] // codes.shape[1])
    groups = [("Image", 1), (f"Codes, 0 to {last:,}", 1), ("Reconstruction", 1)]
    pictures = [displayable(images[:3]), colors, displayable(reconstructions[:3])]
    table = Table(np.stack(pictures, axis=1), groups=groups)
    cell = table.size[1] / codes.shape[2]
    points = min(12, cell / (0.7 * max(len(str(last)), 2)) * 72 / DPI)
    if points >= 6:  # else the cells have no room for numbers
        for (index, row, column), code in np.ndenumerate(codes):
            color = INK if code > 0.6 * last else "white"  # the upper part of viridis is light
            place = table.lefts[1] + (column + 0.5) * cell, table.tops[index] + (row + 0.5) * cell
            options = {"size": points, "color": color, "va": "center_baseline"}
            table.texts.append((*place, str(code), cell, options))
    table.save(path)


def plot_samples(samples: np.ndarray, path: str | Path) -> None:
    """Draw samples (N, H, W, C) in rows of at most eight."""
    Table(_rows_of(samples, 8)).save(path)


def plot_samples_by_class(samples: np.ndarray, names: Sequence[str], path: str | Path) -> None:
    """Draw samples (R, Q, H, W, C) of one class per row; of rows with the same name the first shows it."""
    firsts = [name if name != before else "" for name, before in zip(names, ["", *names], strict=False)]
    Table(samples, row_names=firsts).save(path)


def plot_completions(
    images: np.ndarray, known: np.ndarray, completions: np.ndarray, reconstructions: np.ndarray, path: str | Path
) -> None:
    """Draw in each row an image, its known part, completions of that part, and the reconstruction.

    `known`, bool (H, W), has the pixels whose codes were kept; `completions` are (N, Q, H, W, C).
    """
    parts = (images[:, None], hide_unknown(images, known)[:, None], completions, reconstructions[:, None])
    groups = [("Image", 1), ("Known", 1), ("Completions", completions.shape[1]), ("Decoded", 1)]
    Table(np.concatenate(parts, axis=1), groups=groups).save(path)


def plot_likelihoods(
    images: np.ndarray, nats: np.ndarray, num_embeddings: int, groups: Sequence[tuple[str, int]], path: str | Path
) -> None:
    """Draw groups of images (N, H, W, C), the maps of the nats of their codes (N, h, w), and the bits of each image."""
    shares = np.minimum(nats / math.log(num_embeddings), 1)  # 1: as improbable as by a uniform guess, or more
    pictures = np.stack([displayable(images), color_codes(shares, 2, images.shape[1] // nats.shape[1])])
    captions = [[""] * len(nats), [f"{bits:,.0f}" for bits in nats.sum((1, 2)) / math.log(2)]]
    Table(pictures, groups=groups, row_names=["Image", "Surprise\nin bits"], captions=captions).save(path)


def plot_neighbours(samples: np.ndarray, neighbours: np.ndarray, distances: np.ndarray, path: str | Path) -> None:
    """Draw samples (N, H, W, C) beside their nearest training images (N, Q, H, W, C), distances (N, Q) below them."""
    pictures = np.concatenate([samples[:, None], neighbours], axis=1)
    captions = [["", *(f"{value:.2f}" for value in row)] for row in distances]
    groups = [("Sample", 1), ("Nearest training images", neighbours.shape[1])]
    if len(samples) % 2 == 0:
        pictures = pictures.reshape(len(samples) // 2, -1, *samples.shape[1:])
        captions = [left + right for left, right in zip(captions[::2], captions[1::2], strict=True)]
        groups *= 2
    Table(pictures, groups=groups, captions=captions).save(path)


def hide_unknown(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Put grey stripes on images (N, H, W, C) where `known`, bool (H, W), is False."""
    height, width = known.shape
    stripe = max(1, min(height, width) // 14)
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // stripe
    stripes = np.where(diagonal % 2, 150, 205).astype(np.uint8)
    return np.where(known[..., None], images, stripes[..., None])


def image_grid(images: np.ndarray, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """Join images (N, H, W, C) into one, row by row with white between them; by default about square."""
    number, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(number)) if columns is None else columns
    rows = math.ceil(number / columns)
    step_y, step_x = height + padding, width + padding
    grid = np.full((rows * step_y + padding, columns * step_x + padding, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * step_y + padding, index % columns * step_x + padding
        grid[top : top + height, left : left + width] = image
    return grid


def color_codes(codes: np.ndarray, num_embeddings: int, cell: int = 1) -> np.ndarray:
    """Turn codes (N, h, w) into pictures, uint8 (N, h * cell, w * cell, 3): one colour per code.

    With `cell` the VQ-VAE's downsampling factor, a picture is as large as the image it stands for.
    """
    levels = codes / (num_embeddings - 1)
    colors = matplotlib.colormaps[CODE_COLORS](levels, bytes=True)[..., :3]
    return colors.repeat(cell, axis=1).repeat(cell, axis=2)


def save_strip(images: np.ndarray, path: str | Path) -> None:
    """Write images (N, H, W, C) side by side, without a scale or frame, as the page in the browser reads them."""
    Image.fromarray(np.concatenate([displayable(image) for image in images], axis=1)).save(path)


def save_gallery(images: np.ndarray, folder: str | Path) -> None:
    """Write images (N, H, W, C) into `folder` as 0.png, 1.png, ..., enlarged so that a viewer does not blur them."""
    Path(folder).mkdir(exist_ok=True)
    height, width = shown_size(*images.shape[1:3], max(GALLERY, images.shape[2]))
    for number, image in enumerate(images):
        picture = Image.fromarray(displayable(image)).resize((width, height), Image.Resampling.NEAREST)
        picture.save(Path(folder, f"{number}.png"))


def printable(name: str, otherwise: str) -> str:
    """Return a name on one line, or `otherwise` if it is empty or the font lacks a character."""
    name, font = " ".join(name.split()), get_font(findfont(FontProperties(family="DejaVu Sans")))
    return name if name and all(font.get_char_index(ord(character)) for character in name) else otherwise
