# Copyright 2026 The hf_vqvae authors.
# Licensed under the Apache License, Version 2.0.
"""A configuration that refuses what it does not know."""

import difflib
from dataclasses import field, fields

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

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


def setting(default, help_text: str):
    """A config field with its default and its documentation, which is the flag's too."""
    return field(default=default, metadata={"help": help_text})


def own_fields(config_class: type[PreTrainedConfig]) -> list:
    """The `dataclasses.Field`s that `config_class` adds to those of `PreTrainedConfig`."""
    inherited = {f.name for f in fields(PreTrainedConfig)}
    return [f for f in fields(config_class) if f.name not in inherited]


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
        super().__post_init__(**kwargs)
        # `@strict` runs the validators too, here and on save, but wraps what they raise in an error of its own that is
        # no `ValueError`.
        for name in dir(type(self)):
            if name.startswith("validate_"):
                getattr(self, name)()

    @classmethod
    def _unknown_keys(cls, keys) -> list[str]:
        known = {f.name for f in fields(cls)} | _KEYS_OF_TRANSFORMERS
        return [key for key in keys if key not in known and not key.startswith("_")]

    @classmethod
    def drop_unknown(cls, config_dict: dict) -> dict:
        """`config_dict` without the keys this version does not know, which a warning names."""
        unknown = cls._unknown_keys(config_dict)
        if unknown:
            logger.warning(
                f"{cls.__name__}: the saved config has settings that this version does not know and ignores: "
                f"{', '.join(unknown)}. It was probably written by a later version."
            )
        return {key: value for key, value in config_dict.items() if key not in unknown}

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


__all__ = ["StrictConfig", "own_fields", "setting"]
