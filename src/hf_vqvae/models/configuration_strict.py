# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""A configuration that refuses what it does not know."""

import difflib
import os
import reprlib
from dataclasses import field, fields

import torch
from huggingface_hub.dataclasses import strict as strict_of_the_hub
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A config is read before the weights and comes from anywhere. These bounds keep one of absurd sizes from filling the
# memory or building layers for hours; the weights' shapes are compared with the file's when they are loaded.
MAX_SIZE = 2**16  # channels, dimensions, sides
MAX_PIXELS = 2**26  # of an image: a quarter as many codes at most
MAX_LAYERS = 256  # of one kind, in all levels together
MAX_CODES = 2**24
MAX_CLASSES = 2**16
MAX_ITEMS = 1000  # of a list
_DTYPES = ("float32", "float64", "float16", "bfloat16")

# Keys that are no fields of a config and yet travel in config.json or are taken by `from_pretrained`.
_KEYS_OF_TRANSFORMERS = {
    "model_type",
    "auto_map",
    "custom_pipelines",
    "name_or_path",
    "num_labels",
    "torch_dtype",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "per_layer_config",
}
# Of these, no saved config of this package has any: they name code or a folder to read from, or layers that no model
# here has.
_KEYS_NOT_READ = {"attn_implementation", "experts_implementation", "per_layer_config"}
_KEYS_NOT_READ |= {"name_or_path", "_name_or_path", "_attn_implementation"}


def setting(default, help_text: str):
    """A config field with its default and its documentation, which is the flag's too."""
    return field(default=default, metadata={"help": help_text})


def own_fields(config_class: type[PreTrainedConfig]) -> list:
    """The `dataclasses.Field`s that `config_class` adds to those of `PreTrainedConfig`."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    return [f for f in fields(config_class) if f.name not in inherited]


def shown(value) -> str:
    """`repr(value)`, short whatever the value is."""
    try:
        return reprlib.repr(value)
    except Exception:  # a `repr` that fails, or a whole number of more digits than Python prints
        return f"a value of type {type(value).__name__}"


def check_source(value) -> None:
    """Raises `TypeError` unless `value` can be the first argument of a `from_pretrained`."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"`pretrained_model_name_or_path` must be a folder or owner/name on the Hub, got {shown(value)}."
        )


def strict(config_class):
    """`strict` of huggingface_hub, whose errors become the `ValueError`s that all other checks raise."""
    config_class = strict_of_the_hub(config_class)
    types = {f.name: f.type for f in fields(config_class)}
    set_checked, validate = config_class.__setattr__, config_class.validate

    def __setattr__(self, name, value):
        _check_setting_of_transformers(name, value)
        try:
            set_checked(self, name, value)
        except StrictDataclassError as error:
            kind = types[name]
            kind = (kind.__name__ if type(kind) is type else str(kind)).replace("typing.", "")
            raise ValueError(f"`{name}` must be {kind}, got {shown(value)}.") from error

    def validate_all(self):
        try:
            validate(self)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__)) from error

    validate_all.__is_defined_by_strict_decorator__ = True  # or a subclass could not be strict
    config_class.__setattr__, config_class.validate = __setattr__, validate_all
    return config_class


@strict
class StrictConfig(PreTrainedConfig):
    """`PreTrainedConfig` keeps an unknown key as an attribute, so that a misspelt setting is lost without a word.

    Here a misspelt keyword raises `ValueError` with the nearest name. A *saved* config with unknown keys comes from
    a later version or another tool and loads, with a warning that names what is ignored.
    """

    def __post_init__(self, **kwargs):
        unknown = self._unknown_keys(kwargs)
        if unknown:
            name = type(self).__name__
            known = [f.name for f in fields(self)]
            hints = [
                f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else "")
                for key in unknown
                for near in [difflib.get_close_matches(key, known, n=1)]
            ]
            settings = ", ".join(f.name for f in own_fields(type(self)))
            raise ValueError(
                f"{name} has no setting {', '.join(hints)}. Its settings are: {settings}."
            )
        for name, value in kwargs.items():
            _check_setting_of_transformers(name, value)
        super().__post_init__(**kwargs)
        # `@strict` runs the validators too, here and on save, but wraps what they raise in an error of its own that is
        # no `ValueError`.
        for name in dir(type(self)):
            if name.startswith("validate_"):
                getattr(self, name)()

    def check_between(self, **bounds: tuple[int, int]) -> None:
        """Raises `ValueError` unless every setting named is within its bounds, both included."""
        for name, (minimum, maximum) in bounds.items():
            value = getattr(self, name)
            if value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {shown(value)}.")
            if value > maximum:
                raise ValueError(f"`{name}` must be at most {maximum}, got {shown(value)}.")

    @classmethod
    def check_is_dict(cls, config_dict) -> dict:
        """`config_dict`, if it is one: a JSON file may hold anything."""
        if not isinstance(config_dict, dict):
            raise ValueError(
                f"a {cls.__name__} must be a dict of settings, got {shown(config_dict)}."
            )
        return config_dict

    @classmethod
    def _unknown_keys(cls, keys) -> list[str]:
        known = {f.name for f in fields(cls)} | _KEYS_OF_TRANSFORMERS
        return [key for key in keys if key not in known and not cls._is_private(key)]

    @classmethod
    def _is_private(cls, key: str) -> bool:
        """Whether transformers may mean `key` for itself, and it would not replace a part of the class."""
        replaces = hasattr(cls, key) and not isinstance(getattr(cls, key), property)
        return key.startswith("_") and not key.startswith("__") and not replaces

    @classmethod
    def drop_unknown(cls, config_dict: dict) -> dict:
        """`config_dict` without the keys this version does not know, which a warning names."""
        unknown = cls._unknown_keys(cls.check_is_dict(config_dict))
        if unknown:
            logger.warning(
                f"{cls.__name__}: the saved config has settings that this version does not know and ignores: "
                f"{', '.join(unknown)}. It was probably written by a later version."
            )
        return {
            key: value
            for key, value in config_dict.items()
            if key not in unknown and key not in _KEYS_NOT_READ
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `PreTrainedConfig.from_pretrained`; `TypeError` if the first argument is neither a name nor a path."""
        check_source(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As `PreTrainedConfig.from_dict`; unknown keys are dropped with a warning.

        Settings among `kwargs` override the saved ones and are checked as those of the constructor are.
        """
        config_dict = cls.drop_unknown(config_dict)
        names = [f.name for f in own_fields(cls)]
        for key in list(kwargs):
            if key in names:
                value = kwargs.pop(key)
                if isinstance(value, dict):  # of a part: what it leaves out stays as saved
                    value = {**(config_dict.get(key) or {}), **value}
                config_dict[key] = value
            elif near := difflib.get_close_matches(key, names, n=1, cutoff=0.8):
                # Other unknown arguments are for the loading of files or weights.
                raise ValueError(
                    f"{cls.__name__} has no setting `{key}` (did you mean `{near[0]}`?)."
                )
        return super().from_dict(config_dict, **kwargs)


def _check_setting_of_transformers(name: str, value) -> None:
    """Refuses values that `PreTrainedConfig` would take at their word, or fail at without a name."""
    if value is None and name != "num_labels":
        return
    if (
        isinstance(value, list | tuple) and len(value) > MAX_ITEMS
    ):  # each would be checked for its type
        raise ValueError(f"`{name}` must not have more than {MAX_ITEMS} items, got {len(value)}.")
    if name in ("dtype", "torch_dtype"):
        dtype = str(value) if isinstance(value, torch.dtype) else value
        if not isinstance(dtype, str) or dtype.removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"`{name}` must be one of {', '.join(_DTYPES)}, got {shown(dtype)}.")
    if name == "num_labels" and (type(value) is not int or not 0 <= value <= MAX_CLASSES):
        raise ValueError(f"`num_labels` must be 0 to {MAX_CLASSES}, got {shown(value)}.")
    if name == "id2label" and (not isinstance(value, dict) or len(value) > MAX_CLASSES):
        raise ValueError(
            f"`id2label` must map at most {MAX_CLASSES} class numbers to names, got {shown(value)}."
        )
    if name == "id2label":
        for label in value.values():
            if not isinstance(label, str):
                raise ValueError(
                    f"`id2label` must map to names that are texts, got {shown(label)}."
                )


__all__ = [
    "MAX_CODES",
    "MAX_LAYERS",
    "MAX_PIXELS",
    "MAX_SIZE",
    "StrictConfig",
    "check_source",
    "own_fields",
    "setting",
    "shown",
    "strict",
]
