# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Generate images with a frozen VQ-VAE and a prior over its codes (van den Oord et al. 2017, section 3.3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_image_generation import VQVAEForImageGenerationConfig
from .hub_mixin import HubMixin, hide_labels
from .image_processing_vqvae import VQVAEImageProcessorPil
from .input_checks import as_batch, count_grids, require
from .modeling_pixelcnn import PixelCNNLikelihoodOutput, PixelCNNModel
from .modeling_vqvae import VQVAEModel

if TYPE_CHECKING:  # code of a repo that saves itself copies the files that are named like this
    from .pipeline_image_generation import ImageGenerationPipeline  # noqa: F401


@dataclass
class VQVAEForImageGenerationOutput(ModelOutput):
    """Output of [`VQVAEForImageGeneration`].

    Attributes:
        loss: scalar, unless `return_loss=False`: the prior's negative log-likelihood in nats per code.
        logits: (B, K, h, w), the prior's.
        codes: (B, h, w), the image's codes.
        hidden_states: with `output_hidden_states=True`, the prior's.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VQVAESampleOutput(ModelOutput):
    """Output of [`VQVAEForImageGeneration.sample`] with `return_dict=True`.

    Attributes:
        images: as `output_type` says.
        codes: (N, h, w), what the prior drew.
    """

    images: torch.FloatTensor | np.ndarray | list | None = None
    codes: torch.LongTensor | None = None


def _fill_unknown(images: Tensor, known: Tensor) -> Tensor:
    """Replace the pixels of images (N, C, H, W) that are not `known` (N, 1, H, W) by the mean of the nearest known ones.

    The encoder sees a few pixels beyond each cell of the grid, and these must depend on the known part alone. Where
    nothing is known, the pixels are 0.
    """
    # Spreads from known pixels to their neighbours, ring by ring.
    number = max(len(images), len(known))  # either may be one for all
    known = known.to(images.dtype).expand(number, -1, -1, -1)
    images = images.where(known > 0, 0) * known
    while 0 < known.sum() < known.numel():
        pool = nn.functional.avg_pool2d
        weight = pool(known, 3, stride=1, padding=1)
        spread = pool(images, 3, stride=1, padding=1) / weight.clamp_min(1e-9)
        new = (known == 0) & (weight > 0)
        if not new.any():  # images of which nothing is known, beside others
            break
        images = torch.where(new, spread, images)
        known = torch.where(new, 1.0, known)
    return images


class VQVAEForImageGeneration(HubMixin, PreTrainedModel):
    """VQ-VAE and prior. The VQ-VAE is frozen: its weights take no gradient and its codebook never moves.

    ```python
    >>> model = VQVAEForImageGeneration.from_pretrained("outputs/quickstart")
    >>> processor = VQVAEImageProcessorPil.from_pretrained("outputs/quickstart")
    >>> processor.postprocess(model.sample(16))  # 16 PIL images
    ```

    `from_pretrained` of a folder that holds only a VQ-VAE (stage 1) loads it and starts a new prior.
    """

    config: VQVAEForImageGenerationConfig
    base_model_prefix = "vqvae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _can_compile_fullgraph = True

    def __init__(self, config: VQVAEForImageGenerationConfig):
        super().__init__(config)
        self.vqvae = VQVAEModel._from_config(config.vqvae_config)
        self.prior = PixelCNNModel._from_config(config.prior_config)
        self.vqvae.requires_grad_(False)
        self.vqvae.eval()
        self.post_init()

    def train(self, mode: bool = True) -> "VQVAEForImageGeneration":
        """Put the prior into training mode; the VQ-VAE stays in eval, or its codebook would move."""
        super().train(mode)
        self.vqvae.eval()
        # Again: `from_pretrained` makes new parameters, all of which take gradients, and ends with `eval()`.
        self.vqvae.requires_grad_(False)
        return self

    @hide_labels
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        class_labels: torch.LongTensor | None = None,
        return_loss: bool = True,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQVAEForImageGenerationOutput:
        r"""
        Args:
            pixel_values: (B, C, H, W) in [-0.5, 0.5], from the image processor.
            class_labels: (B,) integers in [0, `num_classes`), and -1 where the class is not known.
            return_loss: whether to compute `loss`, in nats per code.
            labels: `class_labels`, as `transformers.Trainer` calls them; without effect if there are no classes.
        """
        if self.config.output_hidden_states:
            kwargs.setdefault("output_hidden_states", True)
        with torch.no_grad():
            codes = self.vqvae.encode(pixel_values).codes
        prior = self.prior(codes, class_labels, return_loss, labels, return_dict=True, **kwargs)
        return VQVAEForImageGenerationOutput(codes=codes, **prior)

    @torch.no_grad()
    def log_likelihood(
        self, pixel_values: Tensor | None = None, codes: Tensor | None = None, class_labels=None
    ) -> PixelCNNLikelihoodOutput:
        """Compute the negative log-likelihood of the codes of images, cell by cell: `nats` (B, h, w), `bits` (B,).

        Name either `pixel_values` (B, C, H, W) in [-0.5, 0.5] or `codes` (B, h, w). Labels and errors are those of
        [`PixelCNNModel.log_likelihood`]: without labels, it is that of what `sample` draws without labels.
        """
        if (pixel_values is None) == (codes is None):
            raise ValueError("`log_likelihood` needs `pixel_values` or `codes`, and not both.")
        codes = self.vqvae.encode(pixel_values).codes if codes is None else codes
        return self.prior.log_likelihood(codes, class_labels)

    @torch.no_grad()
    def sample(
        self,
        num_images: int | None = None,
        *,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        batch_size: int = 256,
        output_type: str = "pt",
        return_dict: bool = False,
        **options,
    ) -> Tensor | np.ndarray | list | VQVAESampleOutput:
        """Draw codes from the prior and decode them to images.

        `class_labels`, `guidance_scale`, `temperature`, `top_k`, `top_p`, `codes`, `mask`, `generator`, `seeds` and
        `batch_size` are those of [`PixelCNNModel.sample`], and so are the errors.

        ```python
        >>> model.sample(16, class_labels="7", guidance_scale=2.0, output_type="pil")
        >>> model.sample(4, pixel_values=image, pixel_mask=upper_half)  # completes an image in four ways
        ```

        Args:
            num_images: how many, N; by default as many as labels, seeds or known images, or else 1.
            pixel_values: (C, H, W) or (N, C, H, W) in [-0.5, 0.5], images to be completed. The codes of the cells of
                the grid that are known entirely are kept, and the rest is drawn.
            pixel_mask: (H, W) or (N, H, W), bool, True where a pixel is known. The others have no influence.
            output_type: "pt" for (N, C, H, W) of about [-0.5, 0.5], which the model takes again; "np" for (N, H, W, C)
                in [0, 1]; "pil" for a list of PIL images.
            return_dict: whether to return a [`VQVAESampleOutput`], which holds the codes too, instead of the images.
        """
        if output_type not in ("pt", "np", "pil"):
            raise ValueError(f'`output_type` must be "pt", "np" or "pil", got {output_type!r}.')
        number = count_grids(
            "num_images",
            num_images,
            **{name: options.get(name) for name in ("class_labels", "seeds", "codes", "mask")},
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
        )
        if pixel_values is not None or pixel_mask is not None:
            if options.get("codes") is not None or options.get("mask") is not None:
                raise ValueError("`codes`, `mask` and `pixel_values`, `pixel_mask` exclude each other: name one pair.")
            known = self._known_part(pixel_values, pixel_mask, number)
            options["codes"], options["mask"] = known
        drawn = self.prior.sample(number, batch_size=batch_size, **options)
        parts = [self.vqvae.decode(part) for part in drawn.split(batch_size)]
        if output_type != "pt":
            parts = [VQVAEImageProcessorPil().postprocess(part, output_type) for part in parts]
        if output_type == "pil":
            images = [image for part in parts for image in part]
        else:
            images = torch.cat(parts) if output_type == "pt" else np.concatenate(parts)
        return VQVAESampleOutput(images=images, codes=drawn) if return_dict else images

    def _known_part(self, pixel_values: Tensor | None, pixel_mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """Return the codes (N, h, w) of partly known images, and a mask of the cells that are known entirely."""
        if pixel_values is None or pixel_mask is None:
            raise ValueError("`pixel_values` and `pixel_mask` go together: name both, or neither.")
        rows, columns = self.config.prior_config.grid_size
        side = self.config.vqvae_config.downsampling_factor
        shape = (self.config.num_channels, rows * side, columns * side)
        pixel_values = as_batch("pixel_values", pixel_values, "floating-point numbers", shape, count)
        pixel_mask = as_batch("pixel_mask", pixel_mask, "bool", shape[1:], count)
        device = self.vqvae.device if self.vqvae.device.type != "meta" else pixel_values.device
        pixel_values, pixel_mask = pixel_values.to(device), pixel_mask.to(device)
        filled = _fill_unknown(pixel_values, pixel_mask[:, None])
        require(bool(filled.isfinite().all()), "pixel_values", float("nan"), "finite where `pixel_mask` is True")
        cells = pixel_mask.unflatten(2, (columns, side)).unflatten(1, (rows, side))
        return self.vqvae.encode(filled).codes, cells.all(dim=(2, 4))

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the parts initialise their own weights."""
