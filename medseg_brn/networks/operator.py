"""Batch renormalization on tensors, at batch normalization's cost.

Three steps, each a pure function: the batch's statistics, the corrections r and d, the transform
(Ioffe 2017, arXiv:1702.03275). Statistics and transform run on torch's own batch-norm kernels, which
compute an affine function of the normalized input:

    y = γ · ((x - μ_B)/σ_B · r + d) + β  =  (γ·r) · (x - μ_B)/σ_B + (γ·d + β)

so one pass over memory reads the statistics, one writes y, and the input is the only activation kept.
As r and d are constants to the gradient, backward is batch normalization's with weight γ·r, and

    ∂γ = Σ g·(r·x̂ + d) = r · ∂γ_BN + d · ∂β.

While `torch.compile` or `torch.export` traces, statistics and transform are the custom operators
`medseg_brn::batch_statistics` and `medseg_brn::batch_renorm`; otherwise the same kernels are called
directly, which saves the dispatcher's time on small inputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

Limit = Any  # a number, or a 0-dim tensor where reading a number would wait for the device


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel.

    Args:
        x: (N, C, ...) of any floating dtype and memory format.

    Returns:
        μ_B and σ_B² without ε, each (C,), in float32 (float64 for a float64 input); no gradient.
    """
    x = x.detach()
    return _batch_statistics(x) if torch.compiler.is_compiling() else _compute_statistics(x)


def compute_corrections(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Unclipped r = σ_B/σ and d = (μ_B - μ)/σ, with σ = sqrt(variance + eps); all of shape (C,).

    The `_foreach` functions (torch's optimizers are built on them) take several vectors in one call;
    on vectors this short, calls are what takes time.
    """
    std, running_std = torch._foreach_sqrt(torch._foreach_add([var, running_var], eps))
    r, d = torch._foreach_div([std, mean - running_mean], [running_std, running_std])
    return r, d


def clip_corrections(r: Tensor, d: Tensor, r_max: Limit, d_max: Limit) -> tuple[Tensor, Tensor]:
    """r within [1/r_max, r_max] and d within [-d_max, d_max]."""
    return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)


def batch_renorm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    r: Tensor,
    d: Tensor,
    eps: float,
) -> Tensor:
    """y = γ · ((x - μ_B)/σ_B · r + d) + β, with gradients to x, γ and β.

    The gradient to x follows μ_B and σ_B back to x (so `mean` and `var` must be those of x) and takes
    r and d as constants.

    Args:
        x: (N, C, ...) of any floating dtype and memory format.
        weight: γ (C,), or None for 1.
        bias: β (C,), or None for 0.
        mean: μ_B (C,), from `batch_statistics`.
        var: σ_B² (C,), likewise.
        r: scale correction (C,).
        d: shift correction (C,).
        eps: added to the variance.

    Returns:
        y in the shape, dtype and memory format of x.
    """
    if torch.compiler.is_compiling():
        return _batch_renorm(x, weight, bias, mean, var, r, d, eps)
    return _Transform.apply(x, weight, bias, mean, var, r, d, eps)


def _compute_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype in (torch.float32, torch.float64):
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    # The kernel computes in the dtype of the running statistics: give it some to have float32.
    scratch = torch.zeros(2, x.size(1), dtype=torch.float32, device=x.device)
    return torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)


def _compute_output(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    r: Tensor,
    d: Tensor,
    eps: float,
) -> Tensor:
    if weight is None:
        scale, shift = r, d if bias is None else d + bias
    else:
        scale, shift = weight * r, weight * d if bias is None else torch.addcmul(bias, weight, d)
    # Not training: the kernel applies the statistics it is given.
    return torch.native_batch_norm(x, scale, shift, mean, var, False, 0.0, eps)[0]


def _compute_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    r: Tensor,
    d: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = r if weight is None else weight * r
    invstd = torch.rsqrt(var + eps)
    if grad.stride() != x.stride():  # the kernel is fast and precise where they agree
        grad = grad.contiguous(memory_format=suggest_memory_format(x))
    grad_x, grad_scale, grad_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, scale, None, None, mean, invstd, True, eps, [True, True, True]
    )
    grad_weight = torch.addcmul(r * grad_scale, d, grad_bias)
    return grad_x, grad_weight, grad_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, mean, var, r, d, eps = inputs
    ctx.save_for_backward(x, weight, mean, var, r, d)
    ctx.eps = eps


def _gradients_of_inputs(ctx: Any, gradients: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    """One entry for each argument of `batch_renorm`; those that want no gradient get None."""
    wanted = zip(gradients, ctx.needs_input_grad, strict=False)
    return *(gradient if needed else None for gradient, needed in wanted), None, None, None, None, None


class _Transform(torch.autograd.Function):
    """`batch_renorm` outside of compilation."""

    # Not in the newer form with `setup_context`, which inspects the signature at every call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        r: Tensor,
        d: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, r, d)
        ctx.eps = eps
        return _compute_output(x, weight, bias, mean, var, r, d, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, r, d = ctx.saved_tensors
        return _gradients_of_inputs(ctx, _compute_gradients(grad, x, weight, mean, var, r, d, ctx.eps))


_batch_statistics = torch.library.custom_op(
    "medseg_brn::batch_statistics", _compute_statistics, mutates_args=()
)
_batch_renorm = torch.library.custom_op("medseg_brn::batch_renorm", _compute_output, mutates_args=())
_batch_renorm_backward = torch.library.custom_op(
    "medseg_brn::batch_renorm_backward", _compute_gradients, mutates_args=()
)


@_batch_statistics.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.size(1), dtype=dtype), x.new_empty(x.size(1), dtype=dtype)


@_batch_renorm.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


@_batch_renorm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=suggest_memory_format(x))
    return grad_x, torch.empty_like(mean), torch.empty_like(mean)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients_of_inputs(ctx, _batch_renorm_backward(grad, *ctx.saved_tensors, ctx.eps))


_batch_renorm.register_autograd(_backward, setup_context=_setup_context)
