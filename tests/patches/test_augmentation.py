"""Augmentation: what each kind of transform may and may not change."""

import pytest
import torch

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import AugmentationConfig
from medseg_brn.errors import ConfigError
from medseg_brn.patches.augmentation import RandCoarsend, RandCoilBiasd, make_augmentation

SIZE = (10, 12, 14)
ONE_MM = (1.0, 1.0, 1.0)
TARGETS = Targets(("background", "left kidney", "right kidney", "liver"))
NEVER = AugmentationConfig(spatial_probability=0, intensity_probability=0)


def augment(config: AugmentationConfig, image: torch.Tensor, label: torch.Tensor, seed: int = 0):
    augmentation = make_augmentation(config, ONE_MM, TARGETS)
    augmentation.set_random_state(seed=seed)
    sample = augmentation({"image": image.clone(), "label": label.clone()})
    return torch.as_tensor(sample["image"]), torch.as_tensor(sample["label"])


def make_region() -> torch.Tensor:
    """Smooth image, different along every axis."""
    axes = [torch.linspace(-1, 1, length) for length in SIZE]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return (torch.sin(3 * x) + y * z + 0.3 * z)[None]


def test_intensity_transforms_never_touch_the_label_map():
    config = NEVER.model_copy(update={"intensity_probability": 1.0, "bias_field": 0.3, "low_resolution": 2.0})
    image = make_region()
    label = (image > 0).float()
    for seed in range(10):
        changed, same = augment(config, image, label, seed)
        assert torch.equal(same, label)
        assert not torch.equal(changed, image)


def test_flips_mirror_only_the_axes_named():
    config = NEVER.model_copy(update={"flip_axes": (1,)})
    image = make_region()
    seen = {
        "same"
        if torch.equal(flipped, image)
        else "mirrored"
        if torch.equal(flipped, image.flip(2))
        else "other"
        for flipped, _ in (augment(config, image, image, seed) for seed in range(20))
    }
    assert seen == {"same", "mirrored"}


def test_left_and_right_change_places_exactly_where_axis_0_is_mirrored():
    pairs = (("left kidney", "right kidney"),)
    config = NEVER.model_copy(update={"flip_axes": (0,), "mirrored_classes": pairs})
    label = torch.arange(4.0).repeat(5)[None, :10, None, None].expand(1, *SIZE).clone()
    swapped = torch.tensor([0.0, 2.0, 1.0, 3.0])[label.long()].flip(1)
    seen = set()
    for seed in range(20):
        _, found = augment(config, label, label, seed)
        seen.add("same" if torch.equal(found, label) else "swapped" if torch.equal(found, swapped) else "no")
    assert seen == {"same", "swapped"}


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ((("left kidny", "right kidney"),), "the nearest: left kidney"),
        ((("left kidney", "right kidney"), ("liver", "left kidney")), "twice"),
    ],
)
def test_pairs_that_make_no_sense_are_errors(pairs, told):
    config = NEVER.model_copy(update={"flip_axes": (0,), "mirrored_classes": pairs})
    with pytest.raises(ConfigError, match=told):
        make_augmentation(config, ONE_MM, TARGETS)


def test_a_swap_that_makes_no_region_of_a_region_is_refused():
    regions = (Region("left", (1, 3), 1), Region("right", (2,), 2))
    config = NEVER.model_copy(
        update={"flip_axes": (0,), "mirrored_classes": (("left kidney", "right kidney"),)}
    )
    with pytest.raises(ConfigError, match=r"region 'left' .*, which is no region"):
        make_augmentation(config, ONE_MM, Targets(TARGETS.class_names, regions))


def test_a_bias_field_multiplies_what_was_measured_by_a_smooth_field():
    transform = RandCoilBiasd(0.1, 1.0)
    image = torch.full((1, *SIZE), 2.0)
    image[0, 0, 0, 0] = -1.0  # no signal, which no field makes brighter
    for seed in range(5):
        transform.set_random_state(seed=seed)
        changed = transform({"image": image})["image"][0]
        assert changed[0, 0, 0] == pytest.approx(-1.0)
        field = ((changed + 1) / 3).flatten()[1:].log()
        assert 0.01 < field.abs().max() < 20 * 0.1
        assert (changed[:, 1:].diff(dim=0).abs() < 0.5 * 3).all()


@pytest.mark.parametrize("largest", [1.6, 2.0, 3.0])
@pytest.mark.parametrize("middle", [(15.5, 15.5, 15.5), (12.0, 17.0, 15.0)])
def test_a_coarsened_ball_stays_where_it_is(largest, middle):
    axes = [torch.arange(32.0) - place for place in middle]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ball = torch.exp(-(x**2 + y**2 + z**2) / 30)[None]
    transform = RandCoarsend(largest, 1.0, ONE_MM)
    for seed in range(5):
        transform.set_random_state(seed=seed)
        coarse = transform({"image": ball})["image"]
        before, after = ball[0] / ball.sum(), coarse[0] / coarse.sum()
        for place in (
            x,
            y,
            z,
        ):  # one fine voxel in place of the mean is off by half a coarse one
            assert abs((after * place).sum() - (before * place).sum()) < 0.2


def test_coarsening_spares_the_axis_of_thick_slices():
    image = torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    along = torch.arange(12.0)[None, None, None].expand(1, 12, 12, 12)
    transform = RandCoarsend(3.0, 1.0, (1.0, 1.0, 5.0))
    transform.set_random_state(seed=0)
    assert torch.allclose(transform({"image": along})["image"], along, atol=1e-5)
    assert not torch.allclose(transform({"image": image})["image"], image, atol=0.1)
