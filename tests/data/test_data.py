"""The splits of a run: columns, samples, streams, statistics, and what stands in run.json."""

import io

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from hf_vqvae.arguments import REPLACED, DataArguments, VQVAEArguments
from hf_vqvae.data.codes import CodesDataset
from hf_vqvae.data.decoding import DecodedImages
from hf_vqvae.data.rows import scale_pixels
from hf_vqvae.data.sources import DataError
from hf_vqvae.data.splits import StreamedImages, load_images, load_split
from hf_vqvae.distributed import available_memory
from hf_vqvae.models.configuration_vqvae import VQVAEConfig
from hf_vqvae.training.stages import start_config

CONFIG = VQVAEConfig(image_size=8)
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pets"
    path.mkdir()
    return path


@pytest.fixture
def arguments(folder, tmp_path):
    """`DataArguments` for the test's folder, with a cache in the test's own place."""

    def make(**settings):
        defaults = {"dataset_name": str(folder), "cache_dir": str(tmp_path / "cache")}
        return DataArguments(**(defaults | settings))

    return make


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def write(folder, split, columns, features=FEATURES):
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_pets(folder, train=6, test=4):
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        images = [Image.fromarray(pixels) for pixels in pixels_of(count, seed)]
        write(folder, split, {"image": images, "label": [row % 2 for row in range(count)]})


def test_a_folder_of_parquet_gives_both_splits_exactly(folder, arguments):
    write_pets(folder)
    splits = load_images(arguments(), CONFIG)
    assert isinstance(splits.train, DecodedImages) and isinstance(splits.eval, DecodedImages)
    assert (splits.train.images[:, 0].numpy() == pixels_of(6)).all()
    assert (splits.eval.images[:, 0].numpy() == pixels_of(4, seed=1)).all()
    assert splits.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(splits.info.pop("fingerprint")) == 64
    assert splits.info == {
        "name": "pets",
        "kind": "folder",
        "config": None,
        "revision": None,
        "license": None,
        "train_split": "train",
        "train_count": 6,
        "eval_split": "test",
        "eval_count": 4,
        "image_column": "image",
        "label_column": "label",
        "label_names": ["cat", "dog"],
    }


def test_the_data_variance_is_that_of_the_training_pixels(folder, arguments):
    write_pets(folder)
    variance = load_images(arguments(), CONFIG).data_variance
    assert variance == pytest.approx((pixels_of(6) / 255).var(), rel=1e-12)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=["without_classes", "with_classes"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_folder_of_images_has_labels_where_it_has_class_folders(folder, arguments, classes, streaming, suffix):
    for split in ("train", "test"):
        for index, name in enumerate(classes or ("",)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for row in range(3):
                image = Image.new("L", (8, 8), 50 * index + 10 * row)
                image.save(folder / split / name / f"{row}.{suffix}")
    splits = load_images(arguments(streaming=streaming), CONFIG)
    values = [0, 10, 20, 50, 60, 70] if classes else [0, 10, 20]
    assert splits.eval.images[:, 0, 4, 4].tolist() == values
    assert len(list(splits.train)) == len(values)
    assert splits.info["label_names"] == (list(classes) or None)
    if classes:
        assert splits.eval.labels.tolist() == [0, 0, 0, 1, 1, 1]
    else:
        assert splits.eval.labels is None and "labels" not in next(iter(splits.train))


def test_the_embedded_digits_are_there_without_files():
    splits = load_images(DataArguments(dataset_name="digits"), VQVAEConfig())
    assert splits.train.images.shape == (1497, 1, 28, 28) and len(splits.eval) == 300
    assert splits.info["label_names"] == list("0123456789")
    assert splits.info["name"] == "digits" and splits.info["revision"] is None
    assert 0.05 < splits.data_variance < 0.12


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "mode, size, image_size, num_channels, line",
    [
        ("L", (8, 8), 8, 1, ""),
        ("1", (12, 16), (16, 12), 1, ""),
        ("RGB", (8, 8), 8, 3, ""),
        ("P", (10, 15), (12, 8), 3, "The images have 15x10 pixels, and the network needs multiples of 4: they are"),
        ("RGBA", (8, 8), 8, 3, ""),
        ("LA", (8, 8), 8, 1, ""),
    ],
)
def test_size_and_channels_are_those_of_the_data_unless_they_are_set(
    folder, arguments, capsys, mode, size, image_size, num_channels, line, streaming
):
    images = [Image.fromarray(pixels).resize(size).convert(mode) for pixels in pixels_of(3)]
    for split in ("train", "test"):
        write(folder, split, {"image": images, "label": [0, 1, 0]})
    settings, config = VQVAEArguments(), VQVAEConfig(**REPLACED)
    splits = load_images(arguments(streaming=streaming), config, settings)
    assert (config.image_size, config.num_channels) == (image_size, num_channels)
    # The flags as they would be given.
    assert start_config(settings).to_dict() == config.to_dict()
    height, width = config.grid_size[0] * 4, config.grid_size[1] * 4
    assert {tuple(row["pixel_values"].shape) for row in splits.train} == {(num_channels, height, width)}
    assert splits.eval.images.shape == (3, num_channels, height, width)
    assert splits.processor.num_channels == num_channels
    assert (splits.processor.size.height, splits.processor.size.width) == (height, width)
    printed = capsys.readouterr().err
    assert line in printed and ("needs multiples" in printed) == bool(line)
    config = VQVAEConfig(image_size=4, num_channels=4)
    load_images(arguments(streaming=streaming), config, VQVAEArguments(image_size=[4]))
    assert (config.image_size, config.num_channels) == (4, num_channels)
    load_images(arguments(streaming=streaming), config, VQVAEArguments(num_channels=4))
    assert (config.image_size, config.num_channels) == (image_size, num_channels)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_several_sizes_need_the_flag(folder, arguments, split, streaming):
    write_pets(folder)
    images = [Image.fromarray(pixels) for pixels in pixels_of(3)]
    images[2] = images[2].resize((8, 12))
    write(folder, split, {"image": images, "label": [0, 1, 0]})
    message = rf"image in row 2 of split '{split}' and the first one have 12x8 and 8x8 pixels: set one `--image_size`"
    with pytest.raises(DataError, match=message):
        load_images(arguments(streaming=streaming), VQVAEConfig(), VQVAEArguments())
    load_images(arguments(streaming=streaming), CONFIG, VQVAEArguments(image_size=[8]))


def test_images_that_are_smaller_than_the_network_needs_are_refused(folder, arguments):
    write_pets(folder)
    config = VQVAEConfig(image_size=16, hidden_sizes=[4] * 4)
    with pytest.raises(
        DataError, match=r"have 8x8 pixels, .* multiples of 16: set `--image_size`, or fewer `--hidden"
    ):
        load_images(arguments(), config, VQVAEArguments())


def test_a_stream_gives_what_is_decoded_row_by_row(folder, arguments):
    write_pets(folder)
    decoded = load_images(arguments(), CONFIG)
    streamed = load_images(arguments(streaming=True), CONFIG)
    assert isinstance(streamed.train, StreamedImages)
    rows = list(streamed.train)
    assert len(rows) == len(decoded.train)
    for row, expected in zip(rows, decoded.train, strict=True):
        assert set(row) == {"pixel_values", "labels"}
        assert torch.equal(row["pixel_values"], expected["pixel_values"])
        assert row["labels"] == expected["labels"]
    assert torch.equal(streamed.eval.images, decoded.eval.images)
    assert torch.equal(streamed.eval.labels, decoded.eval.labels)
    assert streamed.data_variance == decoded.data_variance
    assert streamed.info["fingerprint"] == decoded.info["fingerprint"]


def test_the_variance_of_a_stream_is_measured_on_its_first_10_000_rows(folder, arguments):
    config = VQVAEConfig(image_size=2, hidden_sizes=[4])
    images = {}
    for shade in (0, 255):
        stream = io.BytesIO()
        Image.new("L", (2, 2), shade).save(stream, "PNG")
        images[shade] = {"bytes": stream.getvalue(), "path": None}
    shades = [0, 255] * 5_000 + [255] * 100
    features = datasets.Features(image=datasets.Image())
    write(folder, "train", {"image": [images[shade] for shade in shades]}, features)
    write(folder, "test", {"image": [images[0]]}, features)
    assert load_images(arguments(streaming=True), config).data_variance == 0.25
    assert load_images(arguments(), config).data_variance < 0.25


@pytest.mark.parametrize("streaming", [False, True])
def test_samples_can_be_limited_to_the_first_rows(folder, arguments, streaming):
    write_pets(folder)
    settings = {"max_train_samples": 2, "max_eval_samples": 99, "streaming": streaming}
    splits = load_images(arguments(**settings), CONFIG)
    rows = torch.stack([row["pixel_values"] for row in splits.train])
    assert torch.equal(rows[:, 0], scale_pixels(torch.from_numpy(pixels_of(2))))
    assert (splits.info["train_count"], splits.info["eval_count"]) == (2, 4)


def test_the_count_of_a_stream_is_known_only_if_the_dataset_tells(folder, arguments):
    write_pets(folder)
    assert load_images(arguments(streaming=True), CONFIG).info["train_count"] is None
    digits = DataArguments(dataset_name="digits", streaming=True, max_eval_samples=1)
    assert load_images(digits, VQVAEConfig()).info["train_count"] == 1497


def rows_of(part):
    return [row["pixel_values"].numpy().tobytes() for row in part]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("number", [None, 0, 5])
def test_rows_are_held_out_of_the_training_split_and_of_its_codes(folder, arguments, streaming, number):
    write_pets(folder, train=30)
    splits = load_images(arguments(streaming=streaming, max_train_samples=30), CONFIG).hold_out(number)
    held_out = 2 if number is None else number
    assert (splits.info["train_count"], splits.info["validation_count"]) == (30 - held_out, held_out)
    everything = rows_of(splits.train)
    training, validation = map(rows_of, splits.parts)
    assert len(everything) == 30 and len(validation) == held_out
    assert training == [row for row in everything if row not in validation]
    assert (validation == everything[:held_out]) == (streaming or not held_out)
    # The same of the codes, which are those of all rows in their order, and in the next run.
    codes = CodesDataset([np.arange(30).reshape(30, 1, 1)])
    for rows, part in zip((training, validation), splits.split_train(codes), strict=True):
        numbers = part.__getitems__(list(range(len(part))))["codes"].flatten() if len(part) else []
        assert [everything[number] for number in numbers] == rows
    again = load_images(arguments(streaming=streaming, max_train_samples=30), CONFIG).hold_out(number)
    assert rows_of(again.parts[1]) == validation


def test_at_most_5000_rows_are_held_out_unless_more_are_asked_for(folder, arguments):
    write_pets(folder)
    splits = load_images(arguments(), CONFIG)
    splits.info["train_count"] = 100_000
    assert splits.hold_out().info["train_count"] == 95_000
    assert splits.hold_out(20_000).info["validation_count"] == 20_000


def test_one_split_can_be_loaded_alone(folder, arguments):
    write_pets(folder)
    images, info = load_split(arguments(max_train_samples=3), CONFIG, "train")
    assert (images.images[:, 0].numpy() == pixels_of(3)).all()
    assert info["split"] == "train" and info["count"] == 3 and info["name"] == "pets"
    with pytest.raises(DataError, match=r"`--eval_split validation`.*it has 'train', 'test'"):
        load_split(arguments(eval_split="validation"), CONFIG, "eval")


@pytest.fixture
def write_columns(folder):
    """Writes both splits with three rows of the given columns."""

    def write_both(**kinds):
        samples = {"Image": Image.new("L", (8, 8), 9), "ClassLabel": 1, "Value": 1}
        samples |= {"Array2D": [[1, 2]], "List": [1, 2]}
        columns = {name: [samples[type(kind).__name__]] * 3 for name, kind in kinds.items()}
        for split in ("train", "test"):
            write(folder, split, columns, datasets.Features(kinds))

    return write_both


IMAGE, WHOLE = datasets.Image(), datasets.Value("int32")
CLASSES = datasets.ClassLabel(names=["a", "b", "c"])


@pytest.mark.parametrize(
    "columns, settings, message",
    [
        ({"x": IMAGE}, {"image_column": "picture"}, r"--image_column picture`.*there are 'x'\."),
        ({"x": IMAGE}, {"label_column": "digit"}, r"--label_column digit`.*there are 'x'\."),
        ({"x": IMAGE, "y": IMAGE}, {}, r"'x', 'y' all have images: say .* `--image_column`"),
        (
            {"x": IMAGE, "fine": CLASSES, "coarse": CLASSES},
            {},
            r"'fine', 'coarse' all have labels: say which with `--label_column`",
        ),
        ({"n": WHOLE}, {}, r"No column has images; there are 'n'\. Images are files"),
        ({"x": IMAGE, "n": WHOLE}, {"image_column": "n"}, r"'n' has no images but .*here these are 'x'\."),
        ({"x": IMAGE}, {"label_column": "x"}, r"'x' has no class labels but Image"),
        (
            {"x": IMAGE, "n": datasets.List(datasets.Value("int64"))},
            {"label_column": "n"},
            r"'n' has no class labels but List",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_are_missing_or_in_doubt_are_named(
    write_columns, arguments, columns, settings, message, streaming
):
    write_columns(**columns)
    with pytest.raises(DataError, match=message):
        load_images(arguments(streaming=streaming, **settings), CONFIG)


def test_columns_can_be_named(write_columns, arguments):
    write_columns(x=IMAGE, y=IMAGE, fine=CLASSES, coarse=CLASSES, n=WHOLE)
    settings = {"image_column": "y", "max_train_samples": 2, "max_eval_samples": 2}
    with pytest.raises(DataError, match="are equal, so there is nothing to learn"):
        load_images(arguments(label_column="fine", **settings), CONFIG)
    for label_column, names in (("fine", ["a", "b", "c"]), ("n", None)):
        images, info = load_split(arguments(label_column=label_column, **settings), CONFIG, "eval")
        assert images.labels.tolist() == [1, 1]
        assert (info["image_column"], info["label_column"]) == ("y", label_column)
        assert info["label_names"] == names


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values, kind, names, expected",
    [
        ([2, 0, None], "int16", None, [2, 0, -1]),
        ([2.0, 0.0, float("nan")], "float64", None, [2, 0, -1]),
        ([True, False, None], "bool", ["False", "True"], [1, 0, -1]),
        (["dog", "cat", None], "string", ["cat", "dog"], [1, 0, -1]),
    ],
)
def test_labels_of_any_kind_are_classes(folder, arguments, values, kind, names, expected, streaming):
    """As pandas, CSV and JSON write them: nothing but the name of the column says that they are classes."""
    features = datasets.Features(image=datasets.Image(), target=datasets.Value(kind))
    images = [Image.fromarray(pixels) for pixels in pixels_of(3)]
    write(folder, "train", {"image": images, "target": values}, features)
    write(folder, "test", {"image": images, "target": [values[0]] * 3}, features)
    if streaming and kind == "string":
        with pytest.raises(DataError, match=r"'target' has texts, .*`--streaming`.*none`"):
            load_images(arguments(streaming=True), CONFIG)
        return
    splits = load_images(arguments(streaming=streaming), CONFIG)
    assert [int(row["labels"]) for row in splits.train] == expected
    assert splits.eval.labels.tolist() == [expected[0]] * 3
    assert splits.info["label_names"] == names
    count = f" ({len(names or [0, 1, 2])} classes)" if names or not streaming else ""
    assert str(splits) == (f"Dataset 'pets': images from column 'image', labels from column 'target'{count}.")
    without = load_images(arguments(streaming=streaming, label_column="none"), CONFIG)
    assert without.eval.labels is None and "no labels (`--label_column` names their" in str(without)


def test_labels_that_are_no_classes_of_the_training_split_are_named(folder, arguments):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    images = [Image.fromarray(pixels) for pixels in pixels_of(2)]
    write(folder, "train", {"image": images, "label": ["a", "b"]}, features)
    write(folder, "test", {"image": images, "label": ["a", "c"]}, features)
    with pytest.raises(DataError, match=r"row 1 of split 'test' is 'c', which is not among .*\['a', 'b'\]"):
        load_images(arguments(), CONFIG)


def test_a_model_gives_its_classes_to_a_split_that_lacks_some(folder, arguments):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    images = [Image.fromarray(pixels) for pixels in pixels_of(2)]
    write(folder, "test", {"image": images, "label": ["dog", "cow"]}, features)
    images, info = load_split(arguments(), CONFIG, "eval", ["cat", "cow", "dog"])
    assert images.labels.tolist() == [2, 1] and info["label_names"] == ["cat", "cow", "dog"]


PIXELS = pixels_of(3)


@pytest.mark.parametrize(
    "kind, cells",
    [
        (datasets.Image(mode="L"), [Image.fromarray(p).convert("RGB") for p in PIXELS]),
        (datasets.Value("binary"), [png(p) for p in PIXELS]),
        (
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            [{"bytes": png(p), "path": "a.png"} for p in PIXELS],
        ),
        (datasets.Array2D((8, 8), "uint8"), list(PIXELS)),
        (datasets.Array3D((8, 8, 1), "float32"), list(PIXELS[..., None])),
        (datasets.List(datasets.List(datasets.Value("int64"))), PIXELS.tolist()),
    ],
    ids=["declared", "bytes", "struct", "array", "channels", "lists"],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_every_kind_of_image_are_read(folder, arguments, kind, cells, streaming):
    for split in ("train", "test"):
        columns = {"x": cells, "size": [8, 8, 8]}
        write(folder, split, columns, datasets.Features(x=kind, size=datasets.Value("int64")))
    splits = load_images(arguments(streaming=streaming), CONFIG)
    assert (splits.eval.images[:, 0].numpy() == PIXELS).all()
    rows = torch.stack([row["pixel_values"] for row in splits.train])
    assert torch.equal(rows, scale_pixels(splits.eval.images))


@pytest.mark.parametrize("streaming", [False, True])
def test_how_images_are_fitted_is_said_and_saved(folder, arguments, streaming, capsys, tmp_path):
    """Flags win over what a model was trained with."""
    config = VQVAEConfig(image_size=8, num_channels=3)
    features = datasets.Features(image=datasets.Image())
    clear = Image.new("RGBA", (16, 8), (9, 9, 9, 0))
    for split in ("train", "test"):
        write(folder, split, {"image": [Image.new("RGB", (16, 8)), clear]}, features)
    settings = {"resize_mode": "pad", "background": "white", "streaming": streaming}
    splits = load_images(arguments(**settings), config)
    assert splits.eval.images[0, :, :, 0].unique().tolist() == [0, 255]
    assert splits.eval.images[1].unique().tolist() == [255]
    said = capsys.readouterr().err
    for split in ("train", "test"):
        assert f"Of 2 images of split '{split}', 1 are converted to RGB" in said
    splits.processor.save_pretrained(tmp_path / "model")
    config.name_or_path = str(tmp_path / "model")
    padded, _ = load_split(arguments(), config, "eval")
    assert torch.equal(padded.images, splits.eval.images)
    cropped, _ = load_split(arguments(resize_mode="crop"), config, "eval")
    assert cropped.images[0].unique().tolist() == [0]


@pytest.mark.parametrize("name", ["max_train_samples", "max_eval_samples"])
def test_at_least_one_sample_is_asked_for(arguments, name):
    with pytest.raises(ValueError, match=f"--{name} must be at least 1, got 0"):
        arguments(**{name: 0})


def test_a_missing_evaluation_split_is_found_before_training_images_are_read(folder, arguments):
    features = datasets.Features(image=datasets.Image())
    write(folder, "train", {"image": [{"bytes": b"broken", "path": None}]}, features)
    with pytest.raises(DataError, match=r"`--eval_split test`.*it has 'train'.*'train\[90%:\]'"):
        load_images(arguments(), CONFIG)


def test_images_too_large_for_memory_are_sent_to_streaming(folder, arguments):
    write_pets(folder)
    huge = VQVAEConfig(image_size=2**13, num_channels=2**16)
    with pytest.raises(DataError, match=r"6 images of split 'train' take 24,576\.0.*`--streaming`"):
        load_images(arguments(), huge)
    with pytest.raises(DataError, match=r"split 'test' take .*`--max_eval_samples`"):
        load_images(arguments(streaming=True, max_eval_samples=2), huge)


@pytest.mark.parametrize(
    "line, groups, expected",
    [
        ("0::/job/step", {"job": (900, 200), "job/step": ("max", 100)}, 700 + 30),
        ("0::/job/step", {"": (500, 100), "job": (900, 200)}, 400 + 30),
        ("0::/docker/of-the-host", {"": (500, 100)}, 400 + 30),
        ("4:hugetlb,memory:/pod", {"memory": (2**63 - 4096, 5), "memory/pod": (600, 100)}, 500 + 7),
        ("0::/full", {"full": (500, 900)}, 0),
        ("4:cpu:/pod", {"memory/pod": (600, 100)}, None),
        ("0::/", {}, None),
    ],
)
def test_the_memory_of_a_container_pod_or_job_is_what_counts(tmp_path, line, groups, expected):
    """The least of the groups around the process; files in the page cache can be dropped."""
    (tmp_path / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    for name, (limit, used) in groups.items():
        first = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        names = first if "memory" in name else ("memory.max", "memory.current")
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in zip(names, (limit, used), strict=True):
            (folder / file).write_text(f"{value}\n")
        total = "total_inactive_file 7\n" if "memory" in name else ""
        (folder / "memory.stat").write_text(f"anon 9\nactive_file 0\ninactive_file 30\n{total}")
    found = available_memory(str(tmp_path / "cgroup"), str(tmp_path / "groups"))
    assert found == expected if expected is not None else found > 2**20


@pytest.mark.parametrize("streaming", [False, True])
def test_the_fingerprint_is_that_of_pixels_and_labels(folder, arguments, streaming, tmp_path):
    def fingerprint(cache):
        settings = {"streaming": streaming, "cache_dir": str(tmp_path / cache)}
        return load_images(arguments(**settings), CONFIG).info["fingerprint"]

    write_pets(folder)
    first = fingerprint("a")
    assert first == fingerprint("a") == fingerprint("b")
    changes = {"one train row": ("train", 6, 1), "one test row": ("test", 5, 1)}
    changes |= {"labels": None, "train labels": None}
    seen = {first}
    for name, change in changes.items():
        write_pets(folder)
        if change is None:
            split, count, seed = ("train", 6, 0) if name == "train labels" else ("test", 4, 1)
            images = [Image.fromarray(pixels) for pixels in pixels_of(count, seed)]
            write(folder, split, {"image": images, "label": [1] * count})
        else:
            split, count, seed = change
            images = [Image.fromarray(pixels) for pixels in pixels_of(count, seed)]
            write(folder, split, {"image": images, "label": [row % 2 for row in range(count)]})
        seen.add(fingerprint(f"c {name}"))
    assert len(seen) == 1 + len(changes)


@pytest.mark.parametrize("streaming", [False, True])
def test_links_within_a_folder_are_followed(folder, arguments, streaming, tmp_path):
    for split, shades in {"train": (5, 6), "test": (7, 8)}.items():
        (folder / split).mkdir()
        for shade in shades:
            Image.new("L", (8, 8), shade).save(tmp_path / f"{shade}.png")
            (folder / split / f"{shade}.png").symlink_to(tmp_path / f"{shade}.png")
    splits = load_images(arguments(streaming=streaming), CONFIG)
    assert splits.eval.images[:, 0, 0, 0].tolist() == [7, 8]
    assert len(list(splits.train)) == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", ["outside", "climbing", "address", "file_address", "chain", "relative"])
def test_a_row_that_names_a_file_of_elsewhere_is_not_followed(
    folder, arguments, streaming, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8), 9).save(secret)
    path = {
        "outside": str(secret),
        "climbing": f"{folder}/../secret.png",
        "address": "http://127.0.0.1:9/secret.png",
        "file_address": f"file://{secret}",
        "chain": f"zip://a.png::file://{secret}",
        "relative": "secret.png",
    }[place]
    write_pets(folder)
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}]}, features=features)
    rows = rows.cast_column("image", datasets.Image())
    kind = datasets.Features(image=datasets.Image()).arrow_schema
    table = rows.data.table.cast(kind)
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"row 0 of split '.*is no file of the dataset: put"):
        load_images(arguments(streaming=streaming), CONFIG)


def test_a_stream_without_known_columns_is_refused(folder, arguments):
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("image\na.png\n")
    with pytest.raises(DataError, match=r"do not say which columns.*leave out `--streaming`"):
        load_images(arguments(streaming=True), CONFIG)
