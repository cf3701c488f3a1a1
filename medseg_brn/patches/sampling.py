"""Where a training patch is cut from a volume, and the cutting."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from medseg_brn.cases.cache import PreparedCase


def group_by_class(cases: Sequence[PreparedCase]) -> dict[int, list[PreparedCase]]:
    """Class -> the cases that have foreground of it, both in their order."""
    found: dict[int, list[PreparedCase]] = defaultdict(list)
    for case in cases:
        for value in case.foreground():
            found[value].append(case)
    return dict(sorted(found.items()))


def draw_voxel(
    case: PreparedCase,
    wants_foreground: bool,
    wanted_class: int | None,
    rng: np.random.Generator,
    has_ignored: bool = False,
) -> np.ndarray:
    """Voxel (3,) that a patch is to hold.

    Args:
        case: where it is drawn.
        wants_foreground: take a voxel of a class; of any voxel where the case has none.
        wanted_class: of this class, which the case must have; None draws one of the case's classes evenly.
        rng: source of randomness.
        has_ignored: whether the dataset has a label for voxels to be ignored.

    Returns:
        A voxel of foreground, or else any voxel. With `has_ignored` any voxel is one of annotated background;
        where there is none, one of foreground.
    """
    if wants_foreground or (has_ignored and not len(case.annotated_background())):
        foreground = case.foreground()
        classes = sorted(foreground) if wanted_class is None else [wanted_class]
        if classes:
            return _draw_row(foreground[classes[rng.integers(len(classes))]], rng)
    annotated = case.annotated_background()
    if len(annotated):
        return _draw_row(annotated, rng)
    return rng.integers(np.asarray(case.label_map().shape))


def _draw_row(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(voxels[rng.integers(len(voxels))])


def place_patch(
    wanted: Sequence[int] | np.ndarray, shape: Sequence[int], size: Sequence[int], rng: np.random.Generator
) -> tuple[int, int, int]:
    """First voxel of a patch that holds `wanted`; outside the volume where an axis is too short.

    Along an axis that is long enough the patch lies inside the volume, with `wanted` as its middle as far as
    that goes. Along the others the volume lies anywhere in the patch: were it always in the middle, a network
    would learn the borders by heart, and see them elsewhere at inference.

    Args:
        wanted: voxel (3,) of the volume.
        shape: the volume's (X, Y, Z).
        size: the patch's (X, Y, Z).
        rng: source of randomness, asked only where an axis is too short.
    """
    x, y, z = (_place(int(w), n, s, rng) for w, n, s in zip(wanted, shape, size, strict=True))
    return x, y, z


def _place(wanted: int, length: int, size: int, rng: np.random.Generator) -> int:
    if length < size:
        return -int(rng.integers(size - length + 1))
    return min(max(wanted - size // 2, 0), length - size)


def cut_box(array: np.ndarray, lower: Sequence[int], upper: Sequence[int]) -> np.ndarray:
    """Copy of voxels [lower, upper) of a (C, X, Y, Z) array; voxels outside it are zero."""
    source, target = [slice(None)], [slice(None)]
    for start, stop, extent in zip(lower, upper, array.shape[1:], strict=True):
        first = min(max(start, 0), extent)
        last = max(min(stop, extent), first)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    box = np.zeros((array.shape[0], *(b - a for a, b in zip(lower, upper, strict=True))), dtype=array.dtype)
    box[tuple(target)] = array[tuple(source)]
    return box
