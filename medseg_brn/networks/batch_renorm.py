"""Batch Renormalization layers (Ioffe 2017, arXiv:1702.03275) that interchange with nn.BatchNorm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from medseg_brn.networks.operator import (
    Limit,
    batch_renorm,
    batch_statistics,
    clip_corrections,
    compute_corrections,
)
from medseg_brn.networks.recomputation import FirstPasses, inside_backward, may_be_repeated

Schedule = tuple[int, int, int]


@dataclass(frozen=True)
class RenormObservation:
    """What one training pass of one layer normalized with; tensors are (C,), without gradient."""

    mean: Tensor
    """μ_B, the batch's mean."""
    var: Tensor
    """σ_B², the batch's biased variance."""
    r_raw: Tensor
    """σ_B/σ before clipping."""
    d_raw: Tensor
    """(μ_B - μ)/σ before clipping."""
    r: Tensor
    """Scale correction applied."""
    d: Tensor
    """Shift correction applied."""

    @property
    def r_clipped(self) -> Tensor:
        """Share of channels whose r was clipped, 0-dim, in [0, 1]."""
        return (self.r != self.r_raw).float().mean()

    @property
    def d_clipped(self) -> Tensor:
        """Share of channels whose d was clipped, 0-dim, in [0, 1]."""
        return (self.d != self.d_raw).float().mean()


def compute_limits(step: int | Tensor, r_max: float, d_max: float, schedule: Schedule) -> tuple[Limit, Limit]:
    """The limits after `step` steps: (1, 0), then rising linearly to (r_max, d_max).

    Args:
        step: a number, or a 0-dim floating tensor, for which the limits are tensors too.
        r_max: final limit of r.
        d_max: final limit of d.
        schedule: steps at which the limits leave (1, 0), d_max is reached, r_max is reached.
    """
    start, d_end, r_end = schedule
    return 1 + (r_max - 1) * _rise(step, start, r_end), d_max * _rise(step, start, d_end)


def _rise(step: int | Tensor, start: int, end: int) -> Limit:
    """0 until `start`, 1 from `end` on, linear between; a jump where they are the same."""
    fraction = (step - start) / (end - start) if end > start else step - start + 1
    return fraction.clamp(0, 1) if isinstance(fraction, Tensor) else min(max(fraction, 0.0), 1.0)


class WideNorm(_NormBase):
    """A norm whose parameters and statistics stay in float32 or wider, whatever its features are in."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the layer, but keeps its numbers wide: `half()` and `bfloat16()` are for the features."""

        def apply_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(moved.device, torch.float32) if narrowed else moved

        return super()._apply(apply_wide, recurse)


class BatchRenorm(WideNorm):
    """Batch renormalization over (N, C, ...); see `BatchRenorm3d`."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    observer: Callable[[RenormObservation], None] | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        affine: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        schedule: Schedule = (5_000, 25_000, 40_000),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max {r_max} must be at least 1 and d_max {d_max} at least 0")
        if not 0 <= schedule[0] <= min(schedule[1:]):
            raise ValueError(f"schedule {schedule} must start at 0 or later and not end before it starts")
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype)
        self.r_max = r_max
        self.d_max = d_max
        self.schedule = schedule
        self.observer = None
        self._first_passes = FirstPasses()

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, ...) into the same shape, dtype and memory format.

        Raises:
            ValueError: wrong number of dimensions, or one value per channel in training.
        """
        self._check_input_dim(input)
        if not self.training:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps)
        if input.numel() == input.size(1):
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(input.shape)}"
            )
        mean, var = batch_statistics(input)
        eager = not torch.compiler.is_compiling()  # what follows asks about calls, not about code
        repeated = self._first_passes.recall(mean, var) if eager and inside_backward() else None
        r, d = repeated or self._take_in(mean, var)
        output = batch_renorm(input, self.weight, self.bias, mean, var, r, d, self.eps)
        if eager and may_be_repeated():
            self._first_passes.remember(output, mean, var, r, d)
        return output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, schedule={self.schedule}"

    def limits(self) -> tuple[float, float]:
        """The limits (r_max, d_max) that the schedule sets for the next training batch."""
        r_max, d_max = compute_limits(int(self.num_batches_tracked), self.r_max, self.d_max, self.schedule)
        return float(r_max), float(d_max)

    def _take_in(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """r and d of this batch from the statistics before it; then lets the statistics take it in."""
        step, running = self._step(), (self.running_mean, self.running_var)
        r_raw, d_raw = compute_corrections(mean, var, *running, self.eps)
        r, d = clip_corrections(r_raw, d_raw, *self._limits_at(step))
        if self.observer is not None:
            self.observer(RenormObservation(mean, var, r_raw, d_raw, r, d))
        torch._foreach_lerp_(running, [mean, var], self._momentum_at(step))
        self.num_batches_tracked.add_(1)
        return r, d

    def _step(self) -> int | Tensor:
        """num_batches_tracked, as a tensor where a number would wait for the device or break a graph."""
        if torch.compiler.is_compiling() or self.num_batches_tracked.device.type != "cpu":
            return self.num_batches_tracked.to(self.running_mean.dtype)
        return int(self.num_batches_tracked)

    def _limits_at(self, step: int | Tensor) -> tuple[Limit, Limit]:
        """The schedule's limits, but (1, 0) for the first batch, which has no statistics before it."""
        r_max, d_max = compute_limits(step, self.r_max, self.d_max, self.schedule)
        if isinstance(step, Tensor):
            return torch.where(step == 0, 1.0, r_max), torch.where(step == 0, 0.0, d_max)
        return (r_max, d_max) if step else (1.0, 0.0)

    def _momentum_at(self, step: int | Tensor) -> Any:
        """Weight of the newest batch in the two moving averages; the first batch is all there is."""
        if isinstance(step, Tensor):
            return [torch.where(step == 0, torch.ones_like(step), self.momentum)] * 2
        return self.momentum if step else 1.0


class BatchRenorm1d(BatchRenorm):
    """Batch renormalization of (N, C) or (N, C, L); see `BatchRenorm3d`."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {input.dim()}D input)")


class BatchRenorm2d(BatchRenorm):
    """Batch renormalization of (N, C, H, W); see `BatchRenorm3d`."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected 4D input (got {input.dim()}D input)")


class BatchRenorm3d(BatchRenorm):
    """Batch renormalization of (N, C, X, Y, Z).

    In training, with the batch's mean μ_B and standard deviation σ_B = sqrt(variance + eps) per channel,
    and the moving averages μ and σ = sqrt(running_var + eps) of the batches before it:

        r = clip(σ_B / σ, 1/r_max, r_max)        d = clip((μ_B - μ) / σ, -d_max, d_max)
        y = γ · ((x - μ_B)/σ_B · r + d) + β      (r and d constants to the gradient)
        μ ← μ + momentum · (μ_B - μ)             running_var likewise

    In evaluation it is batch normalization, y = γ · (x - μ)/σ + β, and it may be folded into the
    convolution before it. Within the limits, training computes that same function.

    The limits are (1, 0), which is batch normalization, until the first step of `schedule`; then they
    rise linearly, d_max until the second step and r_max until the third; (0, 0, 0) means the final
    limits at once. `num_batches_tracked` counts the steps; a training loop may set it to the optimizer's
    steps (`normalization.set_renorm_step`). The first batch initialises the statistics.

    Parameters and buffers are those of `nn.BatchNorm3d`, so state dicts interchange; `running_var` is the
    average of the biased batch variance (Ioffe averages σ). They stay in float32 or wider.

    A pass that activation checkpointing repeats reuses the first pass's r and d and changes no statistics.
    This does not hold for `torch.compile`d code, which repeats with the statistics after the first pass:
    compile or checkpoint a layer, not both.

    Source: Ioffe 2017, arXiv:1702.03275.

    Attributes:
        observer: called with a `RenormObservation` at each training pass; None costs nothing.

    Args:
        num_features: channels C.
        eps: added to variances.
        momentum: weight of the newest batch in the moving averages, in [0, 1].
        affine: whether γ (`weight`) and β (`bias`) are learned.
        r_max: final limit of r, at least 1.
        d_max: final limit of d, at least 0.
        schedule: steps at which the limits leave (1, 0), d_max is reached, r_max is reached.
        device: of parameters and buffers.
        dtype: of parameters and buffers; float32 where it is narrower.

    Raises:
        ValueError: limits or schedule out of range.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise ValueError(f"expected 5D input (got {input.dim()}D input)")
