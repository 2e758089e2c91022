"""The flags of the scripts: dataclasses for `HfArgumentParser`, each field with its help."""

import re
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Any

from .models import VQVAEForImageGeneration
from .models.configuration_pixelcnn import PixelCNNConfig
from .models.configuration_strict import own_fields
from .models.configuration_vqvae import VQVAEConfig
from .models.sampling_pixelcnn import DrawSettings

# Those of transformers' get_scheduler that need no settings of their own.
SCHEDULES = ["cosine", "cosine_with_restarts", "linear", "polynomial", "inverse_sqrt", "constant"]
SCHEDULES += ["constant_with_warmup"]


@dataclass
class DataArguments:
    """Which images to read, from where, and how."""

    dataset_name: str = field(
        default="ylecun/mnist",
        metadata={
            "help": "A dataset on the Hub (owner/name), a local folder in the layout of a Hub "
            "dataset or of images, or `digits`, the digits that scikit-learn ships."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, where it has several."}
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a dataset on the Hub (default: its newest)."},
    )
    train_split: str = field(
        default="train",
        metadata={
            "help": "Split to train on, or rows of one in their order, as in 'train[1000:]'."
        },
    )
    eval_split: str = field(
        default="test",
        metadata={"help": "Split to evaluate on, or rows of one, as in 'train[:1000]'."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images (default: the only one there is)."}
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "Column of the class labels (default: the only one, if there is one)."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Decode training images anew as they are read, for datasets too large for "
            "memory. The evaluation split is still decoded into memory."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first so many rows only."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many rows only."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Cache of `datasets` (default: that of the Hub clients)."}
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={"help": "Processes that decode a stream; images in memory need none (0)."},
    )


@dataclass
class TrainingArguments:
    """How to train the two stages; the defaults are the recipe whose numbers stand in the README."""

    output_dir: str = field(
        default="outputs/vqvae",
        metadata={
            "help": "Folder of the finished run; it appears only when the run is complete. Until then "
            "the work is in a folder of that name with `.partial` behind it."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace a finished or unfinished run in output_dir."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "`latest`, or a checkpoint folder of this run: go on from there."},
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "When resuming, go on although flags, data, processes or device are others than before; the run "
            "then does not end as an uninterrupted one would have."
        },
    )
    vqvae_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A trained VQ-VAE (folder or Hub id): train only the prior on its codes."
        },
    )
    train_prior: bool = field(default=True, metadata={"help": "Train the prior (stage 2)."})
    num_train_epochs: int = field(default=30, metadata={"help": "Epochs of the VQ-VAE."})
    prior_num_train_epochs: int = field(
        default=12, metadata={"help": "Epochs of the prior; on MNIST many more overfit."}
    )
    train_batch_size: int = field(
        default=128,
        metadata={"help": "Images of one optimizer step, over all processes and accumulations."},
    )
    eval_batch_size: int = field(
        default=256, metadata={"help": "Images that a process evaluates or encodes at a time."}
    )
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={
            "help": "Parts that each batch is computed in, to save memory. The codebook's moving averages take a step "
            "with each part."
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={
            "help": "Compute the activations of each level or layer again for its gradient, to save memory."
        },
    )
    learning_rate: float = field(default=1.6e-2, metadata={"help": "Adam, VQ-VAE."})
    prior_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "AdamW, prior (default: 6e-3 gated, 1e-3 plain; the Keras example: 3e-4)."
        },
    )
    prior_weight_decay: float = field(
        default=0.01, metadata={"help": "Weight decay of AdamW, prior; 0 makes it Adam."}
    )
    prior_average_decay: float = field(
        default=0.999,
        metadata={
            "help": "Decay per step of the moving average of the prior's weights, which is what is evaluated and "
            "kept; 0 keeps the last weights."
        },
    )
    class_conditional: bool = field(
        default=True,
        metadata={"help": "Condition the prior on the dataset's labels, where it has any."},
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={
            "help": "Schedule of both stages, as in transformers' get_scheduler.",
            "choices": SCHEDULES,
        },
    )
    warmup_steps: int = field(
        default=200,
        metadata={"help": "Steps of linear warm-up, though at most a tenth of a stage's steps."},
    )
    max_grad_norm: float | None = field(
        default=None,
        metadata={
            "help": "Clip the norm of the gradient to this (default: never for the VQ-VAE, 1 for the prior)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, shuffling and samples."})
    mixed_precision: str = field(
        default="no",
        metadata={
            "help": "`bf16` (GPU, and CPUs that have it) or `fp16` (GPU); the quantizer stays float32.",
            "choices": ["no", "bf16", "fp16"],
        },
    )
    checkpointing_steps: int = field(
        default=1000,
        metadata={"help": "Steps between checkpoints; 0 writes one at each epoch's end."},
    )
    checkpoints_total_limit: int = field(
        default=2, metadata={"help": "Checkpoints kept; the oldest go first."}
    )
    logging_steps: int = field(
        default=50, metadata={"help": "Steps between updates of the bar's figures and trackers."}
    )
    num_eval_samples: int = field(
        default=1000,
        metadata={
            "help": "Samples whose Fréchet distance to the evaluation split is measured at the end, by a small "
            "classifier trained on the labels; 0 leaves that out."
        },
    )
    log_with: list[str] = field(
        default_factory=list,
        metadata={"help": "Trackers, through Accelerate: tensorboard, wandb, trackio."},
    )

    def __post_init__(self):
        minima = {"num_train_epochs": 1, "prior_num_train_epochs": 1, "train_batch_size": 1}
        minima |= {"eval_batch_size": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0}
        minima |= {"checkpointing_steps": 0, "checkpoints_total_limit": 1, "logging_steps": 1}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"--{name} must be at least {minimum}, got {getattr(self, name)}.")
        if self.num_eval_samples < 0 or self.num_eval_samples == 1:
            raise ValueError(
                f"--num_eval_samples must be 0 or at least 2, got {self.num_eval_samples}."
            )
        for name in ("learning_rate", "prior_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"--{name} must be above 0 and finite, got {value}.")
        if not 0 <= self.prior_weight_decay < float("inf"):
            raise ValueError(
                f"--prior_weight_decay must be 0 or more and finite, got {self.prior_weight_decay}."
            )
        if not 0 <= self.prior_average_decay < 1:
            raise ValueError(
                f"--prior_average_decay must be at least 0 and below 1, got {self.prior_average_decay}."
            )
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"--train_batch_size ({self.train_batch_size}) must be a multiple of "
                f"--gradient_accumulation_steps ({self.gradient_accumulation_steps})."
            )
        if self.vqvae_name_or_path is not None and not self.train_prior:
            raise ValueError(
                f"--vqvae_name_or_path {self.vqvae_name_or_path} with --no_train_prior leaves nothing to train: leave "
                "one of them out, or measure the VQ-VAE with scripts/evaluate.py."
            )
        unknown = set(self.log_with) - {"tensorboard", "wandb", "trackio"}
        if unknown:
            raise ValueError(
                f"--log_with {', '.join(sorted(unknown))}: the trackers are tensorboard, wandb, trackio."
            )


@dataclass
class HubTargetArguments:
    """Where and how to publish. The token comes from HF_TOKEN or `hf auth login`, never from a flag."""

    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to push to, as owner/name."}
    )
    hub_private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to; made if missing (default: main)."}
    )
    hub_create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead."})
    hub_commit_message: str | None = field(default=None, metadata={"help": "Commit message."})
    hub_license: str = field(default="apache-2.0", metadata={"help": "License on the card."})


@dataclass
class HubArguments(HubTargetArguments):
    """Whether to publish when the run is finished, and as above."""

    push_to_hub: bool = field(default=False, metadata={"help": "Push the finished run to the Hub."})

    def __post_init__(self):
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("--push_to_hub needs --hub_model_id owner/name: where to push to.")


def config_arguments(config_class: type, name: str, **defaults) -> type:
    """A dataclass of flags out of a config's own fields, each with the field's type, default and help.

    Args:
        config_class: a `PreTrainedConfig` whose fields were made by `setting`.
        name: name of the dataclass.
        defaults: other defaults; `...` leaves the flag out.
    """
    flags = []
    for config_field in own_fields(config_class):
        default = defaults.get(config_field.name, config_field.default)
        if default is ...:
            continue
        kind = config_field.type
        if "list[int]" in str(kind):
            kind = list[int]
            default = list(default) if isinstance(default, tuple) else [default]
        elif kind in (float | int, float | int | None):
            kind = float
        if default is None:
            kind = kind | None
        value = {"default": default} if not isinstance(default, list) else {}
        if isinstance(default, list):
            value = {"default_factory": partial(list, default)}
        flags.append((config_field.name, kind, field(metadata=config_field.metadata, **value)))
    return make_dataclass(name, flags)


VQVAEArguments = config_arguments(VQVAEConfig, "VQVAEArguments", data_variance=None)
# Codes and grid are the VQ-VAE's, classes the dataset's; gated is what measures best.
PriorArguments = config_arguments(
    PixelCNNConfig,
    "PriorArguments",
    num_embeddings=...,
    grid_size=...,
    num_classes=...,
    architecture="gated",
)


@dataclass
class DrawArguments:
    """How the prior's codes are drawn.

    Raises:
        ValueError: if a value is out of its range.
    """

    temperature: float = field(
        default=1.0,
        metadata={"help": "Below 1 likelier and more alike, above 1 more varied; 0 the likeliest."},
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Draw each code among so many likeliest (default: all)."}
    )
    top_p: float | None = field(
        default=None,
        metadata={
            "help": "Draw each code among the likeliest that hold this probability (default: all)."
        },
    )
    guidance_scale: float = field(
        default=1.0,
        metadata={
            "help": "Classifier-free guidance of samples with labels: above 1 more typical of their "
            "class; 1 is none."
        },
    )

    def __post_init__(self):
        try:
            DrawSettings(self.temperature, self.top_k, self.top_p, self.guidance_scale)
        except ValueError as error:
            raise ValueError(re.sub(r"^`(\w+)`", r"--\1", str(error))) from error

    @property
    def controls(self) -> dict[str, Any]:
        """These as arguments of `sample`, but for the guidance; filters only where they are named."""
        given = {"top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in given.items() if value is not None}
        return {"temperature": self.temperature, **given}


def check_guidance(guidance_scale: float, class_labels: list[str] | None) -> None:
    """Raises ValueError where guidance has no label to move images towards."""
    if guidance_scale != 1 and not class_labels:
        raise ValueError(
            f"--guidance_scale {guidance_scale:g} needs --class_labels: it moves images towards a label."
        )


def find_label(name: str, model: VQVAEForImageGeneration) -> int | str:
    """What `sample` takes for a word of a command line: the name of a class, or else a number."""
    names = model.config.prior_config.label2id or {}
    return int(name) if name.isascii() and name.isdigit() and name not in names else name
