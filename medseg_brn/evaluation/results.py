"""What an evaluation found: metrics per case and class (or region), and their summary over a cohort.

**Empty masks.** A class may be absent from the reference, from the prediction, or from both:

| reference | prediction | Dice, surface Dice | distances | counted as |
|---|---|---|---|---|
| present | present | computed | computed | |
| present | empty | 0 | undefined | `missed` |
| empty | present | 0 | undefined | `false_alarms` |
| empty | empty | undefined | undefined | `absent` |

What is undefined is NaN (null in JSON) and left out of every mean. Metrics Reloaded (Maier-Hein et al.
2024) asks for this: 0/0 is neither a success nor a failure, while an unbounded distance has no worst value
except one that depends on the field of view. A mean distance therefore stands beside the counts of cases
that it leaves out. Means are taken over cases per class first, then over classes, so that a class
that few cases have weighs as much as the others.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

EMPTY_MASK_RULE = (
    "class in one map only: Dice and surface Dice 0, distances null (counted as missed or false_alarms); "
    "class in neither: all null (counted as absent); null is left out of every mean"
)
MEAN_RULE = "per class over cases, then over classes; intervals: bootstrap over cases, percentile, 95 %"


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class in one case. NaN where undefined: see the module's table."""

    dice: float
    """In [0, 1], 1 being perfect."""
    surface_dice: float
    """Share of both surfaces within the tolerance of each other, in [0, 1]."""
    hd95_mm: float
    """95th percentile Hausdorff distance."""
    average_surface_distance_mm: float
    """Mean distance between the surfaces, both directions pooled."""
    prediction_ml: float
    reference_ml: float

    @property
    def volume_difference_ml(self) -> float:
        """Predicted minus reference volume: positive when too much was segmented."""
        return self.prediction_ml - self.reference_ml

    def as_dict(self) -> dict[str, float | None]:
        """The metrics by name, with null for NaN."""
        return {
            name: _null_if_nan(value)
            for name, value in (*asdict(self).items(), ("volume_difference_ml", self.volume_difference_ml))
        }


@dataclass(frozen=True)
class CaseEvaluation:
    """One case: its name, its metrics by class name, and the files they came from (`reference`, …)."""

    case: str
    classes: Mapping[str, ClassMetrics]
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def dice_mean(self) -> float:
        """Mean Dice of the classes where it is defined; NaN when there are none."""
        return _mean([metrics.dice for metrics in self.classes.values()])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        classes = {name: metrics.as_dict() for name, metrics in self.classes.items()}
        return {
            "case": self.case,
            "dice_mean": _null_if_nan(self.dice_mean),
            **self.paths,
            "classes": classes,
        }


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    case: str
    message: str


@dataclass(frozen=True)
class Evaluation:
    """A cohort's evaluation."""

    cases: tuple[CaseEvaluation, ...]
    tolerance_mm: float
    failures: tuple[Failure, ...] = ()
    unpredicted: tuple[str, ...] = ()
    """References without a prediction; they are not part of any figure."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, which all cases have alike."""
        return tuple(self.cases[0].classes) if self.cases else ()

    def values(self, metric: str) -> np.ndarray:
        """One metric of all cases and classes: (cases, classes) float, NaN where undefined."""
        rows = [[getattr(case.classes[name], metric) for name in self.class_names] for case in self.cases]
        return np.array(rows, dtype=np.float64).reshape(len(self.cases), len(self.class_names))

    def summary(self) -> dict[str, Any]:
        """Means over the cohort, JSON-able: see `as_dict`."""
        dice = self.values("dice")
        classes = {name: self._summarize_class(column) for column, name in enumerate(self.class_names)}
        return {
            "dice_mean": _null_if_nan(_mean([_mean(column) for column in dice.T])),
            "dice_interval_95": bootstrap_dice_interval(dice),
            "cases": len(self.cases),
            "tolerance_mm": self.tolerance_mm,
            "classes": classes,
        }

    def as_dict(self) -> dict[str, Any]:
        """What `metrics.json` holds: `summary`, `cases`, and what could not be evaluated; null for NaN."""
        return {
            "summary": self.summary(),
            "cases": [case.as_dict() for case in self.cases],
            "failed": [asdict(failure) for failure in self.failures],
            "references_without_prediction": list(self.unpredicted),
            "conventions": {"empty_masks": EMPTY_MASK_RULE, "means": MEAN_RULE},
        }

    def _summarize_class(self, column: int) -> dict[str, Any]:
        """One class over the cohort."""
        dice, surface_dice, hd95, distance, predicted, referenced = (
            self.values(metric)[:, column]
            for metric in (
                *("dice", "surface_dice", "hd95_mm", "average_surface_distance_mm"),
                *("prediction_ml", "reference_ml"),
            )
        )
        difference = predicted - referenced
        means = {
            "dice_mean": _mean(dice),
            "dice_sd": _standard_deviation(dice),
            "surface_dice_mean": _mean(surface_dice),
            "hd95_mm_mean": _mean(hd95),
            "average_surface_distance_mm_mean": _mean(distance),
            "prediction_ml_mean": _mean(predicted),
            "reference_ml_mean": _mean(referenced),
            "volume_difference_ml_mean": _mean(difference),
            "absolute_volume_difference_ml_mean": _mean(np.abs(difference)),
        }
        counts = {
            "missed": int(np.sum((referenced > 0) & (predicted == 0))),
            "false_alarms": int(np.sum((predicted > 0) & (referenced == 0))),
            "absent": int(np.sum(np.isnan(dice))),
        }
        return {name: _null_if_nan(value) for name, value in means.items()} | counts


def bootstrap_dice_interval(
    dice: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap 95 % interval (percentile) of the mean Dice, cases being drawn with replacement.

    It holds for one scan per patient; several scans of a patient are not independent, and the true
    interval is wider.

    Args:
        dice: (cases, classes), NaN where undefined.

    Returns:
        Lower and upper end, or None when fewer than two cases have a Dice.
    """
    if np.count_nonzero(~np.isnan(dice).all(axis=1)) < 2:
        return None
    lower, upper = np.nanpercentile(resample_dice(dice, resamples=resamples, seed=seed), (2.5, 97.5))
    return float(lower), float(upper)


def resample_dice(dice: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Mean Dice of cohorts drawn with replacement: (resamples,), NaN where no Dice was drawn.

    Of evaluations of the same cases in the same order, entry i is of the same drawn cases, so that they can
    be compared in pairs.

    Args:
        dice: (cases, classes), NaN where undefined.
    """
    cases = len(dice)
    # How often each case is drawn says all about a resample, and turns the means into two products.
    draws = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    counts = draws @ ~np.isnan(dice)
    with np.errstate(invalid="ignore"):
        means = (draws @ np.nan_to_num(dice)) / counts
    drawn = np.full(resamples, np.nan)
    known = counts.any(axis=1)
    drawn[known] = np.nanmean(means[known], axis=1)
    return drawn


def _mean(values: Any) -> float:
    """Mean of what is defined; NaN when nothing is."""
    defined = np.asarray(values, dtype=np.float64)
    defined = defined[~np.isnan(defined)]
    return float(defined.mean()) if defined.size else math.nan


def _standard_deviation(values: np.ndarray) -> float:
    """Sample standard deviation of what is defined; NaN below two values."""
    defined = values[~np.isnan(values)]
    return float(defined.std(ddof=1)) if defined.size > 1 else math.nan


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
