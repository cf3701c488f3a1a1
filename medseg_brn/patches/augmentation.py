"""Random changes of training patches, by MONAI's transforms.

Spatial transforms move the image and its label map alike; intensity transforms touch the image only.
"""

import math
from collections.abc import Sequence

from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityFixedMeand,
    RandShiftIntensityd,
)

from medseg_brn.config import AugmentationConfig


def make_augmentation(config: AugmentationConfig, size: Sequence[int]) -> Compose:
    """Transform of `{"image": (C, X, Y, Z), "label": (1, X, Y, Z)}` into a random patch of `size`.

    The input is a region of `region_size(config, size)` voxels, so that a rotated patch is filled with
    real voxels to its corners. The transform's randomness is set by `Compose.set_random_state`.
    """
    return Compose([*_spatial(config, size), *_intensity(config)])


def region_size(config: AugmentationConfig | None, size: Sequence[int]) -> tuple[int, int, int]:
    """Voxels to cut from a volume so that a patch of `size`, turned about an axis and zoomed, stays inside.

    A corner of a patch rotated by up to θ about an axis lies at most `s + sin(θ) · (others)` from the
    centre along an axis, and zooming out by the factor z < 1 divides that by z. The result differs from
    `size` by an even number per axis, so that the patch's centre stays on the voxel lattice. Rotations about
    several axes at once may reach a little further, where the region's border is repeated.
    """
    x, y, z = size
    if config is None or config.spatial_probability == 0:
        return x, y, z
    sine = math.sin(math.radians(min(config.rotation_degrees, 90.0)))
    zoom = min(config.scale[0], 1.0)
    total = x + y + z
    margins = [math.ceil(((side + sine * (total - side)) / zoom - side) / 2) for side in size]
    return x + 2 * margins[0], y + 2 * margins[1], z + 2 * margins[2]


def _spatial(config: AugmentationConfig, size: Sequence[int]) -> list:
    angle = math.radians(config.rotation_degrees)
    smallest, largest = config.scale
    affine = RandAffined(
        keys=("image", "label"),
        prob=config.spatial_probability,
        spatial_size=tuple(size),
        rotate_range=(angle,) * 3,
        # MONAI scales the sampling grid, the inverse of the zoom that is seen, and adds 1 to the draw
        scale_range=((1 / largest - 1, 1 / smallest - 1),) * 3,
        mode=("bilinear", "nearest"),
        padding_mode="border",
    )
    flips = [RandFlipd(keys=("image", "label"), prob=0.5, spatial_axis=axis) for axis in config.flip_axes]
    return [affine, *flips]


def _intensity(config: AugmentationConfig) -> list:
    share = config.intensity_probability
    lowest, highest = config.contrast
    return [
        RandGaussianNoised(keys="image", prob=share, mean=0.0, std=config.noise),
        RandGaussianSmoothd(
            keys="image",
            prob=share,
            sigma_x=config.blur_sigma_voxels,
            sigma_y=config.blur_sigma_voxels,
            sigma_z=config.blur_sigma_voxels,
        ),
        RandScaleIntensityFixedMeand(keys="image", prob=share, factors=(lowest - 1, highest - 1)),
        RandShiftIntensityd(keys="image", prob=share, offsets=config.brightness),
        RandAdjustContrastd(keys="image", prob=share, gamma=config.gamma, retain_stats=True),
    ]
