"""Mirroring and random intensities of training patches, by MONAI's transforms where they serve.

Mirroring moves the image and its label map alike; intensity transforms touch the image only.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
)
from monai.utils import convert_to_tensor
from torch.nn import functional

from medseg_brn.cases.mirroring import find_mirrored_classes
from medseg_brn.cases.targets import Targets
from medseg_brn.config import AugmentationConfig
from medseg_brn.patches.deformation import SpacingMm, find_free_axes


def make_augmentation(config: AugmentationConfig, spacing_mm: SpacingMm, targets: Targets) -> Compose:
    """Transform of a patch `{"image": (C, X, Y, Z), "label": (1, X, Y, Z)}` after its deformation.

    Its randomness is set by `Compose.set_random_state`.

    Raises:
        ConfigError: `mirrored_classes` names a class that there is not, or makes no region of a region.
    """
    return Compose([*_mirroring(config, targets), *_intensity(config, spacing_mm)])


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


class RandCoarsend(MapTransform, RandomizableTransform):
    """Coarsens a patch and brings it back to its grid, as a scan of larger voxels would look.

    Each axis has a factor of its own, for scans differ in the thickness of their slices; axes of thick slices
    stay as they are. Coarse voxels are means over the fine ones, so that nothing moves against the label map,
    as it does where the first of them is taken (MONAI's RandSimulateLowResolutiond).

    Args:
        largest: factors are drawn from 1 to this.
        probability: share of patches.
        spacing_mm: voxel size, which tells the thick slices.
    """

    def __init__(self, largest: float, probability: float, spacing_mm: SpacingMm) -> None:
        MapTransform.__init__(self, "image")
        RandomizableTransform.__init__(self, probability)
        self._largest, self._free = largest, find_free_axes(spacing_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with its image (C, X, Y, Z) coarsened, or as it was."""
        self.randomize(None)
        if not self._do_transform:
            return dict(data)
        factors = np.where(self._free, self.R.uniform(1.0, self._largest, 3), 1.0)
        image = convert_to_tensor(data["image"], track_meta=False)
        shape = image.shape[1:]
        coarse = [max(1, round(n / factor)) for n, factor in zip(shape, factors, strict=True)]
        means = functional.interpolate(image[None], size=coarse, mode="area")
        back = functional.interpolate(means, size=shape, mode="trilinear", align_corners=False)
        return {**data, "image": back[0]}


def _mirroring(config: AugmentationConfig, targets: Targets) -> list:
    swapped = find_mirrored_classes(config.mirrored_classes, targets)
    return [
        RandMirrord(swapped)
        if axis == 0 and swapped
        else RandFlipd(keys=("image", "label"), prob=0.5, spatial_axis=axis)
        for axis in config.flip_axes
    ]


def _intensity(config: AugmentationConfig, spacing_mm: SpacingMm) -> list:
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
        *([RandCoarsend(coarsest, share, spacing_mm)] if coarsest > 1 else []),
        RandScaleIntensityFixedMeand(keys="image", prob=share, factors=(lowest - 1, highest - 1)),
        RandShiftIntensityd(keys="image", prob=share, offsets=config.brightness),
        RandAdjustContrastd(keys="image", prob=share, gamma=config.gamma, retain_stats=True),
    ]
