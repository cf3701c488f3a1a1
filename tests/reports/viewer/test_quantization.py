"""Codes stand for the values they are made of, exactly or within half a step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medseg_brn.errors import DataError
from medseg_brn.reports.viewer.quantization import quantize

SHAPES = array_shapes(min_dims=3, max_dims=3, max_side=4)


def values_of(found) -> np.ndarray:
    return found.offset + found.step * found.codes.astype(np.float64)


@settings(deadline=None)
@given(arrays(np.int16, SHAPES))
def test_all_images_of_16_bit_integers_are_exact(array):
    found = quantize(array)
    assert found.exact and found.step == 1 and found.missing == 0
    np.testing.assert_array_equal(values_of(found), array)


@settings(deadline=None)
@given(arrays(np.float32, SHAPES, elements=st.integers(-30000, 30000).map(float) | st.just(np.nan)))
def test_integers_in_floats_are_exact_beside_missing_values_too(array):
    found = quantize(array)
    assert found.exact
    missing = np.isnan(array)
    assert found.missing == missing.sum()
    np.testing.assert_array_equal(values_of(found)[~missing], array[~missing])
    if missing.any():
        np.testing.assert_array_equal(found.codes == 0, missing)


@settings(deadline=None)
@given(arrays(np.float64, SHAPES, elements=st.floats(-1e300, 1e300) | st.sampled_from([np.nan, np.inf])))
def test_real_numbers_are_within_half_a_step_of_a_65534th_of_their_range(array):
    found = quantize(array)
    finite = np.isfinite(array)
    assert found.missing == (~finite).sum()
    if not finite.any():
        return
    span = array[finite].max() - array[finite].min()
    assert found.exact or found.step <= max(span / 65534 * (1 + 1e-12), np.finfo(float).tiny)
    # Beside the step only what doubles of this size cannot hold.
    rounding = 4 * np.finfo(float).eps * np.abs(array[finite]).max()
    assert (np.abs(values_of(found)[finite] - array[finite]) <= found.step / 2 * (1 + 1e-9) + rounding).all()


def test_steps_by_hand():
    array = np.array([0.0, 65535.0, 0.5, 1.75]).reshape(4, 1, 1)
    found = quantize(array)
    assert not found.exact
    assert (found.step, found.offset, found.low, found.high) == (1.0, 0.0, 0.0, 65535.0)
    assert found.codes.ravel().tolist() == [0, 65535, 0, 2]


def test_integers_with_a_larger_range_than_16_bits_are_told_to_be_inexact():
    assert not quantize(np.array([0, 65536]).reshape(2, 1, 1)).exact
    assert quantize(np.array([-5, 65530]).reshape(2, 1, 1)).exact


@pytest.mark.parametrize("value", [0.1, -7, np.nan])
def test_a_constant_image_keeps_its_value(value):
    found = quantize(np.full((2, 2, 2), value))
    if np.isnan(value):
        assert found.missing == 8
        assert not found.codes.any()
    else:
        assert found.exact
        np.testing.assert_array_equal(values_of(found), value)


def test_a_range_beyond_doubles_is_an_error():
    with pytest.raises(DataError, match=r"-1e\+308 to 1e\+308"):
        quantize(np.array([-1e308, 1e308]).reshape(2, 1, 1))
