"""What a page tells of the classes of a label map: colour, voxels, volume, and where to look."""

from collections.abc import Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_brn.cases.label_description import Labels
from medseg_brn.cases.labels import find_values, map_to_classes
from medseg_brn.inference.measurements import MM3_PER_ML
from medseg_brn.volumes.volume import Volume

FIRST_COLOURS = (
    "#ff9a3d", "#56b4e9", "#3fcaa0", "#f06ba8", "#f0e442", "#a58bff", "#ff6b5e", "#b5e36b",
)  # fmt: skip
"""Told apart on grey, and by people who see red and green alike."""

GOLDEN_RATIO = 0.618034
"""Hues this far apart, on a circle of length 1, stay apart however many follow."""


@dataclass(frozen=True)
class ShownClass:
    """A class that occurs in a label map.

    Attributes:
        name: what it is called.
        value: in the label map.
        colour: "#rrggbb".
        voxels: how many it has.
        volume_ml: of these.
        centre: index of a voxel of it: in the axial slice with most of it, the one nearest to its centroid
            there.
    """

    name: str
    value: int
    colour: str
    voxels: int
    volume_ml: float
    centre: tuple[int, int, int]


@dataclass(frozen=True)
class ShownRegion:
    """Several classes under one name.

    Attributes:
        name: what it is called.
        voxels: of all its classes.
        volume_ml: of these.
    """

    name: str
    voxels: int
    volume_ml: float


@dataclass(frozen=True, eq=False)
class LabelView:
    """A label map, prepared to be shown.

    Attributes:
        codes: (X, Y, Z) uint8, or uint16 beyond 255 classes: 0 is the background, k is `classes[k - 1]`.
        classes: those that occur.
        absent: names of the described classes that do not.
        regions: of several classes each, where some are described.
    """

    codes: np.ndarray
    classes: tuple[ShownClass, ...]
    absent: tuple[str, ...]
    regions: tuple[ShownRegion, ...]


def view_labels(
    label_map: Volume, labels: Labels, place: str | Path, colours: Sequence[str] = ()
) -> LabelView:
    """Counts and names what a label map holds.

    Args:
        label_map: integers, in canonical axes.
        labels: names of its values, the background first; other values are called "label 9".
        place: the file, for messages.
        colours: "#rrggbb" of the named values besides the background; by default those of `pick_colour`.

    Raises:
        DataError: a voxel is not an integer, or there are more values than a label map has.
    """
    found = [int(value) for value in find_values(label_map.array, place)[0]]
    background, *described = labels.label_values
    known = [*described, *(value for value in found if value not in labels.label_values)]
    names = dict(zip(labels.label_values, labels.class_names, strict=True))
    colour_of = {value: pick_colour(index) for index, value in enumerate(known)}
    colour_of.update(zip(described, colours, strict=False))
    present = [value for value in known if value in found]
    codes = map_to_classes(label_map.array, [background, *present], place)
    counts = _count_by_slice(codes, len(present) + 1)
    voxel_ml = abs(float(np.linalg.det(label_map.affine[:3, :3]))) / MM3_PER_ML
    voxels = dict(zip(present, map(int, counts.sum(axis=0)[1:]), strict=True))
    classes = tuple(
        ShownClass(
            names.get(value, f"label {value}"),
            value,
            colour_of[value],
            voxels[value],
            voxels[value] * voxel_ml,
            _find_centre(codes, code, int(np.argmax(counts[:, code]))),
        )
        for code, value in enumerate(present, start=1)
    )
    sums = {one.name: sum(voxels.get(v, 0) for v in one.label_values) for one in labels.region_values}
    regions = tuple(ShownRegion(name, count, count * voxel_ml) for name, count in sums.items())
    absent = tuple(names[value] for value in described if value not in found)
    return LabelView(codes, classes, absent, regions)


def pick_colour(index: int) -> str:
    """The colour of a class by its place in the list, "#rrggbb"."""
    if index < len(FIRST_COLOURS):
        return FIRST_COLOURS[index]
    lightness = (0.48, 0.8, 0.64)[index % 3]
    rgb = hls_to_rgb(index * GOLDEN_RATIO % 1, lightness, 0.8)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _count_by_slice(codes: np.ndarray, number: int) -> np.ndarray:
    """(Z, number) voxels of each code in each axial slice."""
    slices = (codes[..., z] for z in range(codes.shape[2]))
    return np.stack([np.bincount(each.ravel(), minlength=number) for each in slices])


def _find_centre(codes: np.ndarray, code: int, z: int) -> tuple[int, int, int]:
    places = np.argwhere(codes[..., z] == code)
    x, y = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    return int(x), int(y), z
