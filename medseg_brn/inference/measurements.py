"""What a label map says in numbers: the volume of each structure, and the scan's mean intensity in it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.volume import Volume

MEASUREMENTS_NAME = "measurements.csv"
MM3_PER_ML = 1000.0
# Voxels that are looked at together.
SLAB_VOXELS = 2**22


@dataclass(frozen=True)
class Measurement:
    """One structure of one case.

    Attributes:
        structure: its name.
        label: its value in the label map; of a region all of them, as "1+2+3".
        volume_ml: of its voxels; 0 where there is none.
        mean_intensity: of the scan's values as they were read (CT: HU), one per channel; None where the
            structure has no voxel.
    """

    structure: str
    label: int | str
    volume_ml: float
    mean_intensity: tuple[float, ...] | None


def measure_structures(
    label_map: Volume, channels: Sequence[Volume], structures: Mapping[str, Sequence[int]]
) -> list[Measurement]:
    """Measure every structure, those that do not occur too.

    Args:
        label_map: label values.
        channels: the scan, on the same grid.
        structures: label values by name, without the background; they may overlap.

    Returns:
        One measurement per structure, in their order.
    """
    labels = np.array(sorted({value for values in structures.values() for value in values}))
    counts = np.zeros(len(labels), np.int64)
    sums = np.zeros((len(channels), len(labels)))
    planes = max(1, SLAB_VOXELS // max(1, label_map.array[:1].size))
    for start in range(0, label_map.shape[0], planes):
        slab = label_map.array[start : start + planes].ravel()
        position = np.minimum(np.searchsorted(labels, slab), len(labels) - 1)
        inside = labels[position] == slab
        position = position[inside]
        counts += np.bincount(position, minlength=len(labels))
        for channel, volume in enumerate(channels):
            values = volume.array[start : start + planes].ravel()[inside]
            sums[channel] += np.bincount(position, values, minlength=len(labels))
    voxel_ml = abs(float(np.linalg.det(label_map.affine[:3, :3]))) / MM3_PER_ML
    measured = []
    for name, values in structures.items():
        own = np.searchsorted(labels, values)
        count = int(counts[own].sum())
        means = tuple((sums[:, own].sum(1) / count).tolist()) if count else None
        label = values[0] if len(values) == 1 else "+".join(map(str, values))
        measured.append(Measurement(name, label, count * voxel_ml, means))
    return measured


def as_rows(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """Return the measurements as plain JSON."""
    return [asdict(one) for one in measurements]


def write_measurements(path: Path, cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write a CSV file with a row per case and structure.

    Args:
        path: the file; one that is there is replaced.
        cases: rows of `as_rows` by case.
    """
    rows = [(case, row) for case, measured in cases.items() for row in measured]
    channels = max((len(row["mean_intensity"] or ()) for _, row in rows), default=1)
    names = ["mean_intensity"] if channels <= 1 else [f"mean_intensity_{n}" for n in range(channels)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "structure", "label", "volume_ml", *names])
    for case, row in rows:
        means = row["mean_intensity"] or [None] * len(names)
        shown = ["" if mean is None else f"{mean:.6g}" for mean in means]
        table.writerow([case, row["structure"], row["label"], f"{row['volume_ml']:.6g}", *shown])
    write_text_atomic(path, text.getvalue())
