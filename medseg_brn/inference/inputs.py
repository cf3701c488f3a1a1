"""Which files make a case, and where its label map goes."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.cases.manifest import is_manifest, list_manifest
from medseg_brn.errors import DataError
from medseg_brn.volumes.reading import VOLUME_SUFFIXES, is_volume_path, volume_stem
from medseg_brn.volumes.writing import WRITTEN_SUFFIXES

DEFAULT_SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class InputCase:
    """One scan to segment: its images and the file name of its label map."""

    name: str
    image_paths: tuple[Path, ...]
    """One per channel, or one for all."""
    output_name: str
    site: str | None = None
    """Where it was scanned, where a manifest says so."""


@dataclass(frozen=True)
class Job:
    """A scan to segment, and where its label map goes."""

    case: InputCase
    target: Path


@dataclass(frozen=True)
class Inputs:
    """What was found at the given places."""

    cases: tuple[InputCase, ...]
    passed_over: tuple[Path, ...]
    """Entries of the given folders that are no images."""


def find_inputs(paths: Sequence[Path | str], in_channels: int) -> Inputs:
    """Find the scans at the given places.

    A place is an image file, a folder with one DICOM series, a folder of such, or a CSV manifest, whose cases
    keep their names and are written as NIfTI. Files of one folder that end in `_0000`, `_0001` … (nnU-Net's
    layout), one per channel of the model, are one case.

    Raises:
        DataError: a place does not exist or holds no image, a manifest is not what it must be, or two cases
            would have the same output.
    """
    listed: list[InputCase] = []
    images: list[Path] = []
    passed_over: list[Path] = []
    for path in map(Path, paths):
        if is_manifest(path):
            listed += _list_cases(path)
            continue
        found, others = _list_images(path)
        images += found
        passed_over += others
    grouped = [_make_case(name, files) for name, files in _group_channels(images, in_channels)]
    cases = sorted(listed + grouped, key=lambda case: case.name)
    _check_unique(cases)
    return Inputs(tuple(cases), tuple(passed_over))


def plan_jobs(cases: Sequence[InputCase], output: Path) -> list[Job]:
    """Return each case with the place its label map goes to.

    Args:
        cases: from `find_inputs`.
        output: a folder; or, for a single case, a file if it ends in the suffix of a volume.

    Raises:
        DataError: a file is given for several cases, a file stands where a folder is to be, or an output
            would replace an input.
    """
    is_file = output.name.lower().endswith(VOLUME_SUFFIXES) and not output.is_dir()
    if is_file and len(cases) != 1:
        raise DataError(f"Output {output} is one file, but there are {len(cases)} cases; give a folder")
    if is_file and not output.name.lower().endswith(WRITTEN_SUFFIXES):
        raise DataError(f"Cannot write {output}: its name must end in one of {', '.join(WRITTEN_SUFFIXES)}")
    if output.is_file() and not is_file:
        raise DataError(f"Output {output} is a file that is there already; give a folder")
    targets = [output if is_file else output / case.output_name for case in cases]
    inputs = {path.resolve() for case in cases for path in case.image_paths}
    for target in targets:
        if target.resolve() in inputs:
            raise DataError(f"Output {target} would replace an input image; choose another folder for -o")
    return [Job(case, target) for case, target in zip(cases, targets, strict=True)]


def _list_cases(manifest: Path) -> list[InputCase]:
    cases = list_manifest(manifest).cases
    return [InputCase(case.name, case.image_paths, case.name + DEFAULT_SUFFIX, case.site) for case in cases]


def _list_images(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the images at a place, and the entries of a folder that are none."""
    if not path.exists():
        raise DataError(f"Input {path} does not exist; check the name and the folder")
    if path.is_file():
        if not path.name.lower().endswith(VOLUME_SUFFIXES):
            raise DataError(
                f"Input {path} is none of {', '.join(VOLUME_SUFFIXES)}, nor a CSV manifest; for DICOM give "
                "the series' folder"
            )
        return [path], []
    is_series = is_volume_path(path)
    entries = sorted(path.iterdir())
    images = [entry for entry in entries if is_volume_path(entry)]
    files = [entry for entry in images if entry.name.lower().endswith(VOLUME_SUFFIXES)]
    if is_series and files:
        raise DataError(f"Input {path} holds a DICOM series and {files[0].name} too; give the ones you mean")
    if is_series:
        return [path], []
    if not images:
        raise DataError(
            f"Input {path} holds no image ({', '.join(VOLUME_SUFFIXES)} or a folder with DICOM files)"
        )
    return images, [entry for entry in entries if entry not in set(images)]


def _group_channels(images: Iterable[Path], in_channels: int) -> list[tuple[str, list[Path]]]:
    """Return each case's name and files.

    The files name_0000 … of one folder are a case if they are just the model's channels. Otherwise the digits
    are part of a name, as in case_0001 … case_0099, and every file is a case.
    """
    groups: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    cases: list[tuple[str, list[Path]]] = []
    for path in images:
        numbered = re.fullmatch(r"(.+)_(\d{4})", volume_stem(path)) if path.is_file() else None
        if numbered is None:
            cases.append((volume_stem(path.resolve()) if path.is_dir() else volume_stem(path), [path]))
            continue
        channels = groups[path.parent, numbered[1]]
        number = int(numbered[2])
        if number in channels:  # a_0000.nii and a_0000.nrrd: told apart, and told, by their output names
            cases.append((volume_stem(path), [path]))
        else:
            channels[number] = path
    for (_, name), channels in groups.items():
        if set(channels) == set(range(in_channels)):
            cases.append((name, [channels[number] for number in range(in_channels)]))
        else:
            cases.extend((volume_stem(path), [path]) for path in channels.values())
    return sorted(cases)


def _make_case(name: str, files: list[Path]) -> InputCase:
    return InputCase(name, tuple(files), name + _output_suffix(files[0]))


def _output_suffix(image: Path) -> str:
    """Return the image's own suffix where it can be written."""
    suffix = "" if image.is_dir() else image.name[len(volume_stem(image)) :]
    if suffix.lower() == ".mhd":
        return ".mha"
    return suffix or DEFAULT_SUFFIX


def _check_unique(cases: Sequence[InputCase]) -> None:
    """Raise DataError where two cases would write the same file (some file systems do not know a from A)."""
    counts = Counter(case.name.casefold() for case in cases)
    for case in cases:
        if counts[case.name.casefold()] > 1:
            same = [other for other in cases if other.name.casefold() == case.name.casefold()]
            places = ", ".join(str(path) for other in same for path in other.image_paths)
            raise DataError(
                f"{len(same)} inputs would all write the outputs of case {case.name!r}: {places}; "
                "rename them, or segment them one after another into folders of their own"
            )
