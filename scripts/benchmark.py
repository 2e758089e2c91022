"""Train the same network with this package and others, one after the other, and compare what comes out in a table.

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
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from hf_vqvae.arguments import DataArguments, flag
from hf_vqvae.command_line import ScriptArgumentParser, format_table, log_line, run_script

# Rows of `peers`: a package, and how it is used where it is not its defaults.
PEERS = ["hf_vqvae", "vector_quantize_pytorch", "vector_quantize_pytorch:kmeans", "keras"]


@dataclass
class PeersArguments(DataArguments):
    """What to train, and where."""

    implementations: list[str] = flag(PEERS, "Packages to compare, in this order.", choices=PEERS)
    epochs: int = flag(5, "Epochs of each.", at_least=1)
    mixed_precision: str = flag("no", "`bf16` trains all of them under it.", choices=["no", "bf16"])
    seed: int = flag(0, "Seed of weights and shuffling.", at_least=0, below=2**32)
    threads: int = flag(1, "CPU threads.", at_least=1)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "Where to compute.", choices=["cpu", "cuda"])
    streaming: bool = field(default=False, init=False)  # no flag: all images are in memory


def main() -> None:
    parser = ScriptArgumentParser(PeersArguments, description=__doc__)
    parser.add_argument("command", choices=["peers"], help="What to compare.")
    arguments, _ = parser.parse()
    print(f"\n{peers(arguments)} {describe_environment(arguments)}.")


def peers(arguments: PeersArguments) -> str:
    """Return the table, with the protocol below it."""
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


def describe_environment(arguments: PeersArguments) -> str:
    """Describe processor, cores, threads and torch."""
    path = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", path.read_text() if path.exists() else "", re.M)
    processor = model[1] if model else platform.processor()
    if arguments.device == "cuda":
        processor = f"{torch.cuda.get_device_name()}, {processor}"
    return f"{processor}, threads {arguments.threads} of {os.cpu_count()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    run_script(main)
