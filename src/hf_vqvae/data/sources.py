"""Where rows of images come from: the Hub, a folder, or the digits that scikit-learn ships."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..arguments import DataArguments
from ..hub.requests import TIMEOUT, request_timeout, retry
from .digits import load_digits

DIGITS = "digits"
# What `datasets` raises of files that are damaged, or say of themselves what cannot be.
BROKEN = (DatasetsError, OSError, ValueError, TypeError, LookupError, RuntimeError)
BROKEN += (AttributeError, httpx.HTTPError)
_IN_ARCHIVE = re.compile(r"(zip|tar|gzip|bz2|xz|zstd|lz4)://[^:]*::")


class DataError(ValueError):
    """Something is wrong with the data; the message names it, the rule and the way out."""


def is_own_file(path: str | None, files: tuple[str, ...]) -> bool:
    """Whether a path or address, maybe within an archive, begins with one of `files`.

    By its name alone: a link within a folder is followed wherever it leads, since many keep their
    images elsewhere and link to them. Rows can name links, but neither make nor change them.
    """
    place = _IN_ARCHIVE.sub("", path or "", count=1)
    if "://" not in place:
        place = os.path.abspath(place)
    return place.startswith(files or "\0") and ".." not in place.split("/")


@dataclass
class Source:
    """A dataset that has been found, with named splits that have not been read yet.

    Args:
        name: as given; of a folder only the last part, since paths of this machine go into no card.
        kind: `"hub"`, `"folder"` or `"digits"`.
        revision: commit that is read, of a Hub dataset; `None` for others and where it is unknown.
        load_command: expression that loads the same dataset (after `from datasets import
            load_dataset`, or `import hf_vqvae.digits` for the digits).
        rows: the builder that reads the splits, or the splits themselves.
        files: beginnings of the paths and addresses of the dataset's own files; a row that names
            any other, of this machine or of the network, is not followed.

    Raises:
        DataError: if the dataset has files that begin otherwise.
    """

    name: str
    kind: str
    revision: str | None
    load_command: str
    rows: datasets.DatasetBuilder | datasets.DatasetDict
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.rows, datasets.DatasetDict):
            return
        for paths in (self.rows.config.data_files or {}).values():
            for path in paths:
                if not is_own_file(path, self.files):
                    raise DataError(
                        f"Dataset {self.name!r} says that {path!r} is one of its files, which is not within it: put "
                        "the file there, and correct `data_files` in its README.md."
                    )

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        if isinstance(self.rows, datasets.DatasetDict):
            return list(self.rows)
        return [str(split) for split in self.rows.config.data_files or self.rows.info.splits or ()]

    @property
    def features(self) -> datasets.Features | None:
        """Columns, where the dataset tells before it is read."""
        if isinstance(self.rows, datasets.DatasetDict):
            return next(iter(self.rows.values())).features
        return self.rows.info.features

    def check_split(self, split: str, flag: str) -> None:
        """Raises `DataError` if `split` is no split, or part of one, of this source."""
        if self._split_name(split) not in self.splits:
            known = ", ".join(repr(name) for name in self.splits)
            raise DataError(
                f"`{flag} {split}`: dataset {self.name!r} has no such split, it has {known}. "
                f"Name one of them, or part of one: `{flag} '{self.splits[0]}[90%:]'` is the last "
                "tenth of its rows."
            )

    def read(self, split: str) -> datasets.Dataset:
        """The rows of `split`, prepared in the cache of `datasets` first where need be.

        Raises:
            DataError: if the files cannot be read, or the split is empty.
        """
        name = self._split_name(split)
        if isinstance(self.rows, datasets.DatasetDict):
            rows, count = self.rows[name], len(self.rows[name])
        else:
            try:
                with request_timeout(TIMEOUT):
                    retry(self.rows.download_and_prepare)
                count = self.rows.info.splits[name].num_examples
                # `datasets` cannot open a split without rows.
                rows = self.rows.as_dataset(split=name) if count else None
            except BROKEN as error:
                raise self._unreadable(error) from error
        if name != split:
            window = self._window(split, name, count)
            rows, count = rows.select(window) if window else None, len(window)
        if count == 0:
            raise DataError(f"Split {split!r} of dataset {self.name!r} is empty: name another.")
        return rows

    def stream(self, split: str) -> datasets.IterableDataset:
        """The rows of `split`, fetched only as they are read."""
        name = self._split_name(split)
        if name != split:
            raise DataError(
                f"Part of a split, here {split!r}, cannot be streamed: leave out `--streaming`, or "
                "take the first rows of a split (`--max_train_samples`, `--max_eval_samples`)."
            )
        if isinstance(self.rows, datasets.DatasetDict):
            return self.rows[name].to_iterable_dataset()
        try:
            return self.rows.as_streaming_dataset(split=name)
        except BROKEN as error:
            raise self._unreadable(error) from error

    def count(self, split: str) -> int | None:
        """Rows of a whole split where the dataset tells before it is read, else `None`."""
        if isinstance(self.rows, datasets.DatasetDict):
            return len(self.rows[split])
        known = (self.rows.info.splits or {}).get(split)
        return known.num_examples if known else None

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(
            f"Dataset {self.name!r} was found but cannot be read: {error.__cause__ or error}"
        )

    @staticmethod
    def _split_name(split: str) -> str:
        return split.partition("[")[0]

    @staticmethod
    def _window(split: str, name: str, count: int) -> range:
        try:
            (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: count})
        except (ValueError, AssertionError) as error:
            raise DataError(
                f"{split!r} is not a part of a split: write for example '{name}[:90%]' or "
                f"'{name}[1000:2000]' ({error})."
            ) from error
        return range(part.from_, part.to)


def open_source(arguments: DataArguments) -> Source:
    """Find the dataset that `arguments` name, without reading its rows.

    The name `digits` means the embedded digits ([`load_digits`]); an existing folder means that
    folder, in Hub layout or a folder of images, with or without one subfolder a class; any other
    name is looked up on the Hub, at the commit that `dataset_revision` means now. Without the Hub,
    a dataset that has been loaded before is taken from the cache.

    Raises:
        DataError: if there is no such dataset, configuration or revision, or no way to get at it.
    """
    name = arguments.dataset_name
    if not isinstance(name, str):
        raise DataError(f"`--dataset_name` must be a text, got a {type(name).__name__}.")
    path = Path(name or "no name").expanduser()  # an empty path would be the current folder
    if arguments.dataset_revision is not None and (name == DIGITS or path.exists()):
        raise DataError(
            f"`--dataset_revision {arguments.dataset_revision}` is for datasets on the Hub, "
            f"{name!r} is not one: leave it out."
        )
    if name == DIGITS:
        if arguments.dataset_config_name is not None:
            raise DataError(
                f"`--dataset_config_name {arguments.dataset_config_name}`: the embedded digits "
                "have no configurations, leave it out."
            )
        command = "hf_vqvae.digits.load_digits()"
        try:
            return Source(DIGITS, "digits", None, command, load_digits())
        except ModuleNotFoundError as error:
            raise DataError(f"`--dataset_name digits`: {error}") from error
    if path.is_dir():
        return _open_folder(path, arguments)
    if path.exists():
        raise DataError(f"`--dataset_name {name}` is a file: name the folder it is in.")
    if re.match(r"[./~]|[A-Za-z]:", name) or "\\" in name or name.count("/") > 1 or not name:
        raise DataError(
            f"`--dataset_name {name}`: there is no such folder. Write the path of a folder, the "
            f"`owner/name` of a dataset on the Hub, or `{DIGITS}`."
        )
    return _open_hub(arguments)


def _open_folder(path: Path, arguments: DataArguments) -> Source:
    # Absolute, because a bare "csv" or "imagefolder" would mean a loader of `datasets`.
    path = path.resolve()
    builder = _find_builder(str(path), arguments)
    command = _load_command(f"./{path.name}", arguments)
    files = tuple(os.path.join(folder, "") for folder in (str(path), _cache(arguments)))
    return Source(path.name, "folder", None, command, builder, files)


def _open_hub(arguments: DataArguments) -> Source:
    name = arguments.dataset_name
    sha = _find_commit(arguments)
    found = sha is not None
    builder = _find_builder(name, arguments, revision=sha) if found else _find_in_cache(arguments)
    # The builder knows the commit that it reads, from the cache too.
    revision = builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    if not found and arguments.dataset_revision not in (None, revision):
        raise DataError(
            f"`--dataset_revision {arguments.dataset_revision}` cannot be looked up without the "
            f"Hub, and the copy of {name!r} in the cache is commit {revision}: go online, or ask "
            "for that commit, or leave the flag out to take what the cache holds."
        )
    own = os.path.join(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}", "")
    files = (own, os.path.join(_cache(arguments), ""), f"hf://datasets/{name}@")
    return Source(name, "hub", revision, _load_command(name, arguments), builder, files)


def _cache(arguments: DataArguments) -> str:
    """Folder of prepared datasets and unpacked archives."""
    return os.path.abspath(
        os.path.expanduser(arguments.cache_dir or datasets.config.HF_DATASETS_CACHE)
    )


def _find_commit(arguments: DataArguments) -> str | None:
    """The commit on the Hub that is to be read, `None` where the Hub cannot be reached."""
    name, revision = arguments.dataset_name, arguments.dataset_revision
    hub = datasets.config.HF_ENDPOINT
    try:
        return HfApi(endpoint=hub).dataset_info(name, revision=revision, timeout=30).sha
    except (httpx.TransportError, ConnectionError):  # HF_HUB_OFFLINE=1 gives a ConnectionError
        return None
    except (json.JSONDecodeError, LookupError, TypeError):  # the login page of a network
        return None
    except HFValidationError as error:
        reason = f"there is no such folder, and it is no name for the Hub either ({error})"
    except GatedRepoError:
        reason = f"it is gated. Ask for access at {hub}/datasets/{name}, then `hf auth login`"
    except RepositoryNotFoundError:
        reason = (
            f"there is no such folder, and no such dataset on {hub}, or it is private (then "
            "`hf auth login`). Check the spelling"
        )
    except RevisionNotFoundError:
        reason = (
            f"it has no `--dataset_revision {revision}`. {hub}/datasets/{name}/commits lists its "
            "commits"
        )
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        reason = f"the Hub refuses it ({error})"
    raise DataError(f"`--dataset_name {name}`: {reason}.")


def _find_builder(path: str, arguments: DataArguments, **options) -> datasets.DatasetBuilder:
    config_name = arguments.dataset_config_name
    try:
        return retry(
            datasets.load_dataset_builder,
            path,
            name=config_name,
            cache_dir=arguments.cache_dir,
            **options,
        )
    except BROKEN as error:
        # The message of `datasets` lists the configurations there are, for a missing name too.
        if isinstance(error, ValueError) and re.match("BuilderConfig|Config name", str(error)):
            what = f"`--dataset_config_name {config_name}` of"
        else:
            what = "cannot find images to load in"
        raise DataError(f"{what} `--dataset_name {arguments.dataset_name}`: {error}") from error


def _find_in_cache(arguments: DataArguments) -> datasets.DatasetBuilder:
    name = arguments.dataset_name
    try:
        # What `load_dataset` falls back to without a network, after half a minute of retries.
        return Cache(
            cache_dir=arguments.cache_dir,
            dataset_name=name.split("/")[-1],
            repo_id=name,
            config_name=arguments.dataset_config_name,
            version="auto",
            hash="auto",
        )
    except ValueError as error:
        raise DataError(
            f"`--dataset_name {name}`: there is no such folder, the Hub "
            f"({datasets.config.HF_ENDPOINT}) cannot be reached, and the cache does not have it "
            f"({error}). Check the network and HF_HUB_OFFLINE, name a local folder, or take the "
            f"embedded `--dataset_name {DIGITS}`."
        ) from error


def _load_command(name: str, arguments: DataArguments) -> str:
    parts = [f'"{name}"']
    if arguments.dataset_config_name is not None:
        parts.append(f'"{arguments.dataset_config_name}"')
    if arguments.dataset_revision is not None:
        parts.append(f'revision="{arguments.dataset_revision}"')
    return f"load_dataset({', '.join(parts)})"
