"""Rotation, zoom and deformation: what moves, how far, and that image and label map move alike."""

import itertools
import math

import pytest
import torch

from medseg_brn.config import AugmentationConfig
from medseg_brn.patches.deformation import RandDeformd, region_size

SIZE = (10, 12, 14)
STILL = AugmentationConfig(spatial_probability=0, rotation_degrees=0, scale=(1.0, 1.0))
TURNED = STILL.model_copy(update={"spatial_probability": 1.0, "rotation_degrees": 90.0})
ELASTIC = STILL.model_copy(update={"elastic_mm": 3.0, "elastic_probability": 1.0})


def deform(config, image, label, seed=0, size=SIZE, spacing_mm=(1.0, 1.0, 1.0)):
    transform = RandDeformd(config, size, spacing_mm)
    transform.set_random_state(seed=seed)
    sample = transform({"image": image, "label": label})
    return sample["image"], sample["label"]


def place(shape, spacing_mm=(1.0, 1.0, 1.0)):
    """Places (3, X, Y, Z) of a region's voxels in mm from its middle."""
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize(
    "config",
    [
        STILL.model_copy(update={"spatial_probability": 1.0, "rotation_degrees": 30.0, "scale": (0.8, 1.25)}),
        ELASTIC,
    ],
    ids=["affine", "elastic"],
)
def test_image_and_label_map_move_alike(config):
    x, y, z = place(region_size(config, SIZE)) / 10
    image = (torch.sin(3 * x) + y * z + 0.3 * z)[None]
    label = (image > 0).float()
    for seed in range(10):
        moved_image, moved_label = deform(config, image, label, seed)
        assert moved_image.shape == moved_label.shape == (1, *SIZE)
        disagreement = (moved_image > 0).float() != moved_label
        # nearest and linear interpolation may only disagree beside the boundary, where the image is near 0
        assert moved_image[disagreement].abs().sum() <= 0.25 * disagreement.sum()
        assert disagreement.float().mean() < 0.05


def test_a_patch_that_is_not_moved_is_the_middle_of_its_region_exactly():
    config = STILL.model_copy(update={"spatial_probability": 1e-12, "rotation_degrees": 20.0})
    image = torch.rand(2, *region_size(config, SIZE))
    kept, _ = deform(config, image, image[:1])
    middle = tuple(slice((r - s) // 2, (r - s) // 2 + s) for r, s in zip(image.shape[1:], SIZE, strict=True))
    assert torch.equal(kept[0], image[0][middle])


def test_a_ball_stays_a_ball_of_its_size_on_long_voxels():
    size, spacing_mm = (25, 25, 13), (1.0, 1.0, 2.0)
    shape = region_size(TURNED, size, spacing_mm)
    radius = place(shape, spacing_mm).norm(dim=0, keepdim=True)
    for seed in range(10):
        turned, _ = deform(TURNED, radius, radius, seed, size, spacing_mm)
        expected = place(size, spacing_mm).norm(dim=0, keepdim=True)
        inside = expected < 11
        # linear interpolation of a distance errs most beside its kink in the middle
        assert (turned - expected)[inside].abs().max() < 0.6


def test_places_move_no_further_than_asked_and_smoothly():
    shape = region_size(ELASTIC, SIZE)
    places = place(shape)
    for seed in range(10):
        moved, _ = deform(ELASTIC, places, places[:1], seed)
        shift = moved - place(SIZE)
        assert 0.3 < shift.abs().max() <= 3 + 1e-4
        # neighbouring voxels never change their order: nothing folds
        assert all((moved[axis].diff(dim=axis) > 0).all() for axis in range(3))


def test_thick_slices_stay_in_their_planes():
    spacing_mm = (1.0, 1.0, 6.0)
    config = ELASTIC.model_copy(
        update={"spatial_probability": 1.0, "rotation_degrees": 45.0, "scale": (0.7, 1.4)}
    )
    shape = region_size(config, SIZE, spacing_mm)
    assert shape[2] == SIZE[2]
    places = place(shape, spacing_mm)
    moved, _ = deform(config, places, places[:1], 0, SIZE, spacing_mm)
    expected = place(SIZE, spacing_mm)
    assert torch.allclose(moved[2], expected[2], atol=1e-4)
    assert (moved[0] - expected[0]).abs().max() > 1


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.5, 2.0)])
@pytest.mark.parametrize("degrees", [0.0, 10.0, 30.0, 90.0])
@pytest.mark.parametrize("smallest", [0.7, 1.0])
def test_the_region_covers_a_patch_turned_about_any_axis(degrees, smallest, spacing_mm):
    config = AugmentationConfig(rotation_degrees=degrees, scale=(smallest, 1.2))
    shape = region_size(config, SIZE, spacing_mm)
    half_region = [length * mm / 2 for length, mm in zip(shape, spacing_mm, strict=True)]
    angle = math.radians(degrees)
    for axis, signs in itertools.product(range(3), itertools.product((-1, 1), repeat=3)):
        corner = [
            sign * length * mm / 2 / smallest
            for sign, length, mm in zip(signs, SIZE, spacing_mm, strict=True)
        ]
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turned = list(corner)
        turned[a] = math.cos(angle) * corner[a] - math.sin(angle) * corner[b]
        turned[b] = math.sin(angle) * corner[a] + math.cos(angle) * corner[b]
        assert all(abs(place) <= half + 1e-6 for place, half in zip(turned, half_region, strict=True))


def test_the_region_keeps_the_centre_on_the_lattice():
    sizes = region_size(AugmentationConfig(), SIZE)
    assert [(region - size) % 2 for region, size in zip(sizes, SIZE, strict=True)] == [0, 0, 0]
    assert region_size(STILL, SIZE) == SIZE
    assert region_size(None, SIZE) == SIZE


def test_a_displacement_enlarges_the_region_by_its_length():
    assert region_size(ELASTIC, SIZE) == (16, 18, 20)
    assert region_size(ELASTIC, SIZE, (1.0, 1.0, 6.0)) == (16, 18, 14)
