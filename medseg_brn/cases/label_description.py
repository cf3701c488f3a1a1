"""What is said of the values in label maps: classes, regions that may overlap, and what is to be ignored.

`dataset.json` describes them in one of two spellings; the second is nnU-Net's, which has regions too:

    {"labels": {"0": "background", "1": "liver", "2": "tumour"}}

    {"labels": {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": 3,
                "ignore": 4},
     "regions_class_order": [1, 2, 3]}

Each region is learnt by itself. Where a label map is written, the voxels of the regions get the values of
`regions_class_order`, one region after the other, so that later ones overwrite earlier ones.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from medseg_brn.cases.targets import Region, Targets
from medseg_brn.errors import DataError

INTEGER = re.compile(r"-?\d+", re.ASCII)
IGNORE = "ignore"


@dataclass(frozen=True)
class Structures:
    """What is evaluated and measured: sets of label values, which may overlap.

    Attributes:
        label_values: name -> the values in label maps that belong to it.
        ignore_value: of the voxels that nobody annotated, or None.
    """

    label_values: Mapping[str, tuple[int, ...]]
    ignore_value: int | None = None


@dataclass(frozen=True)
class RegionValues:
    """A region as a description has it, in values of label maps.

    Attributes:
        name: what it is called.
        label_values: that belong to it.
        written_value: what its voxels get in a label map, unless a later region covers them too.
    """

    name: str
    label_values: tuple[int, ...]
    written_value: int


@dataclass(frozen=True)
class Labels:
    """The values in label maps, and what they mean.

    Attributes:
        class_names: background first, the others by value.
        label_values: the value of each class in the label maps.
        regions: what is learnt instead of the classes, in the order in which they are written.
        ignore_value: of the voxels that nobody annotated, or None.
    """

    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None

    @property
    def known_values(self) -> tuple[int, ...]:
        """All that a reference may hold: value k is that of class k, the last one that of ignored voxels."""
        return self.label_values if self.ignore_value is None else (*self.label_values, self.ignore_value)

    @property
    def targets(self) -> Targets:
        """What a network learns from label maps whose values have become classes."""
        return Targets(
            self.class_names, self.regions, None if self.ignore_value is None else len(self.label_values)
        )

    @property
    def structures(self) -> Structures:
        """The regions, or the classes without the background, as sets of label values."""
        values = {
            name: tuple(self.label_values[index] for index in classes)
            for name, classes in self.targets.structures.items()
        }
        return Structures(values, self.ignore_value)

    @property
    def region_values(self) -> tuple[RegionValues, ...]:
        """The regions in label values, in the order in which they are written; none where there are none."""
        return tuple(
            RegionValues(
                region.name,
                tuple(self.label_values[index] for index in region.classes),
                self.label_values[region.written_class],
            )
            for region in self.regions
        )


def parse_labels(labels: object, place: str, regions_class_order: object = None) -> Labels:
    """Returns what the `labels` entry of a `dataset.json` says, in either spelling.

    A name with several values is a region; then the names with one value are regions too. The classes of such
    a dataset, which are all values that occur, are called as the region of that value alone, or "label 2".

    Args:
        labels: as JSON gave it.
        place: where it stands, for messages.
        regions_class_order: the entry of this name: for each region the value it is written with.

    Raises:
        DataError: it is not such a mapping, a name or value repeats, or the regions, their order or the
            ignore label are not what they must be.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(f'{place}: "labels" is {labels!r}; write {{"background": 0, "name": 1, …}}.')
    named = dict(_parse_label(str(key), value, place) for key, value in labels.items())
    if len(named) < len(labels):
        raise _repeats(labels, place)
    ignored = [name for name in named if name.lower() == IGNORE]
    ignore_value = _take_ignore_value({name: named.pop(name) for name in ignored}, named, place)
    background = [name for name, values in named.items() if values == (0,)] or [_name_background(named)]
    structures = {name: values for name, values in named.items() if values != (0,)}
    if len(background) > 1:
        raise _repeats(labels, place)
    if all(len(values) == 1 for values in structures.values()):
        classes = {value: name for name, (value,) in structures.items()}
        if len(classes) < len(structures):
            raise _repeats(labels, place)
        regions: tuple[Region, ...] = ()
    else:
        classes = _name_classes(structures)
        regions = _make_regions(structures, sorted(classes), regions_class_order, place)
    values = sorted(classes)
    names = (background[0], *(classes[value] for value in values))
    if len(set(names)) < len(names):
        raise _repeats(labels, place)
    return Labels(names, (0, *values), regions, ignore_value)


def _parse_label(key: str, value: object, place: str) -> tuple[str, tuple[int, ...]]:
    """Returns the name and the values of an entry."""
    if isinstance(value, str) and INTEGER.fullmatch(key):
        return value, (int(key),)
    values = [_parse_value(one) for one in (value if isinstance(value, list | tuple) else [value])]
    found = sorted({one for one in values if one is not None})
    if None in values or not found:
        raise DataError(
            f"{place}: label {key!r} has the value {value!r}; give each class one integer, and each region "
            "a list of integers."
        )
    if 0 in found and len(found) > 1:
        raise DataError(
            f"{place}: the region {key!r} of the values {found} includes 0, which is the background; leave "
            "it out."
        )
    return key, tuple(found)


def _parse_value(value: object) -> int | None:
    if isinstance(value, int | str) and not isinstance(value, bool) and INTEGER.fullmatch(str(value)):
        return int(value)
    return None


def _repeats(labels: Mapping[object, object], place: str) -> DataError:
    return DataError(f'{place}: "labels" {dict(labels)} repeats a name or a value; give each class its own.')


def _name_background(named: Mapping[str, object]) -> str:
    return "background" if "background" not in named else "background (0)"


def _take_ignore_value(
    ignored: Mapping[str, tuple[int, ...]], others: Mapping[str, tuple[int, ...]], place: str
) -> int | None:
    if not ignored:
        return None
    values = [value for own in ignored.values() for value in own]
    if len(values) > 1:
        raise DataError(
            f"{place}: the ignore label has the values {', '.join(map(str, values))}; give all voxels that "
            "are to be ignored one value."
        )
    shared = [name for name, own in others.items() if values[0] in own]
    if shared or values[0] == 0:
        raise DataError(
            f"{place}: the ignore label has the value {values[0]}, which is also that of "
            f"{shared[0] if shared else 'the background'!r}; give voxels that are to be ignored a value of "
            "their own."
        )
    return values[0]


# ---------------------------------------------------------------- regions


def _name_classes(structures: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Returns value -> name of the class of this value."""
    exact = {values[0]: name for name, values in structures.items() if len(values) == 1}
    return {value: exact.get(value, f"label {value}") for values in structures.values() for value in values}


def _make_regions(
    structures: Mapping[str, tuple[int, ...]], label_values: Sequence[int], order: object, place: str
) -> tuple[Region, ...]:
    written = _check_order(structures, order, place)
    problem = find_unreadable(
        [RegionValues(name, values, written[name]) for name, values in structures.items()]
    )
    if problem is not None:
        raise DataError(f"{place}: {problem}.")
    class_of = {value: index for index, value in enumerate(label_values, 1)}
    return tuple(
        Region(name, tuple(class_of[value] for value in values), class_of[written[name]])
        for name, values in structures.items()
    )


def find_unreadable(regions: Sequence[RegionValues]) -> str | None:
    """Returns why regions, once they are written, could not be read back from the label map, or None.

    Two regions have the same values; a region is written after one that lies inside it, and overwrites it; or
    a region is written with a value of another one that does not contain it, as which it would be read.
    """
    for one, later in combinations(regions, 2):
        if set(one.label_values) == set(later.label_values):
            return (
                f"the regions {one.name!r} and {later.name!r} have the same values "
                f"{sorted(one.label_values)}; take one of them out"
            )
        if set(one.label_values) < set(later.label_values):
            return (
                f"the region {later.name!r} stands after {one.name!r}, which it contains, and so would "
                f"overwrite all of it with {later.written_value}; list {later.name!r} before {one.name!r}, "
                'in "regions_class_order" too'
            )
    for one, other in permutations(regions, 2):
        if one.written_value in other.label_values and not set(one.label_values) <= set(other.label_values):
            return (
                f"the region {one.name!r} is written as {one.written_value}, which belongs to {other.name!r} "
                f"{list(other.label_values)} too, so that all of {one.name!r} {list(one.label_values)} would "
                f"be read as {other.name!r}; write {one.name!r} with a value that {other.name!r} does not "
                "have"
            )
    return None


def _check_order(structures: Mapping[str, tuple[int, ...]], order: object, place: str) -> dict[str, int]:
    """Returns region -> the value that it is written with."""
    told = ", ".join(f"{name} {list(values)}" for name, values in structures.items())
    rule = (
        f'one value for each region in their order ({told}): "regions_class_order": '
        f"{_propose_order(structures)}."
    )
    if order is None:
        raise DataError(
            f'{place} describes regions and has no "regions_class_order", which says with what values they '
            f"are written; add {rule}"
        )
    written = [_parse_value(value) for value in order] if isinstance(order, list | tuple) else []
    if len(written) != len(structures):
        raise DataError(f'{place}: "regions_class_order" is {order!r}; write {rule}')
    for value, (name, values) in zip(written, structures.items(), strict=True):
        if value not in values:
            raise DataError(
                f'{place}: "regions_class_order" {order} writes the region {name!r} as {value}, which is '
                f"none of its values {list(values)}; write {rule}"
            )
    if len(set(written)) < len(written):
        raise DataError(
            f'{place}: "regions_class_order" {order} writes two regions with one value, so that a label map '
            f"could not tell them apart; write {rule}"
        )
    return dict(zip(structures, (value for value in written if value is not None), strict=True))


def _propose_order(structures: Mapping[str, tuple[int, ...]]) -> list[int]:
    """For each region a value that no later one has, as far as there is one."""
    regions = list(structures.values())
    proposed = []
    for number, values in enumerate(regions):
        later = {value for other in regions[number + 1 :] for value in other}
        proposed.append(next((value for value in values if value not in later), values[0]))
    return proposed
