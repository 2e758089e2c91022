"""Read the variables of Keras models without TensorFlow: SavedModels, checkpoints, HDF5 and `.keras` files.

Nothing is executed: no graph, no config and no pickle is read.
"""

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Arrays by their path in the model, such as ("layers", "conv2d_1", "vars", "0").
Variables = dict[tuple[str, ...], np.ndarray]
SAVED_MODEL = "variables/variables.index"
# The optimizer of Keras 3 may hold the weights, and `_all_variables` of its `export` each a second time, in no order.
NOT_OF_LAYERS = re.compile("optimizer(?!/_trainable_variables)|metrics|_all_variables", re.IGNORECASE)
DTYPES = {1: "<f4", 2: "<f8", 19: "<f2"}  # tensorflow/core/framework/types.proto
_CRC_TABLE = list(range(256))
for _ in range(8):
    _CRC_TABLE = [crc >> 1 ^ 0x82F63B78 * (crc & 1) for crc in _CRC_TABLE]


def read_variables(path: Path) -> Variables:
    """Read the floating-point variables in a file, or in the one file of weights in a folder.

    Raises:
        ValueError: if there is not one such file, or it is damaged.
        ModuleNotFoundError: without h5py (extra `keras`), for all but TensorFlow's own files.
    """
    path = path.parent if path.name == "saved_model.pb" else path
    if not path.is_file():
        found = [path / SAVED_MODEL] if (path / SAVED_MODEL).is_file() else sorted(path.glob("*"))
        found = [file for file in found if file.suffix in (".keras", ".h5", ".index")]
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"{path} must hold {SAVED_MODEL}, or one .keras or .h5 file, got {names}: name the file.")
        path = found[0]
    try:
        variables = dict(_read_checkpoint(path) if path.suffix == ".index" else _read_hdf5(path))
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read the Keras weights in {path} ({error}). A damaged file, or a pointer of Git LFS, has to be "
            "downloaded or saved again."
        ) from error
    of_layers = {name: array for name, array in variables.items() if not NOT_OF_LAYERS.search("/".join(name))}
    return {name: array for name, array in of_layers.items() if array.dtype.kind == "f"}


def _read_hdf5(path: Path) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield the arrays of an `.h5` file, of a whole model or its weights, or of the one in a `.keras` archive."""
    import h5py

    source = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if zipfile.is_zipfile(path) else path
    with h5py.File(source) as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:  # the legacy form, in which attributes have the order
            for number, layer in enumerate(root.attrs["layer_names"]):
                for place, weight in enumerate(root[layer].attrs["weight_names"]):
                    yield (str(number), str(place)), root[layer][weight][()]
        else:
            names: list[str] = []
            root.visit(names.append)
            for name in names:
                if isinstance(root[name], h5py.Dataset):
                    yield tuple(name.split("/")), root[name][()]


def _read_checkpoint(path: Path) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield the arrays of a TensorFlow checkpoint, a part of every SavedModel, by its `.index` file."""
    # Messages that say where each tensor is: BundleEntryProto of tensorflow/core/protobuf/tensor_bundle.proto.
    entries = dict(_read_table(path.read_bytes()))
    (shards,) = _read_message(entries.pop(""))[1]
    for name, entry in entries.items():
        name, _, suffix = name.partition("/.ATTRIBUTES/")
        dtype, shape, shard, offset, size, checksum = (_read_message(entry)[number] for number in range(1, 7))
        if suffix != "VARIABLE_VALUE" or dtype[0] not in DTYPES:
            continue
        file = path.with_name(f"{path.stem}.data-{sum(shard):05}-of-{shards:05}")
        with file.open("rb") as data:
            data.seek(sum(offset))  # 0 is left out
            content = data.read(size[0])
        if _crc32c(content) != checksum[0]:
            raise ValueError(f"the checksum of {name} in {file.name} is wrong")
        sizes = [_read_message(axis)[1][0] for axis in _read_message(b"".join(shape))[2]]
        yield tuple(name.split("/")), np.frombuffer(content, DTYPES[dtype[0]]).reshape(sizes)


def _read_table(table: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield keys and values of a LevelDB table (github.com/google/leveldb, doc/table_format.md)."""
    if table[-8:] != bytes.fromhex("57fb808b247547db"):
        raise ValueError("it is no index of a TensorFlow checkpoint")
    footer = io.BytesIO(table[-48:])
    _, _, *index = (_varint(footer) for _ in range(4))
    for _, handle in _read_block(table, *index):
        stream = io.BytesIO(handle)
        for key, value in _read_block(table, _varint(stream), _varint(stream)):
            yield key.decode(), value


def _read_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, kind, checksum = table[offset : offset + size], table[offset + size], table[offset + size + 1 :][:4]
    if kind != 0:
        raise ValueError(f"a block of the index is compressed (type {kind}; 1 is Snappy), TensorFlow's own never are")
    if _crc32c(block + b"\0") != checksum:
        raise ValueError("the checksum of a block of the index is wrong")
    restarts = int.from_bytes(block[-4:], "little")
    end, stream, key = size - 4 - 4 * restarts, io.BytesIO(block), b""
    while stream.tell() < end:
        shared, added, length = (_varint(stream) for _ in range(3))
        key = key[:shared] + stream.read(added)
        yield key, stream.read(length)


def _read_message(message: bytes) -> dict[int, list]:
    """Return the values of each field of a protocol buffer message, which has no 64-bit fields."""
    fields, stream = defaultdict(list), io.BytesIO(message)
    while stream.tell() < len(message):
        number, kind = divmod(_varint(stream), 8)
        fields[number].append(_varint(stream) if kind == 0 else stream.read(4 if kind == 5 else _varint(stream)))
    return fields


def _varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while (byte := stream.read(1)[0]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value | byte << shift


def _crc32c(content: bytes) -> bytes:
    """Return the masked CRC-32C (Castagnoli) that LevelDB and TensorFlow store."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
