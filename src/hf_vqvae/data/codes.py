"""Encode images to codes once, for all epochs of the prior or to publish them, and read them from disk."""

import hashlib
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..arguments import DataArguments, TrainingArguments
from ..command_line import progress_bar
from ..distributed import run_on_main_process
from ..files import atomic_replace, read_json
from ..hub.download import Model, hash_weights, load_model
from ..hub.requests import retry
from ..models import VQVAEConfig, VQVAEModel
from ..models.input_checks import require
from .decoding import DecodedImages, decode_rows
from .sources import DataError, open_source
from .splits import ImageSplits, StreamedImages, describe_source, open_split

ENCODING = "encoding.json"  # of a dataset of codes: the model that made them, and of which images


class CodesDataset(Dataset):
    """Grids of codes, and any labels.

    Args:
        codes: parts of N grids, integers (n, h, w).
        labels: int64 (N,), -1 where the class is unknown, or None.
    """

    def __init__(self, codes: list[np.ndarray], labels: np.ndarray | None = None):
        self.codes, self.labels = codes, labels
        # First row of each part, and the end of the last part.
        self._starts = np.cumsum([0, *map(len, codes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a batch: `codes` (B, h, w) int64 and, if any, `labels` (B,)."""
        rows = np.asarray(indices)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(parts.tolist(), (rows - self._starts[parts]).tolist(), strict=True)
        codes = np.stack([self.codes[part][row] for part, row in places]).astype(np.int64)
        batch = {"codes": torch.from_numpy(codes)}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def class_frequencies(self, num_classes: int) -> list[float]:
        """Return the share of each class among the rows that have a label."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=num_classes)
        return (counts / counts.sum()).tolist()

    @classmethod
    def open(cls, table: datasets.Dataset, label_column: str | None = "label") -> "CodesDataset":
        """Open the column `codes` and any column of labels; batches are read from the memory-mapped file.

        For 256 random rows of 7x7 codes this takes 0.2 ms, indexing the `datasets` dataset 20 ms.
        """
        codes = [
            part.storage.flatten().flatten().to_numpy().reshape(-1, *table.features["codes"].shape)
            for part in table.data.column("codes").chunks
        ]
        has_labels = label_column in table.column_names
        return cls(codes, table.data.column(label_column).to_numpy() if has_labels else None)


@torch.inference_mode()
def encode_split(
    vqvae: VQVAEModel,
    images: DecodedImages | StreamedImages | CodesDataset,
    name: str,
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
) -> CodesDataset:
    """Encode a split once and store its codes in `codes/<name>` of `folder`; codes are returned as they are.

    Called by every process. The main process encodes, one batch in memory at a time: one pass through the encoder takes
    little beside the epochs of training, and a stream is read by one process anyway.
    """
    if isinstance(images, CodesDataset):
        return images
    path = folder / "codes" / name

    def encode() -> None:
        if path.exists():
            return
        streamed = isinstance(images, StreamedImages)
        labels = images.decoder.label_column if streamed else images.labels
        collate = None if streamed else lambda batch: batch  # of images in memory, a batch is one already
        # Its own generator: the global one must be the same afterwards whether or not the codes existed.
        batches = DataLoader(images, batch_size, collate_fn=collate, generator=torch.Generator())
        path.parent.mkdir(exist_ok=True)
        _write(vqvae, progress_bar(batches, f"encode {name}", leave=False), labels is not None, path)

    run_on_main_process(accelerator, encode)
    return CodesDataset.open(datasets.load_from_disk(str(path), keep_in_memory=False))


def _write(vqvae: VQVAEModel, batches: Iterable[dict[str, Tensor]], has_labels: bool, folder: Path) -> None:
    """Encode batches, and write a `datasets` dataset batch by batch, atomically."""
    features = datasets.Features(codes=datasets.Array2D(tuple(vqvae.config.grid_size), "int32"))
    if has_labels:
        features["label"] = datasets.Value("int64")
    rows = folder.with_name(f"{folder.name}.arrow.writing")
    writing = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    digest = hashlib.sha256()
    with ArrowWriter(path=str(rows), features=features) as writer:
        for batch in batches:
            columns = {"codes": vqvae.encode(batch["pixel_values"].to(vqvae.device)).codes.cpu().numpy()}
            columns |= {"label": batch["labels"].numpy()} if has_labels else {}
            for values in columns.values():
                digest.update(values)
            writer.write_batch(columns | {"codes": columns["codes"].astype(np.int32)})
        writer.finalize()
    # `save_to_disk` copies the rows, 1,000 at a time, to the format that `load_from_disk` reads. The default
    # fingerprint depends on the time of the file; this one makes equal codes equal folders.
    datasets.Dataset(datasets.Dataset.from_file(str(rows)).data, fingerprint=digest.hexdigest()).save_to_disk(writing)
    rows.unlink()
    atomic_replace(writing, folder)


def encode_dataset(model: Model, data: DataArguments, batch_size: int, accelerator: Accelerator, folder: Path) -> dict:
    """Write the codes of the training and the evaluation split, in the order of the rows, as parquet files.

    The splits are called as in the source, or `train` and `test` where both are slices of one. Returns a description of
    the images as in run.json, and of the `splits`.
    """
    source, slices = open_source(data), (data.train_split, data.eval_split)
    source.check_split(data.train_split, "--train_split")
    source.check_split(data.eval_split, "--eval_split")
    names = [split.partition("[")[0] for split in slices]
    names = names if names[0] != names[1] else ["train", "test"]
    label_names, splits = None, {}
    for role, name, images in zip(("train", "eval"), names, slices, strict=True):
        split = open_split(source, data, model.config, role, label_names)
        decoder, label_names = split.decoder, split.decoder.label_names
        rows = StreamedImages(split.rows, decoder) if data.streaming else decode_rows(split.rows, split.count, decoder)
        encode_split(model.base_model, rows, name, batch_size, accelerator, folder)
        table = datasets.load_from_disk(str(folder / "codes" / name))
        if decoder.label_column and label_names:
            table = table.cast_column("label", datasets.ClassLabel(names=label_names))
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
        splits[name] = {"images": images, "num_bytes": table.data.nbytes, "num_examples": len(table)}
    shutil.rmtree(folder / "codes")
    return describe_source(source, data, decoder) | {"splits": splits}


def load_codes(training: TrainingArguments, arguments: DataArguments, config: VQVAEConfig) -> ImageSplits:
    """Load a dataset of codes in place of images; `ValueError` if it is missing, or of another VQ-VAE than this."""
    name, model = training.codes_dataset_name, training.vqvae_name_or_path
    data = replace(arguments, dataset_name=name, image_column="codes", streaming=False)
    try:
        source = open_source(data)
        splits = [open_split(source, data, config, role) for role in ("train", "eval")]
    except DataError as error:
        said = str(error).replace("`--image_column codes`: there is no such column", f"{name} has no column 'codes'")
        raise DataError(said.replace("--dataset_name", "--codes_dataset_name")) from error
    path, encoding = Path(name, ENCODING), {}
    with suppress(EntryNotFoundError, FileNotFoundError):  # codes of another program have no record
        if source.kind == "hub":
            path = Path(retry(hf_hub_download, name, ENCODING, repo_type="dataset", revision=source.revision))
        encoding = read_json(path)
        rule = f"the model of the codes in {name}, {encoding['model']} (revision {encoding['model_revision']})"
        same = encoding["weights_sha256"] == hash_weights(load_model(model).base_model.state_dict())
        require(same, "--vqvae_name_or_path", model, rule)
    grid, most, codes, digest = tuple(config.grid_size), config.num_embeddings - 1, [], hashlib.sha256()
    for split in splits:
        kind = split.rows.features["codes"]
        shape = getattr(kind, "shape", kind)
        require(shape == grid, f"{name}: codes", shape, f"grids of {grid}, as of {model}")
        codes.append(CodesDataset.open(split.rows, split.decoder.label_column))
        for part in codes[-1].codes:
            digest.update(part)
            for end in (part.min(), part.max()):
                require(0 <= end <= most, f"{name}: codes", int(end), f"0 to {most}, as of {model}")
        digest.update(b"" if codes[-1].labels is None else codes[-1].labels)
    info = describe_source(source, data, split.decoder) | {"image_column": None, "encoding": encoding}
    info |= {"train_split": data.train_split, "eval_split": data.eval_split, "fingerprint": digest.hexdigest()}
    info |= {"train_count": len(codes[0]), "eval_count": len(codes[1])}
    return ImageSplits(*codes, info, config.data_variance, split.decoder.processor, arguments.streaming)
