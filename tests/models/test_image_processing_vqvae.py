"""Images to `pixel_values` and back."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_vqvae import VQVAEConfig, VQVAEImageProcessorPil
from hf_vqvae.data.rows import RowDecoder, scale_pixels
from hf_vqvae.hub.download import image_processor_for


@pytest.fixture
def processor():
    return VQVAEImageProcessorPil(size={"height": 16, "width": 24})


def every_value(channels):
    """(16, 24, C) uint8 with each of the 256 values."""
    return (np.arange(16 * 24 * channels) % 256).astype(np.uint8).reshape(16, 24, channels)


def forms(image):
    """The same image (H, W, C) in every form that the processor takes."""
    channels = image.shape[-1]
    tensor = torch.tensor(image).permute(2, 0, 1)
    yield "channels last", image
    yield "channels first", np.moveaxis(image, -1, 0)
    yield "tensor", tensor
    yield "float tensor on [0, 255]", tensor.float()
    yield "bfloat16 tensor", tensor.bfloat16()
    yield "PIL", Image.fromarray(image[..., 0] if channels == 1 else image)
    if channels == 1:
        yield "bare array", image[..., 0]
        yield "bare tensor", tensor[0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eight_bit_images_of_every_form_come_back_exactly(processor, channels):
    image = every_value(channels)
    expected = torch.tensor(image).permute(2, 0, 1).double() / 255 - 0.5
    for name, form in forms(image):
        for images in (form, [form], [form, form], [[form], [form]]):
            pixels = processor(images, return_tensors="pt").pixel_values
            count = len(images) if isinstance(images, list) else 1
            assert pixels.shape == (count, channels, 16, 24), name
            assert pixels.dtype == torch.float32, name
            torch.testing.assert_close(pixels[-1].double(), expected, atol=1e-7, rtol=0)
            back = processor.postprocess(pixels)
            assert len(back) == count
            np.testing.assert_array_equal(np.asarray(back[0]).reshape(image.shape), image, err_msg=name)


def test_a_batch_array_or_tensor_is_a_list_of_images(processor):
    batch = np.stack([every_value(1), 255 - every_value(1)])
    for images in (batch, torch.tensor(batch).permute(0, 3, 1, 2)):
        pixels = processor(images, return_tensors="pt").pixel_values
        assert pixels.shape == (2, 1, 16, 24)
        torch.testing.assert_close(pixels[0], -pixels[1], atol=1e-6, rtol=0)


def test_postprocess_gives_pil_numpy_and_tensors(processor):
    pixels = processor(every_value(3), return_tensors="pt").pixel_values
    (image,) = processor.postprocess(pixels)
    assert (image.mode, image.size) == ("RGB", (24, 16))
    array = processor.postprocess(pixels, output_type="np")
    assert array.shape == (1, 16, 24, 3)
    np.testing.assert_array_equal(np.rint(array[0] * 255), every_value(3))
    tensor = processor.postprocess(pixels.requires_grad_(), output_type="pt")
    assert tensor.shape == (1, 3, 16, 24) and not tensor.requires_grad
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), array)


def test_postprocess_clips_and_rounds_instead_of_cutting_off(processor):
    values = torch.tensor([-0.7, -0.5, 0.1 / 255 - 0.5, 0.6 / 255 - 0.5, 0.5, 0.9])
    (image,) = processor.postprocess(values.view(1, 1, 1, 6))
    assert np.asarray(image).tolist() == [[0, 0, 0, 1, 255, 255]]
    (image,) = processor.postprocess(torch.full((1, 1, 2, 2), 0.25).bfloat16())
    assert np.asarray(image).tolist() == [[191, 191], [191, 191]]


def test_images_of_other_sizes_are_resized(processor):
    sizes = [(24, 16), (50, 40), (7, 9)]
    images = [Image.new("RGB", size, (0, 128, 255)) for size in sizes]
    pixels = processor(images, return_tensors="pt").pixel_values
    assert pixels.shape == (3, 3, 16, 24)
    colours = torch.tensor([0, 128, 255]) / 255 - 0.5
    torch.testing.assert_close(pixels.mean(dim=(2, 3)), colours.expand(3, 3), atol=1e-6, rtol=0)
    expected = Image.fromarray(every_value(3)).resize((12, 8), Image.Resampling.BILINEAR)
    pixels = processor(every_value(3), size={"height": 8, "width": 12}, return_tensors="pt")
    np.testing.assert_array_equal(np.asarray(processor.postprocess(pixels.pixel_values)[0]), np.asarray(expected))


@pytest.mark.parametrize("size", [(16, 24), (30, 20)])
@pytest.mark.parametrize("channels", [2, 5])
def test_any_number_of_channels_goes_in_as_an_array(processor, channels, size):
    image = np.full((channels, *size), 51, np.uint8)
    pixels = processor(image, input_data_format="channels_first", return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, channels, 16, 24), -0.3))
    with pytest.raises(ValueError, match=f"'np' or 'pt' for images of {channels} channels"):
        processor.postprocess(pixels)
    assert processor.postprocess(pixels, output_type="np").shape == (1, 16, 24, channels)


@pytest.mark.parametrize("size", [(16, 24), (32, 48)])
def test_floats_on_0_1_are_refused_unless_said_so(processor, size):
    image = np.full(size, 0.25, np.float32)
    with pytest.raises(ValueError, match=r"up to 0.25 is on \[0, 1\] already.*do_rescale=False"):
        processor(image)
    pixels = processor(image, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, 1, 16, 24), -0.25))


def test_a_black_float_image_means_the_same_on_every_scale(processor):
    assert processor(np.zeros((16, 24)), return_tensors="pt").pixel_values.eq(-0.5).all()


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.full((4, 4), 256, np.uint16), {}, r"in \[0, 255\], got 256 to 256: pass 8-bit images"),
        (np.full((4, 4), -1, np.int16), {}, r"in \[0, 255\], got -1 to -1"),
        (np.full((4, 4), np.nan), {}, r"in \[0, 255\], got nan to nan"),
        (np.full((4, 4), 2, np.uint8), {"do_rescale": False}, r"in \[0, 1\], got 2 to 2: pass"),
        (np.zeros((2, 8, 8), np.uint8), {}, "Unable to infer channel dimension format"),
        ([], {}, r"`images` must be at least one image, got \[\]"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 8))], {}, r"got \[1, 3\]: convert them first"),
        (np.zeros((8, 8, 3)), {"num_channels": 1}, r"must have 1 channels, got \[3\]: convert"),
    ],
)
def test_what_would_be_scaled_wrongly_is_refused(processor, image, options, message):
    with pytest.raises(ValueError, match=message):
        processor(image, **options)


def test_sixteen_bit_images_go_in_with_their_factor(processor):
    image = np.full((16, 24), 65535, np.uint16)
    pixels = processor(image, rescale_factor=1 / 65535, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.full((1, 1, 16, 24), 0.5))


def turned():
    """A grey image that is to be shown turned clockwise."""
    image, exif = Image.fromarray(every_value(1)[..., 0]), Image.Exif()
    exif[0x0112] = 6
    return image, {"exif": exif}


IMAGES = {
    "turned": turned(),
    "colour": (Image.fromarray(every_value(3)), {}),
    "alpha": (Image.fromarray(every_value(4)), {}),
    "palette": (Image.fromarray(every_value(3)).quantize(8), {"transparency": 2}),
    "bits": (Image.fromarray(every_value(1)[..., 0] > 99), {}),
    "wide": (Image.fromarray(every_value(3)).resize((50, 20)), {}),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("resize_mode", ["squash", "crop", "pad"])
def test_a_file_is_the_same_in_training_and_at_use_in_every_form(tmp_path, name, channels, resize_mode):
    (image, options), path = IMAGES[name], tmp_path / "a.png"
    image.save(path, **options)
    config = VQVAEConfig(image_size=(16, 24), num_channels=channels)
    processor = image_processor_for(config, resize_mode=resize_mode, background="#0080ff")
    decoder = RowDecoder("train", "image", None, None, processor)
    row = {"image": {"bytes": path.read_bytes(), "path": None}}
    expected = scale_pixels(torch.from_numpy(decoder.decode(row, 0)[0]))[None]
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image())
    for form in (str(path), path, path.read_bytes(), Image.open(path), rows[0]["image"], [path]):
        assert torch.equal(loaded(form, return_tensors="pt").pixel_values, expected), form


def test_the_orientation_of_a_file_is_obeyed(tmp_path):
    image, options = turned()
    image.save(tmp_path / "a.png", **options)
    upright = np.rot90(np.asarray(image), -1).copy()
    processor = VQVAEImageProcessorPil(size={"height": 24, "width": 16})
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert (processor(form)["pixel_values"][0] == processor(upright)["pixel_values"][0]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_arrays_become_grey_or_colour_as_the_model_wants(channels):
    processor = VQVAEImageProcessorPil(size={"height": 16, "width": 24}, num_channels=channels)
    image = Image.fromarray(every_value(3))
    expected = processor(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, channels, 16, 24)
    for name, form in forms(every_value(3)):
        if "float" not in name:
            assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected), name


@pytest.mark.parametrize("open_file", [str, Path, Path.read_bytes, Image.open])
@pytest.mark.parametrize("name", ["frames.gif", "deep.png", "drawing.eps"])
def test_a_file_that_training_refuses_is_refused_at_use(processor, tmp_path, name, open_file):
    path, grey = tmp_path / name, Image.new("L", (8, 8))
    if name == "frames.gif":
        grey.save(path, save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    elif name == "deep.png":
        Image.fromarray(np.full((8, 8), 2**16 - 1, np.uint16)).save(path)
    else:
        grey.save(path)
    with pytest.raises(ValueError, match=r"has 2 frames|more than 8 bits|\[0, 255\]|is a drawing"):
        processor(open_file(path))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"resize_mode": "stretch"}, "`resize_mode` must be squash, crop or pad, got 'stretch'"),
        ({"background": "no colour"}, "`background` must be a colour such as .*, got 'no colour'"),
        ({"background": 3}, "`background` must be a colour .*, got 3"),
    ],
)
def test_unknown_names_among_the_settings_are_refused(processor, wrong, message):
    with pytest.raises(ValueError, match=message):
        VQVAEImageProcessorPil(**wrong)


def test_only_8_bit_images_are_cropped_and_padded(processor):
    with pytest.raises(ValueError, match=r"`resize_mode` must be 'squash' for other .* got 'crop'"):
        processor(np.zeros((8, 8), np.float32), resize_mode="crop")


@pytest.mark.parametrize(
    ("images", "output_type", "message"),
    [
        (torch.zeros(1, 1, 4, 4), "jpeg", "must be 'pil', 'np' or 'pt', got 'jpeg'"),
        (torch.zeros(4, 4), "pil", r"shape \(batch, channels, height, width\), got \(4, 4\)"),
    ],
)
def test_postprocess_refuses_what_it_does_not_know(processor, images, output_type, message):
    with pytest.raises(ValueError, match=message):
        processor.postprocess(images, output_type=output_type)


@pytest.mark.parametrize(
    "wrong", [{"rescale_factor": 0}, {"image_std": -1}, {"image_mean": float("nan")}, {"image_std": [1, 0]}]
)
def test_scales_that_cannot_be_undone_are_refused(processor, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be a finite number"):
        VQVAEImageProcessorPil(**wrong)
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be a finite number"):
        processor(every_value(1), **wrong)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.1307], [0.3081]), ([0.49, 0.48, 0.44], (0.2, 0.24, 0.26)), ([0.5] * 3, 2.0), (0.2, [1.0, 2.0, 3.0, 4.0])],
)
def test_mean_and_deviation_may_be_a_number_for_each_channel(mean, std, tmp_path):
    made = VQVAEImageProcessorPil(size={"height": 16, "width": 24}, image_mean=mean, image_std=std)
    made.save_pretrained(tmp_path)
    VQVAEConfig().save_pretrained(tmp_path)
    channels = max(np.size(mean), np.size(std))
    image = every_value(channels)
    expected = ((image / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    for processor in (made, AutoImageProcessor.from_pretrained(tmp_path), type(made).from_dict(made.to_dict())):
        pixels = processor([image, image], return_tensors="pt").pixel_values
        np.testing.assert_allclose(pixels[1], expected, atol=1e-6)
        again = processor.postprocess(pixels)
        np.testing.assert_array_equal(np.asarray(again[1]).reshape(image.shape), image)
        np.testing.assert_allclose(processor.postprocess(pixels, "np")[0], image / 255, atol=1e-6)
    usual = VQVAEImageProcessorPil(size={"height": 16, "width": 24})
    assert torch.equal(usual(image, image_mean=mean, image_std=std, return_tensors="pt").pixel_values[0], pixels[0])


@pytest.mark.parametrize(("channels", "numbers"), [(1, 3), (3, 2), (3, 4), (1, 0)])
@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_as_many_means_as_channels(processor, name, channels, numbers):
    with pytest.raises(ValueError, match=f"must have {channels} elements if it is an iterable, got {numbers}"):
        processor(every_value(channels), **{name: [0.5] * numbers})
    made = VQVAEImageProcessorPil(**{name: [0.5] * numbers})
    with pytest.raises(ValueError, match="`images` must be of the channels of mean and deviation, got"):
        made.postprocess(torch.zeros(2, channels, 4, 4))


def test_the_scripts_take_models_of_one_scale_alone():
    RowDecoder("train", "image", None, None, VQVAEImageProcessorPil(image_mean=[0.5] * 3, image_std=[1, 1, 1]))
    for name, value in {"image_mean": [0.5, 0.4, 0.5], "image_std": 2, "do_rescale": False}.items():
        with pytest.raises(ValueError, match=rf"json: {name}` must be \S+ for the scripts, .*, got .*\.$"):
            RowDecoder("train", "image", None, None, VQVAEImageProcessorPil(**{name: value}))


def test_the_processor_survives_saving_and_is_found_by_auto_classes(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = VQVAEImageProcessorPil.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    VQVAEConfig().save_pretrained(tmp_path)
    auto = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(auto) is VQVAEImageProcessorPil and auto.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(auto(every_value(3))["pixel_values"], processor(every_value(3))["pixel_values"])
