"""How often, and by how much, batch renorm's corrections are cut off.

r_raw and d_raw, (C,) or any shape, are the corrections before clipping (`RenormObservation`); r_raw is
positive. At the limits (1, 0), batch normalization, everything that is not exactly 1 or 0 is cut off.
A NaN correction makes the result NaN, and so does an empty tensor.
"""

from math import log

import torch
from torch import Tensor


def clip_rate_r(r_raw: Tensor, r_max: float) -> float:
    """Share of channels with |ln r_raw| > ln r_max, in [0, 1]; r_max at least 1."""
    return _share(_excess_r(r_raw, r_max))


def clip_rate_d(d_raw: Tensor, d_max: float) -> float:
    """Share of channels with |d_raw| > d_max, in [0, 1]; d_max at least 0."""
    return _share(_excess_d(d_raw, d_max))


def clipped_mass_r(r_raw: Tensor, r_max: float) -> float:
    """Mean over channels of what is cut off, max(|ln r_raw| - ln r_max, 0), in nats."""
    return float(_excess_r(r_raw, r_max).mean())


def clipped_mass_d(d_raw: Tensor, d_max: float) -> float:
    """Mean over channels of what is cut off, max(|d_raw| - d_max, 0), in running standard deviations."""
    return float(_excess_d(d_raw, d_max).mean())


def _excess_r(r_raw: Tensor, r_max: float) -> Tensor:
    return (r_raw.double().log().abs() - log(r_max)).clamp(min=0)


def _excess_d(d_raw: Tensor, d_max: float) -> Tensor:
    return (d_raw.double().abs() - d_max).clamp(min=0)


def _share(excess: Tensor) -> float:
    """Share of positive values; NaN, which no comparison holds for, stays NaN."""
    return float(torch.where(excess.isnan(), excess, (excess > 0).double()).mean())
