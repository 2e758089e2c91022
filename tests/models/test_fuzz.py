"""Wrong types and shapes into every public entry: `ValueError` or `TypeError` come out, or a result."""

import sys
from functools import cache

import numpy as np
import pytest
import torch

from hf_vqvae import (
    ImageGenerationPipeline,
    PixelCNNConfig,
    PixelCNNModel,
    VQVAEConfig,
    VQVAEForImageGeneration,
    VQVAEForImageGenerationConfig,
    VQVAEImageProcessorPil,
)
from hf_vqvae.arguments import DataArguments, HubArguments, PriorArguments, TrainingArguments, VQVAEArguments
from hf_vqvae.command_line import ScriptArgumentParser
from hf_vqvae.data.rows import RowDecoder
from hf_vqvae.data.sources import open_source
from hf_vqvae.hub.download import fetch_model
from hf_vqvae.metrics import (
    ClassifiedImages,
    CodebookUsage,
    CodeLikelihood,
    FrechetDistance,
    ReconstructionQuality,
    frechet_distance,
)
from hf_vqvae.models.configuration_utils import own_fields
from hf_vqvae.publishing.push import PushError, push_folder

VALUES = {
    "none": None,
    "negative": -1,
    "nan": float("nan"),
    "string": "x",
    "empty_list": [],
    "list": [1, 2],
    "dict": {"a": 1},
    "array": np.zeros((2, 2), np.float32),
    "scalar_tensor": torch.tensor(3),
    "empty_tensor": torch.zeros(0),
    "codes": torch.zeros(1, 2, 2, dtype=torch.long),
    "codes_outside": torch.full((1, 2, 2), 99),
    "float_codes": torch.zeros(1, 2, 2),
    "mask": torch.zeros(1, 2, 2, dtype=torch.bool),
    "pixels": torch.zeros(1, 1, 8, 8),
    "uint8_pixels": torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
    "nan_pixels": torch.full((1, 1, 8, 8), float("nan")),
    "half_pixels": torch.zeros(1, 1, 8, 8, dtype=torch.float16),
    "other_size": torch.zeros(1, 1, 12, 12),
    "other_channels": torch.zeros(1, 3, 8, 8),
}
SIZES = {"image_size": 8, "hidden_sizes": [4, 8], "num_embeddings": 16, "embedding_dim": 4}


@cache
def model():
    torch.manual_seed(0)
    config = VQVAEForImageGenerationConfig(vqvae_config=SIZES, prior_config={"hidden_size": 8})
    return VQVAEForImageGeneration(config).eval()


@cache
def pipe():
    processor = VQVAEImageProcessorPil(size={"height": 8, "width": 8})
    return ImageGenerationPipeline(model=model(), image_processor=processor)


@cache
def conditional():
    torch.manual_seed(0)
    config = PixelCNNConfig(num_embeddings=16, grid_size=(2, 2), hidden_size=8, num_classes=3)
    return PixelCNNModel(config).eval()


PROCESSOR = VQVAEImageProcessorPil(size={"height": 8, "width": 8}, num_channels=1)
PIXELS, CODES = torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 2, dtype=torch.long)
PICTURES, TABLE = torch.zeros(2, 1, 8, 8), torch.full((2, 3), 1 / 3)

ENTRIES = {
    "VQVAEModel()": lambda value: model().vqvae(value),
    "VQVAEModel.encode": lambda value: model().vqvae.encode(value),
    "VQVAEModel.decode": lambda value: model().vqvae.decode(value),
    "PixelCNNModel()": lambda value: model().prior(value),
    "PixelCNNModel(labels)": lambda value: model().prior(CODES, class_labels=value),
    "PixelCNNModel.sample": lambda value: model().prior.sample(value),
    "PixelCNNModel.log_likelihood": lambda value: conditional().log_likelihood(value),
    "PixelCNNModel.log_likelihood(labels)": lambda value: conditional().log_likelihood(CODES, value),
    "VQVAEForImageGeneration.log_likelihood": lambda value: model().log_likelihood(value),
    "VQVAEForImageGeneration()": lambda value: model()(value),
    "VQVAEForImageGeneration.sample": lambda value: model().sample(value),
    "VQVAEForImageGeneration.save_for_hub": lambda value: model().save_for_hub("/dev/null/x", value),
    "VectorQuantizer()": lambda value: model().vqvae.quantizer(value),
    "VectorQuantizer.encode": lambda value: model().vqvae.quantizer.encode(value),
    "VectorQuantizer.decode": lambda value: model().vqvae.quantizer.decode(value),
    "ImageGenerationPipeline()": lambda value: pipe()(value),
    "VQVAEImageProcessorPil()": lambda value: PROCESSOR(value),
    "VQVAEImageProcessorPil.postprocess": lambda value: PROCESSOR.postprocess(value),
    "VQVAEImageProcessorPil.postprocess(type)": lambda value: PROCESSOR.postprocess(PIXELS, value),
    "CodebookUsage": lambda value: CodebookUsage(value),
    "CodebookUsage.add": lambda value: CodebookUsage(16).add(prediction=value),
    "CodebookUsage.compute": lambda value: CodebookUsage(16).compute(predictions=value),
    "CodeLikelihood": lambda value: CodeLikelihood(value),
    "CodeLikelihood.add_batch": lambda value: CodeLikelihood(16).add_batch(
        predictions=CODES, references=value, negative_log_likelihoods=torch.zeros(2, 2, 2)
    ),
    "CodeLikelihood.add_batch(nats)": lambda value: CodeLikelihood(16).add_batch(
        predictions=CODES, references=CODES, negative_log_likelihoods=value
    ),
    "ReconstructionQuality.compute": lambda value: ReconstructionQuality().compute(
        predictions=value, references=value
    ),
    "ReconstructionQuality.add_batch": lambda value: ReconstructionQuality().add_batch(
        predictions=value, references=PICTURES
    ),
    "FrechetDistance": lambda value: FrechetDistance(value),
    "FrechetDistance.compute": lambda value: FrechetDistance(3).compute(predictions=value, references=TABLE),
    "ClassifiedImages": lambda value: ClassifiedImages(value),
    "ClassifiedImages.compute": lambda value: ClassifiedImages(3).compute(predictions=TABLE, references=value),
}
ENTRIES |= {
    f"{config_class.__name__}({field.name})": (
        lambda value, config_class=config_class, name=field.name: config_class(**{name: value})
    )
    for config_class in (VQVAEConfig, PixelCNNConfig, VQVAEForImageGenerationConfig)
    for field in own_fields(config_class)
}
SAMPLING = ("class_labels", "guidance_scale", "temperature", "top_k", "top_p", "codes", "mask")
SAMPLING += ("generator", "seeds", "batch_size")
ENTRIES |= {
    f"{kind}.sample({name})": lambda value, name=name, one=one: one().sample(2, **{name: value})
    for kind, one, names in (
        ("PixelCNNModel", lambda: model().prior, SAMPLING),
        ("PixelCNNModel(conditional)", lambda: conditional(), SAMPLING[:2]),
        ("VQVAEForImageGeneration", model, (*SAMPLING[:-1], "pixel_values", "pixel_mask")),
    )
    for name in names
}
ENTRIES |= {
    "VQVAEForImageGeneration.sample(completion)": lambda value: model().sample(pixel_values=PIXELS, pixel_mask=value),
    "PixelCNNModel.sample(completion)": lambda value: model().prior.sample(codes=CODES, mask=value),
    "PixelCNNModel(conditional)(labels)": lambda value: conditional()(CODES, class_labels=value),
    "VQVAEForImageGeneration(labels)": lambda value: model()(PIXELS, class_labels=value),
    "frechet_distance": lambda value: frechet_distance(TABLE, value),
    "RowDecoder.decode": lambda value: RowDecoder("train", "image", None, None, PROCESSOR).decode({"image": value}, 0),
    "push_folder": lambda value: push_folder("/dev/null/x", value),
    "push_folder(folder)": lambda value: push_folder(value, "me/x"),
    "fetch_model": lambda value: fetch_model(value),
    "open_source": lambda value: open_source(DataArguments(dataset_name=value)),
    "VQVAEModel.push_to_hub": lambda value: model().vqvae.push_to_hub(value),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_values_end_in_a_value_or_type_error(entry):
    """A failure lists the values with what came out in place of an error of the two kinds."""
    escaped = {}
    for name, value in VALUES.items():
        if name == "string" and entry.endswith(("fetch_model", "open_source")):
            continue  # a name on the Hub
        try:
            ENTRIES[entry](value)
        except (ValueError, TypeError, PushError):
            pass
        except OSError as error:
            if not entry.endswith(("save_for_hub", "push_to_hub")):
                escaped[name] = repr(error)[:150]
        except Exception as error:
            escaped[name] = repr(error)[:150]
    assert not escaped, f"{entry}: {escaped}"


WORDS = ["", "-1", "0", "nan", "inf", "1e400", "9" * 5000, "x", "None", "[]", "{}", "\0", "--seed"]
FLAGS = ["num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "max_grad_norm"]
FLAGS += ["mixed_precision", "lr_scheduler_type", "log_with", "seed", "image_size", "hidden_sizes", "commitment_cost"]
FLAGS += ["codebook_update", "kernel_size", "max_train_samples", "push_to_hub", "streaming"]


@pytest.mark.parametrize("flag", FLAGS)
def test_wrong_words_on_the_command_line_end_with_status_2_and_a_line(flag, monkeypatch, capsys):
    kinds = (DataArguments, VQVAEArguments, PriorArguments, TrainingArguments, HubArguments)
    for word in WORDS:
        monkeypatch.setattr(sys, "argv", ["train.py", f"--{flag}={word}"])
        try:
            ScriptArgumentParser(kinds).parse()
        except SystemExit as end:
            assert end.code == 2, word
            assert "error: " in capsys.readouterr().err
