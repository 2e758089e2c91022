"""Train the two stages: the VQ-VAE on images, the prior on their codes."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..arguments import REPLACED, VQVAEArguments
from ..data.codes import CodesDataset, encode_split
from ..data.decoding import shift_images
from ..data.loaders import count_steps, local_batches
from ..data.splits import ImageSplits
from ..files import atomic_replace, read_json, write_json, writing_errors
from ..hub.download import fetch_model, load_model
from ..metrics.sums import CompensatedSums, widen
from ..models import PixelCNNConfig, VQVAEConfig, VQVAEForImageGeneration, VQVAEForImageGenerationConfig, VQVAEModel
from ..models.configuration_utils import MAX_CLASSES
from ..models.pixelcnn_layers import draw_uniform
from .checkpoints import discard_checkpoints, list_checkpoints
from .run_directory import KEPT, Run
from .trainer import Stage, StageTrainer

Model = TypeVar("Model", bound=PreTrainedModel)
# Of the batches at the start this share is shifted; it falls to 0 at this share of the steps.
SHIFTED, SHIFTED_UNTIL = 0.8, 0.7
BEST_BY = "validation_loss"  # of the prior's epochs
PRIOR_LEARNING_RATES = {"gated": 6e-3, "plain": 1e-3}


def start_config(settings: VQVAEArguments, pretrained: str | None = None) -> VQVAEConfig:
    """Makes the VQ-VAE's config from its flags, or loads that of a trained VQ-VAE.

    Raises:
        ValueError: if a setting is out of range, the trained VQ-VAE is missing, or a flag contradicts it.
    """
    given = {key: value for key, value in vars(settings).items() if value is not None}
    if len(settings.image_size or ()) == 1:
        given["image_size"] = settings.image_size[0]
    # Until the data are known, any size that the network divides.
    config = VQVAEConfig(**({"image_size": 7 * 2 ** len(settings.hidden_sizes)} | given))
    if pretrained is None:
        return config
    whole = load_model(pretrained).config
    trained = getattr(whole, "vqvae_config", whole)
    trained.name_or_path = whole.name_or_path  # beside it lies the image processor
    default = VQVAEConfig(**REPLACED)
    for name in given:
        wanted, there = getattr(config, name), getattr(trained, name)
        if wanted not in (there, getattr(default, name)):
            raise ValueError(
                f"--{name} {wanted} contradicts the trained VQ-VAE {pretrained}, which has {there}: leave the flag out."
            )
    return trained


def start_full_config(
    vqvae_config: VQVAEConfig, prior_settings: dict[str, Any], label_names: list[str] | None = None
) -> VQVAEForImageGenerationConfig:
    """Makes the config of a VQ-VAE together with its prior.

    Args:
        prior_settings: settings of [`PixelCNNConfig`].
        label_names: names of the classes, if the prior is conditioned on them.

    Raises:
        ValueError: if a setting of the prior is out of range.
    """
    classes = {}
    if label_names is not None:
        if len(label_names) > MAX_CLASSES:
            raise ValueError(
                f"The label column has {len(label_names):,} classes, and a prior can have at most {MAX_CLASSES:,}: "
                "choose another column with --label_column, or train without labels by --no_class_conditional."
            )
        classes = {"num_classes": len(label_names), "id2label": dict(enumerate(label_names))}
    prior_config = PixelCNNConfig(
        num_embeddings=vqvae_config.num_embeddings, grid_size=vqvae_config.grid_size, **classes, **prior_settings
    )
    return VQVAEForImageGenerationConfig(vqvae_config=vqvae_config, prior_config=prior_config)


def import_vqvae(run: Run) -> VQVAEModel:
    """Loads `--vqvae_name_or_path`, also out of a model with a prior, and saves it as stage 1 would."""
    folder = run.directory.partial
    if run.accelerator.is_main_process and not (folder / "vqvae").exists():
        write_json(folder / "history.json", {})
        write_json(folder / "seconds.json", {})
        source = fetch_model(run.arguments.training.vqvae_name_or_path)
        _save_model(VQVAEModel.from_pretrained(source), folder / "vqvae")
    run.accelerator.wait_for_everyone()
    return _load_model(VQVAEModel, folder / "vqvae", run)


def train_vqvae(
    config: VQVAEConfig, images: ImageSplits, run: Run, log_images: Callable[[VQVAEModel, int], None] | None = None
) -> VQVAEModel:
    """Stage 1. Returns the trained VQ-VAE, which an earlier session of the run may have saved."""
    arguments, accelerator = run.arguments.training, run.accelerator
    if arguments.keeps_vqvae:
        return import_vqvae(run)
    done = run.directory.partial / "vqvae"
    if done.exists():
        return _load_model(VQVAEModel, done, run)
    set_seed(arguments.seed)
    model = VQVAEModel(config)
    if arguments.train_vqvae:
        trained = load_model(arguments.vqvae_name_or_path).base_model
        model.load_state_dict(trained.state_dict())
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    training, validation = images.parts

    def measure(output, batch) -> dict[str, Tensor]:
        return {"reconstruction_mse": output.reconstruction_loss, "commitment_loss": output.commitment_loss}

    def evaluate() -> dict[str, float]:
        def errors(batch):
            output = model(batch["pixel_values"])
            clipped = output.reconstruction.float().clamp(-0.5, 0.5)
            error = (clipped - batch["pixel_values"]).square().mean((1, 2, 3))
            return {"validation_reconstruction_mse": error}

        return mean_over_split(model, validation, accelerator, arguments.eval_batch_size, errors)

    stage = Stage(
        name="vqvae",
        num_epochs=arguments.num_train_epochs,
        learning_rate=arguments.learning_rate,
        optimizer=arguments.optimizer,
        inputs={"pixel_values": "pixel_values"},
        measure=measure,
        evaluate=evaluate,
        num_codes=config.num_embeddings,
        log_images=log_images and partial(log_images, model),
        max_grad_norm=arguments.max_grad_norm,
        data=images.info["fingerprint"],
    )
    steps = count_steps(images.info["train_count"], arguments)
    trainer = StageTrainer(model, stage, training, steps, run)
    return _train_and_save(trainer, model, done, run)


def train_prior(
    vqvae: VQVAEModel,
    images: ImageSplits,
    run: Run,
    log_images: Callable[[VQVAEForImageGeneration, int], None] | None = None,
) -> VQVAEForImageGeneration:
    """Stage 2, on the codes of the trained VQ-VAE. Returns both models together."""
    arguments, accelerator = run.arguments.training, run.accelerator
    folder = run.directory.partial
    done = folder / "full"
    if done.exists():
        return _load_model(VQVAEForImageGeneration, done, run)
    set_seed(arguments.seed)
    train_codes, eval_codes = (
        encode_split(vqvae, split, name, arguments.eval_batch_size, accelerator, folder)
        for split, name in ((images.train, "train"), (images.eval, "eval"))
    )
    training, validation = images.split_train(train_codes)
    full = _make_full_model(vqvae.config, images, train_codes, eval_codes, run)
    prior = full.prior
    if arguments.prior_shift:
        training = images.parts[0]
    inputs = {"codes": "codes"} | ({"class_labels": "labels"} if prior.config.num_classes is not None else {})
    earlier = read_json(folder / "history.json").get("vqvae")
    stage = Stage(
        name="prior",
        num_epochs=arguments.prior_num_train_epochs,
        learning_rate=arguments.prior_learning_rate or PRIOR_LEARNING_RATES[prior.config.architecture],
        inputs=inputs,
        measure=_accuracy,
        evaluate=lambda: mean_over_split(
            prior, validation, accelerator, arguments.eval_batch_size, partial(_likelihoods, prior, inputs)
        ),
        log_images=log_images and partial(log_images, full),
        steps_before=earlier[-1]["step"] if earlier else 0,
        betas=(0.9, 0.95),
        weight_decay=arguments.prior_weight_decay,
        average_decay=arguments.prior_average_decay or None,
        max_grad_norm=arguments.max_grad_norm or 1.0,
        data=images.info["fingerprint"],
        augment=partial(_encode_shifted, full.vqvae, arguments.prior_shift) if arguments.prior_shift else None,
        best_by=BEST_BY if arguments.prior_keep_best and images.held_out else None,
    )
    steps = count_steps(len(train_codes) - images.held_out, arguments)
    trainer = StageTrainer(prior, stage, training, steps, run)
    return _train_and_save(trainer, full, done, run)


def _accuracy(output: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"accuracy": (output.logits.argmax(1) == batch["codes"]).float().mean()}


@torch.no_grad()
def _encode_shifted(vqvae: VQVAEModel, radius: int, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
    """Adds the codes of the images of a batch, after a share of them is shifted."""
    images = batch["pixel_values"]
    shifts = draw_shifts(len(images), radius, SHIFTED * (1 - progress / SHIFTED_UNTIL), images.device)
    return batch | {"codes": vqvae.encode(shift_images(images, shifts, radius)).codes}


def draw_shifts(count: int, radius: int, share: float, device: torch.device) -> Tensor:
    """Draws shifts (`count`, 2) of up to `radius` pixels along both axes for a share of the images, else 0."""
    draws = draw_uniform((count, 3), device)
    return ((draws[:, :2] * (2 * radius + 1)).long() - radius) * (draws[:, 2:] < share)


def _likelihoods(prior: torch.nn.Module, inputs: dict[str, str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and accuracy of each row of a batch of codes; `inputs` as in [`Stage`]."""
    logits = prior(**{name: batch[key] for name, key in inputs.items()}, return_loss=False).logits.float()
    nats = torch.nn.functional.cross_entropy(logits, batch["codes"], reduction="none")
    hits = logits.argmax(1) == batch["codes"]
    return {BEST_BY: nats.mean((1, 2)), "validation_accuracy": hits.float().mean((1, 2))}


def _make_full_model(
    vqvae_config: VQVAEConfig, images: ImageSplits, train_codes: CodesDataset, eval_codes: CodesDataset, run: Run
) -> VQVAEForImageGeneration:
    """Makes the trained VQ-VAE and a new prior, which is conditioned on the labels if there are any."""
    arguments, names, labels = run.arguments.training, None, train_codes.labels
    settings = dict(vars(run.arguments.prior))
    if arguments.class_conditional and labels is not None and labels.max() >= 0:
        largest = max(int(part.labels.max()) for part in (train_codes, eval_codes) if part.labels is not None)
        names = images.info["label_names"] or [str(number) for number in range(largest + 1)]
        settings["class_frequencies"] = train_codes.class_frequencies(len(names))
    config = start_full_config(vqvae_config, settings, names)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning that the prior is new
    source = run.directory.partial / "vqvae"
    full = VQVAEForImageGeneration.from_pretrained(source, config=config)
    logging.set_verbosity(verbosity)
    full.vqvae.to(run.accelerator.device)
    if arguments.gradient_checkpointing:
        full.prior.activation_checkpointing_enable()
    return full


def _train_and_save(trainer: StageTrainer, model: Model, done: Path, run: Run) -> Model:
    """Trains (or resumes) a stage and saves model and history; returns the model, in eval mode."""
    stage, saved = trainer.stage.name, []
    accelerator, directory = run.accelerator, run.directory
    if run.arguments.training.resume_from_checkpoint:
        wanted = run.arguments.training.resume_from_checkpoint
        saved = directory.checkpoints_to_resume(wanted, stage)
    records = {"history": trainer.train(saved)}
    records["seconds"] = round(time.monotonic() - trainer.started, 1)
    # Removes the autocast of mixed precision from the model's forward.
    accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    # Channels last only speeds up training.
    model = model.to(memory_format=torch.contiguous_format).eval()
    if accelerator.is_main_process:
        for name, value in records.items():
            path = directory.partial / f"{name}.json"
            write_json(path, (read_json(path) if path.exists() else {}) | {stage: value})
        _save_model(model, done)
        discard_checkpoints(list_checkpoints(directory.checkpoints, stage))
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return model


def _load_model(model_class: type[Model], folder: Path, run: Run) -> Model:
    model = model_class.from_pretrained(folder)
    model.config.name_or_path = ""  # or the config of both models would hold a path of this machine
    return model.to(run.accelerator.device)


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    """Saves a model atomically."""
    writing = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    with writing_errors(folder, KEPT):
        model.save_pretrained(writing)
        atomic_replace(writing, folder)


@torch.inference_mode()
def mean_over_split(
    model: torch.nn.Module,
    dataset: Any,
    accelerator: Accelerator,
    batch_size: int,
    measure: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, float]:
    """Means over all rows of `dataset`, split over the processes, of what `measure` says of each row of a batch.

    The same bits, whatever the number of processes. The model is put into eval mode meanwhile.
    """
    training = model.training
    model.eval()
    sums = CompensatedSums()
    with accelerator.autocast():
        for batch in local_batches(dataset, accelerator, batch_size, "evaluate"):
            for name, values in measure(batch).items():
                sums.add(name, widen(values).sum())
    model.train(training)
    totals = sums.over_processes(accelerator).totals()
    return {name: total.item() / len(dataset) for name, total in totals.items()}
