"""What was claimed before anything was measured, and what came out."""

from collections.abc import Sequence

import numpy as np

from medseg_brn.studies.claims import Bounds, Claim, claim_mean, claim_number
from medseg_brn.studies.outcome import Row
from medseg_brn.studies.sites.arms import (
    BATCH,
    DOMAIN,
    GROUP,
    INSTANCE,
    LAYER,
    LINEAR_ARMS,
    SCAN_ARMS,
    TIGHT,
    WIDE,
    Arm,
)

LINEAR, SCANS = "linear", "scans"
PARTS = {LINEAR: LINEAR_ARMS, SCANS: SCAN_ARMS}
SCORE = {LINEAR: "accuracy", SCANS: "Dice"}
_BEST = "The best is chosen seed by seed, which favours it."


class Measurements:
    """The rows, read by part, arm and column."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = sorted(rows, key=lambda row: int(row["seed"]))

    def values(self, part: str, arm: Arm, column: str) -> np.ndarray:
        """(seeds,) numbers of an arm, in the order of the seeds; NaN where a seed has none."""
        chosen = [row for row in self._rows if row["part"] == part and row["arm"] == arm.name]
        return np.array([row.get(column, np.nan) for row in chosen], float)

    def gap(self, part: str, arm: Arm) -> np.ndarray:
        """(seeds,) score in training mode less that in evaluation mode, on the same items of seen sites."""
        return self.values(part, arm, "seen_training") - self.values(part, arm, "seen_evaluation")

    def drop(self, part: str, arm: Arm) -> np.ndarray:
        """(seeds,) score on seen sites less that on unseen ones, both in evaluation mode."""
        return self.values(part, arm, "seen_evaluation") - self.values(part, arm, "unseen_evaluation")

    def best_unharmonized(self, part: str) -> np.ndarray:
        """(seeds,) highest score on unseen sites of all arms whose input is as it was stored."""
        arms = [arm for arm in PARTS[part] if not arm.harmonized]
        return np.max([self.values(part, arm, "unseen_evaluation") for arm in arms], axis=0)


def judge(found: Measurements) -> list[Claim]:
    """All claims."""
    return [*_judge_linear(found), *_judge_scans(found)]


def _judge_linear(found: Measurements) -> list[Claim]:
    return [*_judge_gap(found, LINEAR), *_judge_linear_seen(found), *_judge_linear_unseen(found)]


def _judge_gap(found: Measurements, part: str) -> list[Claim]:
    """Falsified where renorm does not take the discrepancy between training and inference away."""
    score = SCORE[part]
    batch, wide = Arm(BATCH, "pure"), Arm(WIDE, "pure")
    gap = f"{score} in training mode minus in evaluation mode, seen sites, pure batches"
    return [
        _claim(
            part,
            "BatchNorm has a gap",
            f"{gap}: BatchNorm above .05",
            found.gap(part, batch),
            Bounds(above=0.05),
        ),
        _claim(
            part,
            "renorm has hardly a gap",
            f"{gap}: renorm (3, 5) below .03",
            found.gap(part, wide),
            Bounds(below=0.03),
        ),
        _claim(
            part,
            "renorm's gap is smaller than BatchNorm's",
            f"{gap}: renorm (3, 5) minus BatchNorm below 0",
            found.gap(part, wide) - found.gap(part, batch),
            Bounds(below=0),
        ),
        _claim(
            part,
            "renorm does better than BatchNorm in evaluation",
            f"{score} in evaluation mode, seen sites, pure batches: renorm (3, 5) minus BatchNorm above 0",
            found.values(part, wide, "seen_evaluation") - found.values(part, batch, "seen_evaluation"),
            Bounds(above=0),
        ),
        _claim(
            part,
            "harmonized input leaves no gap",
            f"{gap}, harmonized input: BatchNorm below .03",
            found.gap(part, Arm(BATCH, "pure", harmonized=True)),
            Bounds(below=0.03),
        ),
        _claim(
            part,
            "statistics of each site serve a seen one",
            f"{score} in evaluation mode, seen sites, pure batches: domain-specific BatchNorm minus "
            "BatchNorm above .05",
            found.values(part, Arm(DOMAIN, "pure"), "seen_evaluation")
            - found.values(part, batch, "seen_evaluation"),
            Bounds(above=0.05),
        ),
        _claim(
            part,
            "statistics of each site do not serve an unseen one",
            f"{score} of domain-specific BatchNorm: seen sites minus unseen ones, by the mixture, above .05",
            found.drop(part, Arm(DOMAIN, "pure")),
            Bounds(above=0.05),
        ),
        _claim(
            part,
            "statistics set anew help BatchNorm at an unseen site",
            f"{score} on unseen sites, BatchNorm, pure batches: with statistics of the site's own unlabelled "
            "data minus without, above .05",
            found.values(part, batch, "unseen_adapted") - found.values(part, batch, "unseen_evaluation"),
            Bounds(above=0.05),
            "Test-time adaptation of the statistics; it needs the same data as harmonization.",
        ),
    ]


def _judge_linear_seen(found: Measurements) -> list[Claim]:
    wide, batch = (Arm(norm, "balanced") for norm in (WIDE, BATCH))
    return [
        _claim(
            LINEAR,
            "tight clips leave a gap",
            "accuracy in training mode minus in evaluation mode, seen sites, pure batches: renorm (1.5, 0.5) "
            "above .05",
            found.gap(LINEAR, Arm(TIGHT, "pure")),
            Bounds(above=0.05),
        ),
        _claim(
            LINEAR,
            "balanced batches leave BatchNorm little gap",
            "the same for BatchNorm with balanced batches: between -.03 and .03",
            found.gap(LINEAR, batch),
            Bounds(-0.03, 0.03),
        ),
        _claim(
            LINEAR,
            "with balanced batches renorm does no worse than BatchNorm",
            "accuracy in evaluation mode, seen sites, balanced batches: renorm (3, 5) minus BatchNorm above "
            "-.02",
            found.values(LINEAR, wide, "seen_evaluation") - found.values(LINEAR, batch, "seen_evaluation"),
            Bounds(above=-0.02),
        ),
        claim_number(
            "linear: what sees one item has no gap",
            "the gap of LayerNorm and of GroupNorm is 0, rounding aside: below .001 at every seed",
            max(
                float(np.abs(found.gap(LINEAR, Arm(norm, batches))).max())
                for norm in (LAYER, GROUP)
                for batches in ("pure", "balanced")
            ),
            Bounds(below=0.001),
            "The largest of all seeds.",
        ),
    ]


def _judge_linear_unseen(found: Measurements) -> list[Claim]:
    unharmonized = [arm for arm in LINEAR_ARMS if not arm.harmonized and arm.batches == "balanced"]
    batch, wide = Arm(BATCH, "balanced"), Arm(WIDE, "balanced")
    harmonized = found.values(LINEAR, Arm(BATCH, "balanced", harmonized=True), "unseen_evaluation")
    return [
        _claim(
            LINEAR,
            "no norm alone is at home in an unseen laboratory",
            "accuracy on seen laboratories minus on unseen ones, balanced batches: above .1 for the norm "
            "that loses least",
            np.min([found.drop(LINEAR, arm) for arm in unharmonized], axis=0),
            Bounds(above=0.1),
            "The norm is chosen seed by seed, which makes the number smaller.",
        ),
        _claim(
            LINEAR,
            "renorm does not remove the laboratory's effect",
            "accuracy on unseen laboratories, balanced batches: renorm (3, 5) minus BatchNorm between -.03 "
            "and .03",
            found.values(LINEAR, wide, "unseen_evaluation")
            - found.values(LINEAR, batch, "unseen_evaluation"),
            Bounds(-0.03, 0.03),
        ),
        _claim(
            LINEAR,
            "harmonized input removes the laboratory's effect",
            "accuracy on unseen laboratories: BatchNorm on harmonized input, balanced batches, minus the "
            "best of all arms without harmonization, above .1",
            harmonized - found.best_unharmonized(LINEAR),
            Bounds(above=0.1),
            _BEST,
        ),
    ]


def _judge_scans(found: Measurements) -> list[Claim]:
    return [*_judge_gap(found, SCANS), *_judge_scans_seen(found), *_judge_scans_unseen(found)]


def _judge_scans_seen(found: Measurements) -> list[Claim]:
    alone = [np.abs(found.gap(SCANS, Arm(norm, "balanced"))).max() for norm in (GROUP, INSTANCE)]
    return [
        _claim(
            SCANS,
            "balanced batches narrow BatchNorm's gap",
            "Dice in training mode minus in evaluation mode, seen sites, BatchNorm: balanced batches minus "
            "pure ones below 0",
            found.gap(SCANS, Arm(BATCH, "balanced")) - found.gap(SCANS, Arm(BATCH, "pure")),
            Bounds(below=0),
        ),
        claim_number(
            "scans: what sees one scan has no gap",
            "the gap of GroupNorm and of InstanceNorm is 0, rounding aside: below .001 at every seed",
            float(max(alone)),
            Bounds(below=0.001),
            "The largest of all seeds.",
        ),
    ]


def _judge_scans_unseen(found: Measurements) -> list[Claim]:
    def unseen(arm: Arm) -> np.ndarray:
        return found.values(SCANS, arm, "unseen_evaluation")

    wide = Arm(WIDE, "balanced")
    harmonized = Arm(WIDE, "balanced", harmonized=True)
    return [
        _claim(
            SCANS,
            "renorm is not at home at an unseen site",
            "Dice on seen sites minus on unseen ones, renorm (3, 5), balanced batches, above .05",
            found.drop(SCANS, wide),
            Bounds(above=0.05),
        ),
        _claim(
            SCANS,
            "InstanceNorm does better than renorm at an unseen site",
            "Dice on unseen sites, balanced batches: renorm (3, 5) minus InstanceNorm below 0",
            unseen(wide) - unseen(Arm(INSTANCE, "balanced")),
            Bounds(below=0),
            "InstanceNorm takes a scan's own gain and offset away within the network.",
        ),
        _claim(
            SCANS,
            "GroupNorm does no worse than renorm at an unseen site",
            "Dice on unseen sites, balanced batches: renorm (3, 5) minus GroupNorm below .02",
            unseen(wide) - unseen(Arm(GROUP, "balanced")),
            Bounds(below=0.02),
        ),
        _claim(
            SCANS,
            "harmonized input helps renorm",
            "Dice on unseen sites, renorm (3, 5), balanced batches: harmonized input minus stored values "
            "above .05",
            unseen(harmonized) - unseen(wide),
            Bounds(above=0.05),
        ),
        _claim(
            SCANS,
            "renorm on harmonized input is as good as any",
            "Dice on unseen sites: renorm (3, 5) on harmonized input, balanced batches, minus the best of "
            "all arms without harmonization, above -.03",
            unseen(harmonized) - found.best_unharmonized(SCANS),
            Bounds(above=-0.03),
            _BEST,
        ),
        _claim(
            SCANS,
            "on harmonized input an unseen site costs renorm little",
            "Dice on seen sites minus on unseen ones, renorm (3, 5) on harmonized input, below .05",
            found.drop(SCANS, harmonized),
            Bounds(below=0.05),
            "Harmonization takes neither the bias field nor the noise away.",
        ),
    ]


def _claim(part: str, name: str, expected: str, values: np.ndarray, bounds: Bounds, note: str = "") -> Claim:
    return claim_mean(f"{part}: {name}", expected, values.tolist(), bounds, note)
