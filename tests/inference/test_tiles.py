"""Boxes: checked against masks of voxels."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.inference.tiles import (
    box_shape,
    expand,
    list_tiles,
    round_up,
    scale_down,
    scale_up,
    whole,
    within,
)

SIZES = st.tuples(*[st.integers(1, 20)] * 3)
TILES = st.tuples(*[st.integers(1, 8)] * 3)


@given(SIZES, TILES)
def test_tiles_cover_every_voxel_once_and_x_changes_slowest(shape, tile):
    seen = np.zeros(shape, int)
    boxes = list_tiles(shape, tile)
    for box in boxes:
        seen[box] += 1
        assert all(0 < size <= most for size, most in zip(box_shape(box), tile, strict=True))
    assert (seen == 1).all()
    assert [box[0].start for box in boxes] == sorted(box[0].start for box in boxes)


def test_a_tile_with_its_halo_ends_on_the_lattice_and_in_the_volume():
    box = (slice(3, 6), slice(0, 2), slice(7, 10))
    assert expand(box, (1, 1, 1), (10, 10, 10), (2, 2, 2)) == (slice(2, 8), slice(0, 4), slice(6, 10))
    assert expand(box, (2, 0, 1), (10, 10, 10)) == (slice(1, 8), slice(0, 2), slice(6, 10))


@given(SIZES, TILES, st.tuples(*[st.integers(0, 3)] * 3))
def test_a_box_is_found_again_within_its_halo(shape, tile, halo):
    voxels = np.arange(np.prod(shape)).reshape(shape)
    for box in list_tiles(shape, tile):
        outer = expand(box, halo, shape)
        np.testing.assert_array_equal(voxels[outer][within(box, outer)], voxels[box])


def test_boxes_in_finer_and_coarser_voxels():
    box = (slice(1, 3), slice(0, 4), slice(2, 5))
    finer = scale_up(box, (2, 1, 3))
    assert finer == (slice(2, 6), slice(0, 4), slice(6, 15))
    assert scale_down(finer, (2, 1, 3)) == box


def test_the_next_larger_multiple_and_the_whole():
    assert round_up((7, 8, 9), (4, 4, 2)) == (8, 8, 10)
    assert whole((2, 3, 4)) == (slice(0, 2), slice(0, 3), slice(0, 4))
