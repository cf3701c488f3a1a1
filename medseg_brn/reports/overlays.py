"""A case at a glance: three orthogonal slices with the outlines of reference and prediction.

Slices are shown as radiologists look at them: the patient's right at the left, front and head up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import matplotlib.patheffects as patheffects
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from medseg_brn.errors import DataError
from medseg_brn.reports.drawing import make_image
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.volume import Volume

REFERENCE_COLOUR = "#56b4e9"
PREDICTION_COLOUR = "#ff9a3d"
DASHES = (0.0, (2.0, 2.0))
"""Where the outlines coincide, the reference shows between the dashes of the prediction."""

LEGEND = "solid blue: reference, dashed orange: prediction"

Line = str | tuple[float, tuple[float, float]]
"""A line's style as matplotlib takes it: a name, or an offset and dashes."""

MARGIN_MM = 25.0
"""Surroundings shown about the segmented region; a small lesion in a whole scan would be a dot."""


@dataclass(frozen=True)
class _Plane:
    """A slicing direction: the axis cut, and the letters at the picture's left and top."""

    name: str
    axis: int
    left: str
    top: str


_PLANES = (_Plane("axial", 2, "R", "A"), _Plane("coronal", 1, "R", "S"), _Plane("sagittal", 0, "A", "S"))


@dataclass(frozen=True, eq=False)
class _Slice:
    """What one panel shows: three pictures (rows, columns) and their width and height in mm."""

    plane: _Plane
    pixels: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    extent_mm: tuple[float, float]


def draw_overlay(
    image: Volume,
    reference: Volume,
    prediction: Volume,
    description: str,
    through: Literal["reference", "difference"] = "reference",
    ignore_value: int | None = None,
) -> Markup:
    """`<img>` of an axial, a coronal and a sagittal slice, each where the reference is largest.

    Where the reference is empty, the prediction decides; where both are, the middle does.

    Args:
        image: the scan, or one of its channels.
        reference: label map on the scan's voxels, whatever the order and direction of its axes.
        prediction: the same.
        description: what is shown, in words, for screen readers.
        through: `difference` for the slices where the most voxels have another class in the prediction than
            in the reference, if any have.
        ignore_value: of the reference's voxels that nobody annotated; these have no outline, and what is
            predicted there is no difference.

    Raises:
        DataError: the three do not lie on the same voxels.
    """
    # Files of one scan may order their axes differently, as a DICOM series and its label map often do.
    image, reference, prediction = (canonicalize(volume) for volume in (image, reference, prediction))
    for name, other in (("reference", reference), ("prediction", prediction)):
        difference = image.grid.describe_difference(other.grid)
        if difference is not None:
            raise DataError(
                f"Image and {name} do not lie on one grid: {difference}; draw them on the same scan."
            )
    ignored = np.zeros(reference.shape, bool)
    if ignore_value is not None:
        ignored = reference.array == ignore_value
        reference = Volume(np.where(ignored, 0, reference.array), reference.grid)
    slices = _cut_slices(image, reference, prediction, ignored, through)
    window = _find_window(slices)
    drawing, panels = _make_panels([each.extent_mm for each in slices])
    for axes, each in zip(panels, slices, strict=True):
        _draw_slice(axes, each, window)
    return make_image(drawing, description)


def _cut_slices(
    image: Volume, reference: Volume, prediction: Volume, ignored: np.ndarray, through: str
) -> list[_Slice]:
    """One slice per plane through the segmented region, from volumes in RAS+."""
    arrays = [volume.array for volume in (image, reference, prediction)]
    box = _find_region((arrays[1] > 0) | (arrays[2] > 0), image.spacing_mm)
    arrays = [array[box] for array in arrays]
    different = (arrays[1] != arrays[2]) & ~ignored[box]
    if through == "difference" and different.any():
        centre = _largest_slices(different)
    else:
        centre = _largest_slices(arrays[1] if arrays[1].any() else arrays[2])
    slices = []
    for plane in _PLANES:
        pixels, referenced, predicted = (
            _turn(np.take(array, centre[plane.axis], plane.axis)) for array in arrays
        )
        across, up = (image.spacing_mm[axis] for axis in range(3) if axis != plane.axis)
        rows, columns = pixels.shape
        slices.append(_Slice(plane, pixels, referenced, predicted, (columns * across, rows * up)))
    return slices


def _find_region(foreground: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The foreground's bounding box and its surroundings; everything where there is no foreground."""
    box = []
    for axis, size in enumerate(foreground.shape):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(foreground.any(axis=others))
        margin = int(np.ceil(MARGIN_MM / spacing_mm[axis]))
        box.append(
            slice(max(0, found[0] - margin), min(size, found[-1] + 1 + margin))
            if found.size
            else slice(0, size)
        )
    return tuple(box)


def _largest_slices(label_map: np.ndarray) -> list[int]:
    """Per axis, the index of the slice with the most foreground; the middle of an empty map."""
    foreground = label_map > 0
    if not foreground.any():
        return [size // 2 for size in foreground.shape]
    return [
        int(np.argmax(foreground.sum(axis=tuple(other for other in range(3) if other != axis))))
        for axis in range(3)
    ]


def _turn(pixels: np.ndarray) -> np.ndarray:
    """A slice along two RAS+ axes as a picture: rows from the top down, columns from the left.

    The axes grow towards right, front and head; pictures begin with right, front and head: both are reversed.
    """
    return pixels[::-1, ::-1].T


def _find_window(slices: list[_Slice]) -> tuple[float, float]:
    """Intensities shown as black and white: those of the segmented region, and as much again on either side.

    What is segmented then shows its contrast to its surroundings, on a CT scan too, where air and bone
    would push all soft tissue into one grey. Extremes of the picture bound the window.
    """
    values = np.concatenate([each.pixels.ravel() for each in slices]).astype(np.float64)
    inside = np.concatenate([((each.reference > 0) | (each.prediction > 0)).ravel() for each in slices])
    known = np.isfinite(values)
    if not known.any():
        return 0.0, 1.0
    low, high = np.percentile(values[known], (1, 99.5))
    if (known & inside).any():
        lowest, highest = np.percentile(values[known & inside], (1, 99))
        span = highest - lowest
        low, high = max(low, lowest - span), min(high, highest + span)
    return float(low), float(max(high, low + 1e-6))


def _make_panels(extents_mm: list[tuple[float, float]], width: float = 9.0) -> tuple[Drawing, list[Axes]]:
    """Panels side by side at one scale of mm, filling the width (inches)."""
    gap = 0.006
    total_mm = sum(across for across, _ in extents_mm)
    inches_per_mm = min(width * (1 - 2 * gap) / total_mm, 5.0 / max(up for _, up in extents_mm))
    height = max(up for _, up in extents_mm) * inches_per_mm
    drawing = Drawing(figsize=(width, height), facecolor="black")
    shares = [across * inches_per_mm / width for across, _ in extents_mm]
    left = (1 - sum(shares) - 2 * gap) / 2
    edges = np.cumsum([left, *(share + gap for share in shares)])
    panels = [drawing.add_axes((start, 0.0, end - start - gap, 1.0)) for start, end in pairwise(edges)]
    return drawing, panels


def _draw_slice(axes: Axes, shown: _Slice, window: tuple[float, float]) -> None:
    """One slice in grey and the outlines of every class on it."""
    across, up = shown.extent_mm
    low, high = window
    bounds = (0.0, across, up, 0.0)
    axes.imshow(shown.pixels, cmap="gray", vmin=low, vmax=high, extent=bounds, interpolation="nearest")
    _draw_outlines(axes, shown.reference, shown.extent_mm, REFERENCE_COLOUR, "solid")
    _draw_outlines(axes, shown.prediction, shown.extent_mm, PREDICTION_COLOUR, DASHES)
    axes.set_axis_off()
    axes.set_xlim(0, across)
    axes.set_ylim(up, 0)
    plane = shown.plane
    for letter, position in ((plane.left, (0.02, 0.5)), (plane.top, (0.5, 0.98)), (plane.name, (0.02, 0.02))):
        text = axes.text(*position, letter, transform=axes.transAxes, color="white", fontsize=8, alpha=0.9)
        text.set(verticalalignment={0.5: "center", 0.98: "top", 0.02: "bottom"}[position[1]])
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])


def _draw_outlines(
    axes: Axes, label_map: np.ndarray, extent_mm: tuple[float, float], colour: str, line: Line
) -> None:
    """The outline of each class, between its voxels and the next, in mm of the picture."""
    rows, columns = label_map.shape
    step_x, step_y = extent_mm[0] / columns, extent_mm[1] / rows
    x = (np.arange(columns + 2) - 0.5) * step_x
    y = (np.arange(rows + 2) - 0.5) * step_y
    for label in np.unique(label_map[label_map > 0]):
        # A border of background closes outlines that the picture's edge would cut.
        mask = np.pad(label_map == label, 1).astype(float)
        axes.contour(x, y, mask, levels=[0.5], colors=colour, linewidths=1.7, linestyles=[line])
