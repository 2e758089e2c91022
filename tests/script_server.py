"""Runs scripts in real processes without the seconds that imports take.

One process imports everything and forks a child for each run. A child is a process like any other: it can be sent
signals, has an exit status, and may be one of several that train together.

    with ScriptServer(home) as server:
        done = server.run("scripts/train.py", "--dataset_name", "digits")
        assert done.returncode == 0, done.stderr
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
# What the libraries import only when they need it.
LATER = ["hf_vqvae.plotting_architecture", "hf_vqvae.plotting_charts", "sklearn.datasets"]


@dataclass
class Done:
    """How a run ended; `returncode` is negative where a signal killed it."""

    returncode: int
    stdout: str
    stderr: str


class ScriptServer:
    """See the module.

    Args:
        home: folder for caches and outputs of the scripts.
    """

    def __init__(self, home: Path):
        self.home = home
        environment = {key: value for key, value in os.environ.items() if key[:3] != "HF_"}
        environment |= {
            "HF_HOME": str(home / "home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment | {"ACCELERATE_USE_CPU": "true"},
        )

    def __enter__(self) -> "ScriptServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(self, script, *arguments, signals=(), environment=None, timeout=120) -> Done:
        """Runs a script to its end.

        Args:
            signals: pairs of an optimizer step (counted from 1 in this process) and the signal that the process is to
                get after it.
            environment: variables that it has besides the server's.
        """
        return self._wait(self._start(script, arguments, signals, environment or {}), timeout)

    def run_together(self, script, *arguments, processes=2, timeout=240, **options) -> list[Done]:
        """Runs a script in several processes that train together, with what a launcher tells them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started = []
        for rank in range(processes):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            environment |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            variables = {key: str(value) for key, value in environment.items()}
            signals = options.get("signals", ())
            started.append(self._start(script, arguments, signals, variables))
        return [self._wait(job, timeout) for job in started]

    def _start(self, script, arguments, signals, environment) -> tuple[int, Path]:
        output = Path(tempfile.mkdtemp(dir=self.home))
        job = {"script": str(script), "arguments": [str(word) for word in arguments]}
        job |= {"signals": [[step, int(number)] for step, number in signals]}
        self._tell(job | {"environment": environment, "output": str(output)})
        return self._answer(), output

    def _wait(self, job: tuple[int, Path], timeout: float) -> Done:
        pid, output = job
        until = time.monotonic() + timeout
        while (status := self._ask({"wait": pid})) is None:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        texts = [(output / name).read_text() for name in ("stdout", "stderr")]
        return Done(os.waitstatus_to_exitcode(status), *texts)

    def _tell(self, message: dict) -> None:
        self.server.stdin.write(json.dumps(message) + "\n")
        self.server.stdin.flush()

    def _answer(self):
        return json.loads(self.server.stdout.readline())

    def _ask(self, message: dict):
        self._tell(message)
        return self._answer()


def serve() -> dict:
    """Answers until the end; returns in a forked child only, with its job."""
    for line in sys.stdin:
        message = json.loads(line)
        if "wait" in message:
            pid, status = os.waitpid(message["wait"], os.WNOHANG)
            answer = status if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return message
        print(json.dumps(answer), flush=True)
    sys.exit()


def become(job: dict) -> None:
    """Makes this process what `python script arguments` would be."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(job["output"]) / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(job["environment"])
    sys.argv = [job["script"], *job["arguments"]]
    sys.orig_argv = [sys.executable, *sys.argv]
    wanted, steps = dict(job["signals"]), 0

    def after_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps in wanted:
            os.kill(os.getpid(), wanted[steps])

    if wanted:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(after_step)


if __name__ == "__main__":
    for path in ("scripts/train.py", "scripts/sample.py"):
        runpy.run_path(path, run_name="imported")  # imports all, runs nothing
    for module in LATER:
        importlib.import_module(module)
    Image.init()
    gc.freeze()  # what is imported stays: children need not look through it

    job = serve()
    become(job)
    runpy.run_path(job["script"], run_name="__main__")
