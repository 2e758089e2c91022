"""The flags of all scripts that draw samples, and the labels these name."""

import re
from dataclasses import dataclass, field
from typing import Any

from .models import VQVAEForImageGeneration
from .models.sampling_pixelcnn import DrawSettings


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
