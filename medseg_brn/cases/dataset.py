"""A dataset: its cases, classes and channels, whatever the layout of its files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.cases.case import Case, Listing, Problem
from medseg_brn.cases.description import modality_of
from medseg_brn.cases.intensity import find_not_finite
from medseg_brn.cases.label_description import Labels, Structures
from medseg_brn.cases.labels import find_values, map_to_classes
from medseg_brn.cases.layouts import Layout, list_dataset
from medseg_brn.cases.targets import Region, Targets
from medseg_brn.config import Modality
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import read_channels, read_volume
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.volume import Volume

__all__ = [
    "Case",
    "Dataset",
    "Layout",
    "Problem",
    "read_dataset",
    "read_images",
    "read_label_map",
    "read_labelled_case",
]

# Where nothing describes the channels, so many cases are asked, lest a single 4D file among them decides.
CASES_ASKED = 5


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before its images are read.

    Attributes:
        root: the folder it lies in; nothing is ever written there.
        class_names: the name of each class, background first.
        label_values: the value of each class in the label maps; 0 for the background.
        modalities: "mri" or "ct" for each channel.
        problems: where the description and the files disagree.
        regions: structures of several classes that are learnt instead of the classes; empty for none.
        ignore_value: value in the label maps of the voxels that nobody annotated, or None.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    modalities: tuple[Modality, ...]
    licence: str | None = None
    problems: tuple[Problem, ...] = ()
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None

    @property
    def labels(self) -> Labels:
        """What the values in the label maps mean."""
        return Labels(self.class_names, self.label_values, self.regions, self.ignore_value)

    @property
    def targets(self) -> Targets:
        """What a network learns from the label maps."""
        return self.labels.targets

    @property
    def structures(self) -> Structures:
        """What is evaluated, as sets of label values."""
        return self.labels.structures

    @property
    def num_classes(self) -> int:
        """Number of classes, the background among them."""
        return len(self.class_names)

    @property
    def labelled_cases(self) -> tuple[Case, ...]:
        """The cases that have a label map: those that can be trained or validated on."""
        return tuple(case for case in self.cases if case.label_path is not None)


def read_dataset(
    path: str | Path, layout: Layout = "auto", modalities: Sequence[str] | None = None
) -> Dataset:
    """Returns the dataset at `path`, in any of the layouts, untouched and unrenamed.

    Where nothing describes the labels (a CSV manifest by itself), every label map is read and the classes
    are the values found, named "class_<value>".

    Args:
        path: the dataset's folder, its `dataset.json`, or a CSV manifest.
        layout: "decathlon", "nnunet", "csv", or "auto", which looks at what is there.
        modalities: "mri" or "ct" per channel; None takes the description's channel names: "ct" where one
            says CT, else "mri".

    Raises:
        DataError: no dataset is there, its description cannot be read, or `modalities` does not fit it.
    """
    listing = list_dataset(path, layout)
    labels = _find_labels(listing.cases) if listing.labels is None else listing.labels
    return Dataset(
        name=listing.name,
        root=listing.root,
        cases=listing.cases,
        class_names=labels.class_names,
        label_values=labels.label_values,
        modalities=_choose_modalities(listing, modalities),
        licence=listing.licence,
        problems=listing.problems,
        regions=labels.regions,
        ignore_value=labels.ignore_value,
    )


def read_images(case: Case, scratch: Scratch | None = None) -> list[Volume]:
    """Returns one volume per channel, all on one grid.

    Args:
        case: its images.
        scratch: where large arrays go; in memory by default.

    Raises:
        DataError: a file cannot be read, a voxel is NaN or infinite, or two channels lie on different grids.
    """
    channels = [(path, volume) for path in case.image_paths for volume in read_channels(path, scratch)]
    first_path, first = channels[0]
    for path, volume in channels:
        if find_not_finite(volume.array) is not None:
            raise DataError(
                f"Case {case.name!r}: {path} has NaN or infinite voxels; replace them, by 0 for example."
            )
        difference = first.grid.describe_difference(volume.grid)
        if difference:
            raise DataError(
                f"Case {case.name!r}: the channels {first_path.name} and {path.name} lie on different grids: "
                f"{difference}; resample one onto the other's grid."
            )
    return [volume for _, volume in channels]


def read_label_map(case: Case, dataset: Dataset) -> Volume:
    """Returns the case's label map with its values replaced by the classes 0, 1, 2 … (uint8 or uint16).

    Ignored voxels have the class `dataset.targets.ignore_class`, one above all others.

    Raises:
        DataError: there is none, it cannot be read, or it holds values that are no integers or that the
            dataset does not describe.
    """
    if case.label_path is None:
        raise DataError(f"Case {case.name!r} has no label map; training and evaluation need one.")
    volume = read_volume(case.label_path)
    return Volume(map_to_classes(volume.array, dataset.labels.known_values, case.label_path), volume.grid)


def read_labelled_case(case: Case, dataset: Dataset) -> tuple[list[Volume], Volume]:
    """Returns the case's channels and its label map in classes, all on one grid.

    Raises:
        DataError: as `read_images` and `read_label_map`, or the label map lies on another grid or the
            number of channels is not the dataset's.
    """
    images, label_map = read_images(case), read_label_map(case, dataset)
    if len(images) != len(dataset.modalities):
        raise DataError(
            f"Case {case.name!r} has {len(images)} channels, but the dataset {len(dataset.modalities)}; "
            "every case has the same channels."
        )
    difference = images[0].grid.describe_difference(label_map.grid)
    if difference:
        raise DataError(
            f"Case {case.name!r}: image and label map lie on different grids: {difference}; "
            "resample the label map onto the image's grid with nearest-neighbour interpolation."
        )
    return images, label_map


def _find_labels(cases: Sequence[Case]) -> Labels:
    """Returns the values of all label maps that can be read, as "class_<value>"; `check` tells the others."""
    found = {0}
    for case in cases:
        try:
            if case.label_path is not None:
                found.update(find_values(read_volume(case.label_path).array, case.label_path)[0].tolist())
        except DataError:
            continue
    values = sorted(found - {0})
    return Labels(("background", *(f"class_{value}" for value in values)), (0, *values))


def _choose_modalities(listing: Listing, given: Sequence[str] | None) -> tuple[Modality, ...]:
    described = listing.channel_names or ("MRI",) * _count_channels(listing.cases)
    if given is None:
        return tuple(modality_of(name) for name in described)
    chosen: tuple[Modality, ...] = tuple("ct" if name == "ct" else "mri" for name in given)
    if len(given) != len(described) or tuple(given) != chosen:
        raise DataError(
            f"Modalities {tuple(given)} do not fit dataset {listing.name!r}, which has {len(described)} "
            f"channels ({', '.join(described)}); give one of 'mri' and 'ct' for each."
        )
    return chosen


def _count_channels(cases: Sequence[Case]) -> int:
    """Returns the number of files per case; where that is one, how many channels most of the first have."""
    counts = Counter(len(case.image_paths) for case in cases)
    if counts.most_common(1)[0][0] > 1:
        return counts.most_common(1)[0][0]
    counts = Counter()
    for case in cases:
        try:
            counts[len(read_channels(case.image_paths[0]))] += 1
        except DataError:
            continue
        if counts.total() == CASES_ASKED:
            break
    return counts.most_common(1)[0][0] if counts else 1
