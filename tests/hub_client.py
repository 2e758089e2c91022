"""Runs scripts one after another in one process whose Hub clients talk to a loopback Hub.

The clients read the endpoint at import, and imports take seconds: so the process stays. What a script prints, by the
interpreter too, is what its user would read.

    with HubServer() as hub, HubClient(hub, home) as client:
        done = client.run("scripts/push_to_hub.py", folder, "--hub_model_id", "me/model", token="hf_write")
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
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
        environment = hub.environment(home) | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment | variables,
        )

    def __enter__(self) -> "HubClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(self, script, *arguments, token: str) -> Done:
        """Runs a script to its end, as the user of `token`."""
        job = {"words": [str(word) for word in (script, *arguments)], "token": token}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Done(*json.loads(self.process.stdout.readline()))


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


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    for name in SCRIPTS:
        runpy.run_path(f"scripts/{name}.py", run_name="imported")
    for line in sys.stdin:
        job = json.loads(line)
        os.environ["HF_TOKEN"] = job["token"]
        print(json.dumps(run_job(job["words"])), file=answers, flush=True)
