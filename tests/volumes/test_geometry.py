"""Reorientation, resampling and cropping keep every voxel in its place in mm."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

from medseg_brn.volumes.geometry import (
    canonicalize,
    crop_grid,
    reorient,
    resample_array,
    resample_slabs,
    resampled_grid,
    restore_orientation,
)
from medseg_brn.volumes.volume import Grid, Volume

SHAPE = (2, 3, 4)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def numbered_volume(affine: np.ndarray, shape=SHAPE) -> Volume:
    """A volume whose every voxel has a value of its own."""
    return Volume(np.arange(np.prod(shape)).reshape(shape), Grid(shape, affine))


def places_mm(volume: Volume) -> dict[int, np.ndarray]:
    """Where each value lies: the affine applied voxel by voxel."""
    return {
        int(volume.array[index]): volume.affine[:3, :3] @ index + volume.affine[:3, 3]
        for index in np.ndindex(volume.shape)
    }


@st.composite
def affines(draw, largest_angle=180) -> np.ndarray:
    """Oblique, sheared, permuted and flipped affines with voxels from 0.1 to 10 mm."""
    permutation, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    angles = draw(st.tuples(*[st.floats(-largest_angle, largest_angle)] * 3))
    shear = np.eye(3)
    shear[0, 1], shear[1, 2] = draw(st.tuples(*[st.floats(-0.3, 0.3)] * 2))
    affine = np.eye(4)
    axes = np.eye(3)[list(permutation)].T * signs
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ shear @ axes * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


sizes = st.tuples(*[st.integers(1, 6)] * 3)


@pytest.mark.parametrize(("permutation", "signs"), ORIENTATIONS)
def test_each_of_the_48_orientations_becomes_ras_and_comes_back(permutation, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(permutation)].T * signs * (0.5, 1, 2)
    affine[:3, 3] = (10, -20, 30)
    volume = numbered_volume(affine)
    canonical = canonicalize(volume)
    assert canonical.grid.orientation == "RAS"
    before, after = places_mm(volume), places_mm(canonical)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[value], after[value], atol=1e-12) for value in before)
    assert np.array_equal(restore_orientation(canonical.array, volume.grid), volume.array)


@settings(deadline=None, max_examples=60)
@given(affines(), sizes)
def test_oblique_grids_keep_every_voxels_place_and_come_back(affine, shape):
    volume = numbered_volume(affine, shape)
    canonical = canonicalize(volume)
    before, after = places_mm(volume), places_mm(canonical)
    assert all(np.allclose(before[value], after[value], atol=1e-9) for value in before)
    assert np.array_equal(restore_orientation(canonical.array, volume.grid), volume.array)


# Half-way between two axes the nearest one is a matter of rounding; far from there it is not.
@settings(deadline=None, max_examples=60)
@given(affines(largest_angle=10))
def test_canonical_volumes_are_returned_themselves(affine):
    canonical = canonicalize(numbered_volume(affine))
    assert canonicalize(canonical) is canonical


@pytest.mark.parametrize("wanted", ["LPS", "RAS", "LAI", "SPL"])
@pytest.mark.parametrize(("permutation", "signs"), ORIENTATIONS[::5])
def test_axes_run_where_they_are_told_to_and_come_back(permutation, signs, wanted):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(permutation)].T * signs * (0.5, 1, 2)
    volume = numbered_volume(affine)
    turned = reorient(volume, wanted)
    assert turned.grid.orientation == wanted
    before, after = places_mm(volume), places_mm(turned)
    assert all(np.allclose(before[value], after[value], atol=1e-12) for value in before)
    assert np.array_equal(restore_orientation(turned.array, volume.grid, wanted), volume.array)


def test_axes_as_they_are_stored_stay():
    volume = numbered_volume(np.diag((-1.0, 2, -3, 1)))
    assert reorient(volume, "stored") is volume
    assert np.array_equal(restore_orientation(volume.array, volume.grid, "stored"), volume.array)


def test_restoring_a_foreign_array_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 3, 4\)"):
        restore_orientation(np.zeros((2, 3, 5)), Grid(SHAPE, np.eye(4)))


def test_four_voxels_of_1_mm_become_two_of_2_mm():
    grid = resampled_grid(Grid((4, 4, 4), np.eye(4)), (2, 1, 4))
    assert grid.shape == (2, 4, 1)
    assert grid.spacing_mm == (2, 1, 4)
    assert grid.affine[:3, 3].tolist() == [0.5, 0, 1.5]


def test_an_axis_keeps_at_least_one_voxel():
    assert resampled_grid(Grid((1, 4, 4), np.eye(4)), (50, 50, 50)).shape == (1, 1, 1)


def test_a_grid_that_keeps_its_shape_is_returned_itself():
    grid = Grid((10, 10, 10), np.eye(4))
    assert resampled_grid(grid, (1.01, 1, 0.99)) is grid


@settings(deadline=None, max_examples=60)
@given(affines(), sizes, st.tuples(*[st.floats(0.1, 20)] * 3))
def test_resampled_grids_keep_the_outer_edges_in_place(affine, shape, spacing_mm):
    grid = Grid(shape, affine)
    resampled = resampled_grid(grid, spacing_mm)
    for corner in product((0, 1), repeat=3):
        old = affine @ [*(np.multiply(corner, shape) - 0.5), 1]
        new = resampled.affine @ [*(np.multiply(corner, resampled.shape) - 0.5), 1]
        assert np.allclose(old, new, atol=1e-9)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 0, 1), (1, np.nan, 1), (-1, 1, 1)])
def test_a_spacing_is_three_positive_lengths(spacing_mm):
    with pytest.raises(ValueError, match="three positive lengths"):
        resampled_grid(Grid(SHAPE, np.eye(4)), spacing_mm)


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_a_ramp_in_mm_stays_the_same_ramp_on_the_new_grid(order):
    affine = np.diag([0.5, 2, 3, 1.0])
    affine[:3, 3] = (7, -5, 2)
    grid = Grid((12, 9, 8), affine)
    resampled = resampled_grid(grid, (0.9, 1.1, 2.3))

    def ramp(of: Grid) -> np.ndarray:
        x, y, z = np.einsum("ij,jxyz->ixyz", of.affine[:3, :3], np.indices(of.shape)) + of.affine[
            :3, 3
        ].reshape(3, 1, 1, 1)
        return x + 2 * y - 3 * z

    # Outermost voxels lie beyond the old centres or next to them, where the edge value continues.
    inner = (slice(2, -2), slice(3, -3), slice(3, -3))
    result = resample_array(ramp(grid), resampled.shape, order)
    assert np.allclose(result[inner], ramp(resampled)[inner], atol=1e-4)


def naive_linear(array: np.ndarray, shape) -> np.ndarray:
    """Trilinear interpolation voxel by voxel, as the textbook has it."""
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        place = [
            np.clip((i + 0.5) * n / m - 0.5, 0, n - 1)
            for i, n, m in zip(index, array.shape, shape, strict=True)
        ]
        for corner in product((0, 1), repeat=3):
            voxel = [min(int(p) + c, n - 1) for p, c, n in zip(place, corner, array.shape, strict=True)]
            weight = np.prod([p % 1 if c else 1 - p % 1 for p, c in zip(place, corner, strict=True)])
            result[index] += weight * array[tuple(voxel)]
    return result


@settings(deadline=None, max_examples=60)
@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_linear_agrees_with_the_textbook_and_with_scipy(old, new, seed):
    array = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    result = resample_array(array, new, "linear")
    assert result.dtype == np.float32
    assert np.allclose(result, naive_linear(array, new), atol=1e-5)
    factors = np.divide(new, old)
    assert np.allclose(result, zoom(array, factors, order=1, mode="nearest", grid_mode=True), atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(sizes, sizes)
def test_nearest_takes_the_voxel_that_contains_the_new_centre(old, new):
    array = np.arange(np.prod(old), dtype=np.uint8).reshape(old)
    result = resample_array(array, new, "nearest")
    assert result.dtype == np.uint8
    for index in np.ndindex(*new):
        containing = tuple((2 * i + 1) * n // (2 * m) for i, n, m in zip(index, old, new, strict=True))
        assert result[index] == array[containing]


@settings(deadline=None, max_examples=60)
@given(sizes, st.tuples(*[st.integers(1, 4)] * 3))
def test_nearest_undoes_its_own_upsampling(shape, factors):
    array = np.arange(np.prod(shape)).reshape(shape)
    larger = resample_array(array, tuple(np.multiply(shape, factors)), "nearest")
    assert np.array_equal(resample_array(larger, shape, "nearest"), array)


@pytest.mark.parametrize("order", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_constant_up_to_the_edges(order, antialias):
    result = resample_array(np.full((3, 7, 2), 5, dtype=np.int16), (8, 2, 3), order, antialias=antialias)
    assert np.allclose(result, 5, atol=1e-5)


def test_cubic_reproduces_a_parabola_between_the_centres():
    parabola = (np.arange(12.0) ** 2).reshape(12, 1, 1)
    result = resample_array(parabola, (36, 1, 1), "cubic").ravel()
    places = (np.arange(36) + 0.5) / 3 - 0.5
    assert np.allclose(result[6:-6], places[6:-6] ** 2, atol=1e-4)


def test_the_same_shape_is_a_copy():
    array = np.zeros(SHAPE, dtype=np.float32)
    for order in ("linear", "nearest", "cubic"):
        result = resample_array(array, SHAPE, order)
        result[0, 0, 0] = 1
        assert array.max() == 0


def test_antialiasing_keeps_fine_stripes_from_becoming_coarse_ones():
    # Stripes of one voxel, one in 4 taken: without smoothing every voxel taken is a white one.
    stripes = np.zeros((64, 1, 1), dtype=np.float32)
    stripes[1::4], stripes[2::4] = 1, 1
    plain = resample_array(stripes, (16, 1, 1), "linear")
    smooth = resample_array(stripes, (16, 1, 1), "linear", antialias=True)
    assert np.allclose(plain, 1)
    assert np.abs(smooth - 0.5).max() < 0.2


def test_antialiasing_leaves_the_axes_that_gain_voxels_alone():
    array = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    shape = (12, 5, 7)
    plain, smooth = (resample_array(array, shape, "linear", antialias=flag) for flag in (False, True))
    assert np.array_equal(plain, smooth)


@settings(deadline=None, max_examples=60)
@given(affines(), st.data())
def test_a_cropped_voxel_stays_in_its_place(affine, data):
    shape = (5, 6, 7)
    lower = [data.draw(st.integers(0, size - 1)) for size in shape]
    upper = [data.draw(st.integers(low + 1, size)) for low, size in zip(lower, shape, strict=True)]
    cropped = crop_grid(Grid(shape, affine), lower, upper)
    assert cropped.shape == tuple(np.subtract(upper, lower))
    assert np.allclose(cropped.affine @ [0, 0, 0, 1], affine @ [*lower, 1])
    assert np.array_equal(cropped.affine[:3, :3], affine[:3, :3])


@pytest.mark.parametrize(
    ("lower", "upper"), [((-1, 0, 0), SHAPE), ((0, 0, 0), (2, 3, 5)), ((1, 1, 1), (1, 2, 2))]
)
def test_a_crop_lies_inside_the_grid(lower, upper):
    with pytest.raises(ValueError, match="not inside a grid"):
        crop_grid(Grid(SHAPE, np.eye(4)), lower, upper)


@pytest.mark.parametrize("new", [(7, 1500, 1500), (3, 1500, 1500), (4, 1500, 1500)])
@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_slabs_are_what_the_whole_is_resampled_to(new, order):
    """A plane of 2.25 million values: slabs of one plane."""
    array = np.random.default_rng(0).random((4, 20, 2000), dtype=np.float32)
    expected = resample_array(array, new, order, antialias=True)
    slabs = list(resample_slabs(lambda a, b: array[a:b], array.shape, new, [order] * 3, antialias=True))
    assert [start for start, _ in slabs] == list(range(new[0]))
    np.testing.assert_allclose(np.concatenate([slab for _, slab in slabs]), expected, atol=1e-5)
