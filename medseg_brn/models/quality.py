"""How good a model is, as far as its description says: read from its cross-validation or its validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError

Interval = tuple[FiniteFloat, FiniteFloat]


class _ClassSummary(BaseModel):
    dice_mean: FiniteFloat | None
    dice_sd: FiniteFloat | None = None
    dice_interval_95: Interval | None = None
    absent: NonNegativeInt = 0


class _Summary(BaseModel):
    """The part of an evaluation's `summary` that is told here."""

    dice_mean: FiniteFloat | None
    dice_interval_95: Interval | None = None
    cases: NonNegativeInt
    classes: dict[str, _ClassSummary]


class _CrossValidation(BaseModel):
    folds: NonNegativeInt
    out_of_fold: _Summary
    meaning: str = ""


class _Training(BaseModel):
    cross_validation: _CrossValidation | None = None
    validation: _Summary | None = None


@dataclass(frozen=True)
class ClassQuality:
    """Dice of one class or region.

    Attributes:
        name: of the structure.
        dice_mean: over the cases where Dice is defined, in [0, 1]; None where it nowhere is.
        dice_sd: over these cases; None below two.
        dice_interval_95: bootstrap over cases of the mean; None where it was not computed.
        cases: where Dice is defined: those where the reference or the prediction has the structure.
    """

    name: str
    dice_mean: float | None
    dice_sd: float | None
    dice_interval_95: tuple[float, float] | None
    cases: int


@dataclass(frozen=True)
class Quality:
    """Dice of a model.

    Attributes:
        measured_on: how, as the end of "Dice …".
        cases: evaluated.
        dice_mean: over classes, of means over cases.
        dice_interval_95: bootstrap over cases.
        classes: of each structure.
        meaning: what the figures are of, where the model as a whole was not evaluated.
    """

    measured_on: str
    cases: int
    dice_mean: float | None
    dice_interval_95: tuple[float, float] | None
    classes: tuple[ClassQuality, ...]
    meaning: str


def read_quality(training: Mapping[str, Any]) -> Quality | None:
    """Return what a description's `training` says of the model's quality; None where it says nothing.

    A cross-validation counts before the validation of a single run, being of all cases. What is not of the
    form that this toolkit writes counts as nothing: `training` is free to hold what a model's maker wants.
    """
    try:
        found = _Training.model_validate(dict(training))
    except ValidationError:
        return None
    if found.cross_validation is not None:
        summary, folds = found.cross_validation.out_of_fold, found.cross_validation.folds
        measured_on = f"of {summary.cases} cases, each by a model that did not see it ({folds} folds)"
        return _as_quality(summary, measured_on, found.cross_validation.meaning)
    if found.validation is not None:
        return _as_quality(found.validation, f"of {found.validation.cases} held-out cases", "")
    return None


def _as_quality(summary: _Summary, measured_on: str, meaning: str) -> Quality:
    classes = tuple(
        ClassQuality(
            name, one.dice_mean, one.dice_sd, one.dice_interval_95, max(0, summary.cases - one.absent)
        )
        for name, one in summary.classes.items()
    )
    return Quality(measured_on, summary.cases, summary.dice_mean, summary.dice_interval_95, classes, meaning)
