"""Augmentation: what each kind of transform may and may not change."""

import itertools
import math

import pytest
import torch

from medseg_brn.config import AugmentationConfig
from medseg_brn.patches.augmentation import make_augmentation, region_size

SIZE = (10, 12, 14)
NEVER = AugmentationConfig(spatial_probability=0, intensity_probability=0)


def augment(config: AugmentationConfig, image: torch.Tensor, label: torch.Tensor, seed: int = 0):
    augmentation = make_augmentation(config, SIZE)
    augmentation.set_random_state(seed=seed)
    sample = augmentation({"image": image.clone(), "label": label.clone()})
    return torch.as_tensor(sample["image"]), torch.as_tensor(sample["label"])


def make_region(config: AugmentationConfig) -> torch.Tensor:
    """Smooth image, different along every axis."""
    axes = [torch.linspace(-1, 1, length) for length in region_size(config, SIZE)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return (torch.sin(3 * x) + y * z + 0.3 * z)[None]


def test_intensity_transforms_never_touch_the_label_map():
    config = NEVER.model_copy(update={"intensity_probability": 1.0})
    image = make_region(config)
    label = (image > 0).float()
    for seed in range(10):
        changed, same = augment(config, image, label, seed)
        assert torch.equal(same, label)
        assert not torch.equal(changed, image)


def test_spatial_transforms_move_image_and_label_map_alike():
    config = NEVER.model_copy(update={"spatial_probability": 1.0, "flip_axes": (0, 1, 2)})
    image = make_region(config)
    label = (image > 0).float()
    for seed in range(10):
        moved_image, moved_label = augment(config, image, label, seed)
        assert moved_image.shape == moved_label.shape == (1, *SIZE)
        disagreement = (moved_image > 0).float() != moved_label
        # nearest and linear interpolation may only disagree beside the boundary, where the image is near 0
        assert moved_image[disagreement].abs().sum() <= 0.25 * disagreement.sum()
        assert disagreement.float().mean() < 0.05


def test_a_patch_that_is_not_moved_is_the_middle_of_its_region_exactly():
    config = NEVER.model_copy(update={"spatial_probability": 1e-12})
    image = make_region(config)
    kept, _ = augment(config, image, image)
    middle = tuple(
        slice((r - s) // 2, (r - s) // 2 + s) for r, s in zip(region_size(config, SIZE), SIZE, strict=True)
    )
    assert torch.equal(kept[0], image[0][middle])


def test_flips_mirror_only_the_axes_named():
    config = NEVER.model_copy(update={"flip_axes": (1,)})
    image = make_region(config)
    seen = {
        "same"
        if torch.equal(flipped, image)
        else "mirrored"
        if torch.equal(flipped, image.flip(2))
        else "other"
        for flipped, _ in (augment(config, image, image, seed) for seed in range(20))
    }
    assert seen == {"same", "mirrored"}


@pytest.mark.parametrize("degrees", [0.0, 10.0, 30.0, 90.0])
@pytest.mark.parametrize("smallest", [0.7, 1.0])
def test_the_region_covers_a_patch_turned_about_any_axis(degrees, smallest):
    config = AugmentationConfig(rotation_degrees=degrees, scale=(smallest, 1.2))
    half_region = [length / 2 for length in region_size(config, SIZE)]
    angle = math.radians(degrees)
    for axis, signs in itertools.product(range(3), itertools.product((-1, 1), repeat=3)):
        corner = [sign * length / 2 / smallest for sign, length in zip(signs, SIZE, strict=True)]
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turned = list(corner)
        turned[a] = math.cos(angle) * corner[a] - math.sin(angle) * corner[b]
        turned[b] = math.sin(angle) * corner[a] + math.cos(angle) * corner[b]
        assert all(abs(place) <= half + 1e-9 for place, half in zip(turned, half_region, strict=True))


def test_the_region_keeps_the_centre_on_the_lattice():
    sizes = region_size(AugmentationConfig(), SIZE)
    assert [(region - size) % 2 for region, size in zip(sizes, SIZE, strict=True)] == [0, 0, 0]
    assert region_size(NEVER, SIZE) == SIZE
    assert region_size(None, SIZE) == SIZE
