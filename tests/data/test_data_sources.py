"""Finding datasets: folders, the digits, and the Hub with and without a network."""

import io
import json
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.sources import DataError, open_source
from support.hub import HubServer

FEATURES = datasets.Features(image=datasets.Image())


def parquet_of(*shades):
    images = [Image.new("L", (8, 8), shade) for shade in shades]
    stream = io.BytesIO()
    datasets.Dataset.from_dict({"image": images}, features=FEATURES).to_parquet(stream)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shades"
    path.mkdir()
    (path / "train-00000-of-00001.parquet").write_bytes(parquet_of(1, 2, 3, 4))
    (path / "test-00000-of-00001.parquet").write_bytes(parquet_of())
    return path


@pytest.fixture
def open_named(tmp_path):
    def run(name, **settings):
        cache_dir = str(tmp_path / "cache")
        return open_source(DataArguments(dataset_name=str(name), cache_dir=cache_dir, **settings))

    return run


def shades_of(rows):
    return [int(np.asarray(row["image"])[0, 0]) for row in rows]


def test_a_folder_is_opened_read_and_streamed(folder, open_named, tmp_path):
    source = open_named(folder)
    assert source.kind == "folder" and source.name == "shades" and source.revision is None
    assert list(source.splits) == ["train", "test"]
    assert shades_of(source.read("train")) == shades_of(source.stream("train")) == [1, 2, 3, 4]
    assert list((tmp_path / "cache").iterdir()), "the cache that was named is the one in use"


def test_a_folder_named_like_a_loader_or_the_digits_is_that_folder(folder, open_named, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("parquet", "digits"):
        (folder.parent / name).symlink_to(folder)
    assert open_named("./digits").kind == "folder"
    assert list(open_named("parquet").splits) == ["train", "test"]
    assert open_named("digits").kind == "digits"


def test_the_command_that_loads_the_digits_gives_the_same_rows(open_named):
    import hf_vqvae.digits

    loaded = hf_vqvae.digits.load_digits()
    assert shades_of(loaded["test"]) == shades_of(open_named("digits").read("test"))


@pytest.mark.parametrize(
    "part, expected", [("train[:50%]", [1, 2]), ("train[3:]", [4]), ("train[-3:-1]", [2, 3]), ("train[:9]", None)]
)
def test_part_of_a_split_is_read_in_the_order_of_its_rows(folder, open_named, part, expected):
    assert shades_of(open_named(folder).read(part)) == (expected or [1, 2, 3, 4])


@pytest.mark.parametrize("part", ["test", "test[:1]", "train[4:]", "train[3:1]"])
def test_an_empty_split_is_refused(folder, open_named, part):
    with pytest.raises(DataError, match=rf"Split '{part[:4]}.*' of dataset 'shades' is empty"):
        open_named(folder).read(part)


def test_a_part_that_is_not_well_formed_is_refused(folder, open_named):
    with pytest.raises(DataError, match=r"'train\[x\]' is not a slice of a split: write"):
        open_named(folder).read("train[x]")
    with pytest.raises(DataError, match=r"Bad split: train\[:1\]. Available splits: "):
        open_named(folder).stream("train[:1]")


def test_an_unknown_split_is_refused_with_those_that_exist(folder, open_named):
    for name, known in ((folder, "'train', 'test'"), ("digits", "'train', 'test'")):
        source = open_named(name)
        source.check_split("train[:10]", "--train_split")
        with pytest.raises(DataError, match=f"`--eval_split val`: .* it has {known}. Name one"):
            source.check_split("val", "--eval_split")


def test_class_folders_in_an_archive_are_to_be_unpacked(tmp_path, open_named):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    for name, members in {"classes": ("cat/1.png", "dog/1.png"), "flat": ("1.png", "2.png")}.items():
        (tmp_path / name).mkdir()
        with zipfile.ZipFile(tmp_path / name / "train.zip", "w") as archive:
            for member in members:
                archive.write(tmp_path / "image.png", member)
    assert len(open_named(tmp_path / "flat").read("train")) == 2
    with pytest.raises(DataError, match=r"'classes' has folders of classes in the archive train.zip, .*: unpack"):
        open_named(tmp_path / "classes")


def test_files_that_are_damaged_are_refused(folder, open_named):
    (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"'shades' was found but cannot be read: .*[Pp]arquet"):
        open_named(folder).read("train")


IMAGE = {"_type": "Image"}


@pytest.mark.parametrize("stream", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize(
    "features, message",
    [
        ({"image": IMAGE, "label": {"_type": "ClassLabel", "names": ["a", "a"]}}, "duplicated"),
        ({"image": IMAGE, "label": {"_type": "Evil"}}, "Feature type 'Evil' not found"),
        ([1, 2], "not iterable"),
    ],
    ids=["twice", "type", "list"],
)
def test_files_that_describe_themselves_wrongly_are_refused(folder, open_named, features, message, stream):
    pictures = [{"bytes": b"", "path": "x"}]
    table = pyarrow.table({"image": pictures, "label": [0]})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    for split in ("train", "test"):
        path = folder / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table.replace_schema_metadata(about), path)
    with pytest.raises(DataError, match=f"'shades' was found but cannot be read: .*{message}"):
        source = open_named(folder)
        (source.stream if stream else source.read)("train")


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("{folder}/nowhere", {}, r"nowhere`: there is no such folder\. Write the path"),
        ("", {}, "there is no such folder. Write"),
        ("a b!", {}, "Repo id must .*'a b!'"),
        ("{folder}/file.txt", {}, "file.txt`: there is no such folder. Write"),
        ("{folder}/empty", {}, "cannot find images to load in .*doesn't contain any data files"),
        ("{folder}/one.csv", {}, r"one\.csv`: there is no such folder\. Write .* CSV file of pixels"),
        ("{folder}/bad.npz", {}, r"bad\.npz`: bad\.npz is no npz file"),
        ("{folder}", {"dataset_config_name": "x"}, r"`--dataset_config_name x` .*\['default'\]"),
        ("digits", {"dataset_config_name": "x"}, r"`--dataset_config_name x` has no meaning for 'digits'"),
        ("{folder}", {"dataset_revision": "v1"}, r"`--dataset_revision v1` has no meaning for"),
        ("digits", {"dataset_revision": "v1"}, r"`--dataset_revision v1` has no meaning for"),
    ],
)
def test_names_that_mean_nothing_are_refused(folder, open_named, name, settings, message):
    (folder / "empty").mkdir()
    for file in ("file.txt", "one.csv", "bad.npz"):
        if file in name:
            (folder / file).write_text("a,b\n")
    with pytest.raises(ValueError, match=message):
        open_named(name.format(folder=folder), **settings)


PROLOGUE = """
import json, sys
from hf_vqvae.arguments import DataArguments
from hf_vqvae.data.sources import DataError, open_source

def attempt(name, split="train", stream=False, **settings):
    try:
        source = open_source(DataArguments(dataset_name=name, **settings))
        rows = (source.stream if stream else source.read)(split)
        shades = [row["image"].getpixel((0, 0)) for row in rows]
        return [shades, source.revision, source.splits[split]]
    except DataError as error:
        return str(error)

"""


CARD = b"""---
configs:
- config_name: small
  data_files: [{split: train, path: small/train-*}]
- config_name: large
  data_files: [{split: train, path: large/train-*}]
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What attempts gave: online, then with the server gone, then told to stay offline."""
    home = tmp_path_factory.mktemp("home")

    def start(server, attempts, **variables):
        items = ", ".join(f"{name!r}: attempt({call})" for name, call in attempts.items())
        return subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + f"print(json.dumps({{{items}}}))"],
            env=server.environment(home) | variables,
            stdout=subprocess.PIPE,
            text=True,
        )

    def finish(process):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return json.loads(output.splitlines()[-1])

    with HubServer() as server:
        one = server.add_repo("me/one", {"train-0.parquet": parquet_of(5, 6)}, kind="dataset")
        first = one.refs["main"]
        blobs = {"train-0.parquet": server._blob("train-0.parquet", parquet_of(7))}
        second = one.add_commit("main", blobs, "Other shades", "", "me", first).oid
        files = {"README.md": CARD, "small/train-0.parquet": parquet_of(8)}
        files["large/train-0.parquet"] = parquet_of(9, 9)
        secret = tmp_path_factory.mktemp("secret")
        (secret / "x.parquet").write_bytes(parquet_of(99))
        for number, path in enumerate(
            [f"{secret}/x.parquet", f"{server.url}/datasets/me/one/resolve/main/train-0.parquet"]
        ):
            evil = CARD.replace(b"small/train-*", path.encode())
            server.add_repo(f"me/evil{number}", {"README.md": evil}, kind="dataset")
        sizes = server.add_repo("me/sizes", files, kind="dataset").refs["main"]
        server.add_repo("me/secret", {"train-0.parquet": parquet_of(1)}, "dataset", private=True)
        server.fail("GET", "/api/datasets/me/down", status=503, times=99)
        attempts = {
            "newest": "'me/one'",
            "streamed": "'me/one', stream=True",
            "older": f"'me/one', dataset_revision={first!r}",
            "large": "'me/sizes', dataset_config_name='large'",
            "no config": "'me/sizes'",
            "unknown config": "'me/sizes', dataset_config_name='huge'",
            "unknown revision": "'me/one', dataset_revision='v9'",
            "unknown dataset": "'me/none'",
            "private dataset": "'me/secret'",
            "server error": "'me/down'",
            "evil path": "'me/evil0', dataset_config_name='small'",
            "evil address": "'me/evil1', dataset_config_name='small'",
        }
        online = finish(start(server, attempts))
    attempts = {
        "cached": "'me/sizes'",
        "streamed": "'me/sizes', stream=True",
        "same commit": f"'me/sizes', dataset_revision={sizes!r}",
        "other revision": "'me/sizes', dataset_revision='v1'",
        "unknown dataset": "'me/none'",
    }
    processes = [start(server, attempts), start(server, attempts, HF_HUB_OFFLINE="1")]
    gone, offline = [finish(process) for process in processes]
    return SimpleNamespace(online=online, gone=gone, offline=offline, commits=(first, second, sizes), url=server.url)


def test_hub_datasets_are_read_at_the_commit_that_is_recorded(hub):
    first, second, sizes = hub.commits
    assert hub.online["newest"] == [[7], second, 1]
    assert hub.online["streamed"][:2] == [[7], second]
    assert hub.online["older"] == [[5, 6], first, 2]
    assert hub.online["large"] == [[9, 9], sizes, 2]


@pytest.mark.parametrize(
    "attempt, message",
    [
        ("no config", "`--dataset_config_name None` of .*'small', 'large'"),
        ("unknown config", "`--dataset_config_name huge` of .*'small', 'large'"),
        ("unknown revision", "me/one --dataset_revision v9`: .*Invalid rev id: v9.*no such repo or revision"),
        ("unknown dataset", "no such folder, and the Hub answered 401 .*there is no such repo"),
        ("private dataset", "me/secret`: .* set HF_TOKEN or run `hf auth login`"),
        ("evil path", "me/evil0`: Data files don't belong to me/evil0"),
        ("evil address", "me/evil1`: Data files don't belong to me/evil1"),
        ("server error", "cannot be reached, and the cache does not have it"),
    ],
)
def test_what_the_hub_does_not_have_or_show_is_told_apart(hub, attempt, message):
    assert re.search(message, hub.online[attempt], re.DOTALL)


@pytest.mark.parametrize("network", ["gone", "offline"])
def test_without_the_hub_the_cache_is_read_and_its_commit_recorded(hub, network):
    results = getattr(hub, network)
    for attempt in ("cached", "streamed", "same commit"):
        assert results[attempt][:2] == [[9, 9], hub.commits[2]]


@pytest.mark.parametrize("network", ["gone", "offline"])
def test_without_the_hub_what_is_not_in_the_cache_is_refused(hub, network):
    results = getattr(hub, network)
    message = f"`--dataset_revision v1` cannot be looked up .* commit {hub.commits[2]}: go online"
    assert re.search(message, results["other revision"])
    message = rf"the Hub \({hub.url}\) cannot be reached, .* `--dataset_name digits`"
    assert re.search(message, results["unknown dataset"])
