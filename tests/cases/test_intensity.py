"""Intensity normalization against numbers worked out by hand."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medseg_brn.cases.intensity import IntensityScheme, find_not_finite, normalize_intensity

ZSCORE = IntensityScheme(scheme="zscore")
ZSCORE_NONZERO = IntensityScheme(scheme="zscore_nonzero")


def row(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype=dtype).reshape(-1, 1, 1)


def test_zscore_by_hand() -> None:
    # mean 3, deviations -3 1 2 0, variance (9 + 1 + 4 + 0) / 4 = 3.5
    normalized = normalize_intensity(row(0, 4, 5, 3), ZSCORE)
    np.testing.assert_allclose(normalized.ravel(), np.array([-3, 1, 2, 0]) / np.sqrt(3.5), rtol=1e-6)


def test_zscore_nonzero_measures_the_others_and_leaves_zeros() -> None:
    # of 2, 4, 6: mean 4, variance 8 / 3
    normalized = normalize_intensity(row(0, 2, 0, 4, 6), ZSCORE_NONZERO)
    np.testing.assert_allclose(normalized.ravel(), np.array([0, -2, 0, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)


def test_ct_clips_then_scales_by_the_training_constants() -> None:
    scheme = IntensityScheme(scheme="ct", low=-100, high=300, mean=50, std=100)
    normalized = normalize_intensity(row(-1024, -100, 50, 150, 3071, dtype="int16"), scheme)
    np.testing.assert_array_equal(normalized.ravel(), np.array([-1.5, -1.5, 0, 1, 2.5], dtype=np.float32))


def test_none_changes_the_type_alone() -> None:
    original = row(1, 2, 3, dtype="int16")
    normalized = normalize_intensity(original, IntensityScheme(scheme="none"))
    assert normalized.dtype == np.float32
    np.testing.assert_array_equal(normalized, original)


@pytest.mark.parametrize("scheme", [ZSCORE, ZSCORE_NONZERO])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e-30, 1e30, 0.1])
def test_a_constant_volume_becomes_zero(scheme: IntensityScheme, value: float) -> None:
    normalized = normalize_intensity(np.full((3, 4, 5), value, np.float32), scheme)
    np.testing.assert_array_equal(normalized, np.zeros((3, 4, 5), np.float32))


@pytest.mark.parametrize("scheme", [ZSCORE, ZSCORE_NONZERO])
def test_rounding_noise_on_a_constant_is_not_blown_up(scheme: IntensityScheme) -> None:
    values = np.full((4, 4, 4), 1000, np.float32)
    values[0, 0, 0] = np.nextafter(np.float32(1000), np.float32(2000))
    np.testing.assert_array_equal(normalize_intensity(values, scheme), 0)


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-3, 1e4),
    offset=st.floats(-10, 10),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(deadline=None)
def test_zscore_forgets_the_scanner_scale(seed: int, scale: float, offset: float, dtype: str) -> None:
    values = np.random.default_rng(seed).standard_normal((4, 5, 6)).astype(dtype)
    expected = normalize_intensity(values, ZSCORE)
    assert expected.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert expected.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    rescaled = normalize_intensity((scale * (values + offset)).astype(dtype), ZSCORE)
    np.testing.assert_allclose(rescaled, expected, atol=1e-4)


def test_the_input_is_left_alone() -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    for scheme in (ZSCORE, ZSCORE_NONZERO, IntensityScheme(scheme="none")):
        normalized = normalize_intensity(values, scheme)
        assert not np.shares_memory(normalized, values)
        np.testing.assert_array_equal(values.ravel(), np.arange(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "ct", "low": 0, "high": 1, "mean": 0}, "missing: std"),
        ({"scheme": "ct", "low": 5, "high": 5, "mean": 0, "std": 1}, "low 5.0 must be below high 5.0"),
        ({"scheme": "ct", "low": 0, "high": 1, "mean": 0, "std": 0}, "greater than 0"),
        ({"scheme": "ct", "low": 0, "high": float("nan"), "mean": 0, "std": 1}, "finite"),
        ({"scheme": "zscore", "mean": 3}, "takes no constants; given: mean"),
        ({"scheme": "minmax"}, "'zscore'"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IntensityScheme.model_validate(options)


def test_values_not_finite_are_counted_and_the_first_is_found() -> None:
    array = np.zeros((4, 5, 6), order="F")
    assert find_not_finite(array) is None
    array[1, 4, 0] = array[1, 2, 3] = np.nan
    array[3, 0, 0] = -np.inf
    assert find_not_finite(array) == (3, (1, 2, 3))
    assert find_not_finite(np.arange(5)) is None


def test_a_volume_of_nothing_but_nan_takes_little_memory() -> None:
    array = np.full((64, 64, 64), np.nan, np.float32)
    tracemalloc.start()
    try:
        assert find_not_finite(array) == (array.size, (0, 0, 0))
        assert tracemalloc.get_traced_memory()[1] < 4 * array.size
    finally:
        tracemalloc.stop()
