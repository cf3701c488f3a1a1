"""Packed text, unpacked by the book, is the array."""

import base64
import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medseg_brn.reports.viewer.packing import pack


def unpack(text: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """As the page does: bytes of each significance one after another, X fastest."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    size = np.dtype(dtype).itemsize
    significances = data.reshape(size, -1).astype(np.uint64)
    values = sum(part << np.uint64(8 * number) for number, part in enumerate(significances))
    return values.astype(dtype).reshape(shape, order="F")


@settings(deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=3, max_dims=3, max_side=5))
    )
)
def test_what_is_packed_can_be_unpacked(array):
    np.testing.assert_array_equal(unpack(pack(array), array.shape, array.dtype), array)


def test_large_arrays_are_packed_in_parts_which_are_told():
    array = np.random.default_rng(0).integers(0, 1000, (1400, 1400, 5), dtype=np.uint16)
    told: list[tuple[int, int]] = []
    text = pack(array, lambda done, total: told.append((done, total)))
    np.testing.assert_array_equal(unpack(text, array.shape, array.dtype), array)
    assert told == [(number, 6) for number in range(1, 7)]
