"""The norms that are compared, and what their formula says that they retain of a difference."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from medseg_brn.networks.batch_renorm import Schedule
from medseg_brn.networks.normalization import make_normalization

MOMENTUM = 0.01
"""Of all running statistics: those of BatchNorm must not differ in what they average."""


@dataclass(frozen=True)
class Norm:
    """A norm by the name it has on the page; clips count for batch renorm only."""

    name: str
    kind: str
    """As `make_normalization` knows it."""
    r_max: float = 1.0
    d_max: float = 0.0

    def make(self, channels: int, *, affine: bool = True, schedule: Schedule = (0, 0, 0)) -> nn.Module:
        """The layer for (N, channels, …); renorm has its final clips at once unless a schedule is given."""
        options: dict[str, Any] = {"affine": affine}
        if self.kind in ("batch", "batch_renorm"):
            options["momentum"] = MOMENTUM
        if self.kind == "batch_renorm":
            options |= {"r_max": self.r_max, "d_max": self.d_max, "schedule": schedule}
        return make_normalization(self.kind, channels, dimensions=1, **options)


def make_renorm(r_max: float, d_max: float) -> Norm:
    """Batch renorm with these clips, named after them."""
    return Norm(f"renorm ({r_max:g}, {d_max:g})", "batch_renorm", r_max, d_max)


BATCH = Norm("BatchNorm", "batch")
LAYER = Norm("LayerNorm", "layer")
TIGHT, MIDDLE, LOOSE = make_renorm(1.5, 0.5), make_renorm(3, 1), make_renorm(3, 5)


def compute_retained(difference: float, d_max: float, running_std: float) -> float:
    """min(1, 2·d_max·σ_run/Δ): the share of the groups' difference Δ that training lets through, in [0, 1].

    With minibatches of one group each, around running statistics in the middle between the groups, the
    shift to be corrected is d = ±(Δ/2)/σ_run. What the clip leaves of it is all that tells the groups'
    outputs apart, because (x - μ_B)/σ_B has mean 0 in either group.

    Args:
        difference: Δ > 0 between the groups' means.
        d_max: the clip; 0 is BatchNorm.
        running_std: σ_run.
    """
    return min(1.0, 2 * d_max * running_std / difference)


def compute_retained_effect(difference: float, r_max: float, d_max: float, running_std: float) -> float:
    """The share of the difference in units of the spread within groups, for a spread of 1 in the input.

    Outputs of a group have the spread r = max(1/σ_run, 1/r_max) where σ_run ≥ 1, instead of 1/σ_run: a
    clipped r makes the noise larger against the same difference.
    """
    return compute_retained(difference, d_max, running_std) * min(1.0, r_max / running_std)


def compute_mixture_std(difference: float) -> float:
    """σ of two groups of unit variance Δ apart, taken together: sqrt(1 + Δ²/4)."""
    return math.sqrt(1 + difference**2 / 4)
