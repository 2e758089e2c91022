"""Time sampling and training, and print tables of medians.

python scripts/benchmark.py sample
python scripts/benchmark.py prior
python scripts/benchmark.py vqvae --rounds 30 --threads 2

Contestants take turns within one run, so that a busy machine slows all alike. The numbers are for the machine they are
measured on; each table names it.
"""

import os
import sys
from statistics import median

import torch
from tqdm.auto import tqdm

from benchmark_networks import (
    REFERENCE,
    TRAINED,
    OrdinaryPixelCNN,
    loss_curve,
    make_prior_step,
    make_vqvae_step,
    plain_loop,
)
from benchmarking import (
    PriorArguments,
    SampleArguments,
    VQVAEArguments,
    describe_environment,
    format_number,
    median_ratio,
    peak_memory,
    time_interleaved,
)
from hf_vqvae import PixelCNNConfig, PixelCNNModel
from hf_vqvae.command_line import ScriptArgumentParser, format_table

MEBIBYTE = 2**20


def main() -> None:
    commands = {
        "sample": (SampleArguments, sample, "cached sampling against a forward pass for each code"),
        "prior": (PriorArguments, prior, "training of the prior against ordinary convolutions"),
        "vqvae": (VQVAEArguments, vqvae, "training of the VQ-VAE"),
    }
    parser = ScriptArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (kind, _, line) in commands.items():
        text = f"Times {line}."
        parsers.add_parser(name, dataclasses=kind, help=line, description=text)
    values = vars(parser.parse_args())
    kind, command, _ = commands[values.pop("command")]
    arguments = kind(**values)
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    table, note = command(arguments)
    environment = describe_environment(torch.device(arguments.device), load)
    print(f"\n{table}\n\n{note} Medians of {arguments.rounds} interleaved rounds. {environment}.")


def sample(arguments: SampleArguments) -> tuple[str, str]:
    """Cached sampling, plain loops and forward passes."""
    cases = [parse_case(case) for case in arguments.cases]
    configs = [
        (
            PixelCNNConfig(
                num_embeddings=codes,
                grid_size=grid,
                architecture=architecture,
                hidden_size=arguments.hidden_size,
            ),
            number,
        )
        for architecture in arguments.architectures
        for grid, codes, number in cases
    ]
    turns = sum(5 if config.architecture == "plain" else 3 for config, _ in configs)
    with tqdm(total=turns * (arguments.rounds + 1), desc="sample", unit=" turns") as bar:
        rows = [sample_row(config, number, arguments, bar) for config, number in configs]
    header = ["network", "grid", "codes", "images", "cached, ms", "images/s"]
    header += ["ordinary loop, ms", "ordinary loop : cached"]
    header += ["own loop, ms", "own loop : cached"]
    header += ["own forward, ms", "cached : own forward"]
    header += ["ordinary forward, ms", "cached : ordinary forward"]
    steps = arguments.loop_steps
    note = (
        "Loops compute a full forward pass for each code: `ordinary` of the same network and parameters written with "
        "masked convolutions over one-hot planes, `own` of this package's. "
        f"Of loops of more than {steps} codes, {steps} of the steps are timed, spread over the grid, and counted as "
        "many times as there are: a forward pass costs the same at every code. All in float32."
    )
    return format_table(header, rows, "<".ljust(len(header), ">")), note


def parse_case(text: str) -> tuple[tuple[int, int], int, int]:
    """`7x7x128x16 -> ((7, 7), 128, 16)`."""
    words = text.split("x")
    if len(words) != 4 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(
            f"--cases {text}: each must be rows x columns x codes x images, such as 7x7x128x16."
        )
    height, width, codes, number = map(int, words)
    return (height, width), codes, number


def sample_row(
    config: PixelCNNConfig, number: int, arguments: SampleArguments, bar: tqdm
) -> list[str]:
    """A line of the table of `sample`: `number` images drawn at a time, from random weights."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = PixelCNNModel(config).to(device).eval()
    height, width = config.grid_size
    noise = torch.rand(number, height, width, device=device)
    codes = torch.randint(config.num_embeddings, noise.shape, device=device)
    networks: dict[str, torch.nn.Module] = {"own": model}
    if config.architecture == "plain":
        networks["ordinary"] = OrdinaryPixelCNN(config).to(device).eval()
        networks["ordinary"].load_state_dict(model.state_dict())
    contestants = {"cached": lambda: model.sample(number, batch_size=number)}
    for name, network in networks.items():
        contestants |= {
            f"{name} loop": lambda network=network: plain_loop(
                network, noise, arguments.loop_steps
            ),
            f"{name} forward": torch.inference_mode()(lambda network=network: network(codes)),
        }
    bar.set_postfix_str(f"{config.architecture} {height}x{width}, {number} images")
    seconds = time_interleaved(contestants, arguments.rounds, device, bar)
    whole = max(1, height * width / arguments.loop_steps)
    cached = seconds["cached"]
    row = [config.architecture, f"{height}x{width}", str(config.num_embeddings), str(number)]
    row += [format_number(1000 * median(cached)), format_number(number / median(cached))]
    for name in ("ordinary", "own"):
        loop = [whole * one for one in seconds.get(f"{name} loop", [])]
        row += ["-", "-"]
        if loop:
            row[-2:] = map(format_number, (1000 * median(loop), median_ratio(loop, cached)))
    for name in ("own", "ordinary"):
        forward = seconds.get(f"{name} forward")
        row += ["-", "-"]
        if forward:
            row[-2:] = map(format_number, (1000 * median(forward), median_ratio(cached, forward)))
    return row


def prior(arguments: PriorArguments) -> tuple[str, str]:
    """Throughput, peak memory and losses of training steps of the priors."""
    steps = {line.name: make_prior_step(line, arguments) for line in TRAINED}
    device = torch.device(arguments.device)
    with tqdm(total=len(steps) * (arguments.rounds + 1), desc="prior", unit=" turns") as bar:
        seconds = time_interleaved(steps, arguments.rounds, device, bar)
    plain = [line for line in TRAINED if line.architecture == "plain"]
    losses = {line.name: loss_curve(line, arguments) for line in plain}
    memory = {}
    if arguments.memory:
        for line in tqdm(TRAINED, desc="memory", unit=" networks"):
            memory[line.name] = peak_memory(make_prior_step, line, arguments, device=device)
    header = ["network", "ms a step", "grids/s", "times the reference"]
    header += ["peak MiB", "peak : reference", "largest difference of the loss"]
    rows = []
    for name, taken in seconds.items():
        row = [name, format_number(1000 * median(taken))]
        row += [format_number(arguments.batch_size / median(taken))]
        row += [format_number(median_ratio(seconds[REFERENCE.name], taken))]
        peak, reference = memory.get(name), memory.get(REFERENCE.name)
        row += ["-", "-"]
        if peak is not None:
            row[-2:] = format_number(peak / MEBIBYTE), format_number(peak / reference)
        row.append("-")
        if name in losses:
            expected = losses[REFERENCE.name]
            row[-1] = f"{((losses[name] - expected) / expected).abs().max():.1e}"
        rows.append(row)
    curve = losses[REFERENCE.name]
    note = (
        f"Forward, backward and step of Adam on {arguments.batch_size} grids; the first line, the reference, is the "
        "plain network written with ordinary masked convolutions over one-hot planes; ours is in channels-last, bf16 "
        "under autocast, as scripts/train.py trains. The memory is what a process that does nothing else holds at "
        "most in three steps, beyond the libraries: weights, gradients, Adam and activations. The losses are of the "
        f"first {len(curve)} steps from the same weights on the same batches, relative to the reference's, which "
        f"fall from {curve[0]:.3f} to {curve[-1]:.3f} nats per code; Adam makes differences of rounding grow, "
        "in float64 the curves are equal."
    )
    return format_table(header, rows, "<".ljust(len(header), ">")), note


def vqvae(arguments: VQVAEArguments) -> tuple[str, str]:
    """Throughput of training steps of the VQ-VAE."""
    device = torch.device(arguments.device)
    steps = {name: make_vqvae_step(arguments, name == "bf16") for name in ("float32", "bf16")}
    with tqdm(total=len(steps) * (arguments.rounds + 1), desc="vqvae", unit=" turns") as bar:
        seconds = time_interleaved(steps, arguments.rounds, device, bar)
    rows = []
    for name, taken in seconds.items():
        row = [1000 * median(taken), arguments.batch_size / median(taken)]
        row.append(median_ratio(seconds["float32"], taken))
        rows.append([name, *map(format_number, row)])
    header = ["precision", "ms a step", "images/s", "times float32"]
    size = arguments.image_size
    note = (
        f"Forward, backward and step of Adam of the default VQ-VAE on {arguments.batch_size} images of {size} x "
        f"{size}, in channels-last, bf16 under autocast, as scripts/train.py trains."
    )
    return format_table(header, rows, "<".ljust(len(header), ">")), note


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
