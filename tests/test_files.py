"""Files that are whole or absent."""

import errno
import json
import os

import pytest
from safetensors import SafetensorError

from hf_vqvae.files import atomic_remove, atomic_replace, read_json, remove, write_json, writing_errors


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} == json.loads(path.read_text())


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_json_that_is_damaged_is_named_with_a_way_out(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged .*--overwrite_output_dir"):
        read_json(path)


def test_what_is_removed_is_never_seen_in_part(tmp_path):
    place, aside = tmp_path / "a", tmp_path / "aside"
    for path in (place / "deep" / "file", aside / "left"):
        path.parent.mkdir(parents=True)
        path.touch()
    atomic_remove(place, aside)
    atomic_remove(place, aside)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("link", "link", "folder/file", "folder"):
        assert (tmp_path / "folder").exists()
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_its_place_with_all_that_is_in_it_and_replaces_none(tmp_path):
    writing, place = tmp_path / "a.writing", tmp_path / "a"
    (writing / "deep").mkdir(parents=True)
    (writing / "deep" / "file").write_text("1")
    atomic_replace(writing, place)
    assert (place / "deep" / "file").read_text() == "1" and not writing.exists()
    writing.mkdir()
    with pytest.raises(OSError):
        atomic_replace(writing, place)
    assert (place / "deep" / "file").read_text() == "1"


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_stops_nothing(tmp_path, monkeypatch, code):
    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)
    write_json(tmp_path / "record.json", 1)
    assert read_json(tmp_path / "record.json") == 1
    code = errno.ENOSPC  # but what is not on the disk is not taken for written
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "record.json", 2)
    assert read_json(tmp_path / "record.json") == 1


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed."), SafetensorError()]
)
def test_whatever_a_library_raises_a_file_that_cannot_be_written_is_one_kind_of_error(tmp_path, error):
    path = tmp_path / "not" / "there" / "model"
    message = f"cannot write {path}: .*MiB are free there. All is safe.$"
    with pytest.raises(OSError, match=message), writing_errors(path, "All is safe."):
        raise error
