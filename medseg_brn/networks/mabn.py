"""Moving Average Batch Normalization layers (Yan et al. 2020, arXiv:2001.06838)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.autograd.function import once_differentiable

from medseg_brn.networks.batch_renorm import WideNorm
from medseg_brn.networks.operator import batch_statistics
from medseg_brn.networks.recomputation import FirstPasses, inside_backward, may_be_repeated


class MABN(WideNorm):
    """Moving average batch normalization over (N, C, ...); see `MABN3d`."""

    batch_dependent = True
    centred = False

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    recent_squares: Tensor
    recent_psi: Tensor
    momentum: float

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.02,
        affine: bool = True,
        window: int = 16,
        warmup: int = 100,
        r_max: float = 5.0,
        r_start: int = 1_000,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window < 1 or warmup < 0 or r_start < 0:
            raise ValueError(
                f"window {window} must be at least 1, warmup {warmup} and r_start {r_start} at least 0"
            )
        if r_max < 1:
            raise ValueError(f"r_max {r_max} must be at least 1")
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.window = window
        self.warmup = warmup
        self.r_max = r_max
        self.r_start = r_start
        self.register_buffer("recent_squares", self.running_var.new_zeros(window, num_features))
        self.register_buffer("recent_psi", self.running_var.new_zeros(window, num_features))
        self._first_passes = FirstPasses()

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, ...) into the same shape, dtype and memory format.

        Raises:
            ValueError: wrong number of dimensions.
        """
        self._check_input_dim(input)
        if self.training:
            return self._normalize_batch(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    @torch.no_grad()
    def absorb_mean(self) -> None:
        """Moves a `running_mean` (of another kind of norm) into γ, β and `running_var`; averages start anew.

        In evaluation the function stays the same, where the layer has γ and β:
        γ·(x - μ)/σ + β = (γ·χ̂/σ) · x/χ̂ + (β - γ·μ/σ) with χ̂² = σ² + μ².
        """
        mean, std = self.running_mean.clone(), (self.running_var + self.eps).sqrt()
        self.running_var.add_(mean.square())
        self.running_mean.zero_()
        if self.affine:
            self.bias.sub_(self.weight * mean / std)
            self.weight.mul_((self.running_var + self.eps).sqrt() / std)
        self.num_batches_tracked.clamp_(max=1)  # the window is empty, but the statistics are not

    def extra_repr(self) -> str:
        options = f"window={self.window}, warmup={self.warmup}, r_max={self.r_max}, r_start={self.r_start}"
        return f"{super().extra_repr()}, {options}"

    def _normalize_batch(self, input: Tensor) -> Tensor:
        mean, var = batch_statistics(input)
        repeated = self._first_passes.recall(mean, var) if inside_backward() else None
        if repeated:
            square, (r, slot, warm) = repeated
            slot, warm = slot[:1].long(), warm[0] > 0
        else:
            square, r = self._take_in(var + mean.square())
            slot, warm = self._slot(), self._is_warm()
        recent_psi = _RecentPsi(self.recent_psi, slot, warm)
        output = _Transform.apply(input, self.weight, self.bias, square, r, recent_psi, self.eps)
        if may_be_repeated():
            # The repeated pass needs its own slot, whatever came in between. All C times, as one tensor.
            of_batch = torch.stack([r, slot.expand_as(r), warm.expand_as(r)])
            self._first_passes.remember(output, mean, var, square, of_batch)
        return output

    def _take_in(self, square: Tensor) -> tuple[Tensor, Tensor]:
        """χ̄² and r of the batch whose second moment is χ_B²; then lets running_var take it in.

        Decisions are tensors, for a number would have to wait for the device.
        """
        self.num_batches_tracked.add_(1)
        self.recent_squares.index_copy_(0, self._slot(), square.unsqueeze(0))
        averaged = torch.where(self._is_warm(), self.recent_squares.mean(0), square)
        count, one = self.num_batches_tracked, square.new_ones(())
        r_max = torch.where(count > max(self.r_start, self.warmup, 1), self.r_max, one)
        r = ((averaged + self.eps) / (self.running_var + self.eps)).sqrt().clamp(1 / r_max, r_max)
        share = torch.where(count == 1, one, self.momentum)  # the first batch is all there is
        self.running_var.lerp_(square, share)
        return averaged, r

    def _slot(self) -> Tensor:
        """Row of the newest batch in the two buffers of recent moments, (1,)."""
        return (self.num_batches_tracked % self.window).view(1)

    def _is_warm(self) -> Tensor:
        """Whether the newest batch is normalized by moving averages, 0-dim."""
        return self.num_batches_tracked > max(self.window, self.warmup - 1)


class _RecentPsi:
    """The moments Ψ_B of recent batches, as one training pass hands them to its backward pass."""

    def __init__(self, moments: Tensor, slot: Tensor, warm: Tensor) -> None:
        self.moments = moments  # (window, C), the layer's buffer
        self.slot = slot
        self.warm = warm

    def take_in(self, psi: Tensor) -> Tensor:
        """Ψ̄ (C,): the average over the window with this batch's Ψ_B; during warm-up Ψ_B itself."""
        self.moments.index_copy_(0, self.slot, psi.unsqueeze(0))
        return torch.where(self.warm, self.moments.mean(0), psi)


class _Transform(torch.autograd.Function):
    """y = γ · r · x/χ̄ + β, with the method's own gradient to x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        square: Tensor,
        r: Tensor,
        recent_psi: _RecentPsi,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, square, r)
        ctx.recent_psi = recent_psi
        ctx.eps = eps
        scale = r if weight is None else weight * r
        # Not training: the kernel applies the statistics it is given.
        return torch.native_batch_norm(x, scale, bias, torch.zeros_like(r), square, False, 0.0, eps)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, square, r = ctx.saved_tensors
        scale = r if weight is None else weight * r
        if grad.stride() != x.stride():  # the kernel is fast and precise where they agree
            grad = grad.contiguous(memory_format=suggest_memory_format(x))
        # γ·r/χ̄·∂y, Σ ∂y·x/χ̄ and Σ ∂y in one go.
        grad_x, grad_scale, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, torch.zeros_like(r), square, None, None, False, ctx.eps, [True, True, True]
        )
        psi = ctx.recent_psi.take_in(scale * grad_scale / (x.numel() // x.size(1)))
        # z·Ψ̄/χ̄ = x·Ψ̄/χ̄². In the features' dtype, as a mixture was measured nine times slower on the CPU.
        factor = (psi / (square + ctx.eps)).to(x.dtype).view(-1, *[1] * (x.dim() - 2))
        grad_x.addcmul_(x, factor, value=-1)
        gradients = grad_x, r * grad_scale, grad_bias
        wanted = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if needed else None for gradient, needed in wanted), None, None, None, None


class MABN1d(MABN):
    """Moving average batch normalization of (N, C) or (N, C, L); see `MABN3d`."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {input.dim()}D input)")


class MABN2d(MABN):
    """Moving average batch normalization of (N, C, H, W); see `MABN3d`."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")


class MABN3d(MABN):
    """Moving average batch normalization of (N, C, X, Y, Z).

    Per channel, E is the mean over the batch's values, χ_B² = E[x²] the batch's second moment (the mean
    is not subtracted), an overline the simple average over the newest batch and the `window` - 1 before
    it, and χ̂² (`running_var`) the exponential average over the batches before. Training forward:

        χ̄² = average of χ_B²        r = clip(χ̄ / χ̂, 1/r_max, r_max)      (r constant to the gradient)
        z = x / χ̄                   y = γ · r · z + β
        then  χ̂² ← χ̂² + momentum · (χ_B² - χ̂²)

    Backward, in which Ψ is the batch statistic that batch normalization's gradient has and its forward
    pass has not:

        ∂z = γ · r · ∂y             Ψ_B = E[z · ∂z]         Ψ̄ = average of Ψ_B
        ∂x = (∂z - z · Ψ̄) / χ̄      ∂γ = Σ ∂y · r · z       ∂β = Σ ∂y

    Inference: y = γ · x / χ̂ + β, which is batch normalization with `running_mean` 0; it may be folded into
    the convolution before it. (ε is added to every second moment before its root.)

    Nothing here removes the mean of the features. The paper has convolutions do it, with filters centred
    to mean 0: use it with them (`WeightStandardizedConv3d` centres and scales them). With plain
    convolutions it is not the paper's method, and a large mean drowns what varies.

    Where the paper leaves a detail open we do as the authors' code (github.com/megvii-model/MABN): until the
    window is full and for fewer than `warmup` batches χ_B and Ψ_B take the place of the averages, so that ∂x
    is then y's true gradient; r is 1 for the first `r_start` batches; r_max is 5; the batch is the newest
    of its own window; r uses χ̂ from before the batch. Other than there, χ̂² averages χ_B² as in the paper
    and not χ̄² a second time, and the first batch initialises it.

    State lives in buffers: `running_var`, `num_batches_tracked`, and `recent_squares` and `recent_psi`,
    (window, C), in which batch t has row t mod window. Backward writes the latter. A pass without a backward
    pass leaves the Ψ_B of `window` batches before in its row. Numbers stay in float32 or wider.

    A pass that activation checkpointing repeats reuses the first pass's χ̄, r and row and takes nothing in.
    `torch.compile` breaks its graph at a training pass, for backward writes into a buffer.

    Attributes:
        batch_dependent: True, as in training an item's result depends on the rest of its batch.
        centred: False, as `running_var` averages E[x²], not the variance about the mean.

    Args:
        num_features: channels C.
        eps: added to second moments.
        momentum: weight of the newest batch in χ̂², in [0, 1] (the paper's momentum 0.98 is 1 - 0.02).
        affine: whether γ (`weight`) and β (`bias`) are learned.
        window: batches m in a simple average, at least 1.
        warmup: the batch, counted from 1, from which on averages are used, once the window is full.
        r_max: limit of r, at least 1.
        r_start: batches before r may differ from 1.
        device: of parameters and buffers.
        dtype: of parameters and buffers; float32 where it is narrower.

    Raises:
        ValueError: window, warmup, r_max or r_start out of range.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise ValueError(f"expected 5D input (got {input.dim()}D input)")
