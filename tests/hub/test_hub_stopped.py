"""Pushes that are stopped or killed: what the user reads, what is on the Hub, and that the push can be done again."""

import re
import signal
import time

import pytest

from support.hub import HubServer
from support.pushes import STAGES, TOKEN, World, digest, hub_client, make_run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def module_world(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("outputs") / "tiny")
    home = tmp_path_factory.mktemp("home")
    with HubServer() as hub, hub_client(hub, home) as client:
        yield World(hub, client, folder)


def start_slow_push(world, stage, old, seconds, *flags):
    """A push that has come to `stage`, whose answer takes `seconds`."""
    world.start(old)
    world.fail(stage, "slow", seconds=seconds, times=99)
    words = ("scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny", *flags)
    push = world.client.start(*words, environment={"HF_TOKEN": TOKEN})
    until = time.monotonic() + 60
    while not world.requests(stage):
        assert time.monotonic() < until
        time.sleep(0.01)
    return push


def check_stopped(world, done, number):
    """The words of the command that the user reads."""
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    assert "Pushed" not in done.stdout and "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert digest(world.folder) == world.before
    if number == signal.SIGKILL:
        return ["scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny"]
    message = rf"The push was stopped by {signal.Signals(number).name}. This tries again:\n\n    "
    (command,) = re.findall(message + "python (.*)$", done.stderr, re.MULTILINE)
    return command.split()


def wait_until_idle(world, seconds):
    """What the server was slow with has taken effect."""
    time.sleep(seconds + 0.2)


STOPS = [
    pytest.param(
        stage,
        old,
        number,
        id=f"{stage}-{'old' if old else 'new'}-{number.name}",
        marks=() if (stage, old, number) == ("upload", False, SIGNALS[1]) else pytest.mark.long,
    )
    for stage in STAGES
    for old in (False, True)
    for number in SIGNALS
    if stage != "branch" and (stage != "create" or not old) and (stage != "card" or old)
]


@pytest.mark.parametrize("stage, old, number", STOPS)
def test_a_push_that_is_stopped_can_be_done_again(module_world, stage, old, number):
    world = module_world
    push = start_slow_push(world, stage, old, 0.5)
    push.send(number)
    words = check_stopped(world, push.wait(), number)
    wait_until_idle(world, 0.5)
    left = world.commits()
    # The commit itself may go through on the Hub although nobody hears of it any more. One or none it is.
    possible = [world.commits_before]
    if stage == "commit":
        possible.append(["Upload tiny", *(world.commits_before or ["initial commit"])])
    if not old and (number == signal.SIGKILL or stage == "create"):
        possible.append(["initial commit"])  # nobody was left to delete the new repo
    assert left in possible
    world.repair()
    world.check_done(world.run(*words))


@pytest.mark.parametrize("number", SIGNALS[:2])
@pytest.mark.long
def test_a_second_signal_waits_for_nothing(module_world, number):
    world = module_world
    push = start_slow_push(world, "upload", False, 20)
    push.send(number)
    time.sleep(1)
    start = time.monotonic()
    push.send(number)
    done = push.wait()
    assert time.monotonic() - start < 5
    assert "once more stops at once" in done.stderr
    words = check_stopped(world, done, number)
    assert world.commits() == ["initial commit"], "the repo is left, and the model is not in it"
    world.repair()
    world.check_done(world.run(*words))


@pytest.mark.long
def test_killed_over_and_over_it_is_done_in_the_end(module_world):
    """A push to a new repo, killed at random moments until one goes through."""
    world = module_world
    world.start(old=False)
    words = ("scripts/push_to_hub.py", world.folder, "--hub_model_id", "me/tiny")
    for moment in range(12):
        push = world.client.start(*words, environment={"HF_TOKEN": TOKEN})
        time.sleep(0.05 * moment)
        push.send(signal.SIGKILL)
        push.wait()
        assert world.commits() in ([], ["initial commit"], ["Upload tiny", "initial commit"])
    world.check_done(world.run(*words))
