"""From a scan in the network's axes to what the network takes: crop, intensities, voxel size.

Intensities are normalized before voxels are resampled: the crop and the non-zero region are found on values
as they were measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Transform

from .air import BLOCK, find_occupied_blocks
from .resampling import choose_shape, resample_image

BODY_THRESHOLD_HU = -500.0
# Connected pieces are looked for on no more voxels than this.
COMPONENT_VOXELS = 2**25
# Spread below this share of the largest magnitude is rounding, not anatomy.
CONSTANT_TOLERANCE = 1e-6

Box = tuple[Sequence[int], Sequence[int]]


class PrepareScand(Transform):
    """Brings `image` (C, X, Y, Z) to the network's grid.

    The image keeps the affine of the whole scan, which the way back needs. Beside it come `region`, (3, 3):
    first voxel kept, one past the last, and size of the scan; and `occupied`, which blocks are not air.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float],
        crop: str,
        intensity: Sequence[Mapping[str, Any]],
        skip_air: bool,
    ) -> None:
        """Take the model's preprocessing.

        Args:
            spacing_mm: voxel size of the network's grid; an axis within 1 % of it is left as it is.
            crop: `none`, `nonzero` (in any channel) or `body` (largest piece above -500 HU in the first).
            intensity: of each channel the `scheme`: `zscore` over the cropped volume, `zscore_nonzero` over
                its voxels that are not 0, `ct` with `low`, `high`, `mean` and `std`, or `none`.
            skip_air: blocks of air are background.
        """
        self.spacing_mm, self.crop, self.intensity, self.skip_air = spacing_mm, crop, intensity, skip_air

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with what is described above.

        Raises:
            ValueError: another number of channels, or voxels that are NaN or infinite.
        """
        image: MetaTensor = data["image"]
        scan = np.asarray(image.as_tensor().cpu(), np.float32)
        if len(scan) != len(self.intensity):
            raise ValueError(f"The scan has {len(scan)} channels, and the model takes {len(self.intensity)}")
        if not np.isfinite(scan).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(scan))} voxels are NaN or infinite")
        lower, upper = find_crop(scan, self.crop)
        inside = scan[:, *(slice(*bounds) for bounds in zip(lower, upper, strict=True))]
        own_mm = np.linalg.norm(image.affine.cpu().numpy()[:3, :3], axis=0).tolist()
        shape = choose_shape(inside.shape[1:], own_mm, self.spacing_mm)
        prepared = np.stack(
            [
                resample_image(normalize(channel, scheme), own_mm, shape)
                for channel, scheme in zip(inside, self.intensity, strict=True)
            ]
        )
        occupied = np.ones([-(-size // BLOCK) for size in shape], bool)
        if self.skip_air:
            are_ct = [scheme["scheme"] == "ct" for scheme in self.intensity]
            occupied = find_occupied_blocks(list(inside), are_ct, shape)
        result = MetaTensor(
            torch.from_numpy(prepared), meta=image.meta, applied_operations=image.applied_operations
        )
        region = np.array([lower, upper, scan.shape[1:]])
        return {**data, "image": result, "region": region, "occupied": occupied}


def find_crop(scan: np.ndarray, crop: str) -> Box:
    """Return the bounds [lower, upper) of what is kept of (C, X, Y, Z); all where nothing is found."""
    if crop == "body":
        return _find_body(scan[0])
    full = [(0, size) for size in scan.shape[1:]]
    if crop == "nonzero" and scan.any():
        filled = (scan != 0).any(0)
        along = [filled.any(tuple({0, 1, 2} - {axis})) for axis in range(3)]
        full = [(int(np.flatnonzero(axis)[0]), int(np.flatnonzero(axis)[-1]) + 1) for axis in along]
    lower, upper = zip(*full, strict=True)
    return lower, upper


def _find_body(channel: np.ndarray) -> Box:
    from scipy import ndimage  # only CT models with this crop need SciPy

    step = int(np.ceil((channel.size / COMPONENT_VOXELS) ** (1 / 3)))
    pieces, count = ndimage.label(channel[::step, ::step, ::step] > BODY_THRESHOLD_HU)
    if count == 0:
        return (0, 0, 0), channel.shape
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    sides = ndimage.find_objects(pieces)[sizes.argmax() - 1]
    lower = [max(0, side.start * step - step + 1) for side in sides]
    upper = [min(size, side.stop * step + step - 1) for side, size in zip(sides, channel.shape, strict=True)]
    return lower, upper


def normalize(channel: np.ndarray, scheme: Mapping[str, Any]) -> np.ndarray:
    """Return (value - mean) / std, float32; for CT of clipped values and with the scheme's constants."""
    if scheme["scheme"] == "none":
        return channel
    if scheme["scheme"] == "ct":
        clipped = np.clip(channel, np.float32(scheme["low"]), np.float32(scheme["high"]))
        return (clipped - np.float32(scheme["mean"])) / np.float32(scheme["std"])
    only_nonzero = scheme["scheme"] == "zscore_nonzero"
    values = (channel[channel != 0] if only_nonzero else channel).astype(np.float64)
    mean, std = (values.mean(), values.std()) if values.size else (0.0, 0.0)
    if std <= CONSTANT_TOLERANCE * np.abs(values).max(initial=0):
        return np.zeros_like(channel)  # no contrast
    normalized = (channel - np.float32(mean)) / np.float32(std)
    return np.where(channel == 0, np.float32(0), normalized) if only_nonzero else normalized
