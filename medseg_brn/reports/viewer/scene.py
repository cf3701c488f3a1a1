"""All that a page shows of a scan: voxels, where they lie, classes, and what the reader should be told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from medseg_brn.cases.label_description import Labels
from medseg_brn.errors import DataError
from medseg_brn.reports.viewer.classes import LabelView, view_labels
from medseg_brn.reports.viewer.quantization import QuantizedImage, quantize
from medseg_brn.reports.wording import times
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.volume import Grid, Volume

VOXEL_LIMIT = 64 * 10**6
"""A page with more voxels takes browsers gigabytes."""

NO_NAMES = Labels(("background",), (0,))

TILT_TOLD_DEGREES = 1.0

SAMPLE_VOXELS = 10**6
"""Percentiles are those of about so many voxels."""


@dataclass(frozen=True)
class Window:
    """Values shown from black, `level - width / 2`, to white, `level + width / 2`."""

    name: str
    width: float
    level: float


PRESETS = (
    Window("CT soft tissue", 400, 40),
    Window("CT lung", 1500, -600),
    Window("CT bone", 1800, 400),
    Window("CT brain", 80, 40),
    Window("CT liver", 150, 60),
    Window("CT mediastinum", 350, 50),
    Window("CT angiography", 600, 300),
)
"""In Hounsfield units."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is shown.

    Attributes:
        image: the scan's values, in canonical axes.
        labels: its label map on the same voxels, where there is one.
        grid: of these voxels.
        file_grid: of the scan's file.
        windows: offered, the scan's own percentiles first.
        start: number of the window shown first.
        at: index of the voxel shown first.
        notes: what the reader should know, such as what differs from the file; sentences.
    """

    image: QuantizedImage
    labels: LabelView | None
    grid: Grid
    file_grid: Grid
    windows: tuple[Window, ...]
    start: int
    at: tuple[int, int, int]
    notes: tuple[str, ...]

    @property
    def page_to_file(self) -> np.ndarray:
        """(3, 4) integers: index of a voxel shown to its index in the file."""
        return np.rint(np.linalg.inv(self.file_grid.affine) @ self.grid.affine).astype(int)[:3]


def make_scene(
    image: Volume,
    label_map: Volume | None = None,
    *,
    labels: Labels = NO_NAMES,
    colours: Sequence[str] = (),
    is_ct: bool = False,
    image_place: str | Path = "the image",
    label_place: str | Path = "the label map",
    notes: tuple[str, ...] = (),
    voxel_limit: int = VOXEL_LIMIT,
) -> Scene:
    """Prepares a scan, and its label map, to be shown.

    Volumes and centres of classes are those of the whole label map, also where the page has fewer voxels.

    Args:
        image: values in any units.
        label_map: integers on the image's voxels, whatever the order and direction of its axes.
        labels: names of the label map's values.
        colours: "#rrggbb" of those besides the background; by default distinct ones.
        is_ct: the values are Hounsfield units, whatever they look like.
        image_place: the image's file, for messages.
        label_place: the label map's.
        notes: what the reader should know besides.
        voxel_limit: beyond it, every second voxel, or fewer, are taken along some axes.

    Raises:
        DataError: the two do not lie on the same voxels, or the label map is none.
    """
    whole = canonicalize(image)
    found = None
    if label_map is not None:
        own = canonicalize(label_map)
        _check_grids(whole, own, image_place, label_place)
        found = view_labels(own, labels, label_place, colours)
    factors = choose_factors(whole.grid, voxel_limit)
    shown = thin(whole, factors)
    quantized = quantize(shown.array)
    hounsfield = is_ct or suggests_hounsfield(shown.array)
    centre = tuple(size // 2 for size in whole.shape)
    if found is not None:
        if found.classes:
            centre = max(found.classes, key=lambda one: one.voxels).centre
        found = _thin_labels(found, whole.grid, factors)
    return Scene(
        quantized,
        found,
        shown.grid,
        image.grid,
        (_percentile_window(shown.array), *PRESETS),
        1 if hounsfield else 0,
        _thin_index(centre, shown.shape, factors),
        (*notes, *_take_notes(image.grid, quantized, shown.grid, factors)),
    )


def tell_channel(channel: int, channels: int) -> tuple[str, ...]:
    """A note on which channel is shown, where there are several."""
    if channels == 1:
        return ()
    return (f"The scan has {channels} channels, 0 to {channels - 1}; this is channel {channel}.",)


def choose_factors(grid: Grid, voxel_limit: int) -> tuple[int, int, int]:
    """Of how many voxels along each axis one is shown: the densest axis gives way first."""
    factors = [1, 1, 1]
    while prod(-(-size // factor) for size, factor in zip(grid.shape, factors, strict=True)) > voxel_limit:
        shown_mm = [spacing * factor for spacing, factor in zip(grid.spacing_mm, factors, strict=True)]
        # An axis of which one voxel is left has no more to give.
        open_axes = [axis for axis in range(3) if factors[axis] < grid.shape[axis]]
        factors[min(open_axes, key=lambda axis: shown_mm[axis])] += 1
    return factors[0], factors[1], factors[2]


def thin(volume: Volume, factors: tuple[int, int, int]) -> Volume:
    """Every factor-th voxel along each axis, from the middle of the first such group on.

    Voxels are taken and not averaged, so each shows a value of the file:

        | 0 | 1 | 2 | 3 | 4 |   by 2 from 5:   | 1 | 3 |

    and a rest that is shorter than the first step is left out.
    """
    if factors == (1, 1, 1):
        return volume
    starts = _starts(volume.shape, factors)
    array = volume.array[tuple(slice(start, None, step) for start, step in zip(starts, factors, strict=True))]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    affine[:3, :3] *= factors
    return Volume(array, Grid(array.shape, affine))


def suggests_hounsfield(values: np.ndarray) -> bool:
    """Whether values look like those of a CT: air well below 0, and much that is as dense as water."""
    sample = _sample(values)
    if not sample.size or not -4100 <= sample.min() <= -500 or sample.max() < 100:
        return False
    return bool(np.mean((sample > -200) & (sample < 200)) > 0.01)


def _check_grids(image: Volume, label_map: Volume, image_place: str | Path, label_place: str | Path) -> None:
    difference = image.grid.describe_difference(label_map.grid)
    if difference is not None:
        raise DataError(
            f"{label_place} does not lie on the voxels of {image_place}: the image has {difference} (axes in "
            "RAS+); give the label map of this scan, or resample it to the scan's grid with "
            "nearest-neighbour interpolation."
        )


def _starts(shape: tuple[int, int, int], factors: tuple[int, int, int]) -> list[int]:
    return [min(step // 2, size - 1) for size, step in zip(shape, factors, strict=True)]


def _thin_labels(labels: LabelView, grid: Grid, factors: tuple[int, int, int]) -> LabelView:
    codes = thin(Volume(labels.codes, grid), factors).array
    classes = tuple(
        replace(one, centre=_thin_index(one.centre, codes.shape, factors)) for one in labels.classes
    )
    return replace(labels, codes=codes, classes=classes)


def _thin_index(
    index: tuple[int, ...], shown: tuple[int, ...], factors: tuple[int, int, int]
) -> tuple[int, int, int]:
    """The shown voxel whose group of the file's voxels holds this one."""
    x, y, z = (min(place // step, size - 1) for place, step, size in zip(index, factors, shown, strict=True))
    return x, y, z


def _sample(values: np.ndarray) -> np.ndarray:
    """Finite values of evenly spread voxels."""
    step = max(1, round((values.size / SAMPLE_VOXELS) ** (1 / 3)))
    sample = values[::step, ::step, ::step].astype(np.float64)
    return sample[np.isfinite(sample)]


def _percentile_window(values: np.ndarray) -> Window:
    """From the 1st to the 99th percentile; where these are one, from the least value to the largest."""
    sample = _sample(values)
    low, high = np.percentile(sample, (1, 99)) if sample.size else (0.0, 0.0)
    if low == high and sample.size:
        low, high = sample.min(), sample.max()
    width = float(high - low) or 1.0
    return Window("1st to 99th percentile", width, float(low + (high - low) / 2))


def _take_notes(
    file_grid: Grid, image: QuantizedImage, shown: Grid, factors: tuple[int, int, int]
) -> list[str]:
    notes = []
    if factors != (1, 1, 1):
        notes.append(
            f"The scan has {times(file_grid.shape)} voxels, too many for a page. It shows one of "
            f"{times(factors)} (axes in RAS+), as they are and not averaged; volumes are those of the whole "
            "label map."
        )
    if not image.exact:
        notes.append(
            f"Values are rounded to steps of {image.step:.4g} (16 bits), hence at most {image.step / 2:.2g} "
            "off."
        )
    if image.missing:
        notes.append(f"{image.missing} voxels shown are NaN or infinite; they are black.")
    if image.low == image.high:
        notes.append(f"All voxels have the same value, {image.low:g}.")
    tilt = _tilt_degrees(shown.affine)
    if tilt > TILT_TOLD_DEGREES:
        notes.append(
            f"The scan's axes are tilted by up to {tilt:.0f}° against the patient's. The planes follow the "
            "scan, and directions are the nearest ones."
        )
    return notes


def _tilt_degrees(affine: np.ndarray) -> float:
    """The largest angle between an axis of the voxels and that of the patient nearest to it."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(np.diagonal(axes)), 0, 1))).max())
