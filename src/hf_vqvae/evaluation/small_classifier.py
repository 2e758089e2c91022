"""Train a small classifier on a dataset's labels once, and cache it."""

import hashlib
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub import constants
from torch import Tensor
from transformers.utils import logging

from ..command_line import progress_bar
from ..data.decoding import DecodedImages, shift_images
from ..data.rows import scale_pixels
from ..distributed import run_on_main_process
from ..files import atomic_replace, remove, writing_errors
from ..models import VQVAEImageProcessorPil
from ..models.hub_mixin import follow_umask
from .classifier import ImageClassifier, SmallClassifier, SmallClassifierConfig, load_classifier

logger = logging.get_logger(__name__)

RECIPE = 2  # part of a cached classifier's name: raise it when a change trains another one
BATCH_SIZE = 128
NUM_STEPS = 1800  # nearly four epochs of MNIST ...
MAX_EPOCHS = 20  # ... and of small sets no more than these.
LEARNING_RATE = 4e-3
WHITENED_ON = 20_000  # training images
DESCRIPTION = "a small classifier trained on the training split, its features white there"


class NoLabelsError(ValueError):
    """The training set has no labels of two classes to train a classifier on."""


def kept_classifier(
    images: DecodedImages, label_names: list[str] | None, accelerator: Accelerator, folder: Path | None = None
) -> ImageClassifier:
    """Load the small classifier of the training set `images` from the cache, or train and cache it.

    The cache has one subfolder for each training set, named by a hash of its pixels, labels and class names, and
    written atomically. One that cannot be read is trained again; where the cache cannot be written, a warning says so.
    Called by every process: the main process loads or trains, and sends the weights to the others. (Classifiers trained
    on several machines would differ, and features of several must not be summed.)

    Args:
        label_names: names of the classes; by default the numbers in the labels.
        folder: the cache; by default `assets/hf_vqvae/classifiers` in that of the Hub clients.

    Raises:
        NoLabelsError: if fewer than two classes occur among the labels.
    """
    labels = torch.empty(0) if images.labels is None else images.labels
    labelled = labels >= 0
    if len(labels[labelled].unique()) < 2:
        found = "labels of fewer than two classes" if labelled.any() else "no labels"
        raise NoLabelsError(
            f"the training images have {found} to train a classifier on: name one with --classifier (of "
            "scripts/evaluate.py), or the column of the classes with --label_column."
        )
    names = label_names or [str(number) for number in range(int(labels.max()) + 1)]
    cache = folder or Path(constants.HF_ASSETS_CACHE, "hf_vqvae", "classifiers")
    kept = cache / _fingerprint(images, names)

    def find_or_train() -> tuple[SmallClassifierConfig, dict[str, Tensor]]:
        model = None
        if os.path.exists(kept):  # False also where it may not be read
            try:
                model = load_classifier(str(kept)).model
            except ValueError as error:
                logger.warning(f"{error} It is trained again.")
        if model is None:
            model = train_classifier(images.images[labelled], labels[labelled], names, accelerator.device)
            _keep(model, kept)
        return model.config, {key: value.cpu() for key, value in model.state_dict().items()}

    config, state = run_on_main_process(accelerator, find_or_train)
    model = SmallClassifier(config)
    model.load_state_dict(state)
    processor = VQVAEImageProcessorPil(do_resize=False)
    return ImageClassifier(model, processor, DESCRIPTION).to(accelerator.device)


def train_classifier(images: Tensor, labels: Tensor, label_names: list[str], device: torch.device) -> SmallClassifier:
    """Train a [`SmallClassifier`] with Adam, a one-cycle learning rate and randomly shifted images.

    Of images (N, C, H, W), uint8, and labels (N,) in [0, `len(label_names)`): shifts of up to 1/14 of the shorter side,
    1,800 steps of 128 images, or 20 epochs if that is less; on MNIST about a minute on one core. Finally the features
    are whitened on (20,000 of) the images.
    """
    count, channels, height, width = images.shape
    batch_size, radius = min(BATCH_SIZE, count), max(1, round(min(height, width) / 14))
    num_steps = min(NUM_STEPS, MAX_EPOCHS * max(1, count // batch_size))
    config = SmallClassifierConfig(
        image_size=(height, width),
        num_channels=channels,
        id2label=dict(enumerate(label_names)),
        label2id={name: number for number, name in enumerate(label_names)},
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = SmallClassifier(config)
        model.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.2)
        generator = torch.Generator().manual_seed(0)
        order = torch.empty(0, dtype=torch.int64)
        for _ in progress_bar(range(num_steps), "Train the classifier (once)", unit="step", leave=False):
            if len(order) < batch_size:
                order = torch.randperm(count, generator=generator)
            rows, order = order[:batch_size], order[batch_size:]
            shifts = torch.randint(0, 2 * radius + 1, (2, len(rows)), generator=generator).T - radius
            pixel_values = scale_pixels(shift_images(images[rows], shifts, radius)).to(device)
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=_has_bf16(device)):
                loss = model(pixel_values, labels=labels[rows].to(device)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    some = torch.randperm(count, generator=generator)[:WHITENED_ON].split(BATCH_SIZE)
    model.whiten_(scale_pixels(images[rows]).to(device) for rows in some)
    return model


def _has_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; emulation is slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    return device.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _fingerprint(images: DecodedImages, label_names: list[str]) -> str:
    digest = hashlib.sha256(repr((RECIPE, tuple(images.images.shape), label_names)).encode())
    digest.update(images.images.numpy().data)
    digest.update(images.labels.numpy().data)
    return digest.hexdigest()[:24]


def _keep(model: SmallClassifier, kept: Path) -> None:
    """Write the model atomically; where that fails, a warning says why."""
    writing = kept.with_name(f"{kept.name}.{os.getpid()}.writing")  # another run may be training the same classifier
    try:
        with writing_errors(kept):
            model.save_pretrained(writing)
            follow_umask(writing)
            remove(kept)  # a damaged one
            atomic_replace(writing, kept)
    except OSError as error:
        logger.warning(
            f"The classifier is not kept, so the next run trains it again: {error} Name a folder that can be written "
            "with --classifier_dir (of scripts/evaluate.py), or set HF_HOME."
        )
    finally:
        remove(writing)
