"""What was claimed before anything was measured, and what came out."""

from collections.abc import Sequence

import numpy as np

from medseg_brn.probes.leakage import bayes_accuracy
from medseg_brn.studies.adversarial.arms import ARMS, BATCH, GROUP, SPECTRAL, TIGHT, WIDE, WITHOUT
from medseg_brn.studies.claims import Bounds, Claim, claim_mean, claim_number
from medseg_brn.studies.outcome import Row

KNOWN = {"BatchNorm": 0.760, "renorm (1.5, 0.5)": 0.760, "renorm (3, 1)": 0.700, "renorm (3, 5)": 0.695}
"""Accuracies at δ = 1 that were known before."""
_BEST_NOTE = (
    "Accuracy minus that of the best rule for a single sample; the best rule is the same for both arms, so "
    "that it drops out of the difference."
)
_SPIKES_NOTE = (
    "A hinge loss is 0 where everything is told with a margin: where most losses are 0, any other is a spike."
)


class Measurements:
    """The rows, read by stage, arm and column."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def values(self, stage: str, arm: str, column: str, separation: float | None = None) -> np.ndarray:
        """(seeds,) numbers of an arm, in the order of the seeds; NaN where a seed has none."""
        chosen = [
            row
            for row in self._rows
            if row["stage"] == stage
            and row["arm"] == arm
            and (separation is None or row["separation"] == separation)
        ]
        return np.array([row.get(column, np.nan) for row in sorted(chosen, key=_number)], float)

    def difference(self, stage: str, column: str, one: str, other: str) -> np.ndarray:
        """(seeds,) of arm `one` minus arm `other`, seed by seed."""
        return self.values(stage, one, column) - self.values(stage, other, column)

    def best_single(self) -> np.ndarray:
        """(seeds,) the highest accuracy on single samples that any arm's discriminator reached."""
        found = [self.values("discrimination", arm.name, "accuracy_single") for arm in ARMS]
        return np.max(found, axis=0)

    def separations(self) -> list[float]:
        """δ of the closed form, ascending."""
        return sorted({float(row["separation"]) for row in self._rows if row["stage"] == "closed form"})


def judge(found: Measurements) -> list[Claim]:
    """All claims."""
    return [*_judge_closed_form(found), *_judge_discrimination(found), *_judge_refinement(found)]


def _judge_closed_form(found: Measurements) -> list[Claim]:
    claims = [
        _claim(
            f"δ = 1, {name}",
            f"accuracy {known:.3f}, to within .005",
            found.values("closed form", name, "accuracy_training", 1.0),
            Bounds(known - 0.005, known + 0.005),
        )
        for name, known in KNOWN.items()
    ]
    largest = max(
        abs(float(np.mean(measured - formula)))
        for separation in found.separations()
        for name in KNOWN
        for measured, formula in [
            [
                found.values("closed form", name, column, separation)
                for column in ("accuracy_training", "accuracy_formula")
            ]
        ]
    )
    return [
        *claims,
        claim_number(
            "δ = 1, best for one sample",
            "accuracy .691, to within .001",
            bayes_accuracy(1.0),
            Bounds(0.690, 0.692),
        ),
        claim_number(
            "formula and layers agree",
            "over all norms and separations the mean accuracy is nowhere .005 or more from the formula",
            largest,
            Bounds(below=0.005),
            "The largest of all differences.",
        ),
    ]


def _judge_discrimination(found: Measurements) -> list[Claim]:
    stage = "discrimination"
    alone = [np.abs(found.values(stage, arm, "leak")).max() for arm in (GROUP, SPECTRAL)]
    return [
        _claim(
            "a trained discriminator leaks less under (3, 5)",
            "accuracy in training minus accuracy on single samples: renorm (3, 5) minus BatchNorm below 0",
            found.difference(stage, "leak", WIDE, BATCH),
            Bounds(below=0),
        ),
        _claim(
            "less above the best for one sample",
            "accuracy in training: renorm (3, 5) minus BatchNorm below 0",
            found.difference(stage, "accuracy_training", WIDE, BATCH),
            Bounds(below=0),
            _BEST_NOTE,
        ),
        _claim(
            "tight limits leak as BatchNorm does",
            "leak of renorm (1.5, 0.5) minus BatchNorm's between -.05 and .05",
            found.difference(stage, "leak", TIGHT, BATCH),
            Bounds(-0.05, 0.05),
        ),
        _claim(
            "less influence of the batchmate",
            "influence under renorm (3, 5) minus BatchNorm's below 0",
            found.difference(stage, "influence", WIDE, BATCH),
            Bounds(below=0),
        ),
        claim_number(
            "what sees one sample leaks nothing",
            "the leak of GroupNorm and of spectral norm is below .01 at every seed",
            float(max(alone)),
            Bounds(below=0.01),
            "The largest of all seeds.",
        ),
        _claim(
            "no more spikes, segmenter fixed",
            "share of spikes of the discriminator's loss: renorm (3, 5) minus BatchNorm below .01",
            found.difference(stage, "spikes", WIDE, BATCH),
            Bounds(below=0.01),
            _SPIKES_NOTE,
        ),
    ]


def _judge_refinement(found: Measurements) -> list[Claim]:
    stage = "refinement"
    return [
        _claim(
            "quality is not below BatchNorm's",
            "Dice refined under renorm (3, 5) minus under BatchNorm above -.01",
            found.difference(stage, "dice", WIDE, BATCH),
            Bounds(above=-0.01),
        ),
        _claim(
            "quality is not below that without",
            "Dice refined under renorm (3, 5) minus that without a discriminator above -.01",
            found.difference(stage, "dice", WIDE, WITHOUT),
            Bounds(above=-0.01),
        ),
        _claim(
            "nor is the surface's",
            "surface distance under renorm (3, 5) minus that without a discriminator below .05 voxels",
            found.difference(stage, "surface_distance", WIDE, WITHOUT),
            Bounds(below=0.05),
        ),
        _claim(
            "no collapse: sizes",
            "predicted volumes under renorm (3, 5) vary at least .8 times as much as the references'",
            found.values(stage, WIDE, "volume_ratio"),
            Bounds(above=0.8),
        ),
        _claim(
            "no collapse: likeness",
            "predictions of different volumes under renorm (3, 5) are not .05 more alike than references",
            found.values(stage, WIDE, "likeness"),
            Bounds(below=0.05),
            "Difference of mean Dice between different volumes.",
        ),
        _claim(
            "no more spikes, both learning",
            "share of spikes of the discriminator's loss: renorm (3, 5) minus BatchNorm below .01",
            found.difference(stage, "spikes", WIDE, BATCH),
            Bounds(below=0.01),
            _SPIKES_NOTE,
        ),
    ]


def _claim(name: str, expected: str, values: np.ndarray, bounds: Bounds, note: str = "") -> Claim:
    return claim_mean(name, expected, values.tolist(), bounds, note)


def _number(row: Row) -> int:
    return int(row["seed"])
