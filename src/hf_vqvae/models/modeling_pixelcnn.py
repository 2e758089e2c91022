# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""PixelCNN, an autoregressive prior over a grid of codes: plain (van den Oord et al. 2016, arXiv 1601.06759, section 3) or
gated and conditional (van den Oord et al. 2016, arXiv 1606.05328).

Codes are drawn row by row, from left to right; a code sees those above it and those left of it in its row.
Shapes: B batch, K codes, h x w grid, C channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pixelcnn import PixelCNNConfig
from .hub_mixin import HubMixin, hide_labels
from .input_checks import (
    ClassLabels,
    Seeds,
    as_labels,
    check_codes,
    check_labels,
    count_grids,
    draw_noise,
    known_codes,
    require,
)
from .pixelcnn_layers import CodeConv2d, CodeLookup, GatedPixelCNNLayer, PixelCNNResidualBlock, draw_uniform, dropout
from .sampling_pixelcnn import DrawSettings, sample_codes


@dataclass
class PixelCNNOutput(ModelOutput):
    """Output of [`PixelCNNModel`].

    Attributes:
        loss: scalar, unless `return_loss=False`: mean negative log-likelihood in nats per code.
        logits: (B, K, h, w); `logits[:, :, i, j]` sees only the codes before (i, j).
        hidden_states: with `output_hidden_states=True`, the input and the output of every block (gated: the horizontal stack's).
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PixelCNNLikelihoodOutput(ModelOutput):
    """Output of [`PixelCNNModel.log_likelihood`].

    Attributes:
        nats: (B, h, w), the negative log-likelihood of each code given those before it.
        bits: (B,), that of the whole grid: the sum of `nats`, divided by ln 2.
        logits: (B, K, h, w), of the distributions of the codes.
    """

    nats: torch.FloatTensor | None = None
    bits: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class PixelCNNModel(HubMixin, PreTrainedModel):
    """Prior over grids of codes (h, w); `PixelCNNConfig()` is the network of the Keras VQ-VAE example.

    ```python
    >>> prior = PixelCNNModel(PixelCNNConfig(architecture="gated", num_classes=10))
    >>> prior(codes, class_labels=labels).loss  # nats per code
    >>> prior.sample(16, class_labels=3)  # codes (16, 7, 7)
    ```
    """

    config: PixelCNNConfig
    base_model_prefix = "prior"
    main_input_name = "codes"
    _input_embed_layer = "conv_in"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PixelCNNResidualBlock", "GatedPixelCNNLayer"]
    _can_record_outputs = {"hidden_states": [PixelCNNResidualBlock, GatedPixelCNNLayer]}
    _can_compile_fullgraph = True
    # A full repo holds the autoencoder beside the prior.
    _keys_to_ignore_on_load_unexpected = [r"^vqvae\."]

    def __init__(self, config: PixelCNNConfig):
        super().__init__(config)
        if config.architecture == "plain":
            self._build_plain(config)
        else:
            self._build_gated(config)
        self.post_init()

    def _build_plain(self, config: PixelCNNConfig) -> None:
        channels = config.hidden_size
        self.conv_in = CodeConv2d(config.num_embeddings, channels, config.kernel_size)
        if config.num_classes is not None:
            self.class_embedding = nn.Embedding(config.num_classes + 1, channels)
        self.blocks = nn.ModuleList(PixelCNNResidualBlock(channels) for _ in range(config.num_residual_blocks))
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(config.num_pixelcnn_layers))
        self.conv_out = nn.Conv2d(channels, config.num_embeddings, kernel_size=1)

    def _build_gated(self, config: PixelCNNConfig) -> None:
        channels, codes, side = config.hidden_size, config.num_embeddings, config.kernel_size
        self.conv_in = CodeLookup(codes, channels, side, "above")
        self.conv_left = CodeLookup(codes, channels, side, "left")
        self.link = nn.Conv2d(channels, channels, kernel_size=1)
        self.blocks = nn.ModuleList(
            GatedPixelCNNLayer(config, is_last=number == config.num_gated_layers)
            for number in range(1, config.num_gated_layers + 1)
        )
        # One product for the skip connections of all layers; two wide 1x1 layers to the logits.
        skip, wide = channels * config.num_gated_layers, 2 * channels
        self.skip = nn.Conv2d(skip, wide, kernel_size=1)
        self.layers = nn.ModuleList([nn.Conv2d(wide, wide, kernel_size=1)])
        self.conv_out = nn.Conv2d(wide, config.num_embeddings, kernel_size=1)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Plain: Glorot-uniform kernels and zero biases, as in the example. Gated: outputs of about unit variance."""
        plain = self.config.architecture == "plain"
        if isinstance(module, nn.Conv2d | CodeConv2d) and plain:
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, CodeLookup):
            init.normal_(module.weight, std=0.5 * len(module.taps) ** -0.5)
        elif isinstance(module, nn.Embedding):
            # Labels: none has an effect before it has learned one.
            init.zeros_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)

    @hide_labels
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        codes: torch.LongTensor,
        class_labels: torch.LongTensor | None = None,
        return_loss: bool = True,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixelCNNOutput:
        r"""
        Args:
            codes: (B, h, w) integers in [0, K).
            class_labels: (B,) integers in [0, `num_classes`), and -1 where the class is not known; None for none known.
                In training mode a share of `label_dropout` is taken for not known.
            return_loss: whether to compute `loss`, in nats per code.
            labels: `class_labels`, as `transformers.Trainer` calls them; without effect if there are no classes.

        Raises `TypeError` or `ValueError` if dtype, shape or values of `codes` or `class_labels` do not fit the config.
        """
        codes = check_codes(codes, self.config.num_embeddings, self.config.grid_size)
        labels = labels if class_labels is None and self.config.num_classes else class_labels
        labels = self._embedding_rows(labels, codes)
        blocks = self._plain if self.config.architecture == "plain" else self._gated
        hidden = blocks(codes, labels)
        for layer in self.layers:
            hidden = nn.functional.relu(layer(hidden))
        logits = self.conv_out(hidden)
        loss = nn.functional.cross_entropy(logits.float(), codes.long()) if return_loss else None
        return PixelCNNOutput(loss=loss, logits=logits)

    def _plain(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        hidden = self.conv_in(codes)
        if labels is not None:
            hidden = hidden + self.class_embedding(labels)[:, :, None, None].to(hidden.dtype)
        hidden = nn.functional.relu(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return dropout(hidden, self.config.dropout) if self.training else hidden

    def _gated(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        vertical = self.conv_in(codes)
        horizontal = self.conv_left(codes) + self.link(vertical)
        skips = []
        for block in self.blocks:
            horizontal, vertical, gated = block(horizontal, vertical, labels)
            skips.append(gated)
        return nn.functional.relu(self.skip(torch.cat(skips, dim=1)))

    def _embedding_rows(self, class_labels: Tensor | None, codes: Tensor) -> Tensor | None:
        """Rows of the class embeddings: the label, or the last row where it is not known or dropped."""
        number = self.config.num_classes
        batch = codes.shape[0]  # len() would fix it when the model is exported
        class_labels = check_labels(class_labels, number, batch)
        if number is None:
            return None
        if class_labels is None:
            return torch.full((batch,), number, dtype=torch.long, device=codes.device)
        class_labels = class_labels.to(codes.device, torch.long)
        unknown = class_labels < 0
        if self.training and self.config.label_dropout:
            unknown = unknown | (draw_uniform((batch,), codes.device) < self.config.label_dropout)
        return class_labels.masked_fill(unknown, number)

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor, class_labels: ClassLabels | None = None) -> PixelCNNLikelihoodOutput:
        """Compute the negative log-likelihood of codes (B, h, w), code by code; the prior should be in eval mode.

        `class_labels` are those of `sample`. Without them a conditional prior sums over its classes y, at a forward pass
        for each: -log sum_y p(y) p(codes | y), with p(y) from `class_frequencies`. Errors are those of `forward`.
        """
        codes = check_codes(codes, self.config.num_embeddings, self.config.grid_size).long()
        labels = as_labels(class_labels, self.config, count_grids("codes", len(codes), class_labels=class_labels))
        if labels is not None or self.config.num_classes is None:
            logits = self(codes, labels, return_loss=False).logits.float()
        else:
            # The mean of the classes' distributions, each weighted by p(y | the codes before), class by class.
            logits = torch.zeros((), device=codes.device)
            sums = torch.full((), -math.inf, dtype=torch.float64, device="cpu")
            for _, own, joint in self._likelihoods_by_class(codes):
                before, sums = sums, sums.logaddexp(joint)
                shares = [(part - sums)[:, None, :-1].view_as(codes[:, None]).to(own) for part in (before, joint)]
                logits = torch.logaddexp(logits.to(own) + shares[0], own + shares[1])
        nats = nn.functional.cross_entropy(logits, codes, reduction="none")
        return PixelCNNLikelihoodOutput(nats=nats, bits=nats.sum((1, 2)) / math.log(2), logits=logits)

    def _class_frequencies(self) -> Tensor:
        number = self.config.num_classes
        return torch.tensor(self.config.class_frequencies or [1 / number] * number, dtype=torch.float64, device="cpu")

    def _likelihoods_by_class(self, codes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each class y with log p(every code | y, the codes before), (B, K, h, w), and log p(y, the codes before).

        The latter is (B, h * w + 1), float64 on the CPU: before the first code, before the second, ... after the last.
        """
        for label, frequency in enumerate(self._class_frequencies().tolist()):
            if frequency > 0:
                labels = torch.full((len(codes),), label, device=codes.device)
                own = self(codes, labels, return_loss=False).logits.float().log_softmax(1)
                taken = own.gather(1, codes[:, None]).flatten(1).cpu().double()
                yield label, own, nn.functional.pad(taken, (1, 0)).cumsum(1) + math.log(frequency)

    def _draw_labels(self, noise: Tensor, known: tuple[Tensor, Tensor] | None, batch_size: int) -> Tensor:
        """Draw labels (N,) by inverting p(y), or p(y | the known codes), at `noise` (N,); see `sample`."""
        weights, is_null = self._class_frequencies().log().repeat(len(noise), 1), torch.tensor(False, device="cpu")
        if known is not None:
            codes, mask = known[0].to(noise.device), known[1].flatten(1).cpu()
            first = mask.cumprod(1).sum(1)  # codes before the first unknown one
            is_null = mask.sum(1) > first
            training, _ = self.training, self.eval()
            for rows in (~is_null).nonzero()[:, 0].split(batch_size):
                for label, _, joint in self._likelihoods_by_class(codes[rows]) if len(rows) else ():
                    weights[rows, label] = joint.gather(1, first[rows, None])[:, 0]
            self.train(training)
        return DrawSettings().draw(weights, noise.cpu()[:, None]).masked_fill(is_null, -1)

    @torch.no_grad()
    def sample(
        self,
        num_grids: int | None = None,
        *,
        class_labels: ClassLabels | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        codes: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Seeds | None = None,
        batch_size: int = 256,
    ) -> Tensor:
        """Draw grids of codes, one code after the other, each from the distribution given those before it.

        Every activation is computed once, so that a grid costs about one forward pass. The codes are those that a
        forward pass for each code would give with the same noise.

        Args:
            num_grids: how many, N; by default as many as labels, seeds or known codes, or else 1.
            class_labels: number or name of a class for all, or one for each grid, as list or tensor (N,); -1 is the null
                label of guidance. Without them a conditional prior draws the label of each grid from `class_frequencies`;
                if the known codes are the first ones in the order of drawing, from p(label | these codes), at a forward
                pass for each class. Beside other known codes it draws with the null label.
            guidance_scale: how much the logits move from those without to those with the label; 1 for no guidance.
            temperature: divides the logits; 1 draws from the model's distribution, 0 takes the likeliest code.
            top_k: draw among so many likeliest codes (and those as likely as the last of them).
            top_p: draw among the likeliest codes that together reach this probability.
            codes: (h, w) or (N, h, w), of which those where `mask` is True are kept, and the rest is drawn.
            mask: (h, w) or (N, h, w), bool.
            generator: source of randomness, on the model's device; the default generator if None.
            seeds: N integers in place of a generator: a grid then depends on its own seed alone.
            batch_size: grids drawn at a time, which bounds the memory; it does not change them.

        Returns:
            Codes (N, h, w), int64.

        Raises:
            TypeError: if labels, codes, a mask, `generator` or `seeds` as a whole are of a wrong type.
            ValueError: if another argument is, or if one is out of its range or does not fit the prior. One that was
                trained with `label_dropout` 0 has no null label.
            RuntimeError: if `generator` is on another device than the model.
        """
        settings = DrawSettings(temperature, top_k, top_p, guidance_scale)
        guided, config = guidance_scale != 1, self.config
        require(not guided or config.num_classes, "guidance_scale", guidance_scale, "1 for a prior without classes")
        number = count_grids("num_grids", num_grids, class_labels=class_labels, seeds=seeds, codes=codes, mask=mask)
        batch_size = count_grids("batch_size", batch_size)
        # Weights offloaded by Accelerate are on "meta".
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        labels = as_labels(class_labels, config, number)
        known = known_codes(codes, mask, config, number)
        # The label's after the grid's: a grid whose label is given is the same.
        shapes = [config.grid_size, ()] if labels is None and config.num_classes else [config.grid_size]
        noise, *label_noise = draw_noise(generator, seeds, number, shapes, device)
        if label_noise:
            labels = self._draw_labels(*label_noise, known, batch_size)
        needs_null = guided or (labels is not None and labels.min() < 0)
        rule = "classes, without guidance: a prior trained with `label_dropout` 0 has no null label"
        require(config.label_dropout > 0 or not needs_null, "class_labels", class_labels, rule)
        drawn = sample_codes(self, settings, noise, labels, known, batch_size)
        return drawn.clone()  # an ordinary tensor, not one of inference mode
