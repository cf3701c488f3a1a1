"""The way to the network's grid and back, against naive computations and counts made by hand."""

import pickle
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg_brn.cases import spatial
from medseg_brn.cases.restoring import LabelMapRestorer, ProbabilityRestorer
from medseg_brn.cases.spatial import (
    SpatialRecord,
    find_crop,
    plan_space,
    resample_label_map,
)
from medseg_brn.cases.targets import Targets
from medseg_brn.volumes.geometry import canonicalize, resample_array
from medseg_brn.volumes.volume import Grid, Volume

ORIENTATIONS = [
    np.diag(signs)[:, order] for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]


def make_affine(axes: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = (-20, 30, 11)
    return affine


def make_volume(array: np.ndarray, spacing_mm=(1.0, 1.0, 1.0), axes: np.ndarray = ORIENTATIONS[0]) -> Volume:
    return Volume(array, Grid(array.shape, make_affine(axes, spacing_mm)))


def make_sphere(shape: tuple[int, int, int], spacing_mm: tuple[float, ...], radius_mm: float) -> np.ndarray:
    centres = [(np.arange(n) + 0.5 - n / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*centres, indexing="ij")
    return (x**2 + y**2 + z**2 <= radius_mm**2).astype(np.uint8)


def resample_image(array: np.ndarray, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> np.ndarray:
    out = np.full(shape, np.nan, np.float32)
    spatial.resample_image(lambda first, last: array[first:last], array.shape, spacing_mm, out)
    return out


def restore_scores(scores, record: SpatialRecord, kind=LabelMapRestorer) -> np.ndarray:
    scores = np.stack(list(scores)).astype(np.float32)
    restorer = kind(record, Targets(("class",) * len(scores)))
    for first in range(0, scores.shape[1], 2):
        restorer.take(scores[:, first : first + 2])
    return restorer.finish()


def restore_probabilities(probabilities, record: SpatialRecord) -> np.ndarray:
    return restore_scores(probabilities, record, ProbabilityRestorer)


def one_hot(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    return np.stack([label_map == value for value in range(num_classes)]).astype(np.float32)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.logical_and(one, other).sum() / (one.sum() + other.sum())


def naive_linear(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolates voxel by voxel, edges aligned, the edge value continued."""
    result = np.zeros(shape)
    for index in np.ndindex(*shape):
        position = [
            (i + 0.5) * old / new - 0.5 for i, old, new in zip(index, array.shape, shape, strict=True)
        ]
        for corner in product((0, 1), repeat=3):
            weight, source = 1.0, []
            for p, c, old in zip(position, corner, array.shape, strict=True):
                below = int(np.floor(p))
                weight *= p - below if c else 1 - (p - below)
                source.append(min(max(below + c, 0), old - 1))
            result[index] += weight * array[tuple(source)]
    return result


class TestCrop:
    def test_nonzero_bounds_by_hand(self) -> None:
        first, second = np.zeros((2, 6, 7, 8))
        first[2, 3, 4] = -1
        second[4, 1, 6] = 5
        assert find_crop([first, second], "nonzero") == ((2, 1, 4), (5, 4, 7))

    def test_none_keeps_everything(self) -> None:
        assert find_crop([np.zeros((2, 3, 4))], "none") == ((0, 0, 0), (2, 3, 4))

    @pytest.mark.parametrize(("crop", "value"), [("nonzero", 0), ("body", -1024)])
    def test_a_blank_scan_is_kept_whole(self, crop: str, value: int) -> None:
        assert find_crop([np.full((2, 3, 4), value)], crop) == ((0, 0, 0), (2, 3, 4))

    def test_body_is_the_largest_piece_above_minus_500(self) -> None:
        scan = np.full((20, 20, 10), -1024, dtype=np.int16)
        scan[4:12, 5:14, 2:9] = 40
        scan[6:8, 7:9, 4:6] = -900  # lung inside the body
        scan[0, :, :] = 200  # the table, a smaller piece
        scan[12, 8, 4] = -500  # touches the body and is not above the threshold
        assert find_crop([scan], "body") == ((4, 5, 2), (12, 14, 9))

    def test_bounds_are_in_canonical_axes(self) -> None:
        array = np.zeros((5, 6, 7), np.float32)
        array[0, 2, 3] = 1
        volume = make_volume(array, axes=np.diag([-1.0, 1.0, 1.0]))
        record = plan_space([volume], "nonzero", (1, 1, 1))
        assert (record.lower, record.upper) == ((4, 2, 3), (5, 3, 4))


class TestPlan:
    def test_shape_and_spacing_by_hand(self) -> None:
        record = plan_space([make_volume(np.ones((10, 12, 5)), (1, 1, 3))], "none", (2, 1, 1.5))
        assert record.network_shape == (5, 12, 10)
        np.testing.assert_allclose(record.network_grid.spacing_mm, (2, 1, 1.5))

    def test_the_target_is_along_canonical_axes(self) -> None:
        axes = np.eye(3)[:, [2, 0, 1]]  # first array axis runs along world Z
        record = plan_space([make_volume(np.ones((5, 10, 12)), (3, 1, 1), axes)], "none", (2, 1, 1.5))
        assert record.network_shape == (5, 12, 10)

    def test_within_one_percent_an_axis_is_left_alone(self) -> None:
        # 400 voxels of 0.992 mm would be 397 of 1 mm; the third axis is really resampled
        record = plan_space([make_volume(np.ones((400, 2, 4)), (0.992, 1.0, 2))], "none", (1, 1, 1))
        assert record.network_shape == (400, 2, 8)
        np.testing.assert_allclose(record.network_grid.spacing_mm, (0.992, 1, 1))

    def test_beyond_one_percent_it_is_resampled(self) -> None:
        record = plan_space([make_volume(np.ones((400, 2, 4)), (0.98, 1, 1))], "none", (1, 1, 1))
        assert record.network_shape == (392, 2, 4)

    def test_a_thin_axis_keeps_one_voxel(self) -> None:
        record = plan_space([make_volume(np.ones((4, 4, 1)), (1, 1, 0.5))], "none", (1, 1, 5))
        assert record.network_shape == (4, 4, 1)

    def test_crop_and_orientation_place_the_network_grid(self) -> None:
        array = np.zeros((6, 6, 6), np.float32)
        array[1:5, 2:4, 0:2] = 1
        volume = make_volume(array, (1, 2, 3), np.diag([-1.0, -1.0, 1.0]))
        grid = plan_space([volume], "nonzero", (2, 2, 3)).network_grid
        # Array voxels 4 and 3 along X lie at -20 - 4 and -20 - 3; the first network voxel between them.
        np.testing.assert_allclose(grid.affine[:3, 3], (-23.5, 30 - 2 * 3, 11))
        assert grid.shape == (2, 2, 2)


class TestImages:
    @pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 1, 5), (6, 1, 1.5)])
    @pytest.mark.parametrize("shape", [(12, 10, 30), (24, 20, 15), (7, 33, 24)])
    def test_a_linear_ramp_stays_one(self, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
        old = (12, 20, 15)
        x, y, z = (
            (np.arange(n) + 0.5) / n * step * before
            for n, before, step in zip(old, old, spacing_mm, strict=True)
        )
        ramp = 3 * x[:, None, None] - 2 * y[:, None] + 0.5 * z
        x, y, z = (
            (np.arange(n) + 0.5) / n * step * before
            for n, before, step in zip(shape, old, spacing_mm, strict=True)
        )
        expected = 3 * x[:, None, None] - 2 * y[:, None] + 0.5 * z
        resampled = resample_image(ramp, shape, spacing_mm)
        assert resampled.dtype == np.float32
        inside = tuple(slice(n // 4, n - n // 4) for n in shape)  # beyond the edge, the edge value continues
        np.testing.assert_allclose(resampled[inside], expected[inside], rtol=1e-4, atol=1e-3)

    def test_the_same_shape_is_exact(self) -> None:
        array = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32)
        np.testing.assert_array_equal(resample_image(array, (5, 6, 7), (1, 2, 3)), array)

    def test_thick_slices_are_not_overshot(self) -> None:
        step = np.zeros((6, 6, 6), np.float32)
        step[..., 3:] = 1
        thick = resample_image(step, (6, 6, 24), (1, 1, 5))
        assert thick.min() == 0
        assert thick.max() == 1
        thin = resample_image(step, (6, 6, 24), (1, 1, 1))
        assert thin.max() > 1.01  # a cubic overshoots at an edge

    def test_slices_that_become_thick_are_linear_too(self) -> None:
        step = np.zeros((8, 8, 12), np.float32)
        step[:, :, 6:] = 1
        coarse = resample_image(step, (8, 8, 3), (1, 1, 1))
        np.testing.assert_array_equal(coarse, resample_array(step, (8, 8, 3), "linear", antialias=True))
        assert not np.array_equal(coarse, resample_array(step, (8, 8, 3), "cubic", antialias=True))


class TestLabelMaps:
    @given(
        seed=st.integers(0, 2**32 - 1),
        old=st.tuples(*[st.integers(1, 6)] * 3),
        new=st.tuples(*[st.integers(1, 8)] * 3),
        num_classes=st.integers(1, 4),
    )
    @settings(max_examples=30, deadline=None)
    def test_equals_argmax_of_naively_resampled_masks(self, seed, old, new, num_classes) -> None:
        label_map = np.random.default_rng(seed).integers(0, num_classes, old).astype(np.uint8)
        resampled = resample_label_map(label_map, new)
        assert resampled.dtype == np.uint8
        shares = np.stack([naive_linear(mask, new) for mask in one_hot(label_map, num_classes)])
        chosen = np.take_along_axis(shares, resampled[None].astype(int), axis=0)[0]
        np.testing.assert_allclose(chosen, shares.max(axis=0), atol=1e-5)

    def test_a_slice_in_unknown_surroundings_stays_one(self) -> None:
        """Of 5 slices of 4 mm one is annotated (1) and 4 are ignored (9); of 20 of 1 mm, its own 4 mm are."""
        label_map = np.full((3, 3, 5), 9, np.uint8)
        label_map[:, :, 2] = 1
        resampled = resample_label_map(label_map, (3, 3, 20))
        assert np.flatnonzero(resampled[1, 1] == 1).tolist() == [8, 9, 10, 11]
        assert set(np.unique(resampled)) == {1, 9}

    def test_classes_keep_their_numbers_and_type(self) -> None:
        label_map = np.zeros((4, 4, 4), np.uint16)
        label_map[2:] = 700
        resampled = resample_label_map(label_map, (8, 4, 4))
        assert resampled.dtype == np.uint16
        np.testing.assert_array_equal(resampled[:, 0, 0], [0, 0, 0, 0, 700, 700, 700, 700])


class TestWayBack:
    @pytest.mark.parametrize("axes", ORIENTATIONS)
    def test_every_orientation_comes_back_exactly(self, axes: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        label_map = np.zeros((6, 7, 8), np.uint8)
        label_map[1:5, 2:6, 3:7] = rng.integers(0, 3, (4, 4, 4))
        label_map[1, 2, 3] = label_map[4, 5, 6] = 2
        volume = make_volume(label_map, (1, 2, 3), axes)
        spacing_mm = canonicalize(volume).spacing_mm
        record = plan_space([volume], "nonzero", spacing_mm)
        network = canonicalize(volume).array[record.region]
        assert network.shape == record.network_shape
        restored = restore_scores(one_hot(network, 3), record)
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, label_map)

    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(*[st.integers(2, 7)] * 3),
        target_mm=st.tuples(*[st.floats(0.4, 4)] * 3),
        orientation=st.sampled_from(ORIENTATIONS),
        angles=st.tuples(*[st.floats(-30, 30)] * 3),
    )
    @settings(max_examples=40, deadline=None)
    def test_scores_equal_the_naive_argmax(self, seed, shape, target_mm, orientation, angles) -> None:
        rng = np.random.default_rng(seed)
        axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ orientation
        array = (rng.random(shape) < 0.2).astype(np.float32)
        volume = make_volume(array, (0.7, 1, 2.5), axes)
        record = plan_space([volume], "nonzero", target_mm)
        scores = rng.standard_normal((4, *record.network_shape)).astype(np.float32)

        resampled = np.stack([naive_linear(score, record.cropped_shape) for score in scores])
        canonical = canonicalize(Volume(np.arange(array.size).reshape(shape), volume.grid))
        full = np.full((4, *canonical.shape), -np.inf)
        full[0] = 0
        full[(slice(None), *record.region)] = resampled
        # The voxel numbers that canonical axes carry say where each score belongs in the input.
        expected = np.empty((4, array.size))
        expected[:, canonical.array.ravel()] = full.reshape(4, -1)
        expected = expected.reshape(4, *shape)

        restored = restore_scores(iter(scores), record)
        assert restored.shape == shape
        chosen = np.take_along_axis(expected, restored[None].astype(int), axis=0)[0]
        np.testing.assert_allclose(chosen, expected.max(axis=0), atol=1e-4)

    def test_a_class_may_win_between_voxels_only(self) -> None:
        # The scan's centres lie at -1/4, 1/4, 3/4, 5/4 of the network's two. At 1/4 the first class has
        # 3/4 of its 0.6, and the third, which wins at neither voxel of the network, has more.
        record = plan_space([make_volume(np.ones((4, 1, 1)), (1, 1, 1))], "none", (2, 1, 1))
        scores = np.array([[0.6, 0.0], [0.0, 0.6], [0.46, 0.46]], np.float32).reshape(3, 2, 1, 1)
        np.testing.assert_array_equal(restore_scores(scores, record).ravel(), [0, 2, 2, 1])

    @pytest.mark.parametrize("target_mm", [(1, 1, 1), (2, 2, 2), (1, 1, 2), (0.8, 1.3, 3)])
    @pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.9, 0.9, 3), (1, 2, 1.2)])
    def test_a_sphere_survives_resampling(self, spacing_mm, target_mm) -> None:
        shape = tuple(int(36 / step) for step in spacing_mm)
        sphere = make_sphere(shape, spacing_mm, radius_mm=12)
        record = plan_space([make_volume(sphere, spacing_mm)], "none", target_mm)
        network = resample_label_map(sphere, record.network_shape)
        restored = restore_scores(one_hot(network, 2), record)
        assert dice(restored, sphere) > 0.95

    def test_ties_go_to_the_lower_class(self) -> None:
        record = plan_space([make_volume(np.ones((2, 2, 2)))], "none", (1, 1, 1))
        scores = np.zeros((3, 2, 2, 2), np.float32)
        scores[1:] = 1
        np.testing.assert_array_equal(restore_scores(scores, record), 1)

    def test_more_than_256_classes_are_uint16(self) -> None:
        record = plan_space([make_volume(np.ones((1, 1, 300)))], "none", (1, 1, 1))
        scores = np.eye(300, dtype=np.float32).reshape(300, 1, 1, 300)
        restored = restore_scores(scores, record)
        assert restored.dtype == np.uint16
        np.testing.assert_array_equal(restored.ravel(), np.arange(300))
        assert restore_scores(scores[:256], record).dtype == np.uint8

    def test_the_scores_are_left_alone(self) -> None:
        record = plan_space([make_volume(np.ones((2, 2, 2)))], "none", (1, 1, 1))
        scores = np.random.default_rng(0).standard_normal((3, 2, 2, 2)).astype(np.float32)
        before = scores.copy()
        restore_scores(scores, record)
        np.testing.assert_array_equal(scores, before)

    def test_probabilities_sum_to_one_everywhere(self) -> None:
        array = np.zeros((9, 8, 7), np.float32)
        array[2:7, 1:6, 3:6] = 1
        axes = Rotation.from_euler("xyz", (10, 20, 5), degrees=True).as_matrix() @ np.diag([-1.0, -1.0, 1.0])
        volume = make_volume(array, (1, 1, 3), axes)
        record = plan_space([volume], "nonzero", (2, 0.7, 1.5))
        probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), record.network_shape)
        restored = restore_probabilities(np.moveaxis(probabilities, -1, 0), record)
        assert restored.dtype == np.float32
        assert restored.shape == (3, 9, 8, 7)
        np.testing.assert_allclose(restored.sum(axis=0), 1, atol=1e-6)
        np.testing.assert_array_equal(restored[0][array == 0], 1)
        np.testing.assert_array_equal(
            restored.argmax(axis=0), restore_scores(np.moveaxis(probabilities, -1, 0), record)
        )


def test_a_record_is_small_and_travels() -> None:
    record = plan_space([make_volume(np.ones((40, 50, 60), np.float32))], "none", (1, 1, 1))
    pickled = pickle.dumps(record)
    assert len(pickled) < 5000
    copy: SpatialRecord = pickle.loads(pickled)  # noqa: S301
    assert copy.input_grid.matches(record.input_grid)
