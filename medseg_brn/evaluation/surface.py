"""Distances between the surfaces of two masks, in mm, and the metrics read from them.

One function, `compute_surface_distances`, does the work; the others read what it returns:

    prediction        reference        from each surface voxel of one mask, the distance
     . . . . .        . . . . .        to the nearest surface voxel of the other
     . # # . .        . # # # .
     . # # . .        . # # # .        prediction → reference: 0 0 0 0
     . . . . .        . . . . .        reference → prediction: 0 0 1 0 0 1   (1 mm voxels)

A surface voxel is a mask voxel with a face neighbour outside the mask (or outside the volume). It
counts once, whatever its area, as in MONAI and Metrics Reloaded. Points are compared in mm, so
anisotropic, oblique and sheared grids need no special care.

Why scipy underneath and not MONAI's metrics: those take a spacing, which knows nothing of a shear, and each
of the three finds surfaces and distances anew. One computation for all three takes a sixth of their time or
less (hippocampi, and a mask of a liver's size, on one core). The values are MONAI's; a test compares them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

ROUNDING_MM = 1e-4
"""Files hold affines in single precision: two voxels 1 mm apart may come out at 1.0000001 mm."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances from each surface voxel of one mask to the other mask's surface, in mm.

    An empty mask has no surface voxels, so its own array is empty, and the other mask's distances
    are infinite: there is nothing to be near to.
    """

    prediction_to_reference_mm: np.ndarray
    reference_to_prediction_mm: np.ndarray

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface."""
        return bool(self.prediction_to_reference_mm.size and self.reference_to_prediction_mm.size)


def compute_surface_distances(
    prediction: np.ndarray, reference: np.ndarray, voxel_axes_mm: np.ndarray
) -> SurfaceDistances:
    """Exact Euclidean distances between two surfaces, in both directions.

    Args:
        prediction: boolean mask (X, Y, Z).
        reference: boolean mask of the same shape.
        voxel_axes_mm: (3, 3), the step in mm from a voxel to the next along each array axis, one axis per
            column: `affine[:3, :3]`. Axes may be oblique, and sheared.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    box = _bounding_box(prediction | reference)
    predicted = _surface_points_mm(prediction[box], voxel_axes_mm)
    referenced = _surface_points_mm(reference[box], voxel_axes_mm)
    return SurfaceDistances(
        _nearest_distances_mm(predicted, referenced), _nearest_distances_mm(referenced, predicted)
    )


def compute_hausdorff_distance_mm(distances: SurfaceDistances, percentile: float = 95.0) -> float:
    """Hausdorff distance at a percentile (HD95): in [0, inf) mm, 0 being perfect; NaN if a mask is empty.

    The larger of the two directed percentiles, as Metrics Reloaded defines it: pooling the two
    directions instead would let a large surface outvote a small one.
    """
    if not distances.defined:
        return float("nan")
    return float(
        max(
            np.percentile(distances.prediction_to_reference_mm, percentile),
            np.percentile(distances.reference_to_prediction_mm, percentile),
        )
    )


def compute_average_surface_distance_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance (ASSD): in [0, inf) mm, 0 being perfect; NaN if a mask is empty.

    The mean over all surface voxels of both masks.
    """
    if not distances.defined:
        return float("nan")
    both = (distances.prediction_to_reference_mm, distances.reference_to_prediction_mm)
    return float(np.concatenate(both).mean())


def compute_surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within `tolerance_mm` of the other: in [0, 1], 1 being perfect.

    0 when one mask is empty, NaN when both are (Nikolov et al. 2021, the normalized surface distance).
    """
    both = (distances.prediction_to_reference_mm, distances.reference_to_prediction_mm)
    total = both[0].size + both[1].size
    near = sum(np.count_nonzero(directed <= tolerance_mm + ROUNDING_MM) for directed in both)
    return near / total if total else float("nan")


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask; for an empty one, an empty box."""
    boxes = find_objects(mask.view(np.uint8), max_label=1)
    return boxes[0] if boxes[0] is not None else (slice(0, 0),) * mask.ndim


def _surface_points_mm(mask: np.ndarray, voxel_axes_mm: np.ndarray) -> np.ndarray:
    """Centres (N, 3) of the surface voxels, in mm from the mask's first voxel."""
    surface = mask & ~binary_erosion(mask)  # erosion takes what lies outside the array as background
    return np.argwhere(surface) @ np.asarray(voxel_axes_mm, dtype=np.float64).T


def _nearest_distances_mm(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Distance (N,) from each point to the nearest of the targets; infinite when there are none."""
    if not len(points) or not len(targets):
        return np.full(len(points), np.inf)
    # Cells split at their middle: on the lattice that voxels form, a median split is up to five times slower.
    tree = cKDTree(targets, balanced_tree=False, compact_nodes=False)
    return tree.query(points)[0]
