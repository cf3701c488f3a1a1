"""Surface distances: worked by hand, by brute force, and beside MONAI's."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_brn.evaluation.surface import (
    SurfaceDistances,
    compute_average_surface_distance_mm,
    compute_hausdorff_distance_mm,
    compute_surface_dice,
    compute_surface_distances,
)

masks = arrays(np.bool_, (5, 4, 3))
spacings = st.tuples(*[st.floats(0.3, 5)] * 3)


def mask_of(shape: tuple[int, int, int], *voxels: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def brute_force(mask: np.ndarray, other: np.ndarray, spacing_mm: tuple[float, ...]) -> list[float]:
    """Distance from each surface voxel of `mask` to the nearest one of `other`: every pair is measured."""
    points, others = (
        [[i * step for i, step in zip(index, spacing_mm, strict=True)] for index in naive_surface(each)]
        for each in (mask, other)
    )
    return sorted(min(math.dist(a, b) for b in others) for a in points)


def naive_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    inside = {index for index, value in np.ndenumerate(mask) if value}
    steps = [tuple(sign * (axis == moved) for axis in range(3)) for moved, sign in product(range(3), (1, -1))]
    return [
        (x, y, z) for x, y, z in inside if any((x + dx, y + dy, z + dz) not in inside for dx, dy, dz in steps)
    ]


def test_two_voxels_2_mm_apart():
    distances = compute_surface_distances(
        mask_of((9, 8, 7), (2, 3, 4)), mask_of((9, 8, 7), (4, 3, 4)), np.eye(3)
    )
    assert compute_hausdorff_distance_mm(distances) == 2
    assert compute_average_surface_distance_mm(distances) == 2
    assert compute_surface_dice(distances, tolerance_mm=1.9) == 0
    assert compute_surface_dice(distances, tolerance_mm=2.0) == 1


@pytest.mark.parametrize(
    ("voxel", "distance_mm"),
    [((3, 3, 3), 0.5), ((2, 4, 3), 1.2), ((2, 3, 4), 5.0), ((3, 4, 3), 1.3), ((3, 4, 4), math.hypot(1.3, 5))],
)
def test_each_axis_has_its_own_voxel_size(voxel, distance_mm):
    one, other = mask_of((6, 6, 6), (2, 3, 3)), mask_of((6, 6, 6), voxel)
    distances = compute_surface_distances(one, other, np.diag([0.5, 1.2, 5.0]))
    assert compute_hausdorff_distance_mm(distances) == pytest.approx(distance_mm)
    assert compute_average_surface_distance_mm(distances) == pytest.approx(distance_mm)


def test_axes_that_are_sheared():
    """Y leans over by 45°: a step along X and one back along Y ends 1 mm along the world's y axis."""
    sheared = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])
    one, other = mask_of((4, 4, 4), (1, 2, 1)), mask_of((4, 4, 4), (2, 1, 1))
    assert compute_hausdorff_distance_mm(compute_surface_distances(one, other, sheared)) == pytest.approx(1)
    beside = mask_of((4, 4, 4), (1, 3, 1))
    distances = compute_surface_distances(one, beside, sheared)
    assert compute_hausdorff_distance_mm(distances) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("degrees", [7, 30, 45, 61])
def test_a_turned_grid_has_the_distances_of_the_straight_one(degrees):
    """Also where a distance is just the tolerance, which single precision misses by a bit."""
    sine, cosine = np.float32(np.sin(np.deg2rad(degrees))), np.float32(np.cos(np.deg2rad(degrees)))
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=np.float64) * (1, 2, 5)
    for moved, distance_mm in (((3, 2, 2), 1), ((2, 3, 2), 2), ((2, 2, 3), 5)):
        distances = compute_surface_distances(
            mask_of((5, 5, 5), (2, 2, 2)), mask_of((5, 5, 5), moved), turned
        )
        assert compute_hausdorff_distance_mm(distances) == pytest.approx(distance_mm)
        assert compute_surface_dice(distances, tolerance_mm=distance_mm) == 1
        assert compute_surface_dice(distances, tolerance_mm=0.99 * distance_mm) == 0


def test_docstring_example():
    prediction = np.array([[0, 1, 1, 0], [0, 1, 1, 0]], dtype=bool)[..., None]
    reference = np.array([[0, 1, 1, 1], [0, 1, 1, 1]], dtype=bool)[..., None]
    distances = compute_surface_distances(prediction, reference, np.eye(3))
    assert distances.prediction_to_reference_mm.tolist() == [0, 0, 0, 0]
    assert distances.reference_to_prediction_mm.tolist() == [0, 0, 1, 0, 0, 1]
    assert compute_average_surface_distance_mm(distances) == pytest.approx(2 / 10)
    assert compute_surface_dice(distances, tolerance_mm=0.5) == pytest.approx(8 / 10)


def test_hd95_takes_the_worse_direction_whichever_comes_first():
    near, far = np.zeros(100), np.linspace(0, 10, 101)
    for distances in (SurfaceDistances(near, far), SurfaceDistances(far, near)):
        assert compute_hausdorff_distance_mm(distances) == pytest.approx(9.5)


def test_inner_voxels_are_no_surface():
    solid = np.zeros((5, 5, 5), dtype=bool)
    solid[1:4, 1:4, 1:4] = True
    hollow = solid.copy()
    hollow[2, 2, 2] = False
    distances = compute_surface_distances(solid, hollow, np.eye(3))
    assert distances.prediction_to_reference_mm.size == 26
    assert compute_hausdorff_distance_mm(distances, percentile=100) == 0


def test_mask_that_touches_the_border_has_a_surface_there():
    full = np.ones((4, 4, 4), dtype=bool)
    assert compute_surface_distances(full, full, np.eye(3)).prediction_to_reference_mm.size == 64 - 8


@pytest.mark.parametrize("predicted_voxels", [0, 1])
def test_empty_reference(predicted_voxels):
    prediction = mask_of((3, 3, 3), *[(1, 1, 1)] * predicted_voxels)
    distances = compute_surface_distances(prediction, np.zeros((3, 3, 3), dtype=bool), np.eye(3))
    assert math.isnan(compute_hausdorff_distance_mm(distances))
    assert math.isnan(compute_average_surface_distance_mm(distances))
    surface_dice = compute_surface_dice(distances, tolerance_mm=1000)
    assert surface_dice == 0 if predicted_voxels else math.isnan(surface_dice)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        compute_surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), np.eye(3))


@settings(max_examples=40, deadline=None)
@given(masks, masks, spacings)
def test_distances_equal_those_of_every_pair(prediction, reference, spacing_mm):
    if not (prediction.any() and reference.any()):
        return
    distances = compute_surface_distances(prediction, reference, np.diag(spacing_mm))
    there, back = (
        brute_force(prediction, reference, spacing_mm),
        brute_force(reference, prediction, spacing_mm),
    )
    np.testing.assert_allclose(np.sort(distances.prediction_to_reference_mm), there, atol=1e-9)
    np.testing.assert_allclose(np.sort(distances.reference_to_prediction_mm), back, atol=1e-9)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert compute_hausdorff_distance_mm(distances) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(masks, masks, spacings, st.floats(0, 5))
def test_metrics_are_symmetric(one, other, spacing_mm, tolerance_mm):
    there = compute_surface_distances(one, other, np.diag(spacing_mm))
    back = compute_surface_distances(other, one, np.diag(spacing_mm))
    for metric in (compute_hausdorff_distance_mm, compute_average_surface_distance_mm):
        assert metric(there) == pytest.approx(metric(back), nan_ok=True)
    surface_dice = compute_surface_dice(there, tolerance_mm)
    assert surface_dice == pytest.approx(compute_surface_dice(back, tolerance_mm), nan_ok=True)
    assert math.isnan(surface_dice) or 0 <= surface_dice <= 1


@settings(max_examples=50, deadline=None)
@given(masks, spacings)
def test_identical_masks_are_at_distance_0(mask, spacing_mm):
    distances = compute_surface_distances(mask, mask, np.diag(spacing_mm))
    if mask.any():
        assert compute_hausdorff_distance_mm(distances, percentile=100) == 0
        assert compute_surface_dice(distances, tolerance_mm=0) == 1


@pytest.mark.parametrize("seed", range(2))
def test_metrics_equal_monai(seed):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    from monai.metrics import compute_surface_dice as monai_surface_dice

    prediction, reference = np.random.default_rng(seed).random((2, 12, 10, 8)) < 0.2
    spacing_mm = (0.7, 1.1, 3.0)
    distances = compute_surface_distances(prediction, reference, np.diag(spacing_mm))
    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    options = {"include_background": True, "spacing": spacing_mm}
    assert compute_hausdorff_distance_mm(distances) == pytest.approx(
        compute_hausdorff_distance(one, other, percentile=95, **options).item(), rel=1e-5
    )
    assert compute_average_surface_distance_mm(distances) == pytest.approx(
        compute_average_surface_distance(one, other, symmetric=True, **options).item(), rel=1e-5
    )
    assert compute_surface_dice(distances, tolerance_mm=1.0) == pytest.approx(
        monai_surface_dice(one, other, class_thresholds=[1.0], **options).item(), rel=1e-5
    )
