"""Trains stages on the embedded digits, one case after the other, and records every step: see test_processes.py.

    process_worker.py CASES OUTPUT

One of one or several processes that train together. CASES is a JSON file, `{name: {"vqvae": settings, "prior": settings
or null, "training": flags, "environment": variables}}`; with settings of a prior, the case trains that on the codes of
the VQ-VAE in OUTPUT/codes-of. Each process writes OUTPUT/<processes>-<rank>.pt, `{name: record}`.
"""

import json
import os
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import torch
import torch._functorch.config
import torch._inductor.config
from accelerate.state import AcceleratorState, GradientState
from torch._dynamo.utils import counters
from torch.nn.modules import module
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_vqvae import PixelCNNModel, VQVAEConfig, VQVAEModel
from hf_vqvae.arguments import DataArguments, PriorArguments, RunArguments, TrainingArguments
from hf_vqvae.data.splits import ImageSplits, load_images
from hf_vqvae.distributed import make_accelerator
from hf_vqvae.training.run_directory import Run, RunDirectory
from hf_vqvae.training.stages import import_vqvae, train_prior, train_vqvae

# No batch and no number of processes divides them.
DATA = DataArguments(dataset_name="digits", max_train_samples=53, max_eval_samples=11)


class Recorder:
    """What a case does, by hooks of PyTorch alone.

    `forwards` has what a forward pass in training read and found out, `steps` the state after an optimizer step,
    `convolutions` how often one was computed in training, `dtype` that of what it gave.
    """

    def __init__(self):
        self.forwards, self.steps = [], []
        self.model, self.dtype, self.convolutions = None, None, 0

    def __enter__(self) -> "Recorder":
        self.handles = [
            module.register_module_forward_pre_hook(self.count),
            module.register_module_forward_hook(self.see, with_kwargs=True),
            register_optimizer_step_post_hook(self.step),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def see(self, module, args, kwargs, output) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.training:
            self.dtype = output.dtype
        if not isinstance(module, VQVAEModel | PixelCNNModel) or not module.training:
            return
        self.model = module
        inputs = [value for value in kwargs.values() if isinstance(value, torch.Tensor)]
        rows = [zlib.crc32(b"".join(map(bytes_of, row))) for row in zip(*inputs, strict=True)]
        scalars = {
            name: value.detach().clone()
            for name, value in output.items()
            if isinstance(value, torch.Tensor) and value.dim() == 0
        }
        codes = output.get("codes")
        if "logits" in output:
            hits = output["logits"].detach().argmax(1) == kwargs["codes"]
            scalars["accuracy"] = hits.float().mean()
        self.forwards.append({"rows": rows, "scalars": scalars, "codes": codes})

    def count(self, module, _args) -> None:
        # Before it: computing again ends as soon as the last activation is there.
        self.convolutions += module.training and isinstance(module, torch.nn.Conv2d)

    def step(self, *_: object) -> None:
        state = self.model.state_dict()
        self.steps.append({name: value.detach().cpu().clone() for name, value in state.items()})


def bytes_of(value: torch.Tensor) -> bytes:
    return value.contiguous().cpu().numpy().tobytes()


def run_case(name: str, case: dict, output: Path, images: ImageSplits) -> dict:
    """Trains one stage; returns its record."""
    arguments = RunArguments(training=TrainingArguments(**case["training"]))
    os.environ.update(case.get("environment", {}))
    # As in a fresh process, but in the same group.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    folder = RunDirectory(output / f"{name}-{os.environ.get('WORLD_SIZE', '1')}")
    accelerator = make_accelerator(arguments.training, folder.partial)
    if accelerator.is_main_process:
        folder.start(resume=False)
    accelerator.wait_for_everyone()
    recorder = Recorder()
    # Hooks would be compiled, too.
    with nullcontext() if "ACCELERATE_DYNAMO_BACKEND" in os.environ else recorder:
        train(case, images, Run(arguments, accelerator, folder))
    for variable in case.get("environment", {}):
        del os.environ[variable]
    graphs = counters["stats"]["unique_graphs"]
    torch.compiler.reset()
    counters.clear()
    return {
        "graphs": graphs,
        "convolutions": recorder.convolutions,
        "dtype": recorder.dtype,
        "forwards": recorder.forwards,
        "steps": recorder.steps,
        "history": json.loads((folder.partial / "history.json").read_text()),
        "folder": str(folder.partial / ("vqvae" if case["prior"] is None else "full")),
    }


def train(case: dict, images: ImageSplits, run: Run) -> None:
    if case["prior"] is None:
        train_vqvae(VQVAEConfig(**case["vqvae"]), images, run)
        return
    run.arguments.prior = PriorArguments(**case["prior"])
    run.arguments.training.vqvae_name_or_path = str(run.directory.output_dir.parent / "codes-of")
    train_prior(import_vqvae(run), images, run)


def main() -> None:
    torch.backends.cudnn.allow_tf32 = False
    # With it torch 2.13 now and then dies as it pickles what it compiled (5 of 10 times with k-means).
    torch._functorch.config.enable_autograd_cache = False
    torch._inductor.config.fallback_random = True  # compiled code draws the numbers of plain code
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    images = load_images(DATA, VQVAEConfig(image_size=8, hidden_sizes=(4, 6))).hold_out()
    records = {name: run_case(name, case, output, images) for name, case in cases.items()}
    name = f"{os.environ.get('WORLD_SIZE', '1')}-{os.environ.get('RANK', '0')}.pt"
    torch.save(records, output / name)


if __name__ == "__main__":
    main()
