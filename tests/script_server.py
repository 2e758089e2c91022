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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
# What the libraries import only when they need it.
LATER = ["hf_vqvae.figures.architecture", "hf_vqvae.figures.charts", "sklearn.datasets"]


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
        prefix: words before the command that starts the server.
        cpu: whether the scripts see no GPU.
    """

    def __init__(self, home: Path, prefix: Sequence[str] = (), *, cpu: bool = True):
        self.home = home
        environment = os.environ | {
            "HF_HOME": str(home / "home"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": str(cpu).lower(),
        }
        self.server = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment,
        )

    def __enter__(self) -> "ScriptServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(
        self,
        script,
        *arguments,
        folder=None,
        signals=(),
        environment=None,
        dies_at=None,
        timeout=120,
    ) -> Done:
        """Runs a script to its end.

        Args:
            script: its path, from the checkout.
            folder: where it runs; a new one by default.
            signals: pairs of an optimizer step (counted from 1 in this process) and the signal that the process is to
                get after it.
            environment: variables that it has besides the server's.
            dies_at: `(folder, number)`: SIGKILL comes just before the process changes something on the disk, in or
                beside `folder`, for the `number`-th time.
        """
        job = self._start(script, arguments, signals, environment or {}, dies_at, folder)
        return self.wait(job, timeout)

    def start(self, script, *arguments, folder=None) -> tuple[int, Path]:
        """As `run`, without waiting; returns the process id and the folder of its output."""
        return self._start(script, arguments, (), {}, folder=folder)

    def run_for(self, seconds, script, *arguments, timeout=120) -> Done:
        """Runs a script to its end or, if that is sooner, until it is killed after some seconds."""
        job = self.start(script, *arguments)
        until = time.monotonic() + seconds
        while (status := self._ask({"wait": job[0]})) is None and time.monotonic() < until:
            time.sleep(0.005)
        if status is None:
            os.kill(job[0], signal.SIGKILL)
            return self.wait(job, timeout)
        return self._done(job, status)

    def run_together(self, script, *arguments, processes=2, timeout=240, **options) -> list[Done]:
        """Runs a script in several processes that train together, with what a launcher tells them.

        `signals` may be those of each process by its number.
        """
        jobs = self.start_together(script, *arguments, processes=processes, **options)
        return [self.wait(job, timeout) for job in jobs]

    def start_together(self, script, *arguments, processes=2, signals=()) -> list[tuple[int, Path]]:
        """As `run_together`, without waiting; returns each one's process id and folder of output."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started = []
        for rank in range(processes):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            environment |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            variables = {key: str(value) for key, value in environment.items()}
            own = signals.get(rank, ()) if isinstance(signals, dict) else signals
            started.append(self._start(script, arguments, own, variables))
        return started

    def _start(
        self, script, arguments, signals, environment, dies_at=None, folder=None
    ) -> tuple[int, Path]:
        output = Path(tempfile.mkdtemp(dir=self.home))
        for name in ("stdout", "stderr"):  # it may be killed, or read, before it opens them
            (output / name).touch()
        job = {"script": str(ROOT / script), "arguments": [str(word) for word in arguments]}
        job |= {"signals": [[step, int(number)] for step, number in signals]}
        job |= {"dies_at": dies_at and [str(dies_at[0]), dies_at[1]]}
        job |= {"environment": environment, "output": str(output), "folder": str(folder or output)}
        self._tell(job)
        return self._answer(), output

    def wait(self, job: tuple[int, Path], timeout: float) -> Done:
        """How a job ended; it is killed if it does not within `timeout` seconds."""
        pid, _ = job
        until = time.monotonic() + timeout
        while (status := self._ask({"wait": pid})) is None:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        return self._done(job, status)

    def _done(self, job: tuple[int, Path], status: int) -> Done:
        _, output = job
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
    os.chdir(job["folder"])
    sys.argv = [job["script"], *job["arguments"]]
    sys.orig_argv = [sys.executable, *sys.argv]
    if job["dies_at"]:
        die_at(*job["dies_at"])
    wanted, steps = dict(job["signals"]), 0

    def after_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps in wanted:
            os.kill(os.getpid(), wanted[steps])

    if wanted:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(after_step)


def die_at(folder: str, number: int) -> None:
    """Kills this process just before its `number`-th change of the disk in or beside `folder`."""
    changes = 0

    def before(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            path = arguments[0]
        else:
            return
        within = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # of a tree that goes
        if within or str(path).startswith(folder):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)


if __name__ == "__main__":
    sys.path.append(str(ROOT / "scripts"))  # where a script finds the modules beside it
    for path in ("scripts/train.py", "scripts/sample.py"):
        runpy.run_path(str(ROOT / path), run_name="imported")  # imports all, runs nothing
    for module in LATER:
        importlib.import_module(module)
    Image.init()
    gc.freeze()  # what is imported stays: children need not look through it

    job = serve()
    become(job)
    runpy.run_path(job["script"], run_name="__main__")
