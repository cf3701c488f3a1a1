"""What a dataset looks like in numbers: voxel sizes, shapes, foreground intensities, class sizes, sites."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset, read_labelled_case
from medseg_brn.cases.spatial import find_crop
from medseg_brn.errors import DataError
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.volume import Volume

# Enough for the percentiles of a case, and little enough to hold a thousand cases.
SAMPLED_VOXELS = 10_000
HISTOGRAM_BINS = 64
# Percentiles that are told of sizes.
PERCENTILES = (0, 10, 25, 50, 75, 90, 100)

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Histogram:
    """Numbers of voxels in 64 equal bins from `low` to `high`, percentiles 0.5 and 99.5 of the values."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel in the foreground, over the voxels drawn from all cases.

    Attributes:
        histogram: of the intensities as they are stored; None where it was not made.
        zscores: of (value - mean) / std, both of the whole scan that the voxel comes from.
    """

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    minimum: float
    maximum: float
    histogram: Histogram | None = None
    zscores: Histogram | None = None


@dataclass(frozen=True)
class CaseFacts:
    """One case in numbers; axes are canonical.

    Attributes:
        class_voxels: number of voxels of each class of the label map, background first.
        zero_fraction: share of voxels that are exactly 0 in all channels.
        means: mean of each channel over the whole scan.
        stds: standard deviation of each channel over the whole scan.
        content_shape: voxels of the box that a crop would keep: about the body for CT, about all that is not
            0 for other scans; None where it was not looked for.
    """

    name: str
    site: str | None
    spacing_mm: Triple
    shape: Shape
    class_voxels: tuple[int, ...]
    zero_fraction: float
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()
    content_shape: Shape | None = None

    @property
    def extent_mm(self) -> Triple:
        """Physical size."""
        x, y, z = (size * step for size, step in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def class_volumes_ml(self) -> tuple[float, ...]:
        """Volume of each class."""
        return tuple(voxels * math.prod(self.spacing_mm) / 1000 for voxels in self.class_voxels)

    @property
    def content_fraction(self) -> float:
        """Share of the scan that a crop would keep; 1 where it was not looked for."""
        return math.prod(self.content_shape or self.shape) / math.prod(self.shape)

    def shape_at(self, spacing_mm: Sequence[float], *, cropped: bool = False) -> Shape:
        """Shape of the case, or of what a crop keeps, in voxels of `spacing_mm`."""
        own = (self.content_shape or self.shape) if cropped else self.shape
        sizes = (
            max(1, round(size * step / target))
            for size, step, target in zip(own, self.spacing_mm, spacing_mm, strict=True)
        )
        x, y, z = sizes
        return x, y, z


@dataclass(frozen=True)
class Fingerprint:
    """What preprocessing and planning need to know of the training cases.

    Attributes:
        spacing_mm: median voxel size along the canonical axes.
        shape: median number of voxels along the canonical axes.
        channels: foreground intensities of each channel.
        class_voxels: class name -> number of voxels over all cases, background first.
        cases: each case, ordered by name.
    """

    num_cases: int
    spacing_mm: Triple
    shape: Shape
    channels: tuple[ChannelStatistics, ...]
    class_voxels: dict[str, int]
    cases: tuple[CaseFacts, ...] = ()

    @property
    def anisotropy(self) -> float:
        """Longest over shortest edge of the median voxel."""
        return max(self.spacing_mm) / min(self.spacing_mm)

    @property
    def class_cases(self) -> dict[str, int]:
        """Class name -> number of cases that have it."""
        return {
            name: sum(case.class_voxels[index] > 0 for case in self.cases)
            for index, name in enumerate(self.class_voxels)
        }

    @property
    def sites(self) -> dict[str, int]:
        """Site -> number of cases, where cases name their sites."""
        return dict(sorted(Counter(case.site for case in self.cases if case.site is not None).items()))

    def percentile_spacing_mm(self, percentile: float) -> Triple:
        """Percentile (0 to 100) of the cases' voxel sizes, per axis."""
        x, y, z = (
            np.percentile([case.spacing_mm for case in self.cases], percentile, axis=0).round(6).tolist()
        )
        return x, y, z

    def shapes_at(self, spacing_mm: Sequence[float], *, cropped: bool = False) -> list[Shape]:
        """Shape of each case in voxels of `spacing_mm`."""
        return [case.shape_at(spacing_mm, cropped=cropped) for case in self.cases]

    def class_volumes_ml(self, name: str) -> list[float]:
        """Volumes of a class in the cases that have it."""
        index = list(self.class_voxels).index(name)
        return [case.class_volumes_ml[index] for case in self.cases if case.class_voxels[index]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fingerprint in plain JSON types, with what follows from it."""
        volumes = {name: self.class_volumes_ml(name) for name in self.class_voxels}
        return asdict(self) | {
            "anisotropy": self.anisotropy,
            "class_cases": self.class_cases,
            "class_volumes_ml": {name: _tell_percentiles(values) for name, values in volumes.items()},
            "sites": self.sites,
            "spacing_percentiles_mm": _tell_percentiles([case.spacing_mm for case in self.cases]),
            "shape_percentiles": _tell_percentiles([case.shape for case in self.cases]),
            "extent_percentiles_mm": _tell_percentiles([case.extent_mm for case in self.cases]),
            "content_fraction": _tell_percentiles([case.content_fraction for case in self.cases]),
            "zero_fraction": _tell_percentiles([case.zero_fraction for case in self.cases]),
        }


def compute_fingerprint(
    dataset: Dataset,
    cases: Sequence[Case],
    on_case: Callable[[Case], object] | None = None,
    *,
    contents: bool = False,
    jobs: int = 1,
) -> Fingerprint:
    """Returns the fingerprint of `cases`, reading each once.

    From each case at most `SAMPLED_VOXELS` foreground voxels are drawn, the same ones whenever the case is
    measured, so that large structures of few patients do not outweigh the others. Voxels that nobody
    annotated are no foreground, and of no class.

    Args:
        dataset: what the cases belong to.
        cases: labelled cases; those of the training folds alone, or validation leaks into preprocessing.
        on_case: called with each case when it is done, in order, in this process.
        contents: also find what a crop would keep of each scan; in large CT scans that takes seconds.
        jobs: processes; -1 is one per core.

    Raises:
        DataError: a case cannot be read, or none of them has any foreground.
    """
    work = (delayed(_measure_case)(case, dataset, contents) for case in cases)
    facts, samples = [], []
    for case, (measured, sample) in zip(
        cases, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True
    ):
        facts.append(measured)
        samples.append(sample)
        if on_case is not None:
            on_case(case)
    if not sum(sample.shape[1] for sample in samples):
        raise DataError(
            f"None of the {len(cases)} cases of {dataset.name!r} has a foreground voxel, so there is nothing "
            f"to learn; see that the label maps hold the values {dataset.label_values[1:]}."
        )
    size_x, size_y, size_z = np.median([case.shape for case in facts], axis=0).round().astype(int).tolist()
    class_voxels = np.array([case.class_voxels for case in facts]).sum(axis=0)
    return Fingerprint(
        num_cases=len(cases),
        spacing_mm=compute_median_spacing_mm([case.spacing_mm for case in facts]),
        shape=(size_x, size_y, size_z),
        channels=tuple(
            _describe_channel(*channel)
            for channel in zip(np.concatenate(samples, axis=1), _as_zscores(samples, facts), strict=True)
        ),
        class_voxels=dict(zip(dataset.class_names, class_voxels.tolist(), strict=True)),
        cases=tuple(sorted(facts, key=lambda case: case.name)),
    )


def compute_median_spacing_mm(spacings_mm: Sequence[Triple]) -> Triple:
    """Median voxel size per axis, in whole millionths of a mm."""
    x, y, z = np.median(spacings_mm, axis=0).round(6).tolist()
    return x, y, z


def _measure_case(case: Case, dataset: Dataset, contents: bool) -> tuple[CaseFacts, np.ndarray]:
    """Returns a case's facts, and intensities (C, n) of n <= SAMPLED_VOXELS foreground voxels."""
    images, label_map = read_labelled_case(case, dataset)
    images, label_map = [canonicalize(image) for image in images], canonicalize(label_map)
    counts = np.bincount(label_map.array.ravel(), minlength=dataset.num_classes)[: dataset.num_classes]
    content_shape = None
    arrays = [image.array for image in images]
    if contents:
        lower, upper = find_crop(arrays, "body" if dataset.modalities[0] == "ct" else "nonzero")
        x, y, z = (stop - start for start, stop in zip(lower, upper, strict=True))
        content_shape = (x, y, z)
    facts = CaseFacts(
        name=case.name,
        site=case.site,
        spacing_mm=label_map.spacing_mm,
        shape=label_map.shape,
        class_voxels=tuple(counts.tolist()),
        zero_fraction=1 - _count_filled(arrays) / label_map.array.size,
        means=tuple(float(array.mean(dtype=np.float64)) for array in arrays),
        stds=tuple(float(array.std(dtype=np.float64)) for array in arrays),
        content_shape=content_shape,
    )
    return facts, _sample_foreground(case.name, images, label_map.array, dataset.targets.ignore_class)


def _count_filled(arrays: Sequence[np.ndarray]) -> int:
    """Returns the number of voxels that are not 0 in any channel, plane by plane."""
    if len(arrays) == 1:
        return int(np.count_nonzero(arrays[0]))
    planes = zip(*arrays, strict=True)
    return sum(int(np.count_nonzero(np.logical_or.reduce([p != 0 for p in channels]))) for channels in planes)


def _sample_foreground(
    name: str, images: Sequence[Volume], label_map: np.ndarray, ignore_class: int | None
) -> np.ndarray:
    """Returns intensities (C, n) of n <= SAMPLED_VOXELS foreground voxels; the case's name is the seed."""
    foreground = np.flatnonzero(label_map)
    if ignore_class is not None:
        foreground = foreground[label_map.ravel()[foreground] != ignore_class]
    if len(foreground) > SAMPLED_VOXELS:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        foreground = foreground[rng.choice(len(foreground), SAMPLED_VOXELS, replace=False, shuffle=False)]
    voxels = np.unravel_index(foreground, label_map.shape)
    return np.stack([image.array[voxels].astype(np.float32) for image in images])


def _as_zscores(samples: Sequence[np.ndarray], facts: Sequence[CaseFacts]) -> np.ndarray:
    """Returns the drawn voxels (C, n) in standard deviations of their scans from their scans' means."""
    scaled = []
    for sample, case in zip(samples, facts, strict=True):
        means, stds = np.array(case.means)[:, None], np.array(case.stds)[:, None]
        scaled.append((sample - means) / np.where(stds > 0, stds, 1))
    return np.concatenate(scaled, axis=1)


def _describe_channel(intensities: np.ndarray, zscores: np.ndarray) -> ChannelStatistics:
    low, high = np.percentile(intensities, (0.5, 99.5))
    return ChannelStatistics(
        mean=float(intensities.mean(dtype=np.float64)),
        std=float(intensities.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
        minimum=float(intensities.min()),
        maximum=float(intensities.max()),
        histogram=_make_histogram(intensities),
        zscores=_make_histogram(zscores),
    )


def _make_histogram(values: np.ndarray) -> Histogram:
    low, high = np.percentile(values, (0.5, 99.5)).tolist()
    high = max(high, low + 1e-3 * max(1.0, abs(low)))  # bins need a width, also where all values are one
    counts, _ = np.histogram(values, HISTOGRAM_BINS, (low, high))
    return Histogram(low, high, tuple(counts.tolist()))


def _tell_percentiles(values: Sequence[Any]) -> dict[str, Any] | None:
    """Returns percentile -> value (per axis) of numbers or triples; None where there are none."""
    if not len(values):
        return None
    found = np.percentile(np.asarray(values, float), PERCENTILES, axis=0).round(6).tolist()
    return {f"{percentile}": value for percentile, value in zip(PERCENTILES, found, strict=True)}
