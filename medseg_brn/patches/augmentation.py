"""Mirroring and random intensities of training patches, by MONAI's transforms where they serve.

Mirroring moves the image and its label map alike; intensity transforms touch the image only.
"""

import difflib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
)

from medseg_brn.cases.targets import Targets
from medseg_brn.config import AugmentationConfig
from medseg_brn.errors import ConfigError


def make_augmentation(config: AugmentationConfig, targets: Targets) -> Compose:
    """Transform of a patch `{"image": (C, X, Y, Z), "label": (1, X, Y, Z)}` after its deformation.

    Its randomness is set by `Compose.set_random_state`.

    Raises:
        ConfigError: `mirrored_classes` names a class that there is not.
    """
    return Compose([*_mirroring(config, targets), *_intensity(config)])


class RandMirrord(RandFlipd):
    """Mirrors along axis 0 half of the time, and lets left and right classes change places.

    Args:
        swapped: class -> the class that its mirror image is; classes that it lacks stay themselves.
    """

    def __init__(self, swapped: Mapping[int, int]) -> None:
        super().__init__(keys=("image", "label"), prob=0.5, spatial_axis=0)
        self._swapped = swapped

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the sample, mirrored or not."""
        sample = dict(super().__call__(data, lazy))
        if self._do_transform:
            label = sample["label"]
            swapped = torch.as_tensor(label).clone()
            for before, after in self._swapped.items():
                swapped[label == before] = after
            sample["label"] = swapped
        return sample


class RandCoilBiasd(RandBiasFieldd):
    """Multiplies an MRI patch by a smooth field, as the coil's uneven sensitivity does.

    The field multiplies what was measured, which is zero where there is no signal; of a normalized image the
    patch's least value stands for that.

    Args:
        coefficient: largest coefficient of the field's logarithm in Legendre polynomials up to degree 3.
        probability: share of patches.
    """

    def __init__(self, coefficient: float, probability: float) -> None:
        super().__init__(keys="image", prob=probability, coeff_range=(-coefficient, coefficient))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its image (C, X, Y, Z) brighter here and darker there, or as it was."""
        image = data["image"]
        lowest = image.amin(dim=(1, 2, 3), keepdim=True)
        sample = dict(super().__call__({**data, "image": image - lowest}))
        sample["image"] = sample["image"] + lowest if self._do_transform else image
        return sample


def _mirroring(config: AugmentationConfig, targets: Targets) -> list:
    swapped = _find_classes(config.mirrored_classes, targets.class_names)
    return [
        RandMirrord(swapped)
        if axis == 0 and swapped
        else RandFlipd(keys=("image", "label"), prob=0.5, spatial_axis=axis)
        for axis in config.flip_axes
    ]


def _find_classes(pairs: Sequence[tuple[str, str]], class_names: Sequence[str]) -> dict[int, int]:
    """Class -> the class that it becomes where axis 0 is mirrored."""
    swapped: dict[int, int] = {}
    for pair in pairs:
        for name in pair:
            if name not in class_names:
                nearest = difflib.get_close_matches(name, class_names, n=1, cutoff=0)
                raise ConfigError(
                    f"patches.augmentation.mirrored_classes names {name!r}, which is no class of this "
                    f"dataset; its classes: {', '.join(class_names)}; the nearest: {', '.join(nearest)}"
                )
        one, other = (class_names.index(name) for name in pair)
        if one in swapped or other in swapped or one == other:
            raise ConfigError(
                f"patches.augmentation.mirrored_classes {pair} names a class twice; each class has one "
                "mirror image"
            )
        swapped |= {one: other, other: one}
    return swapped


def _intensity(config: AugmentationConfig) -> list:
    share = config.intensity_probability
    lowest, highest = config.contrast
    coarsest, field = config.low_resolution, config.bias_field
    return [
        *([RandCoilBiasd(field, share)] if field else []),
        RandGaussianNoised(keys="image", prob=share, mean=0.0, std=config.noise),
        RandGaussianSmoothd(
            keys="image",
            prob=share,
            sigma_x=config.blur_sigma_voxels,
            sigma_y=config.blur_sigma_voxels,
            sigma_z=config.blur_sigma_voxels,
        ),
        *(
            [RandSimulateLowResolutiond(keys="image", prob=share, zoom_range=(1 / coarsest, 1.0))]
            if coarsest > 1
            else []
        ),
        RandScaleIntensityFixedMeand(keys="image", prob=share, factors=(lowest - 1, highest - 1)),
        RandShiftIntensityd(keys="image", prob=share, offsets=config.brightness),
        RandAdjustContrastd(keys="image", prob=share, gamma=config.gamma, retain_stats=True),
    ]
