"""Check, train and document a run."""

import shutil
from functools import partial
from typing import Any

from ..data.codes import load_codes
from ..data.loaders import count_steps
from ..data.splits import load_images
from ..distributed import check_shared
from ..files import write_json
from ..model_card.records import training_alone
from ..publishing.staging import without_paths
from .report import PROJECT, log_images, report
from .run_directory import Run
from .stages import start_config, start_full_config, train_prior, train_vqvae


def check_run(run: Run) -> list[str] | None:
    """Returns the flags that have changed since the unfinished run, if there is one; None if the run is finished.

    Called by the main process, before any work.

    Raises:
        ValueError: if another run is in the way, or the flags do not fit the unfinished run or any model.
    """
    training, directory, values = run.arguments.training, run.directory, run.arguments.values
    wanted, overwrite = training.resume_from_checkpoint, training.overwrite_output_dir
    resume = wanted is not None
    if resume and (directory.output_dir / "metrics.json").exists() and not directory.partial.exists():
        if directory.has_finished(values, overwrite=overwrite):
            directory.tidy()
            print(f"The run in {directory.output_dir} is finished: there is nothing to resume.")
            return None
        print(f"The run in {directory.output_dir} has other flags: a new run starts and replaces it when complete.")
        resume = False
    elif wanted == "latest" and not directory.partial.exists():
        print(f"There is no unfinished run {directory.partial} to resume: a new run starts.", flush=True)
        resume = False
    directory.check(resume=resume, overwrite=overwrite)
    config = start_config(run.arguments.vqvae, training.vqvae_name_or_path)
    if training.train_prior:
        start_full_config(config, vars(run.arguments.prior))
    return directory.check_same_run(wanted, values, with_changes=training.resume_with_changes) if resume else []


def train(run: Run) -> None:
    """Trains both stages and writes the report into the unfinished run's directory. Called by all processes."""
    arguments, accelerator, directory = run.arguments, run.accelerator, run.directory
    training, resume = arguments.training, arguments.training.resume_from_checkpoint is not None
    if resume:
        directory.restore_found(arguments)
    config = start_config(arguments.vqvae, training.vqvae_name_or_path)
    with accelerator.main_process_first():  # one process fills the cache, the others read it
        if training.codes_dataset_name:
            images = load_codes(training, arguments.data, config)
        else:
            images = load_images(arguments.data, config, None if training.vqvae_name_or_path else arguments.vqvae)
    accelerator.print(images)
    images = images.hold_out(training.validation_samples)
    training.validation_samples = images.held_out
    accelerator.wait_for_everyone()  # nothing is written before all could read
    count_steps(images.info["train_count"], training)  # too few rows are an error now, not later
    if training.train_prior:
        names = images.info["label_names"] if training.class_conditional else None
        start_full_config(config, vars(arguments.prior), names)
    with_changes = training.resume_with_changes
    changes = directory.check_same_data(images.info, with_changes=with_changes) if resume else []
    if arguments.vqvae.data_variance is None and not training.keeps_vqvae:
        config.data_variance = images.data_variance
    if accelerator.is_main_process:
        directory.start(resume=resume)
        if changes:
            print(f"From here on, other data: {', '.join(changes)}.")
            shutil.rmtree(directory.partial / "codes", ignore_errors=True)
        write_json(directory.partial / "arguments.json", arguments.values)
        write_json(directory.partial / "data.json", images.info)
    accelerator.wait_for_everyone()
    check_shared(directory.partial / "data.json", images.info)
    _start_trackers(run, images.info)

    image_logger = partial(log_images, images.parts[1] if images.held_out else images.eval, accelerator)
    model = train_vqvae(config, images, run, image_logger)
    if training.train_prior:
        model = train_prior(model, images, run, image_logger)
    report(model, images, run)
    accelerator.wait_for_everyone()


def _start_trackers(run: Run, dataset: dict[str, Any]) -> None:
    """Starts the trackers with the flags that may be published; a resumed run goes on in the same run of trackio."""
    arguments, directory = run.arguments, run.directory
    flags = without_paths(training_alone(arguments.values, dataset))
    options = {"name": f"{directory.output_dir.name}-{directory.run_id[:8]}", "resume": "allow"}
    options |= {"space_id": arguments.training.trackio_space_id, "private": arguments.hub.hub_private or None}
    config = {name: str(value) for name, value in flags.items()}
    run.accelerator.init_trackers(PROJECT, config=config, init_kwargs={"trackio": options})
