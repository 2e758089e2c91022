"""What all tests share: one thread a process, caches of their own, and a server that runs scripts."""

import os
import tempfile

# Before anything is imported that reads them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_vqvae_tests_")

import pytest

from script_server import ScriptServer


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    with ScriptServer(tmp_path_factory.mktemp("scripts")) as server:
        yield server
