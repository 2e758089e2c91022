"""Time sampling and training, and train the same network with other packages; print tables.

python scripts/benchmark.py sample
python scripts/benchmark.py prior --rounds 30 --threads 2
python scripts/benchmark.py peers --dataset_name ylecun/mnist --epochs 5

Calls that are compared are timed in turn (A, B, A, B), so that other load on the machine slows all of them alike; only
the peers are trained one after the other. The numbers hold for the machine that is named below each table.
"""

__registers_after_parsing__ = True  # --help and a wrong flag need no modeling code

import multiprocessing
import os
import platform
import re
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.utils.benchmark

from hf_vqvae.arguments import DataArguments, check_bounds, flag
from hf_vqvae.command_line import ScriptArgumentParser, format_table, log_line, progress_bar, run_script

# Rows of `peers`: a package, and how it is used where it is not its defaults.
PEERS = ["hf_vqvae", "vector_quantize_pytorch", "vector_quantize_pytorch:kmeans", "keras"]
MIN_SECONDS = 0.02  # shorter calls are repeated within a round
LOOP_STEPS = 16  # of an uncached loop that are timed, of all
Table = tuple[list[str], list[list[str]], str]  # header, rows, and the note below


@dataclass
class CommonArguments:
    """Flags of every command."""

    rounds: int = flag(10, "Timed rounds, after a warm-up.", at_least=1)
    threads: int = flag(1, "CPU threads.", at_least=1)
    device: str = flag("cuda" if torch.cuda.is_available() else "cpu", "Where to compute.", choices=["cpu", "cuda"])

    def __post_init__(self):
        check_bounds(self)


@dataclass
class SampleArguments(CommonArguments):
    """Flags of `benchmark.py sample`."""

    cases: list[str] = flag(
        ["7x7x128x1", "7x7x128x16", "7x7x128x256", "32x32x512x1"],
        "Rows x columns x codes x images per batch, for each line.",
    )


@dataclass
class PriorArguments(CommonArguments):
    """Flags of `benchmark.py prior`."""

    batch_size: int = flag(128, "Grids of codes per step.", at_least=1)
    grid_size: list[int] = flag([7, 7], "Rows and columns of codes.")
    num_embeddings: int = flag(128, "Number K of codes.")


@dataclass
class PeersArguments(CommonArguments, DataArguments):
    """Flags of `benchmark.py peers`."""

    implementations: list[str] = flag(PEERS, "Packages to compare, in this order.", choices=PEERS)
    epochs: int = flag(5, "Epochs of each.", at_least=1)
    mixed_precision: str = flag("no", "`bf16` trains all of them under it.", choices=["no", "bf16"])
    seed: int = flag(0, "Seed of weights and shuffling.", at_least=0, below=2**32)

    # Not flags: all images are in memory, and each is trained once.
    streaming: bool = field(default=False, init=False)
    rounds: int = field(default=0, init=False)


def main() -> None:
    commands = {
        "sample": (SampleArguments, sample),
        "prior": (PriorArguments, prior),
        "peers": (PeersArguments, peers),
    }
    parser = ScriptArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (kind, command) in commands.items():
        text = command.__doc__
        parsers.add_parser(name, dataclasses=kind, help=text, description=text)
    values = vars(parser.parse_args())
    kind, command = commands[values.pop("command")]
    arguments = kind(**values)
    torch.set_num_threads(arguments.threads)
    header, rows, note = command(arguments)
    texts = ("network", "method", "implementation")
    align = "".join("<" if name in texts else ">" for name in header)
    table = format_table(header, rows, align)
    environment = describe_environment(torch.device(arguments.device))
    medians = f" Medians of {arguments.rounds} interleaved rounds." if arguments.rounds else ""
    print(f"\n{table}\n\n{note}{medians} {environment}.")


def sample(arguments: SampleArguments) -> Table:
    """Compare cached sampling with uncached loops and forward passes."""
    from benchmark_networks import make_samplers  # after parsing: it takes seconds

    rows = []
    cases = [parse_case(case) for case in arguments.cases]
    for architecture, (grid, codes, number) in product(("plain", "gated"), cases):
        samplers = make_samplers(architecture, grid, codes, number, LOOP_STEPS, arguments.device)
        case = [architecture, f"{grid[0]}x{grid[1]}", str(codes), str(number)]
        seconds = time_interleaved(samplers, arguments.rounds, " ".join(case))
        scale = max(1, grid[0] * grid[1] / LOOP_STEPS)
        for name in samplers:
            if name.endswith("loop"):
                seconds[name] = [scale * value for value in seconds[name]]
        rows += [[*case, *row] for row in compare(seconds, "own loop", number)]
    header = ["network", "grid", "codes", "images", "method", "ms", "images/s", "times own loop"]
    note = (
        "A loop computes a full forward pass for each code: `own` of this package's network, `reference` of the same "
        "network and parameters written with masked convolutions over one-hot planes. "
        f"Of loops of more than {LOOP_STEPS} codes, {LOOP_STEPS} of the steps are timed, spread over the grid, and "
        "extrapolated: a forward pass costs the same at every code. All in float32."
    )
    return header, rows, note


def parse_case(text: str) -> tuple[tuple[int, int], int, int]:
    """`7x7x128x16 -> ((7, 7), 128, 16)`."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise ValueError(f"--cases {text}: each must be rows x columns x codes x images, such as 7x7x128x16.")
    height, width, codes, number = map(int, text.split("x"))
    return (height, width), codes, number


def prior(arguments: PriorArguments) -> Table:
    """Compare training of the prior with a reference implementation."""
    from benchmark_networks import REFERENCE, VARIANTS, make_prior_step

    steps = {variant: make_prior_step(variant, arguments) for variant in VARIANTS}
    rows = compare(time_interleaved(steps, arguments.rounds, "prior"), REFERENCE, arguments.batch_size)
    header = ["network", "ms a step", "grids/s", "times the reference"]
    if arguments.device != "cpu":
        header += ["peak MiB", "peak : reference"]
        peaks = [peak_memory(partial(make_prior_step, variant, arguments)) for variant in VARIANTS]
        for row, peak in zip(rows, peaks, strict=True):
            row += [format_number(peak / 2**20), format_number(peak / peaks[0])]
    note = (
        f"Forward, backward and Adam step on {arguments.batch_size} grids. The first row, the reference, is the "
        "plain network written with masked convolutions over one-hot planes; ours is in channels-last, bf16 "
        "under autocast, as scripts/train.py trains. Peak memory, on a GPU: weights, gradients, Adam and activations."
    )
    return header, rows, note


def peers(arguments: PeersArguments) -> Table:
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
        rows.append([name, str(arguments.epochs), *map(format_number, result.values())])
    note = (
        f"The page's network, trained on split {arguments.train_split} with --mixed_precision "
        f"{arguments.mixed_precision} and measured on split {arguments.eval_split}, reconstructions clipped to [0, 1]; "
        "each in a process of its own, one after the other. hf_vqvae: the default recipe of scripts/train.py; "
        "vector_quantize_pytorch: its defaults, or k-means start, dead codes replaced and rotation trick off, by Adam "
        "1e-3; keras: the recipe of the Keras example. "
        f"{', '.join(f'{package} {version(package)}' for package in packages)}."
    )
    return ["implementation", "epochs", *result], rows, note


def time_interleaved(calls: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Time calls in turn (A, B, A, B); return the seconds of each by name, one value per round after a warm-up."""

    def seconds(call: Callable[[], object], number: int) -> float:
        return timeit.timeit(call, timer=torch.utils.benchmark.timer, number=number) / number

    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = int(MIN_SECONDS / seconds(call, 1)) + 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in progress_bar(range(rounds), title, unit=" rounds"):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats[name]))
    return times


def compare(seconds: dict[str, list[float]], baseline: str, count: int) -> list[list[str]]:
    """Make rows of a table: name, median milliseconds, items per second, speed relative to `baseline`.

    Args:
        seconds: as [`time_interleaved`] returns it; the speed is the median of the ratios within a round.
        count: items that a call handles.
    """
    rows = []
    for name, values in seconds.items():
        speed = median(a / b for a, b in zip(seconds[baseline], values, strict=True))
        numbers = (1000 * median(values), count / median(values), speed)
        rows.append([name, *map(format_number, numbers)])
    return rows


def peak_memory(make_call: Callable[[], Callable[[], object]]) -> int:
    """Measure the most bytes on the GPU that `make_call()` and three calls of its result take."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call = make_call()
    for _ in range(3):
        call()
    return torch.cuda.max_memory_allocated() - before


def describe_environment(device: torch.device) -> str:
    """Describe processor, cores, threads and torch."""
    path = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", path.read_text() if path.exists() else "", re.M)
    processor = model[1] if model else platform.processor()
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}, {processor}"
    return f"{processor}, threads {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


def format_number(value: float) -> str:
    """Format with three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    run_script(main)
