"""The dataset layouts that are read as they are: Decathlon, nnU-Net raw, and a CSV manifest.

    Decathlon               nnU-Net raw                     CSV manifest
    dataset.json            dataset.json                    cohort.csv: case, image…, label, site, patient
    imagesTr/p01.nii.gz     imagesTr/p01_0000.nii.gz        (files wherever its rows say)
    labelsTr/p01.nii.gz     imagesTr/p01_0001.nii.gz
                            labelsTr/p01.nii.gz

`dataset.json` of the Decathlon lists its cases; nnU-Net's describes the channels and the folders list
the cases. Nothing is renamed or written, and test images (`imagesTs`) are not looked at.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from medseg_brn.cases.case import Case, Listing, Problem
from medseg_brn.cases.description import parse_description, read_json
from medseg_brn.cases.manifest import list_manifest
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import volume_stem

Layout = Literal["auto", "decathlon", "nnunet", "csv"]


def list_dataset(path: str | Path, layout: Layout = "auto") -> Listing:
    """Returns the cases that a dataset lists and what it says of their labels and channels.

    Args:
        path: the dataset's folder, its `dataset.json`, or a CSV manifest.
        layout: `auto` looks at what is there.

    Raises:
        DataError: there is no dataset, or its description cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no dataset at {path}; give its folder, or its CSV manifest.")
    if path.name == "dataset.json":
        path = path.parent
    if path.is_file() or layout == "csv":
        return list_manifest(_find_manifest(path))
    description = path / "dataset.json"
    if not description.is_file():
        if layout == "auto" and list(path.glob("*.csv")):
            return list_manifest(_find_manifest(path))
        raise DataError(
            f"{path} holds no dataset.json and no CSV manifest, so it is in none of the layouts that can be "
            "read: Decathlon, nnU-Net raw, or a CSV with the columns case, image and label."
        )
    content = read_json(description)
    if layout == "auto":
        layout = "decathlon" if "training" in content and "channel_names" not in content else "nnunet"
    return _list_decathlon(path, content) if layout == "decathlon" else _list_nnunet(path, content)


def _find_manifest(path: Path) -> Path:
    manifests = [path] if path.is_file() else sorted(path.glob("*.csv"))
    if len(manifests) != 1:
        raise DataError(
            f"{path} holds {len(manifests)} CSV files{': ' * bool(manifests)}"
            f"{', '.join(manifest.name for manifest in manifests)}; give the path of the manifest itself."
        )
    return manifests[0]


# ---------------------------------------------------------------- Decathlon


def _list_decathlon(folder: Path, content: Mapping[str, Any]) -> Listing:
    """The cases of the `training` list. nnU-Net v1's files, `_0000` per channel, are found as well."""
    place = folder / "dataset.json"
    entries = content.get("training")
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{place}: "training" lists no cases; the Decathlon layout lists them there.')
    cases = tuple(
        _decathlon_case(folder, entry, f'{place}, "training" entry {n}') for n, entry in enumerate(entries)
    )
    problems = [
        *_check_count(content, len(cases), "the training list holds"),
        *_report_left_out(folder / "imagesTr", [path for case in cases for path in case.image_paths]),
    ]
    return Listing(
        **parse_description(content, place, folder.name), root=folder, cases=cases, problems=tuple(problems)
    )


def _decathlon_case(folder: Path, entry: object, place: str) -> Case:
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(image, str) or not isinstance(label, str | None):
        raise DataError(
            f'{place} is {entry!r}; write {{"image": "./imagesTr/NAME", "label": "./labelsTr/NAME"}}.'
        )
    image_path = folder / image
    stem = volume_stem(image_path)
    paths = (image_path,) if image_path.exists() else _channel_files(image_path) or (image_path,)
    return Case(stem, paths, folder / label if label else None)


def _channel_files(image_path: Path) -> tuple[Path, ...]:
    """The files NAME_0000, NAME_0001, … that nnU-Net v1 keeps for an image listed as NAME."""
    stem, suffix = volume_stem(image_path), image_path.name[len(volume_stem(image_path)) :]
    numbered = (image_path.with_name(f"{stem}_{channel:04d}{suffix}") for channel in itertools.count())
    return tuple(itertools.takewhile(Path.exists, numbered))


# ---------------------------------------------------------------- nnU-Net raw


def _list_nnunet(folder: Path, content: Mapping[str, Any]) -> Listing:
    """The cases of `imagesTr`, or of the `dataset` entry where there is one."""
    place = folder / "dataset.json"
    described = parse_description(content, place, folder.name)
    if described["channel_names"] is None:
        raise DataError(f'{place} has no "channel_names"; the nnU-Net layout needs it: {{"0": "MRI"}}.')
    left_out: list[Problem] = []
    if "dataset" in content:
        cases = _explicit_cases(folder, content["dataset"], place)
    else:
        ending = str(content.get("file_ending", ".nii.gz"))
        cases, left_out = _folder_cases(folder, ending, len(described["channel_names"]))
    problems = (*left_out, *_check_count(content, len(cases), "there are"))
    return Listing(**described, root=folder, cases=tuple(cases), problems=problems)


def _explicit_cases(folder: Path, entries: object, place: Path) -> list[Case]:
    """The cases of nnU-Net's optional `"dataset": {name: {"images": [path…], "label": path}}`."""
    if not isinstance(entries, Mapping) or not entries:
        raise DataError(f'{place}: "dataset" lists no cases; take it out to use the files of imagesTr.')
    try:
        return [
            Case(name, tuple(folder / path for path in entry["images"]), folder / entry["label"])
            for name, entry in entries.items()
        ]
    except (KeyError, TypeError) as error:
        raise DataError(
            f'{place}: "dataset" has an entry that cannot be read ({error!r}); '
            'write {"NAME": {"images": [path, …], "label": path}}.'
        ) from None


def _folder_cases(folder: Path, ending: str, channels: int) -> tuple[list[Case], list[Problem]]:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    found = [match for path in _visible_files(images) if (match := pattern.fullmatch(path.name))]
    if not found:
        others = sorted({"".join(path.suffixes[-2:]) for path in _visible_files(images)})
        raise DataError(
            f"{images} holds no file named CASE_0000{ending} (endings found: {', '.join(others) or 'none'}); "
            'the nnU-Net layout names images so, with "file_ending" of dataset.json.'
        )
    names = sorted({match[1] for match in found})
    cases = [
        Case(
            name,
            tuple(images / f"{name}_{channel:04d}{ending}" for channel in range(channels)),
            labels / f"{name}{ending}" if labels.is_dir() else None,
        )
        for name in names
    ]
    problems = _report_left_out(images, [path for case in cases for path in case.image_paths])
    problems += _report_left_out(labels, [case.label_path for case in cases if case.label_path])
    return cases, problems


# ---------------------------------------------------------------- where description and folder disagree


def _visible_files(folder: Path) -> list[Path]:
    """The files of a folder without hidden ones, such as the `._name` files of archives made on a Mac."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _report_left_out(folder: Path, used: Iterable[Path]) -> list[Problem]:
    known = {path.name for path in used if path.parent.resolve() == folder.resolve()}
    left_out = [path.name for path in _visible_files(folder) if path.name not in known]
    if not left_out:
        return []
    told = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
    message = f"{folder.name} holds {len(left_out)} file(s) of no listed case: {told}."
    return [
        Problem("", message, "They are left out; list them in dataset.json, or move them away.", "warning")
    ]


def _check_count(content: Mapping[str, Any], cases: int, what: str) -> list[Problem]:
    announced = content.get("numTraining", cases)
    if str(announced) == str(cases):
        return []
    message = f"dataset.json says numTraining {announced}, but {what} {cases} cases."
    return [Problem("", message, "Look for missing files, or correct numTraining.", "warning")]
