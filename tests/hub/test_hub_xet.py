"""Faults of Xet, the storage through which large files go where `hf_xet` is installed; as test_hub_faults for LFS."""

import shutil
import time

import pytest

from support.hub import HubServer
from support.pushes import NAME, XET_STAGES, World, hub_client, make_run

NO_TOKEN = "the Hub does not accept the token; set HF_TOKEN or run `hf auth login` anew"
MESSAGES = {
    401: NO_TOKEN,
    "revoke": NO_TOKEN,
    403: "the Hub answered 403: the token has no right to do this",
    404: "the Hub answered 404: .*or the token may not see it",
    409: "the Hub answered 409: it clashes with what is there",
    412: "the Hub answered 412: somebody else has pushed in the meantime",
    413: "the Hub answered 413: the Hub, or a proxy between, does not accept so large a file",
    429: "the Hub answered 429: too many requests; wait and push again",
    503: "the Hub answered 503: the Hub has a problem; push again later",
    "cut": "no answer from the Hub's storage: .* Is there a network",
}
LASTING = (401, 403, 404, 409, 412, 413, "revoke")
PASSING = (429, 500, 503, "cut", "lost_answer", "late_504")


@pytest.fixture(scope="module")
def module_world(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("outputs") / "tiny")
    home = tmp_path_factory.mktemp("home")
    with HubServer() as hub, hub_client(hub, home, xet=True) as client:
        world = World(hub, client, folder)
        world.home = home
        yield world


@pytest.fixture
def world(module_world):
    # What was uploaded once is in this cache, and is not uploaded again.
    shutil.rmtree(module_world.home / "xet", ignore_errors=True)
    module_world.start(old=False)
    return module_world


def cases(faults, is_quick):
    return [
        pytest.param(stage, old, fault, marks=() if is_quick(stage, old, fault) else pytest.mark.long)
        for stage in XET_STAGES
        for old in ((False, True) if stage in ("token", "shard") else (False,))
        for fault in faults
        if (stage, fault) != ("storage", "revoke")  # storage is sent no token
    ]


def test_a_push_by_xet_is_one_commit(world):
    world.check_done(world.push())
    assert all(world.requests(stage) == 1 for stage in XET_STAGES)
    assert world.requests("upload") == 0


def test_a_run_that_is_there_already_opens_no_pull_request(world):
    world.check_done(world.push())
    done = world.push("--hub_create_pr")
    assert done.returncode == 1 and "no pull request was opened" in done.stderr
    assert "Pushed" not in done.stdout and set(world.hub.repo(NAME).refs) == {"main"}


def test_a_repo_that_is_deleted_is_not_said_to_be_left(world):
    world.fail("shard", 403, times=99)
    world.hub.fail("DELETE", "/api/repos/delete", status="lost_answer")
    done = world.push()
    assert world.commits() == [] and "is left there" not in done.stderr
    world.repair()
    world.fail("shard", "revoke")
    done = world.push()
    assert world.commits() == ["initial commit"] and "is left there without" in done.stderr


@pytest.mark.parametrize("stage, old, fault", cases(LASTING, lambda stage, old, fault: stage == "shard" and not old))
def test_a_fault_that_stays_ends_the_push_at_once(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault, times=99)
    start = time.monotonic()
    done = world.push()
    assert time.monotonic() - start < 10
    message = MESSAGES[fault]
    if stage != "token" and fault in (403, 404, 409, 412):
        message = rf"a large file was not pushed\. Its storage answered {fault}: push again"
    command = world.check_failed(done, message)
    left = fault == "revoke" and not old
    assert world.commits() == (["initial commit"] if left else world.commits_before)
    world.repair()
    world.check_done(world.run(*command))


@pytest.mark.parametrize("stage, old, fault", cases(PASSING, lambda stage, old, fault: stage == "grant"))
def test_a_fault_that_passes_is_waited_out(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault)
    world.check_done(world.push())
    assert not any(failure.times for failure in world.hub.failures), "the fault did not happen"


@pytest.mark.parametrize(
    "stage, old, fault", cases((429, 503, "cut"), lambda stage, old, fault: stage == "token" and fault == 503 and old)
)
def test_a_fault_that_does_not_pass_ends_the_push_after_a_while(world, stage, old, fault):
    world.start(old)
    world.fail(stage, fault, times=99)
    command = world.check_failed(world.push(), MESSAGES[fault])
    assert world.commits() == world.commits_before, "and no empty repo"
    world.repair()
    world.check_done(world.run(*command))


PUSH_IN_A_SECOND = """
import sys
from hf_vqvae.publishing.push import PushError, push_folder
try:
    print(push_folder(sys.argv[1], "me/tiny", timeout=1))
except PushError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    "stage", [stage if stage == "shard" else pytest.param(stage, marks=pytest.mark.long) for stage in XET_STAGES]
)
def test_no_answer_is_not_waited_for_without_end(world, tmp_path, stage):
    script = tmp_path / "push.py"
    script.write_text(PUSH_IN_A_SECOND)
    world.fail(stage, "slow", seconds=20, times=99)
    start = time.monotonic()
    command = world.check_failed(world.run(script, world.folder), "no answer from the Hub's storage")
    assert time.monotonic() - start < 10
    assert world.commits() == []
    world.repair()
    world.check_done(world.run(*command))
