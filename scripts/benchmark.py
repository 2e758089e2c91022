"""Time sampling, or train the same network with other packages, and print a table.

python scripts/benchmark.py sample
python scripts/benchmark.py peers --dataset_name ylecun/mnist --epochs 5

The numbers hold for the machine that is named below the table.
"""

__registers_after_parsing__ = True  # --help and a wrong flag need no modeling code

import multiprocessing
import os
import platform
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from torch.utils.benchmark import Compare, Timer

from hf_vqvae.arguments import DataArguments, flag
from hf_vqvae.command_line import ScriptArgumentParser, format_table, log_line, progress_bar, run_script

# Rows of `peers`: a package, and how it is used where it is not its defaults.
PEERS = ["hf_vqvae", "vector_quantize_pytorch", "vector_quantize_pytorch:kmeans", "keras"]


@dataclass
class BenchmarkArguments(DataArguments):
    """What to time, and where."""

    threads: int = flag(1, "CPU threads.", at_least=1)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "Where to compute.", choices=["cpu", "cuda"])
    rounds: int = flag(10, "Timed rounds of `sample`.", at_least=1)
    cases: list[str] = flag(
        ["7x7x128x1", "7x7x128x16", "7x7x128x256", "32x32x512x1"],
        "Rows x columns x codes x images per batch, for each column of `sample`.",
    )
    implementations: list[str] = flag(PEERS, "Packages that `peers` compares, in this order.", choices=PEERS)
    epochs: int = flag(5, "Epochs of each peer.", at_least=1)
    mixed_precision: str = flag("no", "`bf16` trains all peers under it.", choices=["no", "bf16"])
    seed: int = flag(0, "Seed of weights and shuffling.", at_least=0, below=2**32)
    streaming: bool = field(default=False, init=False)  # no flag: all images are in memory


def main() -> None:
    parser = ScriptArgumentParser(BenchmarkArguments, description=__doc__.splitlines()[0])
    commands = {"sample": sample, "peers": peers}
    texts = [f"{name}: {command.__doc__}" for name, command in commands.items()]
    parser.add_argument("command", metavar="COMMAND", choices=commands, help=" ".join(texts))
    arguments, rest = parser.parse()
    print(f"\n{commands[rest.command](arguments)} {describe_environment(arguments)}.")


def sample(arguments: BenchmarkArguments) -> str:
    """Compare cached sampling with forward passes."""
    cases = {case: parse_case(case) for case in arguments.cases}
    from hf_vqvae.models import PixelCNNConfig, PixelCNNModel  # after parsing: it takes seconds

    times = []
    for architecture, (case, (grid, codes, number)) in product(("plain", "gated"), cases.items()):
        torch.manual_seed(0)
        config = PixelCNNConfig(num_embeddings=codes, grid_size=grid, architecture=architecture)
        model = PixelCNNModel(config).to(arguments.device).eval()
        calls = {
            "sample": partial(model.sample, number, batch_size=number),
            "forward pass": torch.inference_mode()(partial(model, model.sample(number))),
        }
        names = {"label": f"{architecture} prior", "description": case, "num_threads": arguments.threads}
        timers = [Timer("call()", globals={"call": call}, sub_label=name, **names) for name, call in calls.items()]
        # In turn, so that other load on the machine slows both.
        for _ in progress_bar(range(arguments.rounds), f"{architecture} {case}", unit=" rounds"):
            times += [timer.blocked_autorange(min_run_time=0.02) for timer in timers]
    return (
        f"{Compare(times)}\nA loop without a cache takes a forward pass for each code of the grid, rows x columns. All "
        f"in float32; medians of {arguments.rounds} interleaved rounds."
    )


def parse_case(text: str) -> tuple[tuple[int, int], int, int]:
    """`7x7x128x16 -> ((7, 7), 128, 16)`."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise ValueError(f"--cases {text}: each must be rows x columns x codes x images, such as 7x7x128x16.")
    height, width, codes, number = map(int, text.split("x"))
    return (height, width), codes, number


def peers(arguments: BenchmarkArguments) -> str:
    """Train the page's network with this package and others, one after the other, and compare what comes out."""
    packages = sorted({name.partition(":")[0] for name in arguments.implementations})
    for package in packages:
        if find_spec(package) is None:
            install = "pip install 'hf_vqvae[peers]', or in a checkout pip install -e '.[peers]'"
            raise ValueError(f"--implementations {package}: the package is not installed: {install}.")
    from benchmark_peers import train_and_measure

    rows = []
    for name in arguments.implementations:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(train_and_measure, name, arguments).result()
        log_line(name, result, f"{arguments.epochs} epochs")
        numbers = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in result.values())
        rows.append([name, str(arguments.epochs), *numbers])
    table = format_table(["implementation", "epochs", *result], rows, "<" + ">" * (1 + len(result)))
    return (
        f"{table}\n\nThe page's network, trained on split {arguments.train_split} with --mixed_precision "
        f"{arguments.mixed_precision} and measured on split {arguments.eval_split}, reconstructions clipped to [0, 1]; "
        "each in a process of its own, one after the other. hf_vqvae: the default recipe of scripts/train.py; "
        "vector_quantize_pytorch: its defaults, or k-means start, dead codes replaced and rotation trick off, by Adam "
        "1e-3; keras: the recipe of the Keras example. "
        f"{', '.join(f'{package} {version(package)}' for package in packages)}."
    )


def describe_environment(arguments: BenchmarkArguments) -> str:
    """Describe processor, cores, threads and torch."""
    path = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", path.read_text() if path.exists() else "", re.M)
    processor = model[1] if model else platform.processor()
    if arguments.device == "cuda":
        processor = f"{torch.cuda.get_device_name()}, {processor}"
    return f"{processor}, threads {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    run_script(main)
