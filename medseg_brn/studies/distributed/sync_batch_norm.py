"""SyncBatchNorm on processors: torch's has kernels for GPUs only.

Its collectives are torch's, with the same number of bytes: forward, one all_gather of (mean, variance, count)
of every worker's batch, 2C + 1 numbers (torch sends 1/σ instead of the variance); backward, one all_reduce
of (Σ g, Σ g·x̂), 2C numbers. Both wait for the other workers, once per layer and step.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg_brn.networks.operator import batch_statistics


class GlooSyncBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d` whose training batch is that of all workers together.

    In evaluation, and in parameters and buffers, it is `nn.BatchNorm3d`; the running variance takes in the
    pooled batch's unbiased one, as there.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, X, Y, Z) by the mean and variance of all workers' values."""
        if not self.training:
            return super().forward(input)
        mean, var, count = gather_statistics(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return _Transform.apply(input, self.weight, self.bias, mean, var, float(count), self.eps)


def gather_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number (0-dim) of all workers' values, in one all_gather.

    μ = Σ n_k·μ_k / n        σ² = Σ n_k·(σ_k² + (μ_k - μ)²) / n
    """
    mean, var = batch_statistics(input)
    count = mean.new_full((1,), input.numel() // input.size(1))
    own = torch.cat([mean, var, count])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    means, variances, counts = torch.stack(gathered).split([mean.numel(), var.numel(), 1], dim=1)
    shares = counts / counts.sum()
    pooled_mean = (shares * means).sum(0)
    pooled_var = (shares * (variances + (means - pooled_mean).square())).sum(0)
    return pooled_mean, pooled_var, counts.sum()


def synchronize_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Replaces, in place, every BatchNorm by a synchronized one with the same parameters and buffers.

    On a GPU it is torch's own.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, _BatchNorm):
            make = nn.SyncBatchNorm if device.type == "cuda" else GlooSyncBatchNorm3d
            synchronized = make(layer.num_features, eps=layer.eps, momentum=layer.momentum)
            # the tensors themselves, not copies: an optimizer knows the parameters already
            synchronized._parameters.update(layer._parameters)
            synchronized._buffers.update(layer._buffers)
            network.set_submodule(name, synchronized)


class _Transform(torch.autograd.Function):
    """y = γ · (x - μ)/σ + β, whose gradient knows that all workers' x are in μ and σ.

    ∂x = γ/σ · [ g - Σg/n - x̂·Σ(g·x̂)/n ], sums over all workers; ∂γ = Σ g·x̂ and ∂β = Σ g over this one's
    values, as data-parallel training adds up parameters' gradients by itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        # Not training: the kernel applies the statistics it is given.
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # γ/σ·g, Σ g·x̂ and Σ g in one go.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(sums)
        sum_grad, sum_grad_xhat = sums.chunk(2)
        invstd = torch.rsqrt(var + ctx.eps)
        # γ/σ·x̂·Σ(g·x̂)/n = slope·(x - μ)
        slope = weight * invstd.square() * sum_grad_xhat / ctx.count
        shift = weight * invstd * sum_grad / ctx.count - slope * mean
        shape = (-1, *[1] * (x.dim() - 2))
        grad_x.addcmul_(x, slope.view(shape), value=-1).sub_(shift.view(shape))
        return grad_x, grad_weight, grad_bias, None, None, None, None
