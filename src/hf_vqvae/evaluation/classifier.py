"""Image classifiers for measuring samples: any of transformers, and a small one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..hub.download import fetch_model, load_complete
from ..hub.errors import FAILURES as HUB_FAILURES
from ..models import VQVAEImageProcessorPil
from ..models.configuration_utils import StrictConfig, setting, strict
from ..models.configuration_vqvae import as_pair
from ..models.hub_mixin import check_finite

# What loading anybody's files may fail with.
FAILURES = (*HUB_FAILURES, SafetensorError, StrictDataclassError)


@strict
class SmallClassifierConfig(StrictConfig):
    """Configuration of a [`SmallClassifier`]; the classes are `id2label`."""

    model_type = "hf_vqvae_small_classifier"

    image_size: int | list[int] | tuple[int, ...] = setting(28, "Side, or height and width.")
    num_channels: int = setting(1, "Channels of the images.")
    num_features: int = setting(96, "Outputs of the layer before the last: the features.")


class SmallClassifier(PreTrainedModel):
    """Convolutional network of 382,000 parameters that learns handwritten digits in about a minute.

    While the shorter side has 8 pixels or more, a 4x4 convolution of stride 2 and a 3x3 one follow, of 32, 64, then
    128 channels, each with batch normalization and ReLU. A linear layer computes the features, a second one the
    logits. There is no pooling and no ReLU around the features, which would make those of one class alike.
    """

    config: SmallClassifierConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: SmallClassifierConfig):
        super().__init__(config)
        height, width = as_pair(config.image_size)
        inputs, channels = config.num_channels, 32
        layers: list[nn.Module] = [] if min(height, width) >= 8 else _convolution(inputs, channels)
        inputs = channels if layers else inputs
        while min(height, width) >= 8:
            layers += _convolution(inputs, channels, kernel_size=4, stride=2)
            layers += _convolution(channels, channels)
            height, width = height // 2, width // 2
            inputs, channels = channels, min(2 * channels, 128)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.features = nn.Linear(inputs * height * width, config.num_features)
        self.dropout = nn.Dropout(0.25)
        self.classifier = nn.Linear(config.num_features, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """`pixel_values` (B, C, H, W) in [-0.5, 0.5] to `logits` (B, K); `loss` in nats with `labels` (B,)."""
        logits = self.classifier(self.dropout(self.features(self.layers(pixel_values))))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def whiten_(self, pixel_values: Iterable[Tensor]) -> None:
        """Whiten the features: mean 0 and identity covariance over batches of images (B, C, H, W).

        The last layer undoes the change of basis, so the logits stay the same. Without whitening, the few directions
        that separate the classes have nearly all of the variance, and a Fréchet distance measures little but the
        frequencies of the classes. Variances below 1e-4 of their mean (few images) are raised to that.
        """
        features = torch.cat([self.features(self.layers(part)) for part in pixel_values]).double()
        mean = features.mean(0)
        centred = features - mean
        variances, basis = torch.linalg.eigh(centred.T @ centred / len(features))
        least = (1e-4 * variances.mean()).clamp(min=torch.finfo(torch.float32).tiny)
        deviations = variances.clamp(min=least).sqrt()
        to_white, back = (basis / deviations).T, basis * deviations
        first, last = self.features, self.classifier
        first.weight.copy_(to_white @ first.weight.double())
        first.bias.copy_(to_white @ (first.bias.double() - mean))
        last.bias.copy_(last.bias.double() + last.weight.double() @ mean)
        last.weight.copy_(last.weight.double() @ back)

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialization of torch's layers."""


def _convolution(num_inputs: int, num_outputs: int, kernel_size: int = 3, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(num_inputs, num_outputs, kernel_size, stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(num_outputs), nn.ReLU()]


AutoConfig.register(SmallClassifierConfig.model_type, SmallClassifierConfig)
AutoModelForImageClassification.register(SmallClassifierConfig, SmallClassifier)


class ImageClassifier:
    """An image classification model of transformers, in eval mode, with its image processor, for 8-bit images.

    The features are the penultimate activations: the input of the last `nn.Linear`, whose outputs must be the logits.
    `description` is for the metrics' protocols.

    Raises:
        ValueError: if the last linear layer does not compute the logits.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, description: str):
        self.model, self.processor, self.description = model.eval(), processor, description
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self.num_classes = model.config.num_labels
        if not linear or linear[-1].out_features != self.num_classes:
            found = f"gives {linear[-1].out_features} values" if linear else "does not exist"
            raise ValueError(
                f"the last nn.Linear of the classifier {type(model).__name__} must give its "
                f"{self.num_classes} classes, but it {found}: take another classifier, such as a ViT."
            )
        self._last = linear[-1]
        self.num_features = self._last.in_features

    def to(self, device: torch.device) -> "ImageClassifier":
        """Move the model to `device` and return self."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features (N, `num_features`) and probabilities (N, K) of uint8 images (N, C, H, W).

        In float32. Grey images are repeated to the number of channels of the classifier.

        Raises:
            ValueError: if the number of channels is not the classifier's.
        """
        channels = getattr(self.model.config, "num_channels", 3)
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        if images.shape[1] != channels:
            raise ValueError(
                f"the classifier ({self.description}) takes images of {channels} channels, got "
                f"{images.shape[1]}: name another with `--classifier`, or leave it out to train one."
            )
        arrays = list(images.cpu().numpy())
        inputs = self.processor(arrays, return_tensors="pt", input_data_format="channels_first")
        pixel_values = inputs["pixel_values"].to(self.model.device)
        seen: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.autocast(pixel_values.device.type, enabled=False):
                logits = self.model(pixel_values=pixel_values).logits
        finally:
            hook.remove()
        return seen[-1].flatten(1).float(), logits.float().softmax(1)

    def classes_of(self, label_names: list[str] | None, num_labels: int) -> Tensor | None:
        """The classifier's class of each label of a dataset, int64 (`num_labels`,); `None` if they cannot be compared.

        Matched by name if the classifier has all `label_names`, else by number if it has `num_labels` classes.
        """
        numbers = {str(name): int(number) for number, name in self.model.config.id2label.items()}
        if label_names and len(label_names) == num_labels and set(label_names) <= set(numbers):
            return torch.tensor([numbers[name] for name in label_names])
        return torch.arange(num_labels) if num_labels == self.num_classes else None


def load_classifier(name_or_path: str) -> ImageClassifier:
    """Load a classifier of transformers with its image processor from a folder or the Hub.

    Without an image processor, images are scaled to [-0.5, 0.5] and resized to the `image_size` of the config, if any.

    Raises:
        ValueError: if there is no model that needs no code of its own and has complete, finite safetensors weights.
    """
    try:
        folder = fetch_model(name_or_path)
        model = load_complete(AutoModelForImageClassification, folder)
        check_finite(model)
        processor = _load_processor(folder, model.config)
    except FAILURES as error:
        raise ValueError(
            f"cannot load the classifier {name_or_path!r}: {str(error).rstrip('.')}. Name a model "
            "for image classification, with safetensors weights: a folder, or owner/name on the Hub."
        ) from error
    # Paths of this machine go into no record.
    name = Path(name_or_path).name if Path(name_or_path).exists() else name_or_path
    return ImageClassifier(model, processor, f"classifier {name}")


def _load_processor(folder: str, config: Any) -> Any:
    if (Path(folder) / "preprocessor_config.json").is_file():
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    size = getattr(config, "image_size", None)
    if size is None:
        return VQVAEImageProcessorPil(do_resize=False)
    height, width = as_pair(size)
    return VQVAEImageProcessorPil(size={"height": height, "width": width})
