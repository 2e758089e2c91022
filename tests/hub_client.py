"""Runs scripts one after another in one process whose Hub clients talk to a loopback Hub.

The clients read the endpoint at import, and imports take seconds: so the process stays. What a script prints, by the
interpreter too, is what its user would read.

    with HubServer() as hub, HubClient(hub, home) as client:
        done = client.run("scripts/push_to_hub.py", folder, "--hub_model_id", "me/model", token="hf_write")
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from script_server import Done

ROOT = Path(__file__).parents[1]
SCRIPTS = ("push_to_hub", "evaluate", "sample")


class HubClient:
    """See the module.

    Args:
        hub: the `HubServer`.
        home: folder for the caches.
        variables: more of the environment.
    """

    def __init__(self, hub, home: Path, **variables: str):
        self.home = home
        environment = hub.environment(home) | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment | variables,
        )

    def __enter__(self) -> "HubClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(self, script, *arguments, token: str) -> Done:
        """Runs a script to its end, as the user of `token`."""
        job = {"words": [str(ROOT / script), *map(str, arguments)], "token": token}
        return Done(*self._ask(job))

    def start(self, script, *arguments, token: str) -> "Started":
        """Starts a script in a process of its own, which can be sent signals."""
        output = Path(tempfile.mkdtemp(dir=self.home))
        for name in ("stdout", "stderr"):  # it may be killed before it opens them
            (output / name).touch()
        job = {"words": [str(ROOT / script), *map(str, arguments)], "token": token}
        return Started(self, self._ask(job | {"output": str(output)}), output)

    def _ask(self, job: dict):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Started:
    """A process that `HubClient.start` started."""

    def __init__(self, client: HubClient, pid: int, output: Path):
        self.client, self.pid, self.output = client, pid, output

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> Done:
        """Its end; killed, and an error, where that takes too long."""
        until = time.monotonic() + timeout
        while (status := self.client._ask({"wait": self.pid})) is None:
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
            time.sleep(0.02)
        assert time.monotonic() < until, "it had to be killed"
        texts = [(self.output / name).read_text() for name in ("stdout", "stderr")]
        return Done(os.waitstatus_to_exitcode(status), *texts)


def run_job(words: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `python words...`."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        status = run_script(words)
        for stream, file in ((sys.stdout, stdout), (sys.stderr, stderr)):
            stream.flush()
            file.seek(0)
        return status, stdout.read(), stderr.read()


def run_script(words: list[str]) -> int:
    """What the interpreter does with a script and how it ends."""
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(answers) -> dict:
    """Answers until the end; returns in a forked child only, with its job."""
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            pid, status = os.waitpid(job["wait"], os.WNOHANG)
            answer = status if pid else None
        elif "output" in job:
            answer = os.fork()
            if answer == 0:
                return job
        else:
            os.environ["HF_TOKEN"] = job["token"]
            answer = run_job(job["words"])
        print(json.dumps(answer), file=answers, flush=True)
    sys.exit()


def become(job: dict) -> None:
    """Makes this process what `python words...` would be."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["output"]) / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HF_TOKEN"] = job["token"]
    sys.argv = job["words"]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    # The pauses before requests are repeated: as many, ten times shorter.
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds / 10)
    for name in SCRIPTS:
        runpy.run_path(str(ROOT / f"scripts/{name}.py"), run_name="imported")
    gc.freeze()  # what is imported stays: children need not look through it
    job = serve(answers)
    become(job)
    runpy.run_path(sys.argv[0], run_name="__main__")
