"""Dataclasses of the scripts' flags; each field holds all facts of its flag: help, bounds, role in a run."""

import math
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import partial
from typing import Any

from .models.configuration_pixelcnn import PixelCNNConfig
from .models.configuration_utils import BOUNDS, own_fields
from .models.configuration_vqvae import VQVAEConfig

# Those of transformers' get_scheduler that need no settings of their own.
SCHEDULES = ["cosine", "cosine_with_restarts", "linear", "polynomial", "inverse_sqrt", "constant"]
SCHEDULES += ["constant_with_warmup"]


def flag(default: Any, help: str, role: str | None = None, **facts: Any) -> Any:
    """A dataclass field that is a flag.

    Args:
        role: what the flag acts on, which decides what may change when a run is resumed:
            "run": where and how a run works. It may change: the trained weights do not depend on it.
            "evaluation": what is measured at the end. It may change.
            "model": what the models are, and the rows they are trained on. It must not change.
            "vqvae", "prior": how a stage trains. It must not change after that stage.
            "stages": how both stages train. It must not change after the second.
            All others (None) may change until the end, but only with `--resume_with_changes`.
        facts: `choices`; and the bounds of a number, by their names in `BOUNDS`.
    """
    value = {"default": default}
    if isinstance(default, list):
        value = {"default_factory": partial(list, default)}
    return field(**value, metadata={"help": help, "role": role, **facts})


def check_bounds(arguments: Any) -> None:
    """Raises ValueError if a number among the flags is not finite or not within the bounds in its field."""
    for one in fields(arguments):
        value = getattr(arguments, one.name)
        bounds = {name: one.metadata[name] for name in BOUNDS if name in one.metadata}
        fits = [BOUNDS[name](value, bound) for name, bound in bounds.items() if value is not None]
        if all(fits) and not (fits and math.isinf(value)):
            continue
        rules = [f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items()]
        if isinstance(value, float) and len(rules) == 1:
            rules.append("finite")
        raise ValueError(f"--{one.name} must be {' and '.join(rules)}, got {value}.")


@dataclass
class DataArguments:
    """Dataset, splits and columns."""

    dataset_name: str = flag("ylecun/mnist", "On the Hub (owner/name), a local folder, or scikit-learn's `digits`.")
    dataset_config_name: str | None = flag(None, "Configuration of the dataset, if it has several.")
    dataset_revision: str | None = flag(None, "Branch, tag or commit on the Hub.", "run")
    train_split: str = flag("train", "Split to train on, or a slice such as 'train[1000:]'.")
    eval_split: str = flag("test", "Split to evaluate on, or a slice such as 'train[:1000]'.")
    image_column: str | None = flag(None, "Column of the images (default: the only one).")
    label_column: str | None = flag(None, "Column of labels, or `none` (default: by its kind).")
    resize_mode: str | None = flag(
        None,
        "How other aspect ratios are fitted (default: squash, or the model's).",
        choices=["squash", "crop", "pad"],
    )
    background: str | None = flag(None, "Colour behind transparency and padding (default: black).")
    streaming: bool = flag(False, "Decode training images as they are read, not into memory.")
    max_train_samples: int | None = flag(None, "Train on the first N rows only.", at_least=1)
    max_eval_samples: int | None = flag(None, "Evaluate on the first N rows only.", at_least=1)
    cache_dir: str | None = flag(None, "Cache of `datasets` (default: HF_DATASETS_CACHE).", "run")
    dataloader_num_workers: int = flag(0, "Threads that decode a stream (at least 1).", "run", at_least=0)

    def __post_init__(self):
        check_bounds(self)


@dataclass
class TrainingArguments:
    """Training of the two stages; the defaults are the recipe of the README's results."""

    output_dir: str = flag("outputs/vqvae", "Folder of the finished run; before, it is `<output_dir>.partial`.", "run")
    overwrite_output_dir: bool = flag(False, "Replace a finished or unfinished run.", "run")
    resume_from_checkpoint: str | None = flag(
        None, "`latest` (which starts a run where there is none), or a checkpoint folder of this run.", "run"
    )
    resume_with_changes: bool = flag(False, "Allow other flags, data or devices; the result differs.", "run")
    vqvae_name_or_path: str | None = flag(
        None, "A trained VQ-VAE (folder or Hub id), for a prior on its codes.", "model"
    )
    codes_dataset_name: str | None = flag(
        None, "Its codes, a dataset by scripts/encode.py, in place of images.", "model"
    )
    train_vqvae: bool = flag(False, "Go on training the VQ-VAE of --vqvae_name_or_path, from its weights.", "model")
    train_prior: bool = flag(True, "Train the prior (stage 2).")
    num_train_epochs: int = flag(30, "Epochs of the VQ-VAE.", "vqvae", at_least=1)
    prior_num_train_epochs: int = flag(8, "Epochs of the prior.", "prior", at_least=1)
    train_batch_size: int = flag(
        128, "Images per optimizer step, over all processes and accumulation steps.", "stages", at_least=1
    )
    eval_batch_size: int = flag(256, "Images per evaluation batch of a process.", "run", at_least=1)
    gradient_accumulation_steps: int = flag(
        1,
        "Parts in which each batch is computed, to save memory. The codebook's moving averages "
        "are updated after each part.",
        "stages",
        at_least=1,
    )
    gradient_checkpointing: bool = flag(False, "Recompute activations in backward to save memory.")
    optimizer: str = flag(
        "muon", "Of the VQ-VAE: `muon` for its kernels, or AdamW for all.", "vqvae", choices=["muon", "adamw"]
    )
    learning_rate: float = flag(8e-3, "Learning rate of the VQ-VAE.", "vqvae", above=0)
    prior_learning_rate: float | None = flag(
        None, "Learning rate for the prior (default: 6e-3 gated, 1e-3 plain).", "prior", above=0
    )
    prior_weight_decay: float = flag(0.3, "Weight decay of AdamW for the prior; 0 makes it Adam.", "prior", at_least=0)
    prior_shift: int = flag(
        0, "Pixels by which images are shifted for the prior, which helps where they are few.", "prior", at_least=0
    )
    prior_average_decay: float = flag(
        0.999,
        "Decay per step of the prior's averaged weights, which are saved; 0 saves the last ones.",
        "prior",
        at_least=0,
        below=1,
    )
    prior_keep_best: bool = flag(True, "Keep the prior of the epoch with the lowest validation loss.", "model")
    class_conditional: bool = flag(True, "Condition the prior on the labels, if any.", "model")
    validation_samples: int | None = flag(
        None, "Training rows held out for validation (default: a twelfth, at most 5000).", "model", at_least=0
    )
    lr_scheduler_type: str = flag(
        "cosine", "Schedule of both stages, a name of transformers' get_scheduler.", "stages", choices=SCHEDULES
    )
    warmup_steps: int = flag(200, "Steps of linear warm-up, at most a tenth of a stage's steps.", "stages", at_least=0)
    max_grad_norm: float | None = flag(
        None, "Norm to clip the gradient to (default: none; 1 for the prior).", "stages", above=0
    )
    seed: int = flag(0, "Seed of weights, shuffling and samples.", at_least=0, below=2**32)
    mixed_precision: str = flag(
        "no",
        "`bf16` (GPU, and CPUs that have it) or `fp16` (GPU); the quantizer stays float32.",
        choices=["no", "bf16", "fp16"],
    )
    checkpointing_steps: int = flag(1000, "Steps between checkpoints; 0: after each epoch.", "run", at_least=0)
    checkpoints_total_limit: int = flag(2, "Latest checkpoints to keep.", "run", at_least=1)
    logging_steps: int = flag(50, "Steps between logs to bar and trackers.", "run", at_least=1)
    num_eval_samples: int = flag(
        1000, "Samples for the Fréchet distance to the evaluation split; 0 skips it.", "evaluation"
    )
    log_with: list[str] = flag([], "Trackers to log to.", "run", choices=["tensorboard", "wandb", "trackio"])
    trackio_space_id: str | None = flag(
        None, "Space on the Hub that shows the run live, made if missing (implies --log_with trackio).", "run"
    )

    def __post_init__(self):
        check_bounds(self)
        if self.trackio_space_id and "trackio" not in self.log_with:
            self.log_with = [*self.log_with, "trackio"]
        if self.num_eval_samples < 0 or self.num_eval_samples == 1:
            raise ValueError(f"--num_eval_samples must be 0 or at least 2, got {self.num_eval_samples}.")
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"--train_batch_size ({self.train_batch_size}) must be a multiple of "
                f"--gradient_accumulation_steps ({self.gradient_accumulation_steps})."
            )
        if self.train_vqvae and self.vqvae_name_or_path is None:
            raise ValueError(
                "--train_vqvae goes on training a model: name it with --vqvae_name_or_path, or leave the flag out."
            )
        if self.vqvae_name_or_path and not self.train_vqvae and not self.train_prior:
            raise ValueError(
                f"--vqvae_name_or_path {self.vqvae_name_or_path} with --no_train_prior leaves nothing to train: "
                "leave one out, or add --train_vqvae."
            )
        if self.codes_dataset_name and (not self.keeps_vqvae or self.prior_shift):
            raise ValueError("--codes_dataset_name needs --vqvae_name_or_path, and no --train_vqvae or --prior_shift.")

    @property
    def keeps_vqvae(self) -> bool:
        """Whether the VQ-VAE is a trained one, which stays as it is."""
        return self.vqvae_name_or_path is not None and not self.train_vqvae


@dataclass
class HubTargetArguments:
    """Repository to push to. The token comes from HF_TOKEN or `hf auth login`, never from a flag."""

    hub_model_id: str | None = flag(None, "Repository to push to, as owner/name.", "run")
    hub_private: bool = flag(False, "Make a new repository private.", "run")
    hub_revision: str | None = flag(None, "Branch, created if missing (default: main).", "run")
    hub_create_pr: bool = flag(False, "Open a pull request instead.", "run")
    hub_commit_message: str | None = flag(None, "Commit message.", "run")
    hub_license: str = flag("apache-2.0", "License on the card.", "run")
    onnx: bool = flag(False, "Also write the model as ONNX into the folder onnx, for its page in a browser.", "run")


@dataclass
class HubArguments(HubTargetArguments):
    """Whether to push the finished run, and where to."""

    push_to_hub: bool = flag(False, "Push the finished run to the Hub.", "run")

    def __post_init__(self):
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("--push_to_hub needs --hub_model_id owner/name: where to push to.")


def config_arguments(config_class: type, name: str, **defaults) -> type:
    """Makes a dataclass of flags from a config's own fields, with their types, defaults and help.

    Args:
        config_class: a `PreTrainedConfig` whose fields were made by `setting`.
        name: name of the dataclass.
        defaults: other defaults; `...` leaves the flag out.
    """
    flags = []
    for config_field in own_fields(config_class):
        is_of_data = config_field.name in ("image_size", "num_channels", "data_variance")
        default = defaults.get(config_field.name, None if is_of_data else config_field.default)
        if default is ...:
            continue
        kind = config_field.type
        if "list[int]" in str(kind):
            kind = list[int]
            default = [default] if isinstance(default, int) else default and list(default)
        elif kind in (float | int, float | int | None):
            kind = float
        if default is None:
            kind = kind | None
        meaning = config_field.metadata["help"] + (" Default: the data's." if is_of_data else "")
        one = flag(default, meaning, "model")
        flags.append((config_field.name, kind, one))
    return make_dataclass(name, flags)


REPLACED = {"dead_code_threshold": 0.01}  # a code that about fifty batches did not choose
VQVAEArguments = config_arguments(VQVAEConfig, "VQVAEArguments", **REPLACED)
# Codes and grid are the VQ-VAE's, classes and their frequencies the dataset's; gated is what measures best.
_OF_DATA = dict.fromkeys(("num_embeddings", "grid_size", "num_classes", "class_frequencies"), ...)
PriorArguments = config_arguments(PixelCNNConfig, "PriorArguments", **_OF_DATA, architecture="gated")


@dataclass
class RunArguments:
    """All flags of a run, those of `scripts/train.py`."""

    data: DataArguments = field(default_factory=DataArguments)
    vqvae: VQVAEArguments = field(default_factory=VQVAEArguments)
    prior: PriorArguments = field(default_factory=PriorArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    hub: HubArguments = field(default_factory=HubArguments)

    @property
    def values(self) -> dict[str, Any]:
        """Values of all flags by name, as arguments.json holds them."""
        return {name: value for part in asdict(self).values() for name, value in part.items()}

    @classmethod
    def parts(cls) -> list[type]:
        """The dataclasses of the flags, in the order of the fields."""
        return [part.type for part in fields(cls)]

    @classmethod
    def names(cls, *roles: str) -> set[str]:
        """Names of the flags with one of `roles` (see [`flag`])."""
        flags = (one for part in cls.parts() for one in fields(part))
        return {one.name for one in flags if one.metadata["role"] in roles}


@dataclass
class DrawArguments:
    """How to sample codes from the prior."""

    temperature: float = flag(1.0, "Below 1 less varied, above 1 more varied; 0 takes the likeliest.", at_least=0)
    top_k: int | None = flag(None, "Sample from the K likeliest codes (default: all).", at_least=1)
    top_p: float | None = flag(None, "Nucleus sampling: probability to keep (default: all).", above=0, at_most=1)
    guidance_scale: float = flag(1.0, "Classifier-free guidance; 1: none.", at_least=0, at_most=1_000_000)

    def __post_init__(self):
        check_bounds(self)

    @property
    def controls(self) -> dict[str, Any]:
        """Arguments of `sample` except the guidance; filters only if they are set."""
        given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class SampleQualityArguments(DrawArguments):
    """Which samples are measured, and by which classifier."""

    num_samples: int = flag(1000, "Samples for the Fréchet distance; 0 skips it.", at_least=0)
    classifier: str | None = flag(
        None, "Model whose features are compared (default: a small one, trained once on train_split and cached)."
    )
    classifier_dir: str | None = flag(None, "Folder for trained classifiers (default: the Hub clients' cache).")
    seed: int = flag(0, "Seed of the samples.", at_least=0, below=2**32)

    def __post_init__(self):
        super().__post_init__()
        if self.num_samples == 1:
            raise ValueError("--num_samples must be 0 or above 1, got 1.")


def find_label(name: str, label2id: dict[str, int] | None) -> int | str:
    """Converts a word of the command line to a class label for `sample`: a class name, else a number, else -1."""
    is_number = name.isascii() and name.removeprefix("-").isdigit()
    return int(name) if is_number and name not in (label2id or {}) else name
