"""Preprocessing as a whole: deterministic, the same in every orientation, and invertible."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from medseg_brn.cases.intensity import IntensityScheme
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images, prepare_label_map
from medseg_brn.cases.restoring import LabelMapRestorer
from medseg_brn.cases.targets import Targets
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Grid, Volume


def restore_scores(scores, record) -> np.ndarray:
    scores = np.stack(list(scores)).astype(np.float32)
    targets = Targets(tuple(f"class {index}" for index in range(len(scores))))
    restorer = LabelMapRestorer(record, targets)
    restorer.take(scores)
    return restorer.finish()


ZSCORE = IntensityScheme(scheme="zscore")
AS_IT_IS = IntensityScheme(scheme="none")
CT = IntensityScheme(scheme="ct", low=-100.5, high=300.25, mean=50, std=80)
# nibabel's orientation arrays: where each axis goes, and whether it is flipped on the way.
ALL_ORIENTATIONS = [
    np.array([*zip(order, flips, strict=True)])
    for order in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def make_oblique_affine(spacing_mm: tuple[float, ...], degrees: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = (-31, 12, 7)
    return affine


def make_volume(array: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(array, Grid(array.shape, np.eye(4) if affine is None else affine))


def make_scan(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Noise inside a border of zeros, so that there is something to crop."""
    scan = np.zeros(shape, np.float32)
    scan[1:-1, 2:-1, 1:-2] = np.random.default_rng(seed).uniform(1, 100, scan[1:-1, 2:-1, 1:-2].shape)
    return scan


def one_hot(label_map: np.ndarray, num_classes: int) -> np.ndarray:
    return np.stack([label_map == value for value in range(num_classes)]).astype(np.float32)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.logical_and(one, other).sum() / (one.sum() + other.sum())


class TestPrepareImages:
    @pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
    def test_every_orientation_of_a_scan_gives_the_same_bits(self, orientation: np.ndarray) -> None:
        canonical = make_volume(make_scan(0, (9, 8, 7)), make_oblique_affine((1, 1.5, 5), (5, -8, 12)))
        affine = canonical.affine @ inv_ornt_aff(orientation, canonical.shape)
        turned = make_volume(apply_orientation(canonical.array, orientation), affine)
        preprocessing = Preprocessing(spacing_mm=(1.2, 1.5, 3), crop="nonzero", intensity=(ZSCORE,))
        expected = prepare_images([canonical], preprocessing)
        prepared = prepare_images([turned], preprocessing)
        np.testing.assert_array_equal(prepared.array, expected.array)
        assert prepared.record.network_grid.matches(expected.record.network_grid)
        assert prepared.spacing_mm == pytest.approx(expected.spacing_mm)

    @given(
        degrees=st.tuples(*[st.floats(-40, 40)] * 3),
        spacing_mm=st.tuples(*[st.floats(0.5, 2)] * 3),
        target_mm=st.tuples(*[st.floats(0.5, 2)] * 3),
    )
    @settings(max_examples=25, deadline=None)
    def test_values_stay_at_their_place_in_the_patient(self, degrees, spacing_mm, target_mm) -> None:
        affine = make_oblique_affine(spacing_mm, degrees)
        voxels = np.stack(np.meshgrid(*map(np.arange, (12, 14, 13)), indexing="ij"), axis=-1)
        gradient = np.array([1.0, -2.0, 0.5])  # per mm
        scan = make_volume((voxels @ affine[:3, :3].T + affine[:3, 3]) @ gradient, affine)
        prepared = prepare_images([scan], Preprocessing(spacing_mm=target_mm, intensity=(AS_IT_IS,)))
        shape, affine = prepared.array.shape[1:], prepared.record.network_grid.affine
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        expected = (voxels @ affine[:3, :3].T + affine[:3, 3]) @ gradient
        middle = tuple(slice(n // 2 - n // 8, n // 2 + n // 8 + 1) for n in shape)
        np.testing.assert_allclose(prepared.array[0][middle], expected[middle], atol=1e-2)

    def test_the_target_spacing_is_exact_where_it_is_met(self) -> None:
        scan = make_scan(1, (6, 7, 8))
        preprocessing = Preprocessing(spacing_mm=(1.005, 0.995, 1), intensity=(AS_IT_IS,))
        np.testing.assert_array_equal(prepare_images([make_volume(scan)], preprocessing).array[0], scan)

    def test_statistics_are_those_of_the_region_kept(self) -> None:
        scan = np.zeros((6, 6, 6), np.int16)
        scan[1:3, 2:4, 2:4] = [10, 30]
        preprocessing = Preprocessing(spacing_mm=(1, 1, 1), crop="nonzero", intensity=(ZSCORE,))
        prepared = prepare_images([make_volume(scan)], preprocessing)
        assert prepared.array.shape == (1, 2, 2, 2)
        np.testing.assert_array_equal(prepared.array[0, 0, 0], [-1, 1])

    def test_each_channel_has_its_own_scheme(self) -> None:
        scan = make_scan(2, (5, 6, 7))
        channels = [make_volume(scan), make_volume(scan)]
        prepared = prepare_images(channels, Preprocessing(spacing_mm=(1, 1, 1), intensity=(AS_IT_IS, CT)))
        assert prepared.array.dtype == np.float32
        np.testing.assert_array_equal(prepared.array[0], scan)
        np.testing.assert_allclose(prepared.array[1], (np.clip(scan, -100.5, 300.25) - 50) / 80, rtol=1e-5)

    def test_the_scan_is_left_alone(self) -> None:
        scan = make_scan(3, (5, 6, 7))
        before = scan.copy()
        prepare_images([make_volume(scan)], Preprocessing(spacing_mm=(1, 1, 1), intensity=(ZSCORE,)))
        np.testing.assert_array_equal(scan, before)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_no_numbers_are_named(self, value: float) -> None:
        scan = make_scan(4, (5, 6, 7))
        scan[1, 2, 3] = scan[3, 2, 1] = value
        with pytest.raises(DataError, match=rf"'p07', channel 1: 2 voxels .* {value} at \(1, 2, 3\)"):
            prepare_images(
                [make_volume(make_scan(4, (5, 6, 7))), make_volume(scan)],
                Preprocessing(spacing_mm=(1, 1, 1), intensity=(ZSCORE, ZSCORE)),
                "p07",
            )

    def test_channels_must_be_as_many_and_on_one_grid(self) -> None:
        one, other = make_volume(np.ones((3, 4, 5))), make_volume(np.ones((3, 4, 6)))
        with pytest.raises(DataError, match=r"'p07' has 1 channels, but the preprocessing is for 2"):
            prepare_images([one], Preprocessing(spacing_mm=(1, 1, 1), intensity=(CT, CT)), "p07")
        with pytest.raises(DataError, match=r"'p07'.*\(3, 4, 5\) against \(3, 4, 6\)"):
            prepare_images([one, other], Preprocessing(spacing_mm=(1, 1, 1), intensity=(CT, CT)), "p07")


class TestThereAndBack:
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(*[st.integers(4, 9)] * 3),
        orientation=st.sampled_from(ALL_ORIENTATIONS),
        degrees=st.tuples(*[st.floats(-30, 30)] * 3),
        crop=st.sampled_from(["none", "nonzero"]),
    )
    @settings(max_examples=50, deadline=None)
    def test_labels_survive_exactly_at_their_own_spacing(
        self, seed, shape, orientation, degrees, crop
    ) -> None:
        canonical = make_volume(make_scan(seed, shape), make_oblique_affine((0.8, 1.2, 3), degrees))
        affine = canonical.affine @ inv_ornt_aff(orientation, shape)
        scan = make_volume(apply_orientation(canonical.array, orientation), affine)
        labels = np.random.default_rng(seed).integers(0, 4, scan.shape).astype(np.uint8) * (scan.array > 0)
        label_map = Volume(labels, scan.grid)
        preprocessing = Preprocessing(spacing_mm=canonical.spacing_mm, crop=crop, intensity=(ZSCORE,))
        record = prepare_images([scan], preprocessing).record
        prepared = prepare_label_map(label_map, record)
        assert prepared.shape == record.network_shape
        assert prepared.dtype == np.uint8
        np.testing.assert_array_equal(restore_scores(one_hot(prepared, 4), record), labels)

    def test_image_and_labels_stay_together(self) -> None:
        """The image of a ball, thresholded on the network's grid, is the ball's prepared label map."""
        affine = make_oblique_affine((1, 1, 3), (10, 20, -15))
        centres = [
            (np.arange(n) + 0.5 - n / 2) * step for n, step in zip((40, 40, 14), (1, 1, 3), strict=True)
        ]
        x, y, z = np.meshgrid(*centres, indexing="ij")
        distance = np.sqrt(x**2 + y**2 + z**2)
        scan, ball = make_volume(distance, affine), make_volume((distance < 13).astype(np.uint8), affine)
        prepared = prepare_images([scan], Preprocessing(spacing_mm=(1.5, 0.8, 2), intensity=(AS_IT_IS,)))
        inside, labelled = prepared.array[0] < 13, prepare_label_map(ball, prepared.record)
        assert dice(labelled, inside) > 0.95
        centres = [np.argwhere(mask).mean(axis=0) for mask in (inside, labelled)]
        np.testing.assert_allclose(*centres, atol=0.1)

    def test_a_label_map_on_another_grid_is_refused(self) -> None:
        preprocessing = Preprocessing(spacing_mm=(1, 1, 1), intensity=(ZSCORE,))
        record = prepare_images([make_volume(make_scan(0, (5, 6, 7)))], preprocessing).record
        shifted = make_volume(np.zeros((5, 6, 7), np.uint8), make_oblique_affine((1, 1, 1), (0, 0, 0)))
        with pytest.raises(DataError, match=r"'p07': label map and image .* origin .*-31"):
            prepare_label_map(shifted, record, "p07")


class TestRealScans:
    def test_hippocampus_is_exact_at_its_own_spacing(self, data_folder: Path) -> None:
        task = data_folder / "Task04_Hippocampus"
        scan = read_volume(task / "imagesTr" / "hippocampus_001.nii.gz")
        labels = read_volume(task / "labelsTr" / "hippocampus_001.nii.gz")
        labels = Volume(labels.array.astype(np.uint8), labels.grid)
        prepared = prepare_images([scan], Preprocessing(spacing_mm=(1, 1, 1), intensity=(ZSCORE,)))
        assert abs(prepared.array.mean()) < 1e-4
        network = prepare_label_map(labels, prepared.record)
        np.testing.assert_array_equal(restore_scores(one_hot(network, 3), prepared.record), labels.array)

    @pytest.mark.parametrize("target_mm", [(3, 3, 3), (2, 2, 4)])
    def test_abdomen_ct_cropped_to_the_body(self, data_folder: Path, target_mm: tuple[float, ...]) -> None:
        scan = read_volume(data_folder / "abdomen_ct" / "example_ct_sm.nii.gz")
        labels = read_volume(data_folder / "abdomen_ct" / "example_seg.nii.gz")
        values, classes = np.unique(labels.array, return_inverse=True)
        labels = Volume(classes.reshape(labels.shape).astype(np.uint8), labels.grid)
        preprocessing = Preprocessing(spacing_mm=target_mm, crop="body", intensity=(CT,))
        prepared = prepare_images([scan], preprocessing)
        assert prepared.array[0].size < scan.array.size * np.prod(scan.spacing_mm) / np.prod(target_mm)
        network = prepare_label_map(labels, prepared.record)
        restored = restore_scores((network == value for value in range(len(values))), prepared.record)
        large = [value for value, count in enumerate(np.bincount(labels.array.ravel())) if count > 2000]
        scores = [dice(restored == value, labels.array == value) for value in large]
        assert len(large) > 5
        if target_mm == (3, 3, 3):
            np.testing.assert_array_equal(restored, labels.array)
            assert prepared.array.min() == pytest.approx((-100.5 - 50) / 80)
        assert min(scores) > 0.9
