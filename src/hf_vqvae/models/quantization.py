# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Vector quantization (van den Oord et al. 2017, "Neural Discrete Representation Learning", sections 3.1, 3.2, A.1).

Shapes: B batch, D dimension of a latent, h x w grid, K codes, N = B * h * w latents of a batch.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .input_checks import as_tensor, check_codes

KMEANS_ITERATIONS = 10


@dataclass
class QuantizerOutput:
    """Output of [`VectorQuantizer`] for latents (B, D, h, w).

    Attributes:
        quantized: (B, D, h, w), the nearest codebook vectors; the gradient is copied to the latents (straight-through).
        codes: (B, h, w) int64 in [0, K).
        codebook_loss: `mean((codebook[codes] - sg(latents))**2)`, or None where the codebook learns by moving average.
        commitment_loss: `mean((latents - sg(codebook[codes]))**2)`, not yet times `commitment_cost`.
    """

    quantized: Tensor
    codes: Tensor
    codebook_loss: Tensor | None
    commitment_loss: Tensor


class VectorQuantizer(nn.Module):
    """Replace every latent by the nearest of K codebook vectors.

    In training the codebook follows the latents: by the gradient of the codebook loss (eq. 3), or by exponential
    moving averages of the number and the sum of each code's latents (appendix A.1), over all processes. In eval it
    never changes. Everything is computed in float32, also under autocast.

    Args:
        config: a [`VQVAEConfig`]; read are `num_embeddings`, `embedding_dim`, `codebook_update`, `codebook_init`,
            `ema_decay` and `dead_code_threshold`.
    """

    def __init__(self, config):
        super().__init__()
        self.decay = config.ema_decay
        self.dead_code_threshold = config.dead_code_threshold
        self.learns_by_ema = config.codebook_update == "ema"
        codes, dim = config.num_embeddings, config.embedding_dim
        self.embedding = nn.Embedding(codes, dim)
        self.embedding.weight.requires_grad_(not self.learns_by_ema)
        # An explicit dtype survives from_pretrained(dtype=bfloat16): averages need the digits.
        self.register_buffer("ema_cluster_size", torch.zeros(codes, dtype=torch.float32))
        if self.learns_by_ema:
            self.register_buffer("ema_embed_sum", torch.zeros(codes, dim, dtype=torch.float32))
        # Steps that the averages have seen, for their bias correction.
        self.register_buffer("ema_steps", torch.zeros((), dtype=torch.float32))
        # 1 once the first codebook stands; float, because a bool would not say so in every save format.
        self.register_buffer("initialized", torch.zeros((), dtype=torch.float32))
        self.codebook_init = config.codebook_init
        self._starts_from_data = config.codebook_init == "kmeans"

    def train(self, mode: bool = True) -> "VectorQuantizer":
        """Set the mode, and restore what loading or converting the weights may have changed."""
        # `from_pretrained` makes new parameters, all of which take gradients, and ends with `eval()`. A parameter that
        # takes one and gets none stops DistributedDataParallel.
        if self.learns_by_ema:
            self.embedding.weight.requires_grad_(False)
        # `.half()` and `.to(torch.bfloat16)` convert buffers too; averages need the precision.
        for name, average in list(self.named_buffers()):
            setattr(self, name, average.float())
        # Here and not at every step: it would wait for the device, and break the graph of `torch.compile`.
        if mode and self.codebook_init == "kmeans" and not self.initialized.is_meta:
            self._starts_from_data = not self.initialized
        return super().train(mode)

    @property
    def codebook(self) -> Tensor:
        """(K, D) float32."""
        weight = self.embedding.weight
        return self._read_codebook(torch.device("cpu") if weight.is_meta else weight.device)

    def _read_codebook(self, device: torch.device) -> Tensor:
        # By calling the embedding: a weight offloaded by Accelerate is in place only inside its module's call. For the
        # same reason the device is that of the latents: an offloaded weight's is "meta".
        return self.embedding(torch.arange(self.embedding.num_embeddings, device=device)).float()

    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes (B, h, w) of latents (B, D, h, w); the codebook is not updated, even in training mode.

        Raises `TypeError` or `ValueError` if dtype or shape of the latents do not fit.
        """
        latents = self._checked(latents)
        with maybe_autocast(device_type=latents.device.type, enabled=False):
            codes = nearest_rows(_rows(latents).float(), self._read_codebook(latents.device))
        return codes.view(latents.shape[0], *latents.shape[2:])

    def decode(self, codes: Tensor, grid_size: tuple[int, int] | None = None) -> Tensor:
        """Return the codebook vectors (B, D, h, w) of codes (B, *grid_size), in the dtype of the weights."""
        codes = check_codes(codes, self.embedding.num_embeddings, grid_size)
        return self.embedding(codes.long()).permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize latents (B, D, h, w); in training mode also update the codebook. Raises the errors of `encode`."""
        latents = self._checked(latents)
        with maybe_autocast(device_type=latents.device.type, enabled=False):
            rows = _rows(latents).float()
            starts = self.training and self._starts_from_data
            if starts:
                self._initialize_once_(rows.detach())
            codebook = self._read_codebook(latents.device)
            codes = nearest_rows(rows.detach(), codebook.detach())
            quantized = nn.functional.embedding(codes, codebook)
            commitment_loss = nn.functional.mse_loss(rows, quantized.detach())
            codebook_loss = None
            if not self.learns_by_ema:
                codebook_loss = nn.functional.mse_loss(quantized, rows.detach())
                if starts:
                    # Every vector is the mean of its latents: the gradient is rounding error, which Adam would scale up.
                    codebook_loss = codebook_loss.detach() + 0 * quantized.sum()
            if self.training:
                self._update_(rows.detach(), codes)
            # The value is exactly `quantized` (the bracket is 0); the gradient is that of the latents.
            straight_through = quantized.detach() + (rows - rows.detach())
        batch, dim, *grid = latents.shape
        return QuantizerOutput(
            quantized=straight_through.view(batch, *grid, dim).permute(0, 3, 1, 2).to(latents.dtype),
            codes=codes.view(batch, *grid),
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
        )

    def _checked(self, latents: Tensor) -> Tensor:
        latents = as_tensor("latents", latents, "floating-point numbers")
        if latents.dim() != 4 or latents.shape[1] != self.embedding.embedding_dim:
            raise ValueError(
                f"`latents` must have the shape (batch, {self.embedding.embedding_dim}, rows, columns), got "
                f"{tuple(latents.shape)}."
            )
        return latents

    @torch.no_grad()
    def _update_(self, rows: Tensor, codes: Tensor) -> None:
        """Move codebook vectors towards the mean of their latents (appendix A.1, eq. 6-8), and replace the dead ones.

        Number and sum start at zero and carry the same bias `1 - decay**steps`, so that their ratio is unbiased from
        the first step on.
        """
        if not self.learns_by_ema and not self.dead_code_threshold:
            return
        counts = torch.zeros_like(self.ema_cluster_size).index_add_(0, codes, torch.ones_like(rows[:, 0]))
        self.ema_steps += 1
        self.ema_cluster_size.lerp_(_sum_over_processes(counts), 1 - self.decay)
        if self.learns_by_ema:
            sums = torch.zeros_like(self.ema_embed_sum).index_add_(0, codes, rows)
            self.ema_embed_sum.lerp_(_sum_over_processes(sums), 1 - self.decay)
            # A codebook vector that was not chosen for long stays unchanged: its average is 0 / 0.
            chosen = self.ema_cluster_size > 1e-5
            means = self.ema_embed_sum / self.ema_cluster_size.clamp(min=1e-5).unsqueeze(1)
            weight = self.embedding.weight
            weight.copy_(torch.where(chosen.unsqueeze(1), means, weight.float()))
        if self.dead_code_threshold:
            self._replace_dead_(rows)

    def _replace_dead_(self, rows: Tensor) -> None:
        """Replace codebook vectors that are chosen too seldom by random latents of the batch, with new averages."""
        bias = 1 - self.decay**self.ema_steps
        dead = self.ema_cluster_size < self.dead_code_threshold * bias
        fresh = _draw_rows(rows, len(dead))
        weight = self.embedding.weight
        weight.copy_(torch.where(dead.unsqueeze(1), fresh, weight.float()))
        # Counted as chosen as often as the average, which leaves time to be chosen before the next check.
        share = self.ema_cluster_size.mean()
        self.ema_cluster_size.copy_(torch.where(dead, share, self.ema_cluster_size))
        if self.learns_by_ema:
            self.ema_embed_sum.copy_(torch.where(dead.unsqueeze(1), fresh * share, self.ema_embed_sum))

    @torch.no_grad()
    def _initialize_once_(self, rows: Tensor) -> None:
        """Initialize the codebook by k-means on the first training batch."""
        if not self.initialized:
            self.embedding.weight.copy_(kmeans(rows, self.embedding.num_embeddings))
            self.initialized.fill_(1)
        self._starts_from_data = False


def nearest_rows(rows: Tensor, centres: Tensor) -> Tensor:
    """Return the indices (N,) of the centres (K, D) nearest to rows (N, D).

    `|r - c|^2 = |r|^2 - 2 (r . c - |c|^2 / 2)`: one (N, K) matrix product, nothing of N x K x D.
    """
    return torch.addmm(-0.5 * centres.square().sum(1), rows, centres.t()).argmax(1)


@torch.no_grad()
def kmeans(rows: Tensor, clusters: int, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """Compute centres (K, D) of the rows (N, D) of all processes by Lloyd's algorithm; the same on every process.

    The algorithm starts from random rows. A centre that is nearest to no row stays unchanged.
    """
    centres = _draw_rows(rows, clusters)
    for _ in range(iterations):
        nearest = nearest_rows(rows, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        counts = torch.zeros_like(centres[:, 0]).index_add_(0, nearest, torch.ones_like(rows[:, 0]))
        sums, counts = _sum_over_processes(sums), _sum_over_processes(counts)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        centres = torch.where(counts.unsqueeze(1) > 0, means, centres)
    return centres


def _rows(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B * h * w, D)."""
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def _sum_over_processes(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def _draw_rows(rows: Tensor, count: int) -> Tensor:
    """Draw rows (count, D) from those of all processes; the same on every process.

    The first process draws, from its CPU generator, as a single process would. No row repeats while there are enough.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows[_draw_numbers(len(rows), count).to(rows.device)]
    rank = dist.get_rank()
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=rows.device)
    sizes[rank] = len(rows)
    total = int(_sum_over_processes(sizes).sum())
    drawn = _draw_numbers(total, count).to(rows.device)
    dist.broadcast(drawn, src=0)
    local = drawn - sizes[:rank].sum()
    is_local = (local >= 0) & (local < len(rows))
    # Every process contributes its own rows, and zeros for the others.
    fresh = torch.where(is_local.unsqueeze(1), rows[local.clamp(0, len(rows) - 1)], 0)
    return _sum_over_processes(fresh)


def _draw_numbers(total: int, count: int) -> Tensor:
    """Draw `count` numbers in [0, total); none repeats before all were drawn."""
    return torch.cat([torch.randperm(total, device="cpu") for _ in range(-(-count // total))])[:count]
