"""What each kind of image file becomes, and images in memory."""

import contextlib
import io
import os
import struct
import tracemalloc
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from hf_vqvae.data.decoding import DecodedImages, decode_rows
from hf_vqvae.data.rows import RowDecoder
from hf_vqvae.data.sources import DataError
from hf_vqvae.hub.download import image_processor_for
from hf_vqvae.models.configuration_vqvae import VQVAEConfig
from hf_vqvae.models.image_processing_vqvae import read_image

GREY = VQVAEConfig(image_size=8)
COLOUR = VQVAEConfig(image_size=8, num_channels=3)


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)


def file_of(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return {"bytes": stream.getvalue(), "path": None}


def decoder_of(config=GREY, label_names=None, label_column=None, mode=None, **settings):
    processor = image_processor_for(config, **settings)
    return RowDecoder("train", "image", label_column, label_names, processor, mode=mode)


def decode(cell, config=GREY, **options):
    return decoder_of(config, **options).decode({"image": cell}, 0)[0]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_8_bit_pixels_of_the_right_size_stay_as_they_are(noise, channels, mode):
    pixels = noise[..., 0] if channels == 1 else noise[..., :channels]
    config = VQVAEConfig(image_size=8, num_channels=channels)
    decoded = decode(file_of(Image.fromarray(pixels, mode)), config)
    assert decoded.dtype == np.uint8 and decoded.shape == (channels, 8, 8)
    assert (decoded == noise[..., :channels].transpose(2, 0, 1)).all()


def grey_palette(noise):
    image = Image.fromarray(noise[..., 0]).convert("P")
    image.putpalette([value for grey in range(256) for value in (255 - grey,) * 3])
    return image


RED, OPAQUE = (200, 0, 0), (200, 0, 0, 255)


@pytest.mark.parametrize(
    "image, channels, pixel, kind",
    [
        (Image.new("L", (8, 8), 9), 3, (9, 9, 9), "L"),
        (Image.new("L", (8, 8), 9), 2, (9, 255), "L"),
        (Image.new("L", (8, 8), 9), 4, (9, 9, 9, 255), "L"),
        (Image.new("1", (8, 8), 1), 1, (255,), "1"),
        (Image.new("1", (8, 8), 1), 3, (255, 255, 255), "1"),
        (Image.new("LA", (8, 8), (9, 0)), 1, (0,), "LA"),
        (Image.new("LA", (8, 8), (9, 255)), 3, (9, 9, 9), "LA"),
        (Image.new("LA", (8, 8), (9, 7)), 4, (9, 9, 9, 7), "LA"),
        (Image.new("RGB", (8, 8), RED), 1, (60,), "RGB"),  # ITU-R 601: 0.299 of red
        (Image.new("RGB", (8, 8), RED), 2, (60, 255), "RGB"),
        (Image.new("RGB", (8, 8), RED), 4, OPAQUE, "RGB"),
        (Image.new("RGBA", (8, 8), OPAQUE), 3, RED, "RGBA"),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), 3, (0, 0, 0), "RGBA"),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 51)), 3, (40, 0, 0), "RGBA"),
        (Image.new("RGBA", (8, 8), OPAQUE), 1, (60,), "RGBA"),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 7)), 2, (60, 7), "RGBA"),
        (Image.new("RGB", (8, 8), RED).quantize(2), 3, RED, "P"),
        (Image.new("RGB", (8, 8), RED).quantize(2), 1, (60,), "P"),
        (Image.new("RGB", (8, 8), RED).quantize(2), 4, OPAQUE, "P"),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), 3, (255, 0, 0), "CMYK"),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else repr(value),
)
def test_other_channels_are_converted_and_named(image, channels, pixel, kind):
    config = VQVAEConfig(image_size=8, num_channels=channels)
    cell = file_of(image, "TIFF" if kind == "CMYK" else "PNG")
    pixels, _, converted_from = decoder_of(config).decode({"image": cell}, 0)
    assert tuple(pixels[:, 3, 3]) == pixel and converted_from == kind


def test_a_palette_of_greys_is_grey_or_colour_as_the_model_wants(noise):
    cell = file_of(grey_palette(noise))
    for config in (GREY, COLOUR):
        assert (decode(cell, config) == 255 - noise[..., 0]).all()


@pytest.mark.parametrize("mode, transparency", [("RGB", RED), ("P", 0), ("L", 9)])
@pytest.mark.parametrize("channels, seen", [(1, 255), (3, 255), (4, 0)])
def test_a_transparent_colour_is_transparent(mode, transparency, channels, seen):
    colour = {"RGB": RED, "P": 0, "L": 9}[mode]
    cell = file_of(Image.new(mode, (8, 8), colour), transparency=transparency)
    config = VQVAEConfig(image_size=8, num_channels=channels)
    assert (decode(cell, config, background="white")[-1] == seen).all()


def test_the_number_of_converted_images_is_printed(capsys):
    images = [Image.new(mode, (8, 8)) for mode in ("RGB", "L", "RGBA", "L", "P", "RGB")]
    decode_rows(rows_of(map(file_of, images)), 6, decoder_of(COLOUR))
    line = "Of 6 images of split 'train', 4 are converted to RGB (--num_channels 3): 2 L, 1 RGBA, 1 P."
    assert line in capsys.readouterr().err
    decode_rows(rows_of([file_of(images[0])]), 1, decoder_of(COLOUR))
    assert "converted" not in capsys.readouterr().err


@pytest.mark.parametrize("declared, pixel", [("L", 60), (None, 60), ("1", 0), ("RGB", 60), ("I", 60), ("F", 60)])
def test_the_mode_that_a_dataset_declares_is_that_of_its_images(declared, pixel):
    """As in `datasets`, which has no background: where RGB is declared, alpha is dropped."""
    cell = file_of(Image.new("RGB", (8, 8), RED))
    assert decode(cell, mode=declared)[0, 3, 3] == pixel
    clear = file_of(Image.new("RGBA", (8, 8), (200, 0, 0, 0)))
    assert decode(clear, COLOUR, mode="RGB")[:, 3, 3].tolist() == [200, 0, 0]


def test_no_file_has_the_channels_of_some_models():
    config = VQVAEConfig(image_size=8, num_channels=5)
    with pytest.raises(DataError, match="model's images have 5 channels, which no image file has"):
        decode(file_of(Image.new("L", (8, 8))), config)


@pytest.mark.parametrize(
    "resize_mode, expected",
    [
        # 0 to 3 are columns of an image twice as wide as high, 9 is the background.
        ("squash", [[0, 0, 1, 1, 2, 2, 3, 3]] * 8),
        ("crop", [[1, 1, 1, 1, 2, 2, 2, 2]] * 8),
        ("pad", [[9] * 8] * 2 + [[0, 0, 1, 1, 2, 2, 3, 3]] * 4 + [[9] * 8] * 2),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_images_of_another_aspect_ratio_are_squashed_cropped_or_padded(resize_mode, expected, turned):
    values, expected = np.repeat([[0, 1, 2, 3]], 2, 0), np.array(expected)
    values, expected = (values.T, expected.T) if turned else (values, expected)
    image = Image.fromarray((values * 20).astype(np.uint8)).resize((4, 8) if turned else (8, 4), 0)
    pixels = decode(file_of(image), resize_mode=resize_mode, resample=0, background=f"#{'b4' * 3}")
    assert (pixels[0] == expected * 20).all()


ROWS = [[0, 50], [100, 255]]


@pytest.mark.parametrize(
    "cell",
    [
        file_of(Image.fromarray(np.array(ROWS, np.uint8)))["bytes"],
        {"bytes": file_of(Image.fromarray(np.array(ROWS, np.uint8)))["bytes"]},
        ROWS,
        [ROWS],
        [[[value] for value in row] for row in ROWS],
        [[[value] * 3 for value in row] for row in ROWS],
        np.array(ROWS, np.float32),
    ],
    ids=["bytes", "struct", "rows", "planes", "pixels", "colours", "floats"],
)
def test_cells_of_every_kind_are_images(cell):
    config = VQVAEConfig(image_size=2, hidden_sizes=[4])
    assert decode(cell, config).tolist() == [ROWS]


@pytest.mark.parametrize(
    "cell, message",
    [
        ([[0, 256]], r"values are int64 from 0 to 256, and not whole numbers from 0 to 255"),
        ([[0.0, 0.5]], "float64 from 0 to 0.5"),
        ([[0.0, float("nan")]], "float64 from nan to nan"),
        ([0, 1], r"its shape is \(2,\), and not \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        ([[0, 1], [2]], "inhomogeneous"),
        ([[0, None]], "NoneType"),
    ],
)
def test_cells_that_are_no_8_bit_pixels_are_named(cell, message):
    with pytest.raises(DataError, match=f"image in row 0 of split 'train' cannot .*{message}"):
        decode(cell)


@pytest.mark.parametrize("channels, mode", [(2, "LA"), (4, "RGBA")])
def test_alpha_is_resized_with_the_colours(channels, mode):
    config = VQVAEConfig(image_size=8, num_channels=channels)
    image = Image.new(mode, (16, 16), (200,) * channels)
    assert np.abs(decode(file_of(image), config).astype(int) - 200).max() <= 1


def test_decoded_images_give_batches_and_single_images():
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2)
    decoded = DecodedImages(images, torch.arange(6))
    batch = decoded.__getitems__([4, 1])
    assert len(decoded) == 6 and torch.equal(batch["labels"], torch.tensor([4, 1]))
    torch.testing.assert_close(batch["pixel_values"], images[[4, 1]] / 255 - 0.5)
    assert torch.equal(decoded[4]["pixel_values"], batch["pixel_values"][0])
    assert decoded[4]["labels"] == 4
    assert set(DecodedImages(images)[0]) == {"pixel_values"}


@pytest.mark.parametrize("format, options", [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_an_animated_image_is_refused_with_its_frames(format, options):
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 100, 200)]
    cell = file_of(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(DataError, match="has 3 frames: save one, or each"):
        decode(cell, GREY)


def test_the_first_of_the_pictures_that_a_camera_puts_into_a_jpeg_is_taken(noise):
    pictures = [Image.new("L", (8, 8), 60), Image.new("L", (8, 8), 200)]
    cell = file_of(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert abs(int(decode(cell, GREY).mean()) - 60) <= 2


def png_of(width, height, depth=8, colour=0, content=b"\0" * 100):
    """The head of a PNG of any size, and hardly any pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return {"bytes": b"\x89PNG\r\n\x1a\n" + parts, "path": None}


@pytest.mark.parametrize(
    "cell",
    [
        png_of(100_000, 100_000),
        png_of(0, 8),
        png_of(8, 8, depth=99),
        png_of(8, 8, colour=5),
        {"bytes": b"", "path": None},
        {"bytes": b"GIF89a" + b"\0" * 20, "path": "zero.gif"},
        {"bytes": b"BM" + b"\0" * 60, "path": None},
        {"bytes": b"P5 0 0 255\n", "path": None},
        {"bytes": b"P5 99999 99999 255\n", "path": None},
        {"bytes": b"RIFF\xff\xff\xff\xffWEBPVP8 ", "path": None},
        {"bytes": b"\xff\xd8\xff\xe0" + b"\0" * 50, "path": None},
        {"bytes": b"II*\0" + b"\xff" * 100, "path": None},
        {"bytes": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "path": None},
        {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) print\n", "path": None},
    ],
    ids=lambda cell: repr(cell["bytes"][:12]),
)
def test_bombs_and_images_without_a_pixel_are_named_and_take_no_memory(cell):
    tracemalloc.start()
    with pytest.raises(DataError, match=r"row 0 of split 'train'.* cannot be decoded"):
        decode_rows(rows_of([cell]), 1, decoder_of())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(
    "format, mode", [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "F"), ("TIFF", "I"), ("PPM", "I;16")]
)
def test_images_of_more_than_8_bits_are_refused_in_every_format(format, mode):
    with pytest.raises(DataError, match="has more than 8 bits a channel"):
        decode(file_of(Image.new(mode, (8, 8)), format))


def deep_png(colour):
    """An 8x8 PNG of 16 bits a channel, which PIL cannot write in colour."""
    values = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    return png_of(8, 8, 16, colour, content=(b"\0" + b"\1\2" * values * 8) * 8)


def deep_tiff():
    """8x8 pixels of 16-bit RGB, whose values are in the place behind the tags."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 4, 1, 8), (279, 4, 1, 384)]
    parts = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + parts + struct.pack("<I", 0)
    return {"bytes": head + struct.pack("<HHH", 16, 16, 16) + b"\1\2" * 192, "path": None}


def deep_ppm(kind, largest):
    values = {2: b" 257" * 64, 3: b" 257" * 192, 5: b"\1\2" * 64, 6: b"\1\2" * 192}[kind]
    return {"bytes": f"P{kind} 8 8 {largest}\n".encode() + values, "path": None}


def deep_sgi():
    head = struct.pack(">HBBHHHHII", 474, 0, 2, 3, 8, 8, 3, 0, 65535)
    return {"bytes": head.ljust(512, b"\0") + b"\1\2" * 192, "path": None}


DEEP = {f"png_{colour}": deep_png(colour) for colour in (0, 2, 4, 6)}
DEEP |= {f"p{kind}_{top}": deep_ppm(kind, top) for kind in (2, 3, 5, 6) for top in (300, 65535)}
DEEP |= {"tiff": deep_tiff(), "sgi": deep_sgi()}


@pytest.mark.parametrize("cell", DEEP.values(), ids=DEEP)
def test_channels_of_16_bits_are_refused_in_colour_too(cell):
    Image.open(io.BytesIO(cell["bytes"])).load()  # PIL makes 8 bits of it without a word
    with pytest.raises(DataError, match="has more than 8 bits a channel"):
        decode(cell)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_text_of_8_bit_numbers_is_an_image(kind):
    values = {"bytes": f"P{kind} 8 8 {'' if kind == 1 else 255}\n".encode() + b" 1" * 192}
    config = VQVAEConfig(image_size=8, num_channels=3 if kind == 3 else 1)
    assert set(decode(values, config).flat) == {0 if kind == 1 else 1}


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    """A picture that PIL has Ghostscript draw, and the mark that this leaves."""
    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmkdir {mark}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # to be looked for anew
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n%%EOF\n"
    with contextlib.suppress(Exception):
        Image.open(io.BytesIO(content)).load()
    assert mark.is_dir(), "this drawing would have a program started"
    mark.rmdir()
    return content, mark


@pytest.mark.parametrize("name", [None, "a.png", "a.eps"])
def test_no_program_is_started_to_decode_an_image(drawing, tmp_path, name):
    content, mark = drawing
    cell = {"bytes": content, "path": None}
    if name is not None:
        (tmp_path / name).write_bytes(content)
        cell = {"bytes": None, "path": str(tmp_path / name)}
    processor = image_processor_for(GREY)
    decoder = RowDecoder("train", "image", None, None, processor, files=(str(tmp_path),))
    with pytest.raises(DataError, match=r"row 0 .*cannot be decoded \(EPS is a drawing.*PNG\)"):
        decoder.decode({"image": cell}, 0)
    if name is not None:
        with pytest.raises(ValueError, match=f"cannot read the image .*{name}: EPS is a drawing"):
            read_image(tmp_path / name)
    assert not mark.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    avif = file_of(Image.new("L", (8, 8)), "AVIF")["bytes"]
    for content, message in {
        deep_png(6)["bytes"]: "it has more than 8 bits a channel",
        b"DDS " + struct.pack("<I", 124) + b"\1" * 120: "",
        avif[: len(avif) // 2]: "",
        b"no image": "no image format of PIL",
    }.items():
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read the image .*a.png: {message}"):
            read_image(tmp_path / "a.png")


def rows_of(cells, labels=None):
    features = datasets.Features(image=datasets.Image(decode=False))
    columns = {"image": cells}
    if labels is not None:
        features["label"] = datasets.Value("int64")
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns, features=features)


def test_rows_of_several_batches_are_decoded_in_their_order():
    values = np.arange(2500) % 256
    rows = rows_of([file_of(Image.new("L", (2, 2), int(value))) for value in values])
    config = VQVAEConfig(image_size=2, hidden_sizes=[4])
    for source, count in ((rows, 2500), (rows.to_iterable_dataset(), None)):
        decoded = decode_rows(source, count, decoder_of(config))
        assert (decoded.images[:, 0, 1, 1].numpy() == values).all() and decoded.labels is None


@pytest.mark.parametrize("stream", [False, True], ids=["table", "stream"])
def test_the_first_image_that_cannot_be_decoded_is_named_with_its_split_and_row(stream):
    good = file_of(Image.new("L", (8, 8)))
    cut = {"bytes": good["bytes"][:44], "path": "digit_70.png"}
    rows = rows_of([good] * 70 + [cut] + [good] * 60 + [{"bytes": b"no image", "path": None}])
    rows = rows.to_iterable_dataset() if stream else rows
    message = r"row 70 of split 'train', file digit_70.png cannot be decoded \(.*: mend or remove it"
    with pytest.raises(DataError, match=message):
        decode_rows(rows, 132, decoder_of())


@pytest.mark.parametrize(
    "cell, message",
    [
        ({"bytes": b"no image", "path": None}, r"cannot be decoded \(no image format of PIL\)"),
        (None, "no image in row 1 of split 'train': remove the row"),
    ],
    ids=["text", "none"],
)
def test_a_row_that_is_no_image_of_the_model_is_named(cell, message):
    with pytest.raises(DataError, match=message):
        decode_rows(rows_of([file_of(Image.new("L", (8, 8))), cell]), 2, decoder_of())


def test_hidden_and_empty_labels_are_minus_one():
    rows = rows_of([file_of(Image.new("L", (8, 8)))] * 3, labels=[1, -1, None])
    decoded = decode_rows(rows, 3, decoder_of(label_column="label", label_names=["a", "b"]))
    assert decoded.labels.tolist() == [1, -1, -1] and decoded.labels.dtype == torch.int64


@pytest.mark.parametrize("label", [2**16, 1_700_000_000, 2**63, 2**64 - 1, 1.5, float("inf"), True, "1"])
def test_a_label_that_can_be_no_number_of_a_class_is_named(label):
    decoder = decoder_of(label_column="label")
    row = {"image": file_of(Image.new("L", (8, 8))), "label": label}
    message = f"label in row 7 .*is {label!r}: column 'label' .*, 0 to 65535, .*or `none`"
    with pytest.raises(DataError, match=message):
        decoder.decode(row, 7)
    assert decoder.decode(row | {"label": 2**16 - 1}, 7)[1] == 2**16 - 1


@pytest.mark.parametrize("label, names, rule", [(2, ["a", "b"], "0 to 1"), (-2, None, "0 to 65535")])
def test_a_label_outside_the_classes_is_named(label, names, rule):
    rows = rows_of([file_of(Image.new("L", (8, 8)))] * 2, labels=[0, label])
    with pytest.raises(DataError, match=f"label in row 1 .*is {label}: .*'label' .*, {rule}, or"):
        decode_rows(rows, 2, decoder_of(label_column="label", label_names=names))


def test_a_stream_without_rows_is_refused():
    rows = rows_of([file_of(Image.new("L", (8, 8)))]).to_iterable_dataset().take(0)
    with pytest.raises(DataError, match="Split 'train' is empty"):
        decode_rows(rows, None, decoder_of())
