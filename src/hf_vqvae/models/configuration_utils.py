# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Base class of the configs: bounds declared with each field, and errors for misspelt settings."""

import difflib
import functools
import inspect
import math
import operator
from dataclasses import field, fields
from reprlib import repr as shown

from huggingface_hub.dataclasses import strict as hub_strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A config is read before the weights. Larger sizes than these are typing errors.
MAX_SIZE = 2**16  # channels, dimensions, sides
MAX_LAYERS = 256  # of one kind
MAX_CLASSES = 2**16
SIZE = {"at_least": 1, "at_most": MAX_SIZE}
LAYERS = {"at_least": 0, "at_most": MAX_LAYERS}
KERNEL = {"at_least": 3, "at_most": MAX_SIZE}
CLASSES = {"at_least": 1, "at_most": MAX_CLASSES}
CODES = {"at_least": 2, "at_most": 2**24}
FINITE = {"at_least": 0, "below": math.inf}
SHARE = {"at_least": 0, "below": 1}

# Bounds that a field may declare. NaN is within none of them.
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
# Keys of a saved config that are not fields.
_CODE_KEYS = {"auto_map", "custom_pipelines"}
_SAVED_KEYS = {"model_type", "num_labels", "torch_dtype", "output_attentions"} | _CODE_KEYS
# Further arguments that `PreTrainedConfig.from_dict` hands to the constructor.
_ARGUMENTS = {"name_or_path", "attn_implementation", "experts_implementation"}


def setting(default, help_text: str, **bounds: float):
    """Declare a config field: its default, its documentation (the flag's too) and its bounds.

    Args:
        bounds: `at_least`, `above`, `at_most` or `below`; they hold for every item of a tuple, and not for None.
    """
    return field(default=default, metadata={"help": help_text, **bounds})


def own_fields(config_class: type[PreTrainedConfig]) -> list:
    """List the `dataclasses.Field`s that `config_class` adds to those of `PreTrainedConfig`."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    return [f for f in fields(config_class) if f.name not in inherited]


def strict(config_class):
    """Apply `strict` of huggingface_hub, so that the constructor raises `ValueError` for a wrong type or value.

    The fields' documentation is appended to the docstring of the class.
    """
    config_class = hub_strict(config_class)
    settings = "\n".join(
        f"    {own.name}, defaults to {own.default!r}:\n        {own.metadata['help']}"
        for own in own_fields(config_class)
    )
    config_class.__doc__ = f"{inspect.cleandoc(config_class.__doc__)}\n\nArgs:\n{settings}"
    construct = config_class.__init__

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        try:
            construct(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error

    config_class.__init__ = __init__
    return config_class


def without_code(settings: dict, owner) -> dict:
    """Return saved settings without the names of code files, which the installed package does not save; code of a repo does."""
    if type(owner).__module__.startswith("transformers_modules."):
        return settings
    return {key: value for key, value in settings.items() if key not in _CODE_KEYS}


@strict
class StrictConfig(PreTrainedConfig):
    """`PreTrainedConfig` keeps an unknown key as an attribute, so that a misspelt setting has no effect and no error.

    Here a misspelt keyword raises `ValueError` with the nearest name. A *saved* config with unknown keys was written by
    a later version or another tool: it loads, with a warning that names the keys that are ignored.
    """

    def __post_init__(self, **kwargs):
        known = [f.name for f in fields(self)]
        unknown = [
            key
            for key, value in kwargs.items()
            # Of arguments that a later transformers adds, None is the default.
            if key not in _SAVED_KEYS | _ARGUMENTS and not key.startswith("_") and value is not None
        ]
        if unknown:
            settings = ", ".join(f.name for f in own_fields(type(self)))
            hints = ", ".join(f"`{key}`{did_you_mean(key, known)}" for key in unknown)
            raise ValueError(f"{type(self).__name__} has no setting {hints}. Its settings are: {settings}.")
        super().__post_init__(**without_code(kwargs, self))

    def validate_bounds(self):
        """Check every setting against the bounds of its field."""
        for own in own_fields(type(self)):
            value = getattr(self, own.name)
            for number in value if isinstance(value, tuple) else (value,):
                for rule in (rule for rule in BOUNDS if rule in own.metadata):
                    bound = own.metadata[rule]
                    if number is not None and not BOUNDS[rule](number, bound):
                        raise ValueError(f"`{own.name}` must be {rule.replace('_', ' ')} {bound}, got {shown(value)}.")

    @classmethod
    def drop_unknown(cls, config_dict: dict) -> dict:
        """Return a saved config, and its parts, without the keys that this version does not know; a warning names them."""
        known = {f.name for f in fields(cls)} | _SAVED_KEYS
        unknown = [key for key in config_dict if key not in known]
        named = [key for key in unknown if not key.startswith("_")]
        if named:
            logger.warning(
                f"{cls.__name__}: the saved config has settings that this version does not know and ignores: "
                f"{', '.join(named)}. It was probably written by a later version."
            )
        saved = {key: value for key, value in config_dict.items() if key not in unknown}
        for key, part in cls.sub_configs.items():
            if isinstance(saved.get(key), dict):
                saved[key] = part.drop_unknown(saved[key])
        return saved

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Make a config as `PreTrainedConfig.from_dict` does; unknown keys are dropped with a warning.

        Settings among `kwargs` override the saved ones and are checked as those of the constructor are.
        """
        config_dict = cls.drop_unknown(config_dict)
        names = [f.name for f in own_fields(cls)]
        for key in list(kwargs):
            if key in names:
                value = kwargs.pop(key)
                if isinstance(value, dict):  # a part: settings that it leaves out stay as saved
                    value = {**(config_dict.get(key) or {}), **value}
                config_dict[key] = value
            # Other unknown arguments are for the loading of files or weights.
            elif hint := did_you_mean(key, names, cutoff=0.8):
                raise ValueError(f"{cls.__name__} has no setting `{key}`{hint}.")
        return super().from_dict(config_dict, **kwargs)


def did_you_mean(key: str, names: list[str], cutoff: float = 0.6) -> str:
    """Return a hint at the name most similar to `key`, for an error message; empty if there is none."""
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
    # A label of a model from the Hub may hold newlines and escape sequences.
    return f" (did you mean `{repr(nearest[0])[1:-1]}`?)" if nearest else ""
