import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.cases.phantom_shapes import (
    Canvas,
    capsule_depth,
    ellipsoid_depth,
    mirror_left_right,
    rotation_matrix,
    sample_deformation,
    sample_noise,
    smooth_union,
)


def points(*positions: tuple[float, float, float]) -> np.ndarray:
    return np.array(positions, np.float32).T


def test_depth_in_a_ball_is_its_radius_less_the_distance_from_its_centre() -> None:
    depth = ellipsoid_depth(points((1, 2, 3), (8, 2, 3), (1, 12, 3), (1, 2, 23)), (1, 2, 3), (10, 10, 10))
    assert depth == pytest.approx([10, 3, 0, -10], abs=1e-2)


def test_an_infinite_radius_makes_a_cylinder() -> None:
    depth = ellipsoid_depth(points((4, 0, 1000), (0, 6, -1000)), (0, 0, 0), (5, 5, np.inf))
    assert depth == pytest.approx([1, -1], abs=1e-2)


@given(degrees=st.tuples(*[st.floats(-180, 180)] * 3), direction=st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_surface_of_a_rotated_ellipsoid_has_depth_zero(
    degrees: tuple[float, float, float], direction: tuple[float, float, float]
) -> None:
    length = np.linalg.norm(direction)
    if length < 0.1:
        return
    centre, radii = np.array([5.0, -3, 2]), np.array([30.0, 12, 20])
    on_surface = centre + rotation_matrix(degrees) @ (radii * np.array(direction) / length)
    depth = ellipsoid_depth(on_surface[:, None].astype(np.float32), centre, radii, degrees)
    assert depth == pytest.approx([0], abs=1e-3)


def test_depth_in_a_tube_follows_its_narrowing_radius() -> None:
    positions = points((0, 0, 0), (0, 0, 5), (0, 3, 5), (0, 0, 14))
    depth = capsule_depth(positions, (0, 0, 0), (0, 0, 10), start_mm=4, end_mm=2)
    assert depth == pytest.approx([4, 3, 0, -2], abs=1e-5)


def test_a_smooth_union_is_the_union_away_from_the_crease_and_fuller_in_it() -> None:
    first, second = np.array([5, 1, 2], np.float32), np.array([-5, 1, 1.5], np.float32)
    # In the crease, width / 4 is added; half a width apart, a quarter of that.
    assert smooth_union(first, second, 1.0) == pytest.approx([5, 1 + 0.25, 2 + 0.25 * 0.25])


def test_folding_onto_the_right_side_changes_x_alone() -> None:
    assert mirror_left_right(points((-3, -2, 1), (4, 5, -6))).T.tolist() == [[3, -2, 1], [4, 5, -6]]


def test_noise_has_mean_0_and_variance_1_and_its_seed_decides_it() -> None:
    rng = np.random.default_rng(3)
    positions = rng.uniform(-500, 500, size=(3, 50_000)).astype(np.float32)
    noise = sample_noise(np.random.default_rng(0), wavelength_mm=20)
    assert noise(positions).mean() == pytest.approx(0, abs=0.02)
    assert noise(positions).std() == pytest.approx(1, abs=0.02)
    assert np.array_equal(noise(positions), sample_noise(np.random.default_rng(0), 20)(positions))
    assert not np.array_equal(noise(positions), sample_noise(np.random.default_rng(1), 20)(positions))


@pytest.mark.parametrize("seed", range(5))
def test_a_deformation_does_not_fold(seed: int) -> None:
    deform = sample_deformation(
        np.random.default_rng(seed), scale_sd=0.05, rotation_sd_degrees=5, amplitude_mm=3, wavelength_mm=120
    )
    axis = np.arange(-100, 100, 4, dtype=np.float32)
    moved = deform(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")))
    jacobian = np.stack([np.stack(np.gradient(moved[i], 4.0)) for i in range(3)])
    assert np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1)).min() > 0.2


def test_a_canvas_blends_the_image_over_the_border_and_cuts_the_label_map_at_it() -> None:
    canvas = Canvas((4, 1, 1), background=10.0, edge_mm=2.0)
    canvas.paint(np.array([-2, -0.5, 0.5, 2], np.float32).reshape(4, 1, 1), 20.0, class_index=3)
    assert canvas.image.ravel().tolist() == [10, 12.5, 17.5, 20]
    assert canvas.label_map.ravel().tolist() == [0, 0, 3, 3]


def test_painting_without_a_class_leaves_the_label_map() -> None:
    canvas = Canvas((1, 1, 1), background=0.0, edge_mm=1.0)
    deep = np.full((1, 1, 1), 5, np.float32)
    canvas.paint(deep, 1.0, class_index=2)
    canvas.paint(deep, 7.0)
    assert (canvas.image.item(), canvas.label_map.item()) == (7.0, 2)
