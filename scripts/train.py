"""Train a VQ-VAE and a PixelCNN prior over its codes: images in, a documented model out.

python scripts/train.py --dataset_name ylecun/mnist --output_dir outputs/mnist
accelerate launch scripts/train.py run.yaml --seed 1 --push_to_hub --hub_model_id me/vqvae-mnist
"""

import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from accelerate import Accelerator

from hf_vqvae.arguments import (
    DataArguments,
    HubArguments,
    PriorArguments,
    TrainingArguments,
    VQVAEArguments,
)
from hf_vqvae.command_line import parse_arguments
from hf_vqvae.data.loaders import count_steps
from hf_vqvae.data.splits import load_images
from hf_vqvae.distributed import (
    check_same_images,
    check_shared_folder,
    make_accelerator,
    run_on_main_process,
)
from hf_vqvae.files import write_json
from hf_vqvae.publishing.push import (
    PushError,
    check_can_push,
    push_command,
    push_folder,
    push_stopped_by_signals,
)
from hf_vqvae.training.locking import locked_together
from hf_vqvae.training.report import report, tracker_images
from hf_vqvae.training.run_directory import RunDirectory
from hf_vqvae.training.signals import exit_on_signals, same_command
from hf_vqvae.training.stages import (
    check_number_of_classes,
    import_vqvae,
    start_config,
    start_full_config,
    train_prior,
    train_vqvae,
)
from hf_vqvae.training.trainer import TrainingFailed


def main() -> None:
    flags = parse_arguments(
        DataArguments,
        VQVAEArguments,
        PriorArguments,
        TrainingArguments,
        HubArguments,
        description=__doc__,
    )
    data, vqvae, prior, training, hub = flags
    folder = RunDirectory(Path(training.output_dir))
    folder.check_name()
    accelerator = make_accelerator(training, folder.partial)
    resume_command = same_command("--resume_from_checkpoint", "latest")
    with locked_together(accelerator, folder.output_dir):
        with exit_on_signals(folder.partial, resume_command):
            resume, changes = run_on_main_process(accelerator, lambda: check(flags, folder))
            if resume is None:
                accelerator.end_training()
                return
            for change in changes:
                accelerator.print(f"From here on: {change}.")
            if not resume:
                training = replace(training, resume_from_checkpoint=None)
            train((data, vqvae, prior, training, hub), accelerator, folder)
        accelerator.end_training()
        if accelerator.is_main_process:
            folder.finish()
            print_what_to_look_at(folder.output_dir)
    if accelerator.is_main_process and hub.push_to_hub:
        push(folder.output_dir, hub)


def check(flags: tuple, folder: RunDirectory) -> tuple[bool | None, list[str]]:
    """Finds out, before any work, what there is to do.

    Returns:
        Whether to go on with the unfinished run, None if it is finished, and what is other than when it was stopped.
    """
    training, hub = flags[-2:]
    values = values_of(flags)
    resume, overwrite = training.resume_from_checkpoint is not None, training.overwrite_output_dir
    if resume and folder.is_finished and not folder.partial.exists():
        if folder.has_finished(values, overwrite=overwrite):
            folder.tidy()
            print(f"The run in {folder.output_dir} is finished: there is nothing to resume.")
            if hub.push_to_hub:
                print(f"This pushes it:\n  {command_that_pushes(folder.output_dir, hub)}")
            return None, []
        print(
            f"The run in {folder.output_dir} is another one: this one begins, and replaces it at its end."
        )
        resume = False
    folder.check(resume=resume, overwrite=overwrite)
    changes = check_changes(folder, training, values) if resume else []
    if hub.push_to_hub:
        check_can_push(hub.hub_model_id, **target_of(hub))
    return resume, changes


def values_of(flags: tuple) -> dict:
    return {name: value for part in flags for name, value in asdict(part).items()}


def train(flags: tuple, accelerator: Accelerator, folder: RunDirectory) -> None:
    """Both stages and the report; leaves the whole run in the folder of the unfinished one."""
    data, vqvae, prior, training, hub = flags
    values = values_of(flags)
    config = start_config(vqvae, training.vqvae_name_or_path)
    if training.train_prior:
        start_full_config(config, vars(prior))  # a wrong flag is found before an hour of training
    with accelerator.main_process_first():  # one process fills the cache, the others read it
        images = load_images(data, config)
    check_same_images(accelerator, images.info)  # nothing is written before all could read
    count_steps(images.info["train_count"], training)  # too few rows are an error now, not later
    if training.train_prior and training.class_conditional:
        check_number_of_classes(len(images.info["label_names"] or ()))
    changes = []
    if training.resume_from_checkpoint is not None:
        told = training.resume_with_changes
        changes = folder.check_same_data(images.info, with_changes=told)
    if vqvae.data_variance is None and training.vqvae_name_or_path is None:
        config.data_variance = images.data_variance
    if accelerator.is_main_process:
        folder.start(resume=training.resume_from_checkpoint is not None)
        if changes:
            print(f"From here on, other data: {', '.join(changes)}.")
            shutil.rmtree(folder.partial / "codes", ignore_errors=True)
        write_json(folder.partial / "arguments.json", values)
        write_json(folder.partial / "data.json", images.info)
    accelerator.wait_for_everyone()
    check_shared_folder(accelerator, folder.partial, folder.output_dir)
    accelerator.init_trackers("hf_vqvae", config={name: str(values[name]) for name in values})

    show = tracker_images(images.eval)
    if training.vqvae_name_or_path is not None:
        model_folder = import_vqvae(training.vqvae_name_or_path, accelerator, folder)
    else:
        model_folder = train_vqvae(
            config, images, training, accelerator, folder, show, data.dataloader_num_workers
        )
    if training.train_prior:
        model_folder = train_prior(
            model_folder, vars(prior), images, training, accelerator, folder, show
        )
    # The record is to be fed back to this script: how the run came to its end is not part of it.
    training = replace(
        training,
        resume_from_checkpoint=None,
        resume_with_changes=False,
        overwrite_output_dir=False,
    )
    report(model_folder, images, (data, vqvae, prior, training, hub), accelerator, folder)
    accelerator.wait_for_everyone()


def check_changes(folder: RunDirectory, training: TrainingArguments, values: dict) -> list[str]:
    """What is other than when the run was stopped; an error unless it may be."""
    return folder.check_same_run(
        training.resume_from_checkpoint,
        values,
        with_changes=training.resume_with_changes,
    )


def print_what_to_look_at(folder: Path) -> None:
    print(f"\nDone. Look at:\n  {folder / 'README.md'} (the model card)")
    for figure in sorted((folder / "figures").glob("*.png")):
        print(f"  {figure}")
    print(f"  {folder / 'metrics.json'}")


def push(folder: Path, hub: HubArguments) -> None:
    options = {"commit_message": hub.hub_commit_message, "license": hub.hub_license}
    with push_stopped_by_signals(command_that_pushes(folder, hub)):
        url = push_folder(folder, hub.hub_model_id, **target_of(hub), **options)
    print(f"Pushed: {url}")


def command_that_pushes(folder: Path, hub: HubArguments) -> str:
    flags = {f"hub_{name}": value for name, value in target_of(hub).items()}
    flags |= {"hub_commit_message": hub.hub_commit_message, "hub_license": hub.hub_license}
    return push_command(folder, hub.hub_model_id, **flags)


def target_of(hub: HubArguments) -> dict:
    return {
        "private": hub.hub_private,
        "revision": hub.hub_revision,
        "create_pr": hub.hub_create_pr,
    }


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TrainingFailed, PushError) as error:
        sys.exit(f"Error: {error}")
