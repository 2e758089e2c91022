# Copyright 2026 The hf_vqvae authors. Apache License, Version 2.0.
"""Evaluate the PixelCNN priors one code at a time, computing every activation once.

The contribution of the rows above is computed for all columns when a row starts, in one product; that of the codes to
the left is read from the row's cache. A grid costs about one forward pass (Ramachandran et al. 2017, "Fast Generation
for Convolutional Autoregressive Models", arXiv 1704.06001).

All buffers are allocated once and written in place, so that a row can be captured in a CUDA graph.

Shapes: B batch, K codes, w columns, C channels, r radius of a kernel, k = 2r + 1.
"""

import torch
from torch import Tensor, nn


class PixelCNNCache:
    """State of a batch of grids that are drawn row by row.

    For each row: `start_row()`, which computes the contribution of the rows above to all columns; for each column
    `logits(column)` (B, K), given all codes before it, then `put(column, codes)`; `end_row(codes)`.

    Args:
        prior: any [`PixelCNNModel`], on `device`, or with weights that Accelerate has offloaded.
        batch: B.
        labels: (B,) rows of the class embeddings, or None for a prior without classes.
    """

    def __init__(self, prior: nn.Module, batch: int, labels: Tensor | None, device):
        config = prior.config
        self.batch, self.device, self.dtype = batch, device, prior.dtype
        self.width, self.channels = config.grid_size[1], config.hidden_size
        self.num_codes, self.radius = config.num_embeddings, config.kernel_size // 2
        # The codes of the rows above; K stands for positions outside the grid.
        self.above = self._buffer(self.radius, self.width + 2 * self.radius, dtype=torch.long)
        self.num_taps = self.radius * config.kernel_size
        self.taps = torch.arange(self.num_taps, device=device)
        # First hidden layer of the row: columns to the left are zero; codes are added to those to the right.
        self.pad = config.gated_kernel_size // 2 if config.architecture == "gated" else 0
        self.first = self._buffer(self.pad + self.width + self.radius, self.channels)
        self.first_row = self.first[:, self.pad : self.pad + self.width]
        starts = range(self.pad + 1, self.pad + 1 + self.width)
        self.right_of = [self.first[:, start : start + self.radius] for start in starts]
        self.layers = [self._pointwise(layer) for layer in prior.layers]
        self.out = self._pointwise(prior.conv_out)

    def _buffer(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(self.batch, *shape, dtype=dtype or self.dtype, device=self.device)

    def _weight(self, module: nn.Module, name: str = "weight") -> Tensor | None:
        """Return a parameter on this cache's device, also if Accelerate has offloaded it."""
        value = getattr(module, name)
        if value is not None and value.device.type == "meta":
            value = module._hf_hook.weights_map[name]
        return None if value is None else value.to(self.device)

    def _pointwise(self, conv: nn.Conv2d) -> tuple[Tensor | None, Tensor]:
        """Return bias and kernel (C_in, C_out) of a 1x1 convolution."""
        kernel = self._weight(conv).flatten(1).t().contiguous()
        return self._weight(conv, "bias"), kernel

    def _tables(self, above: Tensor, left: Tensor) -> None:
        """Set the tables of what each code adds at the taps above (K, taps, C), from left to right, and left (K, r, C)."""
        # A further code, of zeros, stands for positions outside the grid.
        padded = torch.empty(self.num_codes + 1, *above.shape[1:], dtype=self.dtype, device=self.device)
        padded[:-1] = above
        padded[-1] = 0
        self.table = padded.flatten(0, 1)
        # The last tap is the nearest neighbour.
        self.left = left.flip(1).flatten(1)

    def reset_(self) -> None:
        """Reset to the state before the first row."""
        self.above.fill_(self.num_codes)
        self.first.zero_()

    def _sum_above(self) -> Tensor:
        """Sum the table rows of the neighbours in the rows above: (B, w, C)."""
        neighbours = self.above.unfold(2, 2 * self.radius + 1, 1).transpose(1, 2)  # (B, w, r, k)
        rows = torch.add(self.taps, neighbours.flatten(2), alpha=self.num_taps)
        summed = nn.functional.embedding_bag(rows.flatten(0, 1), self.table, mode="sum")
        return summed.view(self.batch, self.width, self.channels)

    def _head(self, hidden: Tensor) -> Tensor:
        for bias, kernel in self.layers:
            hidden = torch.addmm(bias, hidden, kernel).relu_()
        return torch.addmm(self.out[0], hidden, self.out[1])

    def put(self, column: int, codes: Tensor) -> None:
        """Add codes (B,) to the first layer of the columns to the right."""
        rows = torch.index_select(self.left, 0, codes)
        self.right_of[column].add_(rows.view(self.batch, self.radius, self.channels))

    def end_row(self, codes: Tensor) -> None:
        """Finish a row with its codes (B, w)."""
        inside = slice(self.radius, self.radius + self.width)
        if self.radius > 1:
            self.above[:, :-1] = self.above[:, 1:].clone()
        self.above[:, -1, inside] = codes


class PlainCache(PixelCNNCache):
    """Cache of the plain architecture; its first layer holds the sum before the ReLU."""

    def __init__(self, prior: nn.Module, batch: int, labels: Tensor | None, device):
        super().__init__(prior, batch, labels, device)
        channels, half = self.channels, self.channels // 2
        # One transposition of the whole kernel is faster than one of the taps alone.
        kernel = self._weight(prior.conv_in).flatten(1).t().contiguous()
        kernel = kernel.view(self.num_codes, -1, channels)  # (K, k * k, C)
        past = self.num_taps + self.radius
        self._tables(kernel[:, : self.num_taps], kernel[:, self.num_taps : past])
        self.bias = self._weight(prior.conv_in, "bias")
        if labels is not None:
            self.bias = self.bias + self._weight(prior.class_embedding)[labels][:, None]
        self.hidden, self.middle = self._buffer(channels), self._buffer(half)
        self.update = self._buffer(channels)
        self.columns = [self.first_row[:, column] for column in range(self.width)]
        self.blocks = [self._block(block, half) for block in prior.blocks]

    def _block(self, block: nn.Module, half: int) -> tuple:
        channels, conv = self.channels, block.masked_conv
        kernel = self._weight(conv).permute(2, 3, 1, 0)  # (3, 3, C, C / 2)
        # Outputs of conv1, this row's or the last one's.
        row = self._buffer(self.width + 2, channels)
        above = self._buffer(self.width, half)
        steps = [
            (row[:, column + 1], row[:, column : column + 2].flatten(1), above[:, column])
            for column in range(self.width)
        ]
        masked = kernel[1, :2].reshape(-1, half).contiguous()
        weights = (*self._pointwise(block.conv1), masked, *self._pointwise(block.conv2))
        from_above = kernel[0].reshape(-1, half).contiguous()
        return row, above, from_above, self._weight(conv, "bias"), weights, steps

    def reset_(self) -> None:
        super().reset_()
        for block in self.blocks:
            block[0].zero_()

    def start_row(self) -> None:
        torch.add(self._sum_above(), self.bias, out=self.first_row)
        for row, above, kernel, bias, *_ in self.blocks:
            neighbours = row.unfold(1, 3, 1).transpose(2, 3).reshape(-1, len(kernel))
            above.copy_(torch.addmm(bias, neighbours, kernel).view_as(above))

    def logits(self, column: int) -> Tensor:
        hidden, middle, update = self.hidden, self.middle, self.update
        torch.clamp_min(self.columns[column], 0, out=hidden)
        for *_, (bias1, kernel1, masked, bias2, kernel2), steps in self.blocks:
            centre, pair, above = steps[column]
            torch.addmm(bias1, hidden, kernel1, out=centre).relu_()
            torch.addmm(above, pair, masked, out=middle).relu_()
            torch.addmm(bias2, middle, kernel2, out=update).relu_()
            hidden.add_(update)
        return self._head(hidden)


class GatedCache(PixelCNNCache):
    """Cache of the gated architecture; its first layer is the input of the horizontal stack."""

    def __init__(self, prior: nn.Module, batch: int, labels: Tensor | None, device):
        super().__init__(prior, batch, labels, device)
        above, left = (
            self._weight(layer).view(-1, self.num_codes, self.channels).transpose(0, 1)
            for layer in (prior.conv_in, prior.conv_left)
        )
        self._tables(above, left)
        self.bias = self._weight(prior.conv_in, "bias")
        self.link, self.skip = self._pointwise(prior.link), self._pointwise(prior.skip)
        self.link_bias = self.link[0] + self._weight(prior.conv_left, "bias")
        self.gated = self._buffer(self.channels * len(prior.blocks))
        self.before = self._buffer(2 * self.channels)
        self.values, self.gates = self.before.chunk(2, 1)
        self.rows = [self.first]  # inputs of the horizontal stack's layers
        for _ in prior.blocks[1:]:
            self.rows.append(self._buffer(self.pad + self.width, self.channels))
        self.blocks = [self._block(number, block, labels) for number, block in enumerate(prior.blocks)]

    def _block(self, number: int, block: nn.Module, labels: Tensor | None) -> tuple:
        width, channels, radius = self.width, self.channels, block.radius
        # This row and those above it, as the vertical stack's layer reads them.
        rows = self._buffer(radius + 1, width + 2 * radius, channels)
        vertical = self._weight(block.vertical).permute(2, 3, 1, 0).reshape(-1, 2 * channels)
        vertical_bias = self._weight(block.vertical, "bias")
        link_bias, link = self._pointwise(block.link)
        if labels is not None:
            biases = self._weight(block.class_embedding)[labels][:, None]  # (B, 1, 4C)
            vertical_bias = vertical_bias + biases[..., : 2 * channels]
            link_bias = link_bias + biases[..., 2 * channels :]
        linked = self._buffer(width, 2 * channels)
        horizontal = self._weight(block.horizontal)[:, :, 0].permute(2, 1, 0)
        horizontal = horizontal.reshape(-1, 2 * channels).contiguous()
        residual = None if block.residual is None else self._pointwise(block.residual)[1]
        here, place = self.rows[number], slice(number * channels, (number + 1) * channels)
        following = None if residual is None else self.rows[number + 1]
        steps = [
            (
                here[:, column : column + radius + 1].flatten(1),
                linked[:, column],
                here[:, column + radius],
                None if following is None else following[:, column + radius],
            )
            for column in range(width)
        ]
        above = (rows, vertical.contiguous(), vertical_bias, link, link_bias, linked)
        return above, (horizontal, residual, self.gated[:, place]), steps

    def reset_(self) -> None:
        super().reset_()
        for (rows, *_), *_ in self.blocks:
            rows.zero_()

    def start_row(self) -> None:
        hidden = self._sum_above() + self.bias
        torch.add(hidden @ self.link[1], self.link_bias, out=self.first_row)
        for (rows, kernel, bias, link, link_bias, linked), *_ in self.blocks:
            radius = rows.shape[1] - 1
            rows[:, -1, radius : radius + self.width] = hidden
            # (B, r + 1, w, C, k) -> (B, w, r + 1, k, C)
            seen = rows.unfold(2, 2 * radius + 1, 1).permute(0, 2, 1, 4, 3)
            above = seen.reshape(self.batch, self.width, -1) @ kernel + bias
            values, gates = above.chunk(2, 2)
            above = values.tanh() * gates.sigmoid()
            torch.add(above @ link, link_bias, out=linked)
            hidden = hidden + above

    def logits(self, column: int) -> Tensor:
        before, values, gates = self.before, self.values, self.gates
        for _, (horizontal, residual, gated), steps in self.blocks:
            seen, linked, here, following = steps[column]
            torch.addmm(linked, seen, horizontal, out=before)
            torch.mul(values.tanh_(), gates.sigmoid_(), out=gated)
            if residual is not None:
                torch.addmm(here, gated, residual, out=following)
        return self._head(torch.addmm(self.skip[0], self.gated, self.skip[1]).relu_())

    def end_row(self, codes: Tensor) -> None:
        super().end_row(codes)
        for (rows, *_), *_ in self.blocks:
            rows[:, :-1] = rows[:, 1:].clone()
