"""How good predictions are, and whether they still differ as the references do."""

from itertools import combinations

import numpy as np
from scipy.ndimage import label

from medseg_brn.evaluation.surface import compute_average_surface_distance_mm, compute_surface_distances


def measure_quality(predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means over n volumes.

    dice: in [0, 1]. surface_distance: average symmetric surface distance in voxels, of the volumes that
    have a prediction; NaN where none has. pieces: connected pieces of a prediction; the references have one.
    empty: share of volumes without a prediction.

    Two measures of mode collapse. volume_ratio: standard deviation of the predicted volumes over that of the
    references'; 0 where all predictions are of one size. likeness: how alike predictions of different volumes
    are (mean Dice of all pairs) minus the same of the references; 0 where they differ as the references do,
    large where the output is constant.

    Args:
        predicted: (n, X, Y, Z) bool.
        reference: the same shape; none is empty.
    """
    axes = np.eye(3)
    distances = [
        compute_average_surface_distance_mm(compute_surface_distances(one, other, axes))
        for one, other in zip(predicted, reference, strict=True)
    ]
    known = [distance for distance in distances if np.isfinite(distance)]
    sizes = predicted.sum((1, 2, 3)), reference.sum((1, 2, 3))
    return {
        "dice": float(np.mean([compute_dice(*pair) for pair in zip(predicted, reference, strict=True)])),
        "surface_distance": float(np.mean(known)) if known else float("nan"),
        "pieces": float(np.mean([label(mask)[1] for mask in predicted])),
        "empty": float(np.mean(sizes[0] == 0)),
        "volume_ratio": float(sizes[0].std() / sizes[1].std()),
        "likeness": measure_likeness(predicted) - measure_likeness(reference),
    }


def compute_dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A ∩ B| / (|A| + |B|), in [0, 1]; 1 where both masks are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def measure_likeness(masks: np.ndarray) -> float:
    """Mean Dice of all pairs of n masks, (n, X, Y, Z) bool, in [0, 1]; 1 where all are the same."""
    return float(np.mean([compute_dice(*pair) for pair in combinations(masks, 2)]))
