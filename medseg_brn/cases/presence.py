"""What each label map holds and how large its voxels are: known before the cases are split into folds.

Every label map is read once. What was found is kept in a JSON file, and found again there as long as the
label map's size and time of change are the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from medseg_brn.cases.case import Case
from medseg_brn.cases.labels import find_values
from medseg_brn.errors import DataError
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.geometry import canonicalize
from medseg_brn.volumes.reading import read_volume


@dataclass(frozen=True)
class LabelMapFacts:
    """What is known of a case by its label map.

    Attributes:
        values: in the file, ascending; 0 among them where there is background.
        spacing_mm: voxel size along the canonical axes.
    """

    values: tuple[int, ...]
    spacing_mm: tuple[float, float, float]


def survey_label_maps(
    cases: Sequence[Case],
    path: Path,
    on_case: Callable[[int, int], object] = lambda *_: None,
    jobs: int = 1,
) -> dict[str, LabelMapFacts]:
    """Returns what each case's label map holds, by the name of the case.

    Args:
        cases: with label maps.
        path: JSON file in which what was found is kept.
        on_case: called with (done, total) after each label map that is read.
        jobs: processes; -1 is one per core.

    Raises:
        DataError: a case has no label map, or it cannot be read or holds values that are no integers.
    """
    kept = _read_kept(path)
    stamps = {case.name: _stamp(case) for case in cases}
    found = {name: facts for name, stamp in stamps.items() if (facts := _recall(kept.get(name), stamp))}
    missing = [case for case in cases if case.name not in found]
    work = (delayed(_read_facts)(case) for case in missing)
    for number, (case, facts) in enumerate(
        zip(missing, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True), 1
    ):
        found[case.name] = facts
        on_case(number, len(missing))
    if missing:
        rows = {
            name: {"file": stamps[name], "values": facts.values, "spacing_mm": facts.spacing_mm}
            for name, facts in sorted(found.items())
        }
        write_text_atomic(path, json.dumps(rows, indent=1) + "\n")
    return found


def _read_facts(case: Case) -> LabelMapFacts:
    assert case.label_path is not None
    volume = read_volume(case.label_path)
    values, _ = find_values(volume.array, case.label_path)
    return LabelMapFacts(tuple(values.tolist()), canonicalize(volume).spacing_mm)


def _stamp(case: Case) -> list[Any]:
    """Returns path, bytes and time of change of the label map."""
    if case.label_path is None:
        raise DataError(f"Case {case.name!r} has no label map; leave it out of training, or add the file.")
    try:
        status = case.label_path.stat()
    except OSError as error:
        raise DataError(f"Cannot read {case.label_path}: {error.strerror}; check the path.") from error
    return [str(case.label_path), status.st_size, status.st_mtime_ns]


def _read_kept(path: Path) -> dict[str, Any]:
    """Returns what was kept; a damaged file is as good as none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _recall(row: Any, stamp: list[Any]) -> LabelMapFacts | None:
    try:
        x, y, z = map(float, row["spacing_mm"])
        return LabelMapFacts(tuple(map(int, row["values"])), (x, y, z)) if row["file"] == stamp else None
    except (KeyError, TypeError, ValueError):
        return None
