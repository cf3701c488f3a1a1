"""What the folds' models say of the cases that they have not seen, brought together."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset
from medseg_brn.cross_validation.fold import Fold
from medseg_brn.errors import DataError
from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics
from medseg_brn.volumes.atomic import atomic_path


@dataclass(frozen=True)
class OutOfFoldCase:
    """A case, and what a model that has not seen it made of it.

    Attributes:
        case: of the dataset, with a label map.
        fold: the number of the fold that held it out.
        prediction: the predicted label map.
        evaluation: of the prediction.
        tolerance_mm: of the evaluation's surface Dice.
    """

    case: Case
    fold: int
    prediction: Path
    evaluation: CaseEvaluation
    tolerance_mm: float


def collect_cases(folds: Sequence[Fold], dataset: Dataset, folder: Path) -> list[OutOfFoldCase]:
    """Every case that one of the finished folds held out, ordered by name; label maps are put into `folder`.

    Raises:
        DataError: a fold's `validation.json` is damaged, or of cases that the dataset does not have.
    """
    cases = {case.name: case for case in dataset.labelled_cases}
    collected = []
    for fold in folds:
        assert fold.experiment.dataset.fold is not None
        found, tolerance_mm = read_evaluations(fold.folder / "validation.json")
        for evaluation in found:
            if evaluation.case not in cases:
                raise DataError(
                    f"{fold.folder} held out case {evaluation.case!r}, which dataset {dataset.name!r} no "
                    "longer has; restore it, or start again in another folder"
                )
            prediction = folder / f"{evaluation.case}.nii.gz"
            _link(fold.folder / evaluation.paths["prediction"], prediction)
            collected.append(
                OutOfFoldCase(
                    cases[evaluation.case], fold.experiment.dataset.fold, prediction, evaluation, tolerance_mm
                )
            )
    return sorted(collected, key=lambda found: found.case.name)


def read_evaluations(path: Path) -> tuple[list[CaseEvaluation], float]:
    """The cases of a `validation.json` or `summary.json` with their metrics, and the tolerance in mm.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return [read_case(case) for case in plain["cases"]], float(plain["summary"]["tolerance_mm"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); remove done.json beside it, and go on "
            "with --resume"
        ) from None


def read_case(plain: dict[str, Any]) -> CaseEvaluation:
    """A case's evaluation from what its `as_dict` gave."""
    names = [field.name for field in fields(ClassMetrics)]
    metrics = {
        structure: ClassMetrics(
            **{name: math.nan if (value := found[name]) is None else value for name in names}
        )
        for structure, found in plain["classes"].items()
    }
    paths = {str(name): plain[name] for name in ("image", "reference", "prediction") if name in plain}
    return CaseEvaluation(plain["case"], metrics, paths)


def _link(source: Path, target: Path) -> None:
    """Put a file where another stands: one on disk where the file system can, else a copy."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
