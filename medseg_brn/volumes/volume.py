"""A 3D array and where its voxels lie in the patient.

Convention: arrays are (X, Y, Z) in nibabel's order; an affine maps a voxel's index (its centre) to world
coordinates in mm, RAS+: x grows to the patient's right, y to the front, z to the head.
"""

from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np

from medseg_brn.errors import DataError

SMALLEST_VOLUME_FRACTION = 1e-4
"""A voxel this much smaller than the box of its edge lengths is flat: its axes lie in a plane."""

GRID_TOLERANCE = 0.02
"""Grids are one as long as no voxel is further off than this share of the smallest spacing.

A NIfTI file tells its grid by the sform or by the qform, whose quaternion is in single precision: for a
scan near LPS that is tilted a little, its rounding turns the grid by some 1e-5, or a hundredth of a voxel at
the far corner. A shift that matters, from half a voxel on, is far beyond.
"""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: as many as `shape` says, at the places that `affine` says.

    Raises:
        DataError: a shape that is not three positive sizes, or an affine that is not finite or not
            invertible.
    """

    shape: tuple[int, int, int]
    """Number of voxels along X, Y, Z."""
    affine: np.ndarray
    """(4, 4) float64: voxel index to RAS+ mm."""
    header: nib.Nifti1Header | None = None
    """NIfTI header the grid was read from: a written file repeats its two transforms and their codes."""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise DataError(f"A grid has three sizes of at least 1 voxel, not {shape}.")
        _check_affine(affine)
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along X, Y, Z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """The patient directions nearest to the axes X, Y, Z, such as "RAS" or "LPS"."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    def matches(self, other: "Grid", tolerance_mm: float | None = None) -> bool:
        """Whether both grids have the same shape and no voxel lies further apart than the tolerance.

        Args:
            other: the grid to compare with.
            tolerance_mm: None takes `GRID_TOLERANCE` of the smallest spacing of both.
        """
        if tolerance_mm is None:
            tolerance_mm = _default_tolerance_mm(self, other)
        return self.shape == other.shape and _largest_distance_mm(self, other) <= tolerance_mm

    def describe_difference(self, other: "Grid", tolerance_mm: float | None = None) -> str | None:
        """Says in words where two grids differ, with both values, or None where they match; see `matches`."""
        if tolerance_mm is None:
            tolerance_mm = _default_tolerance_mm(self, other)
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if self.matches(other, tolerance_mm):
            return None
        if self.orientation != other.orientation:
            return f"orientation {self.orientation} against {other.orientation}"
        # What a spacing is off by adds up from voxel to voxel.
        stretch_mm = np.abs(np.subtract(self.spacing_mm, other.spacing_mm)) * np.subtract(self.shape, 1)
        if stretch_mm.max() > tolerance_mm:
            return f"spacing {_in_mm(self.spacing_mm)} against {_in_mm(other.spacing_mm)}"
        if not np.allclose(self.affine[:3, 3], other.affine[:3, 3], rtol=0, atol=tolerance_mm):
            return f"origin {_in_mm(self.affine[:3, 3])} against {_in_mm(other.affine[:3, 3])}"
        distance_mm = _largest_distance_mm(self, other)
        return (
            f"affine {self.affine[:3].tolist()} against {other.affine[:3].tolist()}: "
            f"voxels lie up to {distance_mm:.4g} mm apart"
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a label map: one value per voxel of its grid.

    Raises:
        DataError: the array's shape is not the grid's.
    """

    array: np.ndarray
    """(X, Y, Z) values."""
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise DataError(
                f"An array of shape {self.array.shape} does not lie on a grid of shape {self.grid.shape}."
            )

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64: voxel index to RAS+ mm."""
        return self.grid.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along X, Y, Z, in mm."""
        return self.grid.spacing_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z."""
        return self.grid.shape


def _check_affine(affine: np.ndarray) -> None:
    """Raises DataError where an affine puts no voxel anywhere, or many voxels in one place."""
    if affine.shape != (4, 4):
        raise DataError(f"An affine is a (4, 4) matrix, not {affine.shape}.")
    if not np.isfinite(affine).all():
        raise DataError(
            f"The affine {affine[:3].tolist()} has values that are not finite; correct the header."
        )
    edges = affine[:3, :3]
    box = float(np.prod(np.linalg.norm(edges, axis=0)))
    if box == 0 or abs(np.linalg.det(edges)) < SMALLEST_VOLUME_FRACTION * box:
        raise DataError(
            f"The affine {affine[:3].tolist()} is singular: its three axes do not span the space; correct "
            f"the header."
        )


def _largest_distance_mm(one: Grid, other: Grid) -> float:
    """The largest distance between same voxels of two grids of one shape; affine, hence found at a corner."""
    corners = np.array(list(product(*((0, size - 1) for size in one.shape))))
    apart = corners @ (one.affine - other.affine)[:3, :3].T + (one.affine - other.affine)[:3, 3]
    return float(np.linalg.norm(apart, axis=1).max())


def _default_tolerance_mm(one: Grid, other: Grid) -> float:
    return GRID_TOLERANCE * min(*one.spacing_mm, *other.spacing_mm)


def _in_mm(lengths: np.ndarray | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{length:.6g}" for length in lengths) + ") mm"
