"""Scanners that phantoms are imaged with: each site has its own grid, gain, contrast, noise and sharpness.

A grid says where, in world mm, an anatomy is drawn; images pass through the scanner, label maps never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg_brn.cases.phantom_shapes import FloatArray, rotation_matrix, sample_noise
from medseg_brn.volumes.volume import Grid


@dataclass(frozen=True)
class Site:
    """One scanner and its habits.

    Attributes:
        orientation: direction that each array axis runs to, such as "RAS" or "PIR".
        spacing_factors: voxel size along each array axis, relative to the cohort's `voxel_mm`.
        tilt_degrees: standard deviation of the grid's rotation about each world axis; 0: along the axes.
        blur_voxels: standard deviation of the point spread.
        noise: standard deviation; MRI: fraction of the brightness of fat, CT: HU.
        gain: MRI only: stored intensity of fat; scanners differ a hundredfold.
        gamma: MRI only: exponent on the brightness, which changes the contrast between tissues.
        bias: MRI only: standard deviation of the logarithm of the coil's smooth bias field.
        stored_as: voxel type in the file.
    """

    name: str
    orientation: str
    spacing_factors: tuple[float, float, float]
    tilt_degrees: float
    blur_voxels: float
    noise: float
    gain: float = 1.0
    gamma: float = 1.0
    bias: float = 0.0
    stored_as: str = "int16"


MRI_SITES = (
    Site("north", "RAS", (1.0, 1.0, 1.0), 0, 0.40, 0.025, gain=900, gamma=1.0, bias=0.10),
    Site("harbour", "LPS", (0.85, 0.85, 1.9), 6, 0.45, 0.035, gain=180, gamma=0.8, bias=0.15),
    Site("valley", "PIR", (0.9, 0.9, 1.3), 0, 0.50, 0.030, gain=2400, gamma=1.2, bias=0.20),
    Site(
        "summit",
        "LAS",
        (1.1, 1.1, 1.1),
        10,
        0.35,
        0.045,
        gain=12.5,
        gamma=1.0,
        bias=0.12,
        stored_as="float32",
    ),
)
CT_SITES = (
    Site("north", "LAS", (1.0, 1.0, 1.0), 0, 0.50, 12),
    Site("harbour", "LPS", (0.85, 0.85, 1.8), 0, 0.40, 18),
    Site("valley", "RAS", (0.9, 0.9, 1.4), 4, 0.70, 8),
    Site("summit", "RSP", (1.1, 1.1, 1.1), 2, 0.35, 25, stored_as="float32"),
)


def make_grid(
    site: Site, extent_mm: tuple[float, float, float], voxel_mm: float, rng: np.random.Generator
) -> Grid:
    """Returns a grid that covers the box `extent_mm` (x, y, z), a little off the origin as patients lie."""
    codes = nib.orientations.axcodes2ornt(tuple(site.orientation))
    world_axis, sign = codes[:, 0].astype(int), codes[:, 1]
    spacing_mm = np.array(site.spacing_factors) * voxel_mm
    shape = np.maximum(np.ceil(np.array(extent_mm)[world_axis] / spacing_mm), 1).astype(int)
    directions = np.zeros((3, 3))
    directions[world_axis, range(3)] = sign
    tilt = rotation_matrix(rng.normal(0, site.tilt_degrees, size=3))
    centre = rng.normal(0, 0.02, size=3) * extent_mm
    affine = np.eye(4)
    affine[:3, :3] = tilt @ directions * spacing_mm
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    # NIfTI stores affines in single precision: rounded here, the file says exactly where voxels were drawn.
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])), affine.astype(np.float32).astype(np.float64), None
    )


def voxel_positions(grid: Grid) -> FloatArray:
    """Returns the (3, X, Y, Z) positions of all voxel centres in world mm."""
    indices = np.indices(grid.shape, dtype=np.float32)
    moved = np.tensordot(grid.affine[:3, :3].astype(np.float32), indices, axes=1)
    return cast(FloatArray, moved + grid.affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1))


def scan_mri(
    brightness: FloatArray, positions: FloatArray, site: Site, rng: np.random.Generator
) -> NDArray[np.generic]:
    """Returns the (X, Y, Z) magnitude image of brightness: contrast, coil bias, blur, Rician noise, gain."""
    bias = np.exp(np.float32(site.bias) * sample_noise(rng, 260, 4)(positions))
    signal = _blur(np.clip(brightness, 0, None) ** np.float32(site.gamma) * bias, site)
    real = signal + _noise(signal.shape, site.noise, rng)
    imaginary = _noise(signal.shape, site.noise, rng)
    gain = site.gain * np.exp(rng.normal(0, 0.15))
    return _store(np.float32(gain) * np.hypot(real, imaginary), site)


def scan_ct(
    hounsfield: FloatArray, positions: FloatArray, site: Site, rng: np.random.Generator
) -> NDArray[np.generic]:
    """Returns the (X, Y, Z) image in HU: blur, a few HU of cupping, grainy noise, nothing below -1024."""
    # Noise of a reconstruction has grain: white noise, blurred, and scaled back to its standard deviation.
    grain = ndimage.gaussian_filter(_noise(hounsfield.shape, 1.0, rng), 0.6)
    grain *= np.float32(site.noise) / grain.std()
    cupping = np.float32(4) * sample_noise(rng, 500, 4)(positions)
    return _store(np.maximum(_blur(hounsfield, site) + grain + cupping, -1024), site)


def _blur(image: FloatArray, site: Site) -> FloatArray:
    return cast(FloatArray, ndimage.gaussian_filter(image, site.blur_voxels, mode="nearest"))


def _noise(shape: tuple[int, ...], sd: float, rng: np.random.Generator) -> FloatArray:
    return cast(FloatArray, np.float32(sd) * rng.standard_normal(shape, dtype=np.float32))


def _store(image: FloatArray, site: Site) -> NDArray[np.generic]:
    return np.rint(image).astype(site.stored_as) if site.stored_as != "float32" else image.astype(np.float32)
