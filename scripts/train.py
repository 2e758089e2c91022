# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_vqvae[train,plot]==0.1.0"]
#
# [tool.uv.sources] # in a checkout; a job has this file alone
# hf_vqvae = { path = "..", editable = true }
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "2h"
# secrets = ["HF_TOKEN"]
# env = { UV_NO_SOURCES = "1" }
# ///
"""Train a VQ-VAE and a PixelCNN prior over its codes: images in, a documented model out.

python scripts/train.py --dataset_name ylecun/mnist --output_dir outputs/mnist
accelerate launch scripts/train.py run.yaml --seed 1 --push_to_hub --hub_model_id me/vqvae-mnist
"""

__registers_after_parsing__ = True  # see hf_vqvae/__init__.py

from pathlib import Path
from typing import TYPE_CHECKING

import hf_vqvae
from hf_vqvae.arguments import HubArguments, RunArguments
from hf_vqvae.command_line import ScriptArgumentParser, run_script
from hf_vqvae.hub.errors import PushError

if TYPE_CHECKING:
    from hf_vqvae.training.run_directory import Run


def main() -> None:
    arguments = RunArguments(*ScriptArgumentParser(RunArguments.parts(), description=__doc__).parse())

    hf_vqvae.register()
    from hf_vqvae.distributed import make_accelerator, run_on_main_process
    from hf_vqvae.export.onnx import check_packages, write_onnx
    from hf_vqvae.training.locking import locked_together
    from hf_vqvae.training.run import train
    from hf_vqvae.training.run_directory import Run, RunDirectory
    from hf_vqvae.training.signals import exit_on_signals, same_command

    training, hub = arguments.training, arguments.hub
    directory = RunDirectory(Path(training.output_dir))
    directory.check_name()
    if hub.onnx:
        check_packages()
    accelerator = make_accelerator(training, directory.partial)
    run = Run(arguments, accelerator, directory)
    with locked_together(accelerator, directory.output_dir):
        with exit_on_signals(directory.partial, same_command("--resume_from_checkpoint", "latest")):
            changes = run_on_main_process(accelerator, lambda: check(run))
            for change in changes or ():
                accelerator.print(f"From here on: {change}.")
            if changes is not None:
                train(run)
        accelerator.end_training()
        if accelerator.is_main_process and changes is not None:
            if hub.onnx:
                write_onnx(directory.partial)
            directory.finish()
            print_what_to_look_at(directory.output_dir)
    if accelerator.is_main_process and hub.push_to_hub:
        push(directory.output_dir, hub)


def check(run: "Run") -> list[str] | None:
    """Checks what there is to do, and that the result can be pushed; see [`check_run`]."""
    from hf_vqvae.hub.preflight import check_can_push
    from hf_vqvae.publishing.push import target_of
    from hf_vqvae.training.run import check_run

    hub, training = run.arguments.hub, run.arguments.training
    checked = check_run(run)
    if hub.push_to_hub:
        check_can_push(hub.hub_model_id, **target_of(hub))
    if training.trackio_space_id:
        training.trackio_space_id = check_can_push(training.trackio_space_id, repo_type="space")
    return checked


def print_what_to_look_at(folder: Path) -> None:
    figures = sorted(folder.glob("figures/*.png"))
    paths = [f"{folder / 'README.md'} (the model card)", *figures, folder / "metrics.json"]
    print("\nDone. Look at:", *paths, sep="\n  ")


def push(folder: Path, hub: HubArguments) -> None:
    from hf_vqvae.publishing.push import options_of, push_command, push_folder, push_stopped_by_signals

    options = options_of(hub)
    with push_stopped_by_signals(push_command(folder, hub.hub_model_id, **options)):
        url = push_folder(folder, hub.hub_model_id, **options)
    print(f"Pushed: {url}")


if __name__ == "__main__":
    run_script(main, PushError)
