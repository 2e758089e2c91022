"""The lock on the folder of a run, between real processes."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from hf_vqvae.training.locking import locked

pytest.importorskip("fcntl")
# Holds the lock until it is killed; its own child, as one that decodes a stream, lives on.
HOLD = """
import os, sys, time
from pathlib import Path
from hf_vqvae.training.locking import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `runs/tiny`, and the id of its child."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "tiny")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()


def test_one_process_at_a_time_holds_it_and_it_ends_with_that(holder, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    message = rf"process {holder.pid} on .* is writing the run {folder}: wait .* --output_dir"
    for _ in range(2):
        with pytest.raises(ValueError, match=message), locked(folder):
            raise AssertionError("there were two")
    with locked(folder.with_name("other")):
        pass
    holder.kill()
    holder.wait()
    with locked(folder):
        pass
    assert list(folder.parent.glob("*")) == []


def test_its_file_is_there_only_while_it_is_held(tmp_path):
    folder = tmp_path / "a" / "b" / "tiny"
    with pytest.raises(KeyError), locked(folder):
        assert [path.name for path in folder.parent.iterdir()] == [".tiny.lock"]
        raise KeyError
    assert list(folder.parent.glob("*")) == []
    with locked(folder):
        folder.mkdir()
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_stops_no_run(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", fail)
    with locked(tmp_path / "tiny"):
        (tmp_path / "tiny").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
