"""Prepared cases on disk: preprocessed once, then read as memory maps, patch by patch.

    FOLDER/<case>-<key>/image.npy        (C, X, Y, Z) float32
                        label_map.npy    (X, Y, Z) uint8 or uint16
                        foreground.npy   (4, N) int32, see `sample_foreground`
                        case.json        written last: voxel size, and the size of each file

The key is a digest of what the files contain and of every option, so a changed file or option has
another folder and never finds an old one. A folder gets its name when it is complete, by one rename;
what a killed run leaves begins with a dot and is never looked at. The cache may be deleted at any time.
"""

import errno
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset, read_labelled_case
from medseg_brn.cases.preprocessing import Preprocessing, prepare_images, prepare_label_map
from medseg_brn.errors import DataError

# Raised whenever the same files and options would be prepared differently than before.
FORMAT = 1
FOREGROUND_VOXELS = 10_000
FILES = ("image.npy", "label_map.npy", "foreground.npy")


@dataclass(frozen=True)
class PreparedCase:
    """Where one prepared case lies: paths only, so it travels between processes at no cost."""

    name: str
    image_path: Path
    label_path: Path
    foreground_path: Path
    spacing_mm: tuple[float, float, float]
    site: str | None = None

    def image(self) -> np.ndarray:
        """Returns (C, X, Y, Z) float32, memory-mapped: indexing reads the indexed part alone."""
        return _open(self.image_path)

    def label_map(self) -> np.ndarray:
        """Returns (X, Y, Z) classes, the one to be ignored among them; uint8 or uint16, memory-mapped."""
        return _open(self.label_path)

    def foreground(self) -> dict[int, np.ndarray]:
        """Returns for each foreground class that is present voxels (n, 3) int32 of that class.

        All of its voxels, or 10 000 drawn evenly where there are more; memory-mapped.
        """
        rows = _open(self.foreground_path)  # row 0: class, ascending; rows 1 to 3: x, y, z
        classes = np.arange(1, 1 + (int(rows[0, -1]) if rows.size else 0))
        starts = np.searchsorted(rows[0], classes, side="left").tolist()
        stops = np.searchsorted(rows[0], classes, side="right").tolist()
        return {
            value: rows[1:, start:stop].T
            for value, start, stop in zip(classes.tolist(), starts, stops, strict=True)
            if stop > start
        }

    def annotated_background(self) -> np.ndarray:
        """Returns voxels (n, 3) int32 of background where the dataset has a label for voxels to be ignored.

        All of them, or 10 000 drawn evenly where there are more; memory-mapped. None at all where the dataset
        has no such label, and background may be taken from anywhere.
        """
        rows = _open(self.foreground_path)
        return rows[1:, : int(np.searchsorted(rows[0], 0, side="right"))].T


def prepare_cases(
    cases: Sequence[Case],
    dataset: Dataset,
    preprocessing: Preprocessing,
    folder: Path,
    on_case: Callable[[Case], object] | None = None,
    jobs: int = 1,
) -> list[PreparedCase]:
    """Returns the cases prepared, in their order; what the folder holds already is taken from there.

    Args:
        cases: Cases with label maps.
        dataset: What their label values mean.
        preprocessing: What to do with them.
        folder: Where prepared cases are kept; made when absent.
        on_case: Called with each case when it is ready, in order, in this process.
        jobs: Processes; -1 is one per core.

    Raises:
        DataError: A case cannot be read or prepared, or the disk is full. Finished cases stay.
    """
    work = [delayed(prepare_case)(case, dataset, preprocessing, folder) for case in cases]
    prepared = []
    for case, ready in zip(cases, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True):
        prepared.append(ready)
        if on_case is not None:
            on_case(case)
    return prepared


def prepare_case(case: Case, dataset: Dataset, preprocessing: Preprocessing, folder: Path) -> PreparedCase:
    """Returns one case prepared, as `prepare_cases` does.

    Two processes may prepare the same case at the same time: the first to finish is kept.
    """
    key = _compute_key(case, dataset, preprocessing)
    entry = Path(folder) / f"{case.name}-{key[:16]}"
    prepared = _read_entry(entry, case.name)
    if prepared is None:
        _make_entry(entry, case, dataset, preprocessing)
        prepared = _read_entry(entry, case.name)
    if prepared is None:
        raise DataError(f"Prepared case {entry} was damaged while it was written; delete it and run again.")
    return replace(prepared, site=case.site)


def sample_foreground(label_map: np.ndarray, ignore_class: int | None = None) -> np.ndarray:
    """Returns voxels of every foreground class, at most 10 000 of each; equal maps give equal voxels.

    Args:
        label_map: (X, Y, Z) classes.
        ignore_class: class of voxels that nobody annotated, which is left out, and above all others. Where
            there is one, annotated background is drawn too, as class 0.

    Returns:
        (4, N) int32: rows class, x, y, z; the classes ascend.
    """
    flat = label_map.ravel()
    columns = [np.empty((4, 0), dtype=np.int32)]
    first, last = (1, int(flat.max())) if ignore_class is None else (0, ignore_class - 1)
    for value in range(first, last + 1):
        positions = np.flatnonzero(flat == value)
        if len(positions) > FOREGROUND_VOXELS:
            drawn = np.random.default_rng(value).choice(len(positions), FOREGROUND_VOXELS, replace=False)
            positions = positions[np.sort(drawn)]
        voxels = np.unravel_index(positions, label_map.shape)
        columns.append(np.stack([np.full(len(positions), value), *voxels]).astype(np.int32))
    return np.concatenate(columns, axis=1)


def _make_entry(entry: Path, case: Case, dataset: Dataset, preprocessing: Preprocessing) -> None:
    """Prepares the case beside its place and give it its name when all of it is there."""
    temporary = entry.with_name(f".{uuid.uuid4().hex[:12]}-{entry.name}")
    try:
        channels, label_map = read_labelled_case(case, dataset)
        images = prepare_images(channels, preprocessing, case.name)
        classes = prepare_label_map(label_map, images.record, case.name)
        temporary.mkdir(parents=True)
        foreground = sample_foreground(classes, dataset.targets.ignore_class)
        for name, array in zip(FILES, (images.array, classes, foreground), strict=True):
            np.save(temporary / name, array)
        sizes = {name: (temporary / name).stat().st_size for name in FILES}
        description = {"spacing_mm": images.spacing_mm, "sizes": sizes}
        (temporary / "case.json").write_text(json.dumps(description), encoding="utf-8")
        _publish(temporary, entry)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"Cannot write {entry}: the disk is full; free some space.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, entry: Path) -> None:
    """Renames the finished folder; a folder of that name that is complete stays, a damaged one goes."""
    if entry.exists() and _read_entry(entry, "") is None:
        shutil.rmtree(entry)
    try:
        temporary.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _read_entry(entry: Path, name: str) -> PreparedCase | None:
    """Returns the prepared case in a folder, or None where it is absent or not as it was written."""
    try:
        description = json.loads((entry / "case.json").read_text(encoding="utf-8"))
        if any((entry / file).stat().st_size != description["sizes"][file] for file in FILES):
            return None
        x, y, z = description["spacing_mm"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    image, label_map, foreground = (entry / file for file in FILES)
    return PreparedCase(name, image, label_map, foreground, (x, y, z))


def _compute_key(case: Case, dataset: Dataset, preprocessing: Preprocessing) -> str:
    """Returns a digest of all that the prepared case depends on. Names and places are not among it."""
    if case.label_path is None:
        raise DataError(f"Case '{case.name}' has no label map; leave it out of training, or add the file.")
    content = {
        "format": FORMAT,
        "images": [_digest(path) for path in case.image_paths],
        "label_map": _digest(case.label_path),
        "label_values": [int(value) for value in dataset.label_values],
        "preprocessing": preprocessing.as_dict(),
    }
    if dataset.ignore_value is not None:
        content["ignore_value"] = dataset.ignore_value
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> list[str]:
    """Returns the SHA-256 of each file that belongs to a volume."""
    digests = []
    try:
        for part in _parts(path):
            with part.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the path.") from error
    return digests


def _parts(path: Path) -> Iterator[Path]:
    """Yields the files of a volume: those of a DICOM folder, an MHD header and its data, or the one file."""
    if path.is_dir():
        yield from sorted(part for part in path.rglob("*") if part.is_file())
        return
    yield path
    if path.suffix.lower() == ".mhd":
        named = re.search(r"^ElementDataFile\s*=\s*(\S.*?)\s*$", path.read_text("latin-1"), re.MULTILINE)
        data = path.parent / named[1] if named else path.parent
        # Data may also be in the header's own file, or in one file per slice named after a pattern.
        neighbours = (part for part in path.parent.iterdir() if part.name.startswith(path.stem))
        yield from [data] if data.is_file() else sorted(neighbours)


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"Prepared case {path} cannot be read: {error}; run again.") from error
