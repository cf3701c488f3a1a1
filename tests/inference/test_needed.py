"""Blocks of air: their bounds per level, their mirror image, and that they end as background."""

import numpy as np
import pytest
import torch

from medseg_brn.inference.needed import Needed
from medseg_brn.networks.levels import list_levels
from medseg_brn.networks.unet3d import UNet3d

BLOCK = (4, 4, 4)
SHAPE = (32, 8, 8)


@pytest.fixture(scope="module")
def levels():
    return list_levels(UNet3d(1, 2, (2, 2, 2), norm="none"))


def _occupied(*blocks):
    occupied = np.zeros((8, 2, 2), bool)
    for block in blocks:
        occupied[block] = True
    return occupied


def test_without_blocks_everything_is_needed(levels):
    box = (slice(0, 32), slice(0, 8), slice(0, 8))
    needed = Needed(levels, None, BLOCK, SHAPE)
    assert needed.bounds(0, box) == box
    scores = torch.rand(2, 32, 8, 8)
    assert torch.equal(needed.leave_out(scores.clone(), 0), scores)


def test_the_part_of_a_box_that_holds_something(levels):
    needed = Needed(levels, _occupied((2, 0, 1), (5, 0, 1)), BLOCK, SHAPE)
    whole = (slice(0, 32), slice(0, 8), slice(0, 8))
    assert needed.bounds(0, whole) == (slice(8, 24), slice(0, 4), slice(4, 8))
    assert needed.bounds(0, (slice(10, 20), slice(0, 3), slice(0, 8))) == (
        slice(10, 12), slice(0, 3), slice(4, 8),
    )  # fmt: skip
    assert needed.bounds(0, (slice(12, 20), slice(0, 8), slice(0, 8))) is None


def test_one_block_more_is_needed_of_the_next_level(levels):
    needed = Needed(levels, _occupied((0, 0, 0)), (8, 8, 8), (64, 16, 16))
    whole = (slice(0, 32), slice(0, 8), slice(0, 8))
    assert needed.bounds(1, whole) == (slice(0, 8), slice(0, 8), slice(0, 8))


def test_a_level_whose_blocks_are_smaller_than_its_convolutions_reach_is_computed_everywhere(levels):
    needed = Needed(levels, _occupied((0, 0, 0)), (2, 2, 2), (16, 4, 4))
    box = (slice(0, 8), slice(0, 2), slice(0, 2))
    assert needed.bounds(1, box) == box


def test_what_is_left_out_is_background(levels):
    needed = Needed(levels, _occupied((1, 0, 0)), BLOCK, SHAPE)
    scores = needed.leave_out(torch.full((2, 6, 7, 8), 0.5), start=3)  # planes 3 to 8 of the volume
    expected = torch.zeros(2, 6, 7, 8)
    expected[0] = 1
    expected[:, 1:5, :4, :4] = 0.5
    assert torch.equal(scores, expected)


def test_what_is_left_out_is_in_no_region(levels):
    needed = Needed(levels, _occupied((1, 0, 0)), BLOCK, SHAPE)
    scores = needed.leave_out(torch.full((2, 6, 7, 8), 0.5), start=3, exclusive=False)
    expected = torch.zeros(2, 6, 7, 8)
    expected[:, 1:5, :4, :4] = 0.5
    assert torch.equal(scores, expected)


def test_blocks_of_the_mirrored_volume_hold_all_that_is_occupied(levels):
    """11 voxels in blocks of 4: mirrored, voxels 4 to 7 are 3 to 6, in the first and the second block."""
    occupied = np.zeros((3, 1, 1), bool)
    occupied[1] = True
    mirrored = Needed(levels, occupied, BLOCK, (12, 4, 4)).mirrored((0,), (11, 4, 4))
    assert mirrored.bounds(0, (slice(0, 11), slice(0, 4), slice(0, 4))) == (
        slice(0, 8),
        slice(0, 4),
        slice(0, 4),
    )


def test_what_lies_beyond_the_image_is_needed_where_it_is_looked_at(levels):
    """6 voxels in blocks of 4, made 16 by the strides: the next level's block after the last is looked at."""
    needed = Needed(levels, np.ones((2, 1, 1), bool), BLOCK, (16, 4, 4))
    assert needed.bounds(0, (slice(0, 16), slice(0, 4), slice(0, 4))) == (
        slice(0, 8), slice(0, 4), slice(0, 4),
    )  # fmt: skip
    assert needed.bounds(1, (slice(0, 8), slice(0, 2), slice(0, 2))) == (
        slice(0, 6), slice(0, 2), slice(0, 2),
    )  # fmt: skip
