"""Clip rates and clipped mass, by hand and against what the layer itself clips."""

from math import e, isnan, log, nan

import pytest
import torch

from medseg_brn.networks.batch_renorm import BatchRenorm3d, RenormObservation
from medseg_brn.probes.clipping import clip_rate_d, clip_rate_r, clipped_mass_d, clipped_mass_r


def test_scale_corrections_by_hand() -> None:
    r = torch.tensor([1.0, 2 * e, 1 / (2 * e**3), 1.9], dtype=torch.float64)
    assert clip_rate_r(r, 2) == 0.5
    assert clipped_mass_r(r, 2) == pytest.approx((1 + 3) / 4)


def test_shift_corrections_by_hand() -> None:
    d = torch.tensor([0.0, -3.0, 1.5, 0.5])
    assert clip_rate_d(d, 1) == 0.5
    assert clipped_mass_d(d, 1) == pytest.approx((2 + 0.5) / 4)


def test_a_correction_at_the_limit_is_kept() -> None:
    assert clip_rate_r(torch.tensor([4.0, 0.25]), 4) == 0
    assert clip_rate_d(torch.tensor([1.5, -1.5]), 1.5) == 0


def test_at_batch_normalization_every_correction_is_cut_off() -> None:
    assert clip_rate_r(torch.tensor([1.0, 1.1, 0.9]), 1) == pytest.approx(2 / 3)
    assert clipped_mass_r(torch.tensor([1.0, 1.1, 0.9]), 1) == pytest.approx((log(1.1) - log(0.9)) / 3)
    assert clip_rate_d(torch.tensor([0.0, 0.1, -0.3]), 0) == pytest.approx(2 / 3)
    assert clipped_mass_d(torch.tensor([0.0, 0.1, -0.3]), 0) == pytest.approx(0.4 / 3)


def test_nan_is_not_taken_for_kept() -> None:
    broken = torch.tensor([1.0, nan])
    assert all(isnan(rate(broken, 2)) for rate in (clip_rate_r, clip_rate_d, clipped_mass_r, clipped_mass_d))


def test_rates_are_the_share_that_the_layer_clips() -> None:
    seen: list[RenormObservation] = []
    layer = BatchRenorm3d(200, r_max=1.2, d_max=0.3, schedule=(0, 0, 0))
    layer.observer = seen.append
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        layer(torch.randn(2, 200, 2, 2, 2, generator=generator))
    for pass_ in seen[1:]:
        assert clip_rate_r(pass_.r_raw, 1.2) == pytest.approx(pass_.r_clipped.item())
        assert clip_rate_d(pass_.d_raw, 0.3) == pytest.approx(pass_.d_clipped.item())
        assert 0 < pass_.r_clipped < 1
        assert 0 < pass_.d_clipped < 1
        lost = (pass_.r_raw.double().log() - pass_.r.double().log()).abs().mean().item()
        assert clipped_mass_r(pass_.r_raw, 1.2) == pytest.approx(lost, abs=1e-6)
        assert clipped_mass_d(pass_.d_raw, 0.3) == pytest.approx((pass_.d_raw - pass_.d).abs().mean().item())
