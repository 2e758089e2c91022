"""Train a VQ-VAE and a PixelCNN prior over its codes: images in, a documented model out.

python scripts/train.py --dataset_name ylecun/mnist --output_dir outputs/mnist
accelerate launch scripts/train.py run.yaml --seed 1 --push_to_hub --hub_model_id me/vqvae-mnist
"""

import sys
from pathlib import Path

from accelerate import Accelerator, DataLoaderConfiguration

from hf_vqvae.arguments import (
    DataArguments,
    HubArguments,
    PriorArguments,
    TrainingArguments,
    VQVAEArguments,
    parse_arguments,
)
from hf_vqvae.data import load_images
from hf_vqvae.hub import PushError, check_can_push, push_folder
from hf_vqvae.reporting import report, tracker_images
from hf_vqvae.run_folder import RunFolder
from hf_vqvae.stages import hand_in_vqvae, start_config, train_prior, train_vqvae
from hf_vqvae.training import Interrupted, TrainingFailed


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
    folder = RunFolder(Path(training.output_dir))
    if folder.is_finished and training.resume_from_checkpoint:
        print(f"The run in {folder.output_dir} is finished: there is nothing to resume.")
        return
    resume = training.resume_from_checkpoint is not None
    folder.check(resume=resume, overwrite=training.overwrite_output_dir)
    if hub.push_to_hub:
        check_can_push(
            hub.hub_model_id,
            private=hub.hub_private,
            revision=hub.hub_revision,
            create_pr=hub.hub_create_pr,
        )
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        # `--train_batch_size` is that of all processes together.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=training.log_with or None,
        project_dir=str(folder.partial / "trackers"),
    )
    config = start_config(vqvae, training.vqvae_name_or_path)
    images = load_images(data, config)
    if vqvae.data_variance is None and training.vqvae_name_or_path is None:
        config.data_variance = images.data_variance
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            folder.start(resume=resume)
    accelerator.init_trackers("hf_vqvae")

    show = tracker_images(images.eval)
    if training.vqvae_name_or_path is not None:
        model_folder = hand_in_vqvae(training.vqvae_name_or_path, accelerator, folder)
    else:
        model_folder = train_vqvae(
            config, images, training, accelerator, folder, show, data.dataloader_num_workers
        )
    if training.train_prior:
        model_folder = train_prior(
            model_folder, vars(prior), images, training, accelerator, folder, show
        )
    report(model_folder, images, flags, accelerator, folder)
    accelerator.end_training()
    if accelerator.is_main_process:
        folder.finish()
        print_what_to_look_at(folder.output_dir)
        if hub.push_to_hub:
            push(folder.output_dir, hub)


def print_what_to_look_at(folder: Path) -> None:
    print(f"\nDone. Look at:\n  {folder / 'README.md'} (the model card)")
    for figure in sorted((folder / "figures").glob("*.png")):
        print(f"  {figure}")
    print(f"  {folder / 'metrics.json'}")


def push(folder: Path, hub: HubArguments) -> None:
    url = push_folder(
        folder,
        hub.hub_model_id,
        private=hub.hub_private,
        revision=hub.hub_revision,
        create_pr=hub.hub_create_pr,
        commit_message=hub.hub_commit_message,
        license=hub.hub_license,
    )
    print(f"Pushed: {url}")


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        words = [word for word in sys.argv if word not in ("--overwrite_output_dir",)]
        if "--resume_from_checkpoint" not in words:
            words += ["--resume_from_checkpoint", "latest"]
        print(f"\nTraining was {stop}. Go on with:\n  python {' '.join(words)}", file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    except (ValueError, TrainingFailed, PushError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
