"""Find datasets of images: on the Hub, in a folder, or the digits that scikit-learn ships."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from ..arguments import DataArguments
from ..hub.errors import explain, httpx
from ..hub.requests import TIMEOUT, request_timeout, retry
from .arrays import load_arrays
from .digits import load_digits

DIGITS = "digits"
# Errors of `datasets` for files that are damaged or that describe themselves wrongly.
BROKEN = (DatasetsError, OSError, ValueError, TypeError, LookupError, RuntimeError)
BROKEN += (AttributeError, httpx.HTTPError)
_IN_ARCHIVE = re.compile(r"(zip|tar|gzip|bz2|xz|zstd|lz4)://[^:]*::")


class DataError(ValueError):
    """Invalid data; the message names them, the rule and what to do."""


def is_own_file(path: str | None, files: tuple[str, ...]) -> bool:
    """Return whether a path or address, possibly within an archive, starts with one of `files`.

    Links within a folder are followed, wherever they lead: many folders link to images that are stored elsewhere, and
    a row can name a link but cannot create one.
    """
    place = _IN_ARCHIVE.sub("", path or "", count=1)
    if "://" not in place:
        place = os.path.abspath(place)
    return place.startswith(files or "\0") and ".." not in place.split("/")


@dataclass
class Source:
    """A dataset with named splits that have not been read yet.

    Args:
        name: as given; of a folder only the last part, since no path of this machine is published.
        kind: `"hub"`, `"folder"`, `"arrays"` ([`load_arrays`]) or `"digits"`.
        revision: commit that is read, of a Hub dataset; `None` for others and where it is unknown.
        license: what the card of a Hub dataset says, a name or a list of them; `None` where it says none.
        rows: the builder that reads the splits, or the splits themselves.
        files: prefixes of the paths and addresses of the dataset's own files; a row that names another is refused.

    Raises:
        DataError: if one of the dataset's files is an archive of class folders.
    """

    name: str
    kind: str
    revision: str | None
    rows: datasets.DatasetBuilder | datasets.DatasetDict
    files: tuple[str, ...] = ()
    license: str | list[str] | None = None

    def __post_init__(self) -> None:
        named = {} if self._in_memory else self.rows.config.data_files or {}
        archives = [path for paths in named.values() for path in paths if path.endswith(".zip")]
        if not archives or not hasattr(self.rows.config, "drop_labels"):  # no folder of images
            return
        with self._errors_named():
            features = next(iter(self.rows.as_streaming_dataset().values())).features
        # `datasets` takes the name of the archive's own folder for the class.
        if isinstance(features.get("label"), datasets.ClassLabel):
            raise DataError(
                f"Dataset {self.name!r} has folders of classes in the archive {os.path.basename(archives[0])}, whose "
                "labels cannot be read: unpack it, and name the folder that holds the splits."
            )

    @property
    def _in_memory(self) -> bool:
        return isinstance(self.rows, datasets.DatasetDict)

    @property
    def splits(self) -> dict[str, int | None]:
        """Rows of each split, `None` where they are not known before the split is read."""
        if self._in_memory:
            return self.rows.num_rows
        known = self.rows.info.splits or {}
        names = self.rows.config.data_files or known
        return {str(name): known[name].num_examples if name in known else None for name in names}

    @property
    def features(self) -> datasets.Features | None:
        """Columns, `None` where they are not known before a split is read."""
        if self._in_memory:
            return next(iter(self.rows.values())).features
        return self.rows.info.features

    def check_split(self, split: str, flag: str) -> None:
        """Raise `DataError` if `split` is neither a split of this source nor a slice of one."""
        splits = list(self.splits)
        if split.partition("[")[0] not in splits:
            raise DataError(
                f"`{flag} {split}`: dataset {self.name!r} has no such split, it has {', '.join(map(repr, splits))}. "
                f"Name one of them, or a slice of one: `{flag} '{splits[0]}[90%:]'` is the last tenth of its rows."
            )

    def read(self, split: str) -> datasets.Dataset:
        """Read the rows of a split or of a slice; `datasets` first prepares them in its cache.

        Raises:
            DataError: if the files cannot be read, or there are no rows.
        """
        name = split.partition("[")[0]
        if not self._in_memory:
            with self._errors_named(), request_timeout(TIMEOUT):
                retry(self.rows.download_and_prepare)
        try:
            instruction = datasets.ReadInstruction.from_spec(split)
            (part,) = instruction.to_absolute({name: self.splits[name]})
        except (ValueError, AssertionError) as error:
            raise DataError(
                f"{split!r} is not a slice of a split: write for example '{name}[:90%]' or "
                f"'{name}[1000:2000]' ({error})."
            ) from error
        if part.from_ >= part.to:  # `datasets` cannot open a split without rows
            raise DataError(f"Split {split!r} of dataset {self.name!r} is empty: name another.")
        with self._errors_named():
            rows = self.rows[name] if self._in_memory else self.rows.as_dataset(split=name)
            return rows.select(range(part.from_, part.to))

    def stream(self, split: str) -> datasets.IterableDataset:
        """Open the rows of a split, which are fetched as they are read."""
        with self._errors_named():
            if self._in_memory:
                return self.rows[split].to_iterable_dataset()
            return self.rows.as_streaming_dataset(split=split)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise DataError(
                f"Dataset {self.name!r} was found but cannot be read: {error.__cause__ or error}"
            ) from error


def open_source(arguments: DataArguments) -> Source:
    """Find the dataset that `arguments` name, without reading its rows.

    The name `digits` means the embedded digits ([`load_digits`]). An existing folder is read as such: arrays of images
    ([`load_arrays`], also of one file), the layout of a Hub dataset, or images, with or without a subfolder per class.
    Any other name is looked up on the Hub, at the current commit of `dataset_revision`; without a connection, a dataset
    in the cache of `datasets` is used.

    Raises:
        DataError: if there is no such dataset, configuration or revision, or it cannot be accessed.
    """
    name = arguments.dataset_name
    # An empty path would be the current folder.
    path = Path(os.path.expanduser("no name" if name == "" else name))
    if name == DIGITS or path.exists():
        _refuse("dataset_revision", arguments)
    rows = None
    try:
        if name == DIGITS:
            rows = load_digits()
        elif path.exists():
            rows = load_arrays(path)
    except (*BROKEN, EOFError, BadZipFile) as error:
        raise DataError(f"`--dataset_name {name}`: {error}") from error
    if rows is not None:
        _refuse("dataset_config_name", arguments)
        return Source(path.resolve().name, "digits" if name == DIGITS else "arrays", None, rows)
    if path.is_dir():
        # Absolute, because a bare "csv" or "imagefolder" would mean a loader of `datasets`.
        path = path.resolve()
        files = (os.path.join(path, ""), _cache(arguments))
        return Source(path.name, "folder", None, _find_builder(str(path), arguments), files)
    is_path = re.match(r"[./~]|[A-Za-z]:", name) or "\\" in name or name.count("/") > 1 or not name
    if is_path or path.exists():
        raise DataError(
            f"`--dataset_name {name}`: there is no such folder. Write the path of a folder, of an idx, npz or CSV "
            f"file of pixels, the `owner/name` of a dataset on the Hub, or `{DIGITS}`."
        )
    return _open_hub(arguments)


def _refuse(flag: str, arguments: DataArguments) -> None:
    """Raise `DataError` if a flag is set that has no meaning for this dataset."""
    value = getattr(arguments, flag)
    if value is not None:
        raise DataError(f"`--{flag} {value}` has no meaning for {arguments.dataset_name!r}: leave it out.")


def _open_hub(arguments: DataArguments) -> Source:
    name = arguments.dataset_name
    info = _find_info(arguments)
    commit = info and info.sha
    # Without a commit, `datasets` falls back to its cache, and the builder knows which commit that is.
    builder = _find_builder(name, arguments, revision=commit, is_offline=commit is None)
    revision = builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    if commit is None and arguments.dataset_revision not in (None, revision):
        raise DataError(
            f"`--dataset_revision {arguments.dataset_revision}` cannot be looked up without the Hub, "
            f"and the cache has {name!r} at commit {revision}: go online, or leave the flag out."
        )
    downloads = os.path.join(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}", "")
    files = (downloads, _cache(arguments), f"hf://datasets/{name}@")
    license = info.card_data.license if info and info.card_data else None
    return Source(name, "hub", revision, builder, files, license)


def _cache(arguments: DataArguments) -> str:
    """Return the folder of prepared datasets and extracted archives, with a final slash."""
    folder = os.path.expanduser(arguments.cache_dir or datasets.config.HF_DATASETS_CACHE)
    return os.path.join(os.path.abspath(folder), "")


def _find_info(arguments: DataArguments) -> DatasetInfo | None:
    """Look up the commit to read on the Hub, and its card; `None` if the Hub cannot be reached."""
    name, revision = arguments.dataset_name, arguments.dataset_revision
    try:
        return HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(name, revision=revision, timeout=30)
    except (httpx.TransportError, ConnectionError):  # HF_HUB_OFFLINE=1 gives a ConnectionError
        return None
    except (json.JSONDecodeError, LookupError, TypeError):  # the login page of a network
        return None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        at = "" if revision is None else f" --dataset_revision {revision}"
        raise DataError(
            f"`--dataset_name {name}{at}`: there is no such folder, and {explain(error, 'download')}"
        ) from error


def _find_builder(
    path: str, arguments: DataArguments, revision: str | None = None, is_offline: bool = False
) -> datasets.DatasetBuilder:
    name, config_name = arguments.dataset_name, arguments.dataset_config_name
    was_offline = datasets.config.HF_HUB_OFFLINE
    # Otherwise the client retries for half a minute before `datasets` looks into its cache.
    datasets.config.HF_HUB_OFFLINE = was_offline or is_offline
    try:
        return retry(
            datasets.load_dataset_builder, path, name=config_name, cache_dir=arguments.cache_dir, revision=revision
        )
    except BROKEN as error:
        if is_offline:
            raise DataError(
                f"`--dataset_name {name}`: there is no such folder, the Hub "
                f"({datasets.config.HF_ENDPOINT}) cannot be reached, and the cache does not have it "
                f"({error}). Check the network and HF_HUB_OFFLINE, or use `--dataset_name {DIGITS}`."
            ) from error
        # The message of `datasets` lists the configurations, also where none is named.
        if isinstance(error, ValueError) and re.match("BuilderConfig|Config name", str(error)):
            what = f"`--dataset_config_name {config_name}` of"
        else:
            what = "cannot find images to load in"
        raise DataError(f"{what} `--dataset_name {name}`: {error}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
