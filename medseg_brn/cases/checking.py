"""Reads every case of a dataset and lists all that is wrong, with the values and the remedy.

Errors are what training would stop at or silently learn nonsense from; warnings are what may be meant so.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg_brn.cases.case import Case, Problem
from medseg_brn.cases.confounding import find_confounding
from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.intensity import find_not_finite
from medseg_brn.cases.labels import find_values, map_to_classes
from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.volume import Volume

__all__ = ["Inspection", "Problem", "check_dataset", "inspect_dataset"]

# Voxels this many times larger or smaller than the median are more often a wrong header than a thick slice.
SPACING_RATIO = 4.0

# Air has -1000 HU in CT, or less where the scanner pads; magnitudes in MRI are not negative.
HOUNSFIELD_AIR = -900

SAME_GRID = (
    "Where the voxels do match, copy the header of the first onto the second; otherwise resample the second "
    "onto the grid of the first, label maps with nearest-neighbour interpolation."
)


@dataclass
class CaseInspection:
    """What was found in one case. Geometry is in canonical axes, and None where the image cannot be read."""

    case: Case
    problems: list[Problem] = field(default_factory=list)
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    digest: str | None = None
    """Of all channels' values; equal for copies, whatever their files' compression or headers."""
    classes: frozenset[int] = frozenset()
    """The classes that the label map holds, as far as it can be read; not that of ignored voxels."""
    minima: tuple[float, ...] = ()
    """The least value of each channel, where the case has those of the dataset."""

    def report(self, message: str, remedy: str) -> None:
        """Adds an error."""
        self.problems.append(Problem(self.case.name, message, remedy))

    def warn(self, message: str, remedy: str) -> None:
        """Adds a warning."""
        self.problems.append(Problem(self.case.name, message, remedy, "warning"))

    def report_error(self, error: DataError) -> None:
        """Adds what a reader raised. The errors of this package end with the remedy, after a semicolon."""
        message, separator, remedy = str(error).rpartition("; ")
        if not separator:
            message, remedy = str(error), "correct the file, or take the case out of the dataset."
        self.report(message.rstrip(".") + ".", remedy[:1].upper() + remedy[1:].rstrip(".") + ".")


@dataclass(frozen=True)
class Inspection:
    """All that is wrong with a dataset, and what its cases look like."""

    problems: list[Problem]
    cases: list[CaseInspection]

    @property
    def num_errors(self) -> int:
        """Number of problems that are errors."""
        return sum(problem.severity == "error" for problem in self.problems)


def check_dataset(dataset: Dataset, on_case: Callable[[Case], object] | None = None) -> list[Problem]:
    """Returns every problem of every case; an empty list means that the dataset can be trained on.

    Args:
        dataset: as `read_dataset` returned it.
        on_case: called with each case when it is done.
    """
    return inspect_dataset(dataset, on_case).problems


def inspect_dataset(
    dataset: Dataset, on_case: Callable[[Case], object] | None = None, allow_empty: bool = False
) -> Inspection:
    """Returns every problem, those of the dataset as a whole first, and the facts of each case.

    Args:
        dataset: as `read_dataset` returned it.
        on_case: called with each case when it is done.
        allow_empty: a label map without foreground, as a healthy control has it, is a warning and no error.
    """
    inspected = []
    for case in dataset.cases:
        inspected.append(_inspect_case(case, dataset, allow_empty))
        if on_case is not None:
            on_case(case)
    _find_repeated_names(inspected)
    _find_copies(inspected)
    _find_unusual_spacings(inspected)
    whole = [
        *dataset.problems,
        *_check_whole(dataset, inspected),
        *_check_sites(dataset, inspected),
        *_check_modalities(dataset, inspected),
    ]
    return Inspection(whole + [problem for one in inspected for problem in one.problems], inspected)


# ---------------------------------------------------------------- one case


def _inspect_case(case: Case, dataset: Dataset, allow_empty: bool) -> CaseInspection:
    found = CaseInspection(case)
    channels = _read_images(found)
    if len(channels) != len(dataset.modalities) and not found.problems:
        _report_channels(found, channels, dataset)
    for path, volume in channels:
        _check_grid(found, f"channels {channels[0][0].name} and {path.name}", channels[0][1], volume)
        _check_values(found, path, volume.array)
    if channels and not found.problems:
        found.digest = _digest(volume.array for _, volume in channels)
        found.minima = tuple(float(volume.array.min()) for _, volume in channels)
    if channels:
        canonical = canonicalize(channels[0][1])
        found.shape, found.spacing_mm = canonical.shape, canonical.spacing_mm
    if case.label_path is not None:
        _check_label_map(found, case.label_path, channels[0] if channels else None, dataset, allow_empty)
    elif dataset.labelled_cases:
        found.warn("The case has no label map.", "Training leaves it out; list its label map to train on it.")
    return found


def _read_images(found: CaseInspection) -> list[tuple[Path, Volume]]:
    channels = []
    for path in found.case.image_paths:
        try:
            channels += [(path, volume) for volume in read_channels(path)]
        except DataError as error:
            found.report_error(error)
    return channels


def _report_channels(
    found: CaseInspection, channels: Sequence[tuple[Path, Volume]], dataset: Dataset
) -> None:
    path, first = channels[0]
    if len(channels) > len(found.case.image_paths) == 1:
        what = f"Image {path.name} is 4D, {(*first.shape, len(channels))}: it has"
    else:
        what = "The case has"
    found.report(
        f"{what} {len(channels)} channels where the dataset has {len(dataset.modalities)}.",
        "Split a series into one 3D file per case, or describe all channels in the dataset's description.",
    )


def _check_grid(found: CaseInspection, pair: str, first: Volume, second: Volume) -> None:
    difference = first.grid.describe_difference(second.grid)
    if difference:
        found.report(f"The {pair} lie on different grids: {difference}.", SAME_GRID)


def _check_values(found: CaseInspection, path: Path, array: np.ndarray) -> None:
    not_finite = find_not_finite(array)
    if not_finite is not None:
        wrong, first = not_finite
        found.report(
            f"Image {path.name} has {wrong} NaN or infinite voxels of {array.size}, the first at {first}.",
            "Replace them, by the background's intensity for example.",
        )
    elif array.min() == array.max():
        found.report(
            f"Image {path.name} is constant: all {array.size} voxels are {array.flat[0]:g}.",
            "Export the image again; there is nothing to see in it.",
        )


def _check_label_map(
    found: CaseInspection, path: Path, image: tuple[Path, Volume] | None, dataset: Dataset, allow_empty: bool
) -> None:
    try:
        label_map = read_volume(path)
        if image is not None:
            _check_grid(found, f"image {image[0].name} and the label map {path.name}", image[1], label_map)
        classes = map_to_classes(label_map.array, dataset.labels.known_values, path)
    except DataError as error:
        found.report_error(error)
        return
    values, counts = find_values(classes, path)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    ignored = voxels.pop(dataset.targets.ignore_class, 0)
    found.classes = frozenset(voxels)
    if not voxels:
        found.report(
            f"Label map {path.name} is ignored as a whole: all {classes.size} voxels have the value "
            f"{dataset.ignore_value}.",
            "Annotate some of its voxels, or take the case out of the dataset.",
        )
    elif found.classes <= {0}:
        report = found.warn if allow_empty else found.report
        told = f"all {voxels[0]} voxels{' that are not ignored' if ignored else ''} are background"
        report(
            f"Label map {path.name} is empty: {told}.",
            "Export the label map again; if there is truly nothing to segment, check with --allow-empty.",
        )


def _digest(arrays: Iterable[np.ndarray]) -> str:
    """Returns a digest of values and shapes; the type they are stored in does not matter."""
    digest = hashlib.blake2b()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        # Transposed, because arrays read from NIfTI lie in memory with X fastest.
        digest.update(np.ascontiguousarray(array.T, dtype=np.float32).data)
    return digest.hexdigest()


# ---------------------------------------------------------------- cases against each other


def _find_repeated_names(inspected: Sequence[CaseInspection]) -> None:
    by_name = defaultdict(list)
    for one in inspected:
        by_name[one.case.name].append(one)
    for name, same in by_name.items():
        for one in same[1:]:
            first_path, path = same[0].case.image_paths[0], one.case.image_paths[0]
            one.report(
                f"{len(same)} cases are named {name!r}, with the images {first_path} and {path}.",
                "Give every case a name of its own; predictions are named after their case.",
            )


def _find_copies(inspected: Sequence[CaseInspection]) -> None:
    """Reports images that are the same voxel by voxel, unless both are known to be of one patient."""
    first_of: dict[str, Case] = {}
    for one in inspected:
        if one.digest is None:
            continue
        first, case = first_of.setdefault(one.digest, one.case), one.case
        same_patient = case.patient is not None and case.patient == first.patient
        if first is not case and not same_patient:
            one.report(
                f"The image is a copy of case {first.name!r}, voxel by voxel: in different folds, validation "
                "would meet what training has seen.",
                "Take one of them out, or give both the same patient in a CSV manifest.",
            )


def _find_unusual_spacings(inspected: Sequence[CaseInspection]) -> None:
    spacings = [one.spacing_mm for one in inspected if one.spacing_mm is not None]
    if not spacings:
        return
    median = np.median(spacings, axis=0)
    for one in inspected:
        if one.spacing_mm is None:
            continue
        ratio = np.maximum(one.spacing_mm / median, median / one.spacing_mm)
        if ratio.max() > SPACING_RATIO:
            one.warn(
                f"The spacing is {_in_mm(one.spacing_mm)}, {ratio.max():.3g} times off the dataset's median "
                f"{_in_mm(median)}.",
                "Correct the header if its unit is not mm; otherwise expect poor results in this case.",
            )


def _check_whole(dataset: Dataset, inspected: Sequence[CaseInspection]) -> list[Problem]:
    if not dataset.labelled_cases:
        message = f"None of the {len(dataset.cases)} cases has a label map."
        return [
            Problem(
                "", message, "Such a dataset can be segmented; list label maps to train on it.", "warning"
            )
        ]
    present = frozenset().union(*(one.classes for one in inspected))
    absent = [
        f"{name!r} (value{'s' * (len(values) > 1)} {', '.join(map(str, values))})"
        for name, values in dataset.structures.label_values.items()
        if present.isdisjoint(dataset.targets.structures[name])
    ]
    if not absent:
        return []
    message = f"No label map holds {', '.join(absent)}."
    return [
        Problem(
            "", message, "A class that never occurs cannot be learned; correct the description.", "warning"
        )
    ]


def _check_sites(dataset: Dataset, inspected: Sequence[CaseInspection]) -> list[Problem]:
    """Warns of structures that only some sites have, among the cases whose label map can be read."""
    labelled = [one for one in inspected if one.classes]
    presence = {
        name: [not one.classes.isdisjoint(classes) for one in labelled]
        for name, classes in dataset.targets.structures.items()
    }
    return find_confounding([one.case.site for one in labelled], presence)


def _check_modalities(dataset: Dataset, inspected: Sequence[CaseInspection]) -> list[Problem]:
    """Warns where channels taken as MRI look like CT, which would be normalized as what it is not."""
    least = [one.minima for one in inspected if one.minima]
    taken = dataset.modalities
    lowest = [float(value) for value in np.min(least, axis=0)] if least else []
    low = [n for n, value in enumerate(lowest) if taken[n] == "mri" and value <= HOUNSFIELD_AIR]
    if not low:
        return []
    told = " and ".join(f"channel {n} goes down to {lowest[n]:g}" for n in low)
    fitting = ",".join("ct" if n in low else name for n, name in enumerate(taken))
    message = f"What is taken as MRI looks like Hounsfield units: {told}."
    remedy = (
        f"If it is CT, train with dataset.modalities=[{fitting}] and check with --modalities {fitting}, or "
        "call the channel CT in the dataset's description."
    )
    return [Problem("", message, remedy, "warning")]


def _in_mm(spacing_mm: Sequence[float] | np.ndarray) -> str:
    return " × ".join(f"{length:.4g}" for length in spacing_mm) + " mm"
