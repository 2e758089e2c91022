"""Run scripts in real processes without the seconds that their imports take.

One server process imports everything and forks a child for each run. A child is a process like any other: it can be
sent signals, it has an exit status, and it may be one of several that train together.

    with ScriptServer(home) as server:
        done = server.run("scripts/train.py", "--dataset_name", "digits")
        assert done.returncode == 0, done.stderr
"""

import gc
import importlib.util
import json
import os
import pkgutil
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

ROOT = Path(__file__).parents[2]


@dataclass
class Done:
    """The end of a run; `returncode` is negative if a signal killed it."""

    returncode: int
    stdout: str
    stderr: str


class ScriptServer:
    """A server of forked script runs.

    Args:
        home: folder for the caches of the scripts and what they print.
        prefix: words before the command that starts the server.
        cpu: whether to hide GPUs from the scripts.
        environment: more variables; those that libraries read at import have to be here.
        haste: factor by which pauses (`time.sleep`) are shortened.
    """

    def __init__(
        self,
        home: Path,
        prefix: Sequence[str] = (),
        *,
        cpu: bool = True,
        environment: dict[str, str] | None = None,
        haste: int = 1,
    ):
        self.home = home
        variables = {"HF_HOME": str(home / "home"), "HF_HUB_OFFLINE": "1"}
        variables = variables if environment is None else environment
        variables = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": str(cpu).lower()} | variables
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__, str(haste)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
            env=os.environ | variables,
        )

    def __enter__(self) -> "ScriptServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def start(self, script, *arguments, folder=None, signals=(), environment=None, dies_at=None) -> "Job":
        """Start a script.

        Args:
            script: its path, absolute or relative to the checkout.
            folder: current folder of the process; a new one by default.
            signals: pairs of an optimizer step (counted from 1 in this process) and the signal that the process
                gets after it.
            environment: variables besides the server's.
            dies_at: `(folder, number)`: SIGKILL comes just before the process changes something on the disk, in or
                beside `folder`, for the `number`-th time.
        """
        output = Path(tempfile.mkdtemp(dir=self.home))
        for name in ("stdout", "stderr"):  # the process may be killed, or read, before it opens them
            (output / name).touch()
        job = {"words": [str(ROOT / script), *map(str, arguments)], "output": str(output)}
        job |= {"folder": str(folder or output), "environment": environment or {}}
        job |= {"signals": [[step, int(number)] for step, number in signals]}
        job |= {"dies_at": dies_at and [str(dies_at[0]), dies_at[1]]}
        return Job(self, self.ask(job), output)

    def run(self, script, *arguments, timeout=120, **options) -> Done:
        """Run a script to its end; `options` are those of `start`."""
        return self.start(script, *arguments, **options).wait(timeout)

    def succeed(self, script, *arguments, **options) -> Done:
        """Run a script to its end, which must be status 0; `options` are those of `run`."""
        done = self.run(script, *arguments, **options)
        assert done.returncode == 0, done.stderr
        return done

    def run_for(self, seconds, script, *arguments, timeout=120) -> Done:
        """Run a script to its end, or kill it after some seconds if that is sooner."""
        job = self.start(script, *arguments)
        until = time.monotonic() + seconds
        while job.is_running() and time.monotonic() < until:
            time.sleep(0.005)
        if job.is_running():
            job.send(signal.SIGKILL)
        return job.wait(timeout)

    def start_together(self, script, *arguments, processes=2, signals=()) -> list["Job"]:
        """Start a script in several processes that train together, with the variables that a launcher sets.

        `signals` may be a dict from each process's rank to its signals.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started = []
        for rank in range(processes):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            variables |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            variables |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            own = signals.get(rank, ()) if isinstance(signals, dict) else signals
            environment = {key: str(value) for key, value in variables.items()}
            started.append(self.start(script, *arguments, signals=own, environment=environment))
        return started

    def run_together(self, script, *arguments, timeout=240, **options) -> list[Done]:
        """Run a script in several processes to their ends; `options` are those of `start_together`."""
        jobs = self.start_together(script, *arguments, **options)
        return [job.wait(timeout) for job in jobs]

    def call_together(self, function, *arguments, processes=2) -> None:
        """Call a function of a test file, with strings, in several processes that train together; all must succeed."""
        words = [function.__code__.co_filename, function.__name__, *arguments]
        for done in self.run_together("tests/support/call.py", *words, processes=processes):
            assert done.returncode == 0, done.stderr

    def ask(self, message: dict):
        """Send the server a message and return its answer."""
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Job:
    """A started process."""

    def __init__(self, server: ScriptServer, pid: int, output: Path):
        self.server, self.pid, self.output = server, pid, output
        self.status: int | None = None

    def printed(self, name: str = "stdout") -> str:
        """What it has printed so far."""
        return (self.output / name).read_text()

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        if self.status is None:
            self.status = self.server.ask({"wait": self.pid})
        return self.status is None

    def wait(self, timeout: float = 60) -> Done:
        """Wait for its end; kill it after `timeout` seconds, which its `returncode` tells."""
        until = time.monotonic() + timeout
        while self.is_running():
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
            time.sleep(0.02)
        code = os.waitstatus_to_exitcode(self.status)
        return Done(code, self.printed("stdout"), self.printed("stderr"))


def load_script(script: str):
    """The module of a script; `script` is relative to the checkout."""
    name = f"script_{Path(script).stem}"  # `evaluate` is a library
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve() -> dict:
    """Answer messages until the end of stdin; returns in a forked child only, with its job."""
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
    """Make this process what `python script arguments` would be."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["output"]) / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.argv = job["words"]
    sys.orig_argv = [sys.executable, *sys.argv]
    if job["dies_at"]:
        die_at(*job["dies_at"])
    if job["signals"]:
        send_after_steps(dict(job["signals"]))


def send_after_steps(signals: dict[int, int]) -> None:
    """Send this process signals after optimizer steps, `{step: signal}`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def after_step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps in signals:
            os.kill(os.getpid(), signals[steps])

    register_optimizer_step_post_hook(after_step)


def die_at(folder: str, number: int) -> None:
    """Kill this process just before its `number`-th change of the disk in or beside `folder`."""
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


def import_everything() -> None:
    """Import every module of the package and of scripts/, and what they import only when they need it."""
    import hf_vqvae

    for module in pkgutil.walk_packages(hf_vqvae.__path__, "hf_vqvae."):
        importlib.import_module(module.name)
    sys.path.append(str(ROOT / "scripts"))  # where a script finds the modules beside it
    for path in (ROOT / "scripts").glob("*.py"):
        runpy.run_path(str(path), run_name="imported")  # runs nothing
    for name in ("sklearn.datasets", "transformers.pipelines"):
        importlib.import_module(name)

    from PIL import Image

    Image.init()


if __name__ == "__main__":
    # As in a script, whose folder has no modules of the tests.
    sys.path.remove(str(Path(__file__).parent))
    import_everything()
    # The factor by which pauses are shorter: as many, and in the same order.
    sleep, haste = time.sleep, int(sys.argv[1])
    if haste != 1:
        time.sleep = lambda seconds: sleep(seconds / haste)
    gc.freeze()  # what is imported stays: children need not look through it

    job = serve()
    become(job)
    runpy.run_path(sys.argv[0], run_name="__main__")
