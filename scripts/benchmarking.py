"""Flags of scripts/benchmark.py, and what it measures with: interleaved rounds, peak memory, environment, tables."""

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

# A shorter call is repeated within a round until it has taken as long.
MIN_SECONDS = 0.02
STATUS = Path("/proc/self/status")


@dataclass
class CommonArguments:
    """Flags of every command."""

    rounds: int = field(
        default=10, metadata={"help": "Rounds that are timed, after one that is not."}
    )
    threads: int = field(default=1, metadata={"help": "Threads of the processor."})
    device: str | None = field(
        default=None, metadata={"help": "cpu or cuda (default: cuda where there is one)."}
    )

    counts = ()  # flags of a command, beside those above, that must be at least 1

    def __post_init__(self):
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for name in ("rounds", "threads", *self.counts):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--device {self.device} cannot be used here: {reason}") from error


@dataclass
class SampleArguments(CommonArguments):
    """Flags of `benchmark.py sample`."""

    cases: list[str] = field(
        default_factory=lambda: ["7x7x128x1", "7x7x128x16", "7x7x128x256", "32x32x512x1"],
        metadata={"help": "Lines of the table: rows x columns x codes x images drawn at a time."},
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
        metadata={
            "help": "Steps of a plain loop that are timed; the whole loop is as many times more."
        },
    )

    counts = ("loop_steps",)


@dataclass
class PriorArguments(CommonArguments):
    """Flags of `benchmark.py prior`."""

    batch_size: int = field(default=128, metadata={"help": "Grids a step."})
    grid_size: list[int] = field(
        default_factory=lambda: [7, 7], metadata={"help": "Rows and columns of codes."}
    )
    num_embeddings: int = field(default=128, metadata={"help": "Number K of codes."})
    hidden_size: int | None = field(
        default=None, metadata={"help": "Channels (default: the network's)."}
    )
    loss_steps: int = field(
        default=30, metadata={"help": "Steps from the same weights whose losses are compared."}
    )
    memory: bool = field(
        default=True, metadata={"help": "Measure the peak memory too, each network in a process."}
    )

    counts = ("batch_size", "loss_steps")


@dataclass
class VQVAEArguments(CommonArguments):
    """Flags of `benchmark.py vqvae`."""

    batch_size: int = field(default=128, metadata={"help": "Images a step."})
    image_size: int = field(default=28, metadata={"help": "Height and width in pixels."})

    counts = ("batch_size",)


def time_interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device, bar: tqdm
) -> dict[str, list[float]]:
    """Seconds a call, by name, one for each round; in a round each contestant has its turn: A, B, A, B.

    So what else the machine does meanwhile falls on all alike, and the median of the rounds' ratios can be trusted. A
    first round, which is dropped, warms up and finds how often a short call is to be repeated.

    Args:
        bar: is moved by one for each turn, `(rounds + 1) * len(contestants)` in all.
    """
    repeats = dict.fromkeys(contestants, 1)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            taken = _time(call, repeats[name], device)
            if number > 0:
                seconds[name].append(taken)
            elif taken < MIN_SECONDS or device.type != "cpu":  # the first call may have set up much
                repeats[name] = int(MIN_SECONDS / _time(call, 1, device)) + 1
            bar.update()
    return seconds


def _time(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - started) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median, over rounds, of the ratios within a round."""
    return median(one / other for one, other in zip(numerators, denominators, strict=True))


def peak_memory(
    make_call: Callable[..., Callable[[], object]], *arguments, device: torch.device
) -> int | None:
    """Bytes that `make_call(*arguments)` and three calls of what it returns need at most, beyond the libraries.

    On a CPU the highest resident memory of a fresh process, above that before: it holds what the libraries allocate
    by themselves too, of which torch's profiler knows nothing. On CUDA the allocator's peak.

    Args:
        make_call: of a module that a fresh process can import.

    Returns:
        None where the system does not tell (it is Linux that does).
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _call_thrice(make_call, arguments)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not STATUS.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_resident_peak, threads, make_call, arguments).result()


def _resident_peak(threads: int, make_call: Callable, arguments: tuple) -> int:
    torch.set_num_threads(threads)
    # "5" resets the peak; `ru_maxrss` would start at the parent's memory, which it survives an exec with.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    _call_thrice(make_call, arguments)
    return _status_bytes("VmHWM") - before


def _call_thrice(make_call: Callable, arguments: tuple) -> None:
    call = make_call(*arguments)
    for _ in range(3):
        call()


def _status_bytes(name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1])


def describe_environment(device: torch.device, load: float | None) -> str:
    """Processor, cores, threads, torch and the load average at the start, for below a table."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    parts = [
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        _processor(),
        f"{os.cpu_count()} cores ({usable} usable by this process)",
        f"{threads} thread{'s' if threads > 1 else ''}",
        f"torch {torch.__version__}",
    ]
    if load is not None:
        parts.append(f"load average {load:.1f} at the start")
    return ", ".join(parts)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    has = [word for word in ("amx_bf16", "avx512_bf16") if re.search(rf"\b{word}\b", text)]
    return f"{name} ({', '.join(has)})" if has else name


def format_number(value: float | None) -> str:
    """Three digits, or all before the point; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
