"""Muon for the kernels between hidden layers, AdamW for all else."""

import torch
from torch import Tensor, nn

# Of the quintic iteration (Jordan et al. 2024), which takes singular values of (0, 1] to about 1 in five steps.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# Root mean square of an update of AdamW, to which updates are scaled: one learning rate serves both.
UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for some parameters, AdamW for the others.

    The momentum of a kernel (O, I, kh, kw), as a matrix (O, I * kh * kw), is replaced by the nearest orthogonal one, so
    that no direction is learned faster than another. It is scaled as in Liu et al. 2025 (arXiv 2502.16982, equation 4).
    Kernels from or to a few channels, as those of pixels, and all that are no kernels take steps of AdamW.

    Args:
        parameters: of the model, those that take a gradient.
        momentum: of the kernels, in the form of Nesterov.
        options: `lr`, `betas` and `weight_decay` of `torch.optim.AdamW`.
    """

    def __init__(self, parameters, momentum: float = 0.95, **options):
        super().__init__(parameters, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step; the gradients of the kernels are None afterwards."""
        for group in self.param_groups:
            for kernel in filter(is_hidden_kernel, group["params"]):
                if kernel.grad is not None:
                    self._step_kernel(kernel, group["lr"], group["weight_decay"])
                    kernel.grad = None  # AdamW leaves it alone
        return super().step(closure)

    def _step_kernel(self, kernel: nn.Parameter, rate: float, decay: float) -> None:
        state = self.state[kernel]
        if not state:
            # AdamW reads the step of every parameter when a state is loaded.
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(kernel)}
        state["momentum"].lerp_(kernel.grad, 1 - self.momentum)
        update = orthogonalize(kernel.grad.lerp(state["momentum"], self.momentum).flatten(1))
        scale = UPDATE_RMS * max(update.shape) ** 0.5
        kernel.mul_(1 - rate * decay).sub_(update.view(kernel.shape), alpha=rate * scale)


def is_hidden_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is a kernel (O, I, kh, kw) from and to more than four channels."""
    return parameter.dim() == 4 and min(parameter.shape[:2]) > 4


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are 1, by Newton-Schulz iterations in float32."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.t()).float()
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.t()).to(matrix.dtype)
