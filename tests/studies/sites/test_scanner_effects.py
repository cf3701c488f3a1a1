"""What scanners do to an anatomy: answers by hand, and what harmonization undoes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.sites.scanner_effects import (
    BIAS,
    NOISE,
    Scanner,
    draw_field,
    draw_scanners,
    harmonize,
)

PLAIN = Scanner("plain", gain=1.0, offset=0.0, bias=0.0, noise=0.0)
RAMP = np.linspace(0, 1, 6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)


def scan(anatomy: np.ndarray, seed: int = 0, **changed: float) -> np.ndarray:
    return dataclasses.replace(PLAIN, **changed).scan(anatomy, np.random.default_rng(seed))


def test_gain_and_offset_by_hand():
    anatomy = np.array([0, 0.5, 1], np.float32).reshape(3, 1, 1)
    assert scan(anatomy, gain=4.0, offset=-1.0).ravel().tolist() == [-1, 1, 3]


@given(gain=st.floats(0.05, 20), offset=st.floats(-5, 5))
def test_harmonization_undoes_any_gain_and_offset(gain, offset):
    stored = scan(RAMP, gain=gain, offset=offset)
    np.testing.assert_allclose(harmonize(stored), harmonize(RAMP), atol=2e-3)


def test_harmonized_scans_have_mean_zero_and_deviation_one():
    scores = harmonize(scan(RAMP, gain=3.0, offset=7.0, bias=0.3, noise=0.1))
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std() == pytest.approx(1, abs=1e-5)


def test_noise_is_as_strong_as_told_and_grows_with_the_gain():
    stored = scan(np.zeros((30, 30, 30), np.float32), gain=2.0, noise=0.1)
    assert stored.mean() == pytest.approx(0, abs=0.01)
    assert stored.std() == pytest.approx(0.2, rel=0.02)


def test_the_field_multiplies_and_harmonization_leaves_it():
    flat = scan(np.ones((12, 12, 12), np.float32), bias=0.3)
    assert flat.min() > 0 and flat.std() > 0.01
    np.testing.assert_array_equal(scan(np.zeros((12, 12, 12), np.float32), bias=0.3), 0)
    np.testing.assert_allclose(
        np.log(flat), 0.3 * draw_field((12, 12, 12), np.random.default_rng(0)), atol=1e-5
    )


def test_fields_are_smooth_and_of_variance_one():
    fields = np.stack([draw_field((12, 10, 8), np.random.default_rng(seed)) for seed in range(300)])
    assert fields.mean() == pytest.approx(0, abs=0.15)
    assert fields.std() == pytest.approx(1, abs=0.1)
    # a wave of three quarters of 1.5 axes of 12 voxels rises by at most 2π/13.5 of its height a voxel,
    # and eight waves together have a height of at most √16
    assert np.abs(np.diff(fields, axis=1)).max() < 4 * 2 * np.pi / 13.5


def test_scanners_are_drawn_in_their_ranges_and_the_same_again():
    names = [f"site {number}" for number in range(200)]
    scanners = draw_scanners(names, np.random.default_rng(4))
    assert scanners == draw_scanners(names, np.random.default_rng(4))
    assert [one.name for one in scanners] == names
    assert all(BIAS[0] <= one.bias <= BIAS[1] and NOISE[0] <= one.noise <= NOISE[1] for one in scanners)
    assert np.std(np.log([one.gain for one in scanners])) == pytest.approx(0.5, abs=0.1)
    assert np.std([one.offset for one in scanners]) == pytest.approx(0.5, abs=0.1)
