"""Levels, kernels and channels, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.planning.rules_network import choose_blocks, choose_channels, choose_levels, tell_kernels

TWO = (2, 2, 2)
ONE = (1, 1, 1)
THREE = (3, 3, 3)


def test_the_hippocampus():
    levels = choose_levels((35, 50, 36), (1, 1, 1))
    assert levels.patch == (32, 48, 32)
    assert levels.strides == (ONE, TWO, TWO, TWO)
    assert levels.kernels == (THREE,) * 4
    assert levels.coarsest == (4, 6, 4)


def test_slices_six_times_as_thick_wait():
    """At 1 × 1 × 6 mm z waits until the others have 4 mm: 6 is not more than twice 4."""
    levels = choose_levels((256, 256, 24), (1, 1, 6))
    assert levels.strides == (ONE, (2, 2, 1), (2, 2, 1), TWO, TWO, (2, 2, 1))
    assert levels.kernels == ((3, 3, 1), (3, 3, 1), THREE, THREE, THREE, THREE)
    assert levels.patch == (256, 256, 24)
    assert levels.coarsest == (8, 8, 6)


def test_at_most_six_levels():
    assert len(choose_levels((512, 512, 512), (1, 1, 1)).strides) == 6


def test_a_thin_scan_is_nearly_two_dimensional():
    levels = choose_levels((128, 128, 3), (1, 1, 1))
    assert {stride[2] for stride in levels.strides} == {1}
    assert levels.patch == (128, 128, 3)


def test_a_single_slice_has_flat_kernels():
    levels = choose_levels((64, 64, 1), (1, 1, 1))
    assert {kernel[2] for kernel in levels.kernels} == {1}


@pytest.mark.parametrize(
    ("size", "spacing", "reason"),
    [
        ((24, 24, 24), (1, 1, 1), "3 voxels along every axis: none is more than twice as coarse as another"),
        ((24, 24, 1), (1, 1, 1), "1 along axis 2, which has a single voxel"),
        (
            (64, 64, 8),
            (1, 1, 6),
            "1 along an axis that is more than twice as coarse as the finest one, until they are alike",
        ),
    ],
)
def test_flat_kernels_have_their_reason(size, spacing, reason):
    assert tell_kernels(choose_levels(size, spacing)) == reason


def test_patches_are_the_nearest_multiples():
    assert choose_levels((78, 78, 78), (1, 1, 1)).patch == (80, 80, 80), "of 16"
    assert choose_levels((36, 36, 36), (1, 1, 1)).patch == (32, 32, 32), "of 8; 40 would need padding"


@given(
    size=st.tuples(*[st.integers(1, 300)] * 3), spacing=st.tuples(*[st.floats(0.3, 8, allow_nan=False)] * 3)
)
def test_levels_always_fit_their_patch(size, spacing):
    levels = choose_levels(size, spacing)
    for axis in range(3):
        total = math.prod(stride[axis] for stride in levels.strides)
        assert levels.patch[axis] % total == 0
        assert levels.patch[axis] >= (4 if total > 1 else 1) * total
        assert abs(levels.patch[axis] - size[axis]) <= total / 2
    assert levels.strides[0] == ONE
    assert 1 <= len(levels.strides) == len(levels.kernels) <= 6


def test_channels_of_the_recipe():
    assert choose_channels(4, 1, "cpu").value == (16, 48, 96, 192)
    assert choose_channels(6, 1, "cpu").value == (16, 48, 96, 192, 320, 320)
    assert choose_channels(5, 1, "cuda").value == (32, 64, 128, 256, 320)
    assert choose_channels(4, 0.5, "cpu").value == (8, 24, 48, 96)
    assert "times 0.5" in choose_channels(4, 0.5, "cpu").reason


@pytest.mark.parametrize(
    ("depth", "encoder", "decoder"),
    [(4, (1, 2, 2, 2), (1, 2, 2)), (2, (1, 2), (1,)), (1, (1,), 1)],
)
def test_one_block_at_full_resolution(depth, encoder, decoder):
    found = choose_blocks(depth, "cpu")
    assert (found[0].value, found[1].value) == (encoder, decoder)
