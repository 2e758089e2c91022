"""Time sampling and training, and print tables of medians.

python scripts/benchmark.py sample
python scripts/benchmark.py prior
python scripts/benchmark.py vqvae --rounds 30 --threads 2

Calls that are compared are timed in turn (A, B, A, B), so that other load on the machine slows all of them alike. The
numbers hold for the machine that is named below each table.
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
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.utils.benchmark
from tqdm.auto import tqdm

from hf_vqvae.command_line import ScriptArgumentParser, format_table, run_script

MIN_SECONDS = 0.02  # shorter calls are repeated within a round
COUNTS = ("rounds", "threads", "loop_steps", "batch_size", "loss_steps")  # flags of at least 1
STATUS = Path("/proc/self/status")


@dataclass
class CommonArguments:
    """Flags of every command."""

    rounds: int = field(default=10, metadata={"help": "Timed rounds, after a warm-up."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."}
    )


@dataclass
class SampleArguments(CommonArguments):
    """Flags of `benchmark.py sample`."""

    cases: list[str] = field(
        default_factory=lambda: ["7x7x128x1", "7x7x128x16", "7x7x128x256", "32x32x512x1"],
        metadata={"help": "Rows x columns x codes x images per batch, for each line."},
    )
    architectures: list[str] = field(
        default_factory=lambda: ["plain", "gated"],
        metadata={"help": "Networks: plain, gated.", "choices": ["plain", "gated"]},
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "Channels (default: the network's)."}
    )
    loop_steps: int = field(
        default=16,
        metadata={"help": "Steps of an uncached loop that are timed, of all."},
    )


@dataclass
class PriorArguments(CommonArguments):
    """Flags of `benchmark.py prior`."""

    batch_size: int = field(default=128, metadata={"help": "Grids of codes per step."})
    grid_size: list[int] = field(
        default_factory=lambda: [7, 7], metadata={"help": "Rows and columns of codes."}
    )
    num_embeddings: int = field(default=128, metadata={"help": "Number K of codes."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "Channels (default: the network's)."}
    )
    loss_steps: int = field(default=30, metadata={"help": "Steps whose losses are compared."})
    memory: bool = field(default=True, metadata={"help": "Measure the peak memory too."})


@dataclass
class VQVAEArguments(CommonArguments):
    """Flags of `benchmark.py vqvae`."""

    batch_size: int = field(default=128, metadata={"help": "Images per step."})
    image_size: int = field(default=28, metadata={"help": "Height and width in pixels."})


def main() -> None:
    commands = {
        "sample": (SampleArguments, sample),
        "prior": (PriorArguments, prior),
        "vqvae": (VQVAEArguments, vqvae),
    }
    parser = ScriptArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (kind, command) in commands.items():
        text = command.__doc__
        parsers.add_parser(name, dataclasses=kind, help=text, description=text)
    values = vars(parser.parse_args())
    kind, command = commands[values.pop("command")]
    for name in COUNTS:
        if values.get(name, 1) < 1:
            parser.error(f"--{name} must be at least 1, got {values[name]}.")
    arguments = kind(**values)
    try:
        torch.empty(1, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        parser.error(f"--device {arguments.device} cannot be used here: {reason}")
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    header, rows, note = command(arguments)
    align = "".join("<" if name in ("network", "method", "precision") else ">" for name in header)
    table = format_table(header, rows, align)
    environment = describe_environment(torch.device(arguments.device), load)
    print(f"\n{table}\n\n{note} Medians of {arguments.rounds} interleaved rounds. {environment}.")


Table = tuple[list[str], list[list[str]], str]  # header, rows, and the note below


def sample(arguments: SampleArguments) -> Table:
    """Compare cached sampling with uncached loops and forward passes."""
    from benchmark_networks import make_samplers  # after parsing: it takes seconds

    rows = []
    cases = [parse_case(case) for case in arguments.cases]
    for architecture, (grid, codes, number) in product(arguments.architectures, cases):
        samplers = make_samplers(architecture, grid, codes, number, arguments)
        case = [architecture, f"{grid[0]}x{grid[1]}", str(codes), str(number)]
        seconds = time_interleaved(samplers, arguments.rounds, " ".join(case))
        scale = max(1, grid[0] * grid[1] / arguments.loop_steps)
        for name in samplers:
            if name.endswith("loop"):
                seconds[name] = [scale * value for value in seconds[name]]
        rows += [[*case, *row] for row in compare(seconds, "own loop", number)]
    header = ["network", "grid", "codes", "images", "method", "ms", "images/s", "times own loop"]
    steps = arguments.loop_steps
    note = (
        "A loop computes a full forward pass for each code: `own` of this package's network, `reference` of the same "
        "network and parameters written with masked convolutions over one-hot planes. "
        f"Of loops of more than {steps} codes, {steps} of the steps are timed, spread over the grid, and extrapolated: "
        "a forward pass costs the same at every code. All in float32."
    )
    return header, rows, note


def parse_case(text: str) -> tuple[tuple[int, int], int, int]:
    """`7x7x128x16 -> ((7, 7), 128, 16)`."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise ValueError(
            f"--cases {text}: each must be rows x columns x codes x images, such as 7x7x128x16."
        )
    height, width, codes, number = map(int, text.split("x"))
    return (height, width), codes, number


def prior(arguments: PriorArguments) -> Table:
    """Compare training of the prior with a reference implementation."""
    from benchmark_networks import REFERENCE, VARIANTS, loss_curve, make_prior_step

    steps = {variant.name: make_prior_step(variant, arguments) for variant in VARIANTS}
    seconds = time_interleaved(steps, arguments.rounds, "prior")
    losses = {
        variant.name: loss_curve(variant, arguments)
        for variant in VARIANTS
        if variant.architecture == "plain"
    }
    memory = {}
    if arguments.memory:
        for variant in tqdm(VARIANTS, desc="memory", unit=" networks"):
            make = partial(make_prior_step, variant, arguments)
            memory[variant.name] = peak_memory(make, arguments.device)
    header = ["network", "ms a step", "grids/s", "times the reference"]
    header += ["peak MiB", "peak : reference", "largest difference of the loss"]
    curve = losses[REFERENCE.name]
    rows = compare(seconds, REFERENCE.name, arguments.batch_size)
    for row in rows:
        peak, loss = memory.get(row[0]), losses.get(row[0])
        ratio = None if peak is None else peak / memory[REFERENCE.name]
        row += [format_number(peak and peak / 2**20), format_number(ratio)]
        row.append("-" if loss is None else f"{((loss - curve) / curve).abs().max():.1e}")
    note = (
        f"Forward, backward and Adam step on {arguments.batch_size} grids. The first row, the reference, is the "
        "plain network written with masked convolutions over one-hot planes; ours is in channels-last, bf16 "
        "under autocast, as scripts/train.py trains. Peak memory is that of three steps in a process of their own, "
        "beyond the libraries: weights, gradients, Adam and activations. The losses are of the "
        f"first {len(curve)} steps from the same weights on the same batches, relative to the reference's, which "
        f"fall from {curve[0]:.3f} to {curve[-1]:.3f} nats per code; Adam amplifies differences of rounding, "
        "in float64 the curves are equal."
    )
    return header, rows, note


def vqvae(arguments: VQVAEArguments) -> Table:
    """Compare training of the VQ-VAE in float32 and bf16."""
    from benchmark_networks import make_vqvae_step

    steps = {name: make_vqvae_step(arguments, name == "bf16") for name in ("float32", "bf16")}
    seconds = time_interleaved(steps, arguments.rounds, "vqvae")
    rows = compare(seconds, "float32", arguments.batch_size)
    size = arguments.image_size
    note = (
        f"Forward, backward and Adam step of the default VQ-VAE on {arguments.batch_size} images of {size} x "
        f"{size}, in channels-last, bf16 under autocast, as scripts/train.py trains."
    )
    return ["precision", "ms a step", "images/s", "times float32"], rows, note


def time_interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, title: str
) -> dict[str, list[float]]:
    """Time several calls in turn: A, B, A, B.

    Args:
        title: of the progress bar.

    Returns:
        Seconds per call, by name, one value per round. A first round of warm-up is not among them.
    """

    def seconds(call: Callable[[], object], number: int) -> float:
        return timeit.timeit(call, timer=torch.utils.benchmark.timer, number=number) / number

    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = int(MIN_SECONDS / seconds(call, 1)) + 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), title, unit=" rounds"):
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


def peak_memory(make_call: Callable[[], Callable[[], object]], device: str) -> int | None:
    """Measure the most bytes that `make_call()` and three calls of its result need, in a process of their own.

    On CUDA this is the allocator's peak. On a CPU it is the growth of resident memory, which includes buffers of the
    libraries that torch's profiler does not see; None where the system does not report it (Linux does).
    """
    if device == "cpu" and not STATUS.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_peak, make_call, device, torch.get_num_threads()).result()


def measure_peak(make_call: Callable[[], Callable[[], object]], device: str, threads: int) -> int:
    """As [`peak_memory`], in this process."""
    torch.set_num_threads(threads)
    on_cpu, before = device == "cpu", 0
    if on_cpu:
        # "5" resets VmHWM; `ru_maxrss` would start at the parent's peak.
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
    call = make_call()
    for _ in range(3):
        call()
    peak = status_bytes("VmHWM") if on_cpu else torch.cuda.max_memory_allocated(device)
    return peak - before


def status_bytes(name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])


def describe_environment(device: torch.device, load: float) -> str:
    """Describe processor, cores, threads, torch and the load average at the start."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else f"model name: {platform.processor()}"
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    bf16 = [word for word in ("amx_bf16", "avx512_bf16") if re.search(rf"\b{word}\b", text)]
    threads = torch.get_num_threads()
    return ", ".join(
        [
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
            *([model[1]] if model else []),
            *bf16,
            f"{os.cpu_count()} cores",
            f"{threads} thread{'s' if threads > 1 else ''}",
            f"torch {torch.__version__}",
            f"load average {load:.1f} at the start",
        ]
    )


def format_number(value: float | None) -> str:
    """Format with three digits, or all before the point; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    run_script(main)
