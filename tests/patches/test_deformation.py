"""Rotation, zoom and deformation: what moves, how far, and that image and label map move alike."""

import math

import numpy as np
import pytest
import torch

from medseg_brn.config import AugmentationConfig
from medseg_brn.patches.deformation import Deformation, take_image, take_labels

SIZE = (10, 12, 14)
ONE_MM = (1.0, 1.0, 1.0)
STILL = AugmentationConfig(spatial_probability=0, rotation_degrees=0, scale=(1.0, 1.0))
TURNED = STILL.model_copy(update={"spatial_probability": 1.0, "rotation_degrees": 90.0})
MOVED = TURNED.model_copy(update={"rotation_degrees": 30.0, "scale": (0.8, 1.25)})
ELASTIC = STILL.model_copy(update={"elastic_mm": 3.0, "elastic_probability": 1.0})


def draw(config, seed=0, size=SIZE, spacing_mm=ONE_MM):
    places = Deformation(config, size, spacing_mm).draw(np.random.default_rng(seed))
    assert places is not None
    return places


def resting(size=SIZE, spacing_mm=ONE_MM):
    """Places (X, Y, Z, 3) of a patch's voxels in mm from its middle, where nothing moves them."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@pytest.mark.parametrize("config", [MOVED, ELASTIC], ids=["affine", "elastic"])
def test_image_and_label_map_move_alike(config):
    shape = (30, 32, 34)
    x, y, z = np.moveaxis(resting(shape).numpy(), -1, 0) / 10
    image = (np.sin(3 * x) + y * z + 0.3 * z)[None]
    label_map = (image > 0).astype(np.uint8)
    for seed in range(10):
        places = draw(config, seed) + (torch.tensor(shape) - 1) / 2
        moved_image = take_image(image, places)
        moved_label = take_labels(label_map, places)
        assert moved_image.shape == moved_label.shape == (1, *SIZE)
        disagreement = (moved_image > 0).float() != moved_label
        # the two may only disagree beside the boundary, where the image is near 0
        assert moved_image[disagreement].abs().sum() <= 0.25 * disagreement.sum()
        assert disagreement.float().mean() < 0.05


def test_a_patch_is_interpolated_from_the_array_and_zero_outside_it():
    # Linear interpolation of a linear function is the function, wherever the place lies in the array.
    rng = np.random.default_rng(0)
    shape = (7, 9, 8)
    array = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32) @ [1.0, 10.0, 100.0]
    places = torch.from_numpy(rng.uniform(0, np.array(shape) - 1, (5, 4, 3, 3))).float()
    taken = take_image(np.stack([array, -array]), places)
    expected = places @ torch.tensor([1.0, 10.0, 100.0])
    assert torch.allclose(taken[0], expected, atol=1e-2)
    assert torch.allclose(taken[1], -expected, atol=1e-2)
    outside = torch.tensor([20.0, 3.0, -9.0]).expand(2, 2, 2, 3)
    assert torch.equal(take_image(array[None], outside), torch.zeros(1, 2, 2, 2))


def test_the_class_of_a_place_has_the_largest_share_of_it():
    rng = np.random.default_rng(0)
    label_map = rng.integers(0, 5, (1, 7, 9, 8)).astype(np.uint8)
    places = torch.from_numpy(rng.uniform(-2, np.array([9, 11, 10]), (5, 4, 3, 3))).float()
    shares = [take_image((label_map == value).astype(np.float32), places)[0] for value in range(5)]
    shares[0] = 1 - sum(shares[1:])  # outside is background
    assert torch.equal(take_labels(label_map, places)[0], torch.stack(shares).argmax(dim=0).float())


def test_two_corners_of_a_class_outvote_a_nearer_one_of_another():
    label_map = np.zeros((1, 2, 2, 2), np.uint8)
    label_map[0, 0, 0, 0], label_map[0, 1, 0, 0], label_map[0, 0, 1, 0] = 3, 7, 7
    # shares at (.45, .45, 0): (0,0) .3025, (1,0) .2475, (0,1) .2475, (1,1) .2025
    place = torch.tensor([0.45, 0.45, 0.0]).reshape(1, 1, 1, 3)
    assert take_labels(label_map, place).item() == 7


def test_labels_on_whole_voxels_are_those_of_the_array():
    label_map = np.random.default_rng(0).integers(0, 200, (1, 5, 6, 7)).astype(np.uint8)
    places = torch.stack(torch.meshgrid(*map(torch.arange, (5, 6, 7)), indexing="ij"), dim=-1).float()
    assert torch.equal(take_labels(label_map, places), torch.from_numpy(label_map).float())


def test_nothing_is_drawn_where_nothing_moves():
    assert Deformation(STILL, SIZE, ONE_MM).draw(np.random.default_rng(0)) is None


@pytest.mark.parametrize("spacing_mm", [ONE_MM, (1.0, 1.5, 2.0)])
def test_a_rotation_keeps_every_distance_in_mm(spacing_mm):
    for seed in range(5):
        turned_mm = draw(TURNED, seed, SIZE, spacing_mm) * torch.tensor(spacing_mm)
        still_mm = resting(SIZE, spacing_mm)
        assert torch.allclose(turned_mm.norm(dim=-1), still_mm.norm(dim=-1), atol=1e-4)
        corners_mm = turned_mm[::9, ::11, ::13].reshape(-1, 3)
        still_corners_mm = still_mm[::9, ::11, ::13].reshape(-1, 3)
        assert torch.allclose(
            torch.cdist(corners_mm, corners_mm), torch.cdist(still_corners_mm, still_corners_mm), atol=1e-3
        )
        assert (turned_mm - still_mm).abs().max() > 1


def test_zooms_lie_in_their_range_axis_by_axis():
    config = STILL.model_copy(update={"spatial_probability": 1.0, "scale": (0.5, 2.0)})
    still = resting()
    found = torch.stack([draw(config, seed)[-1, -1, -1] / still[-1, -1, -1] for seed in range(200)])
    # zooming in by 2 takes the patch from half the way
    assert found.min() >= 0.5
    assert found.max() <= 2
    assert (found.amax(0) > 1.8).all()
    assert (found.amin(0) < 0.6).all()


@pytest.mark.parametrize("elastic_mm", [1.0, 3.0, 12.0])
def test_places_move_no_further_than_asked_and_smoothly(elastic_mm):
    config = ELASTIC.model_copy(update={"elastic_mm": elastic_mm})
    size = (40, 40, 40)
    for seed in range(10):
        places = draw(config, seed, size)
        assert 0.1 * elastic_mm < (places - resting(size)).abs().max() <= elastic_mm + 1e-4
        # neighbouring voxels never change their order: nothing folds
        assert all((places[..., axis].diff(dim=axis) > 0).all() for axis in range(3))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 6.0), (1.0, 2.0, 5.0)])
def test_thick_slices_stay_in_their_planes(spacing_mm):
    config = ELASTIC.model_copy(
        update={"spatial_probability": 1.0, "rotation_degrees": 45.0, "scale": (0.7, 1.4)}
    )
    shift = draw(config, 0, SIZE, spacing_mm) - resting()
    assert torch.allclose(shift[..., 2], torch.zeros(SIZE), atol=1e-4)
    assert shift[..., :2].abs().amax(dim=(0, 1, 2)).min() > 1


def test_no_more_is_read_than_the_places_need():
    class Watched(np.ndarray):
        """Counts the voxels that are taken out of it."""

        taken = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Watched.taken += found.size
            return found

    array = np.zeros((1, 200, 200, 200), np.uint8).view(Watched)
    take_image(array, draw(MOVED) + 100)
    furthest = math.dist((0, 0, 0), [n / 2 for n in SIZE]) / 0.8
    assert 0 < Watched.taken < (2 * furthest + 2) ** 3
