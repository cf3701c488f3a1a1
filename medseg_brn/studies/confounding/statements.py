"""The study's claims: each stated, with its bound, before anything was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg_brn.studies.claims import Bounds, Claim, claim_estimate, claim_mean
from medseg_brn.studies.confounding.association import Kept
from medseg_brn.studies.confounding.layers import Retained
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE, MIDDLE, TIGHT, Norm
from medseg_brn.studies.confounding.null_arm import (
    EXPERIMENTS,
    LEVEL,
    Cohort,
    compute_centred_rate,
    estimate_rate,
)
from medseg_brn.studies.confounding.training import DiagnosisResult, MarkerResult

FORMULA_ERROR = 0.02
TRAINED_FORMULA_ERROR = 0.1
NOT_ABOVE_LEVEL = 0.055
"""A rate that is exactly nominal can only be told to be below a bound that leaves room for its interval."""


@dataclass(frozen=True)
class Measurements:
    """All that was measured; the outer sequences have one entry a seed."""

    layers: Sequence[Sequence[Retained]]
    associations: Sequence[Sequence[Kept]]
    markers: Sequence[Sequence[MarkerResult]]
    diagnoses: Sequence[Sequence[DiagnosisResult]]
    findings: Sequence[Mapping[tuple[Cohort, str], int]]
    """Of the null arm, by cohort and norm, each of `EXPERIMENTS` experiments."""

    def marker(self, norm: Norm, attribute: str) -> np.ndarray:
        """One number per seed of the networks of this norm on the first task."""
        return np.array(
            [getattr(one, attribute) for seed in self.markers for one in seed if one.norm == norm]
        )

    def gap(self, norm: Norm) -> np.ndarray:
        """Accuracy in training mode less that in evaluation mode, per seed."""
        return self.marker(norm, "train_accuracy") - self.marker(norm, "eval_accuracy")

    def diagnosis(self, norm: Norm, design: str, attribute: str) -> np.ndarray:
        """One number per seed of the networks of this norm and design on the second task."""
        return np.array(
            [
                getattr(one, attribute)
                for seed in self.diagnoses
                for one in seed
                if (one.norm, one.design) == (norm, design)
            ]
        )

    def kept(self, norm: Norm, association: float, attribute: str) -> np.ndarray:
        """What layers of this norm retain at this association, per seed."""
        return np.array(
            [
                getattr(one, attribute)
                for seed in self.associations
                for one in seed
                if (one.norm, one.association) == (norm, association)
            ]
        )

    def count(self, cohort: Cohort, norm: str) -> tuple[int, int]:
        """Findings of the null arm, and of how many experiments."""
        return sum(seed[cohort, norm] for seed in self.findings), len(self.findings) * EXPERIMENTS


def make_claims(found: Measurements) -> list[Claim]:
    """All claims, judged."""
    return [
        *_claim_formulas(found.layers),
        *_claim_trained(found),
        *_claim_association(found),
        *_claim_diagnosis(found),
        *_claim_null(found),
    ]


def _claim_formulas(layers: Sequence[Sequence[Retained]]) -> list[Claim]:
    bounds = Bounds(below=FORMULA_ERROR)
    claims = []
    for statistics, told in (("mixture", "of the mixture"), ("pure", "of pure minibatches")):
        errors = [
            max(abs(one.measured - one.expected) for one in seed if one.statistics == statistics)
            for seed in layers
        ]
        expected = f"min(1, 2·d_max·σ_run/Δ) is off by less than {FORMULA_ERROR} at every Δ, r_max and d_max"
        note = f"largest error, {_find_worst(layers, statistics)}"
        claims.append(claim_mean(f"formula, statistics {told}", expected, errors, bounds, note))
    errors = [max(abs(one.measured_effect - one.expected_effect) for one in seed) for seed in layers]
    expected = (
        f"times min(1, r_max/σ_run) it is what is retained of the effect size, to less than {FORMULA_ERROR}"
    )
    return [*claims, claim_mean("formula of the effect size", expected, errors, bounds, "largest error")]


def _find_worst(layers: Sequence[Sequence[Retained]], statistics: str) -> str:
    """Where the error is largest of all seeds."""
    candidates = (one for seed in layers for one in seed if one.statistics == statistics)
    worst = max(candidates, key=lambda one: abs(one.measured - one.expected))
    return f"at Δ = {worst.difference:g} and d_max = {worst.norm.d_max:g} in one seed"


def _claim_trained(found: Measurements) -> list[Claim]:
    rises = [
        claim_mean(
            f"retained, {looser.name} over {tighter.name}",
            "looser clips let a trained network retain more: the difference lies above 0",
            found.marker(looser, "retained") - found.marker(tighter, "retained"),
            Bounds(above=0),
            "paired by seed",
        )
        for tighter, looser in ((BATCH, TIGHT), (TIGHT, MIDDLE), (MIDDLE, LOOSE))
    ]
    errors = np.abs(
        [found.marker(norm, "retained") - found.marker(norm, "expected") for norm in (TIGHT, MIDDLE, LOOSE)]
    ).max(0)
    return [
        *rises,
        claim_mean(
            "formula in trained networks",
            f"summed over the first norm's channels, it is off by less than {TRAINED_FORMULA_ERROR}",
            errors,
            Bounds(below=TRAINED_FORMULA_ERROR),
            "largest error of three clips; minibatches of 16, whose own noise the formula leaves out",
        ),
        claim_mean(
            f"held-out accuracy, {LOOSE.name} over BatchNorm",
            "what needs the group is learned better: the difference lies above 0",
            found.marker(LOOSE, "eval_accuracy") - found.marker(BATCH, "eval_accuracy"),
            Bounds(above=0),
            "evaluation mode, paired by seed",
        ),
        claim_mean(
            "BatchNorm's gap",
            "accuracy in training mode is higher than in evaluation mode: above 0",
            found.gap(BATCH).tolist(),
            Bounds(above=0),
            "the same held-out items",
        ),
        claim_mean(
            f"gap, {LOOSE.name} over BatchNorm",
            "the gap is smaller than BatchNorm's: the difference lies below 0",
            found.gap(LOOSE) - found.gap(BATCH),
            Bounds(below=0),
            "paired by seed",
        ),
    ]


def _claim_association(found: Measurements) -> list[Claim]:
    def difference(norm: Norm, association: float) -> np.ndarray:
        return found.kept(norm, association, "batch_effect") - found.kept(norm, association, "biology")

    confounded = np.abs([difference(norm, 1.0) for norm in (BATCH, TIGHT, LOOSE)]).max(0)
    return [
        claim_mean(
            "perfect confounding, layers",
            f"as much is retained of the batch effect as of biology, to less than {FORMULA_ERROR}",
            confounded,
            Bounds(below=FORMULA_ERROR),
            "largest difference of three norms",
        ),
        claim_mean(
            "balanced sites, BatchNorm",
            "it removes the batch effect and keeps biology: retained of the one less the other below -.9",
            difference(BATCH, 0.0).tolist(),
            Bounds(below=-0.9),
        ),
        claim_mean(
            f"balanced sites, {LOOSE.name}",
            f"it keeps both: the difference lies within ±{FORMULA_ERROR}",
            difference(LOOSE, 0.0).tolist(),
            Bounds(above=-FORMULA_ERROR, below=FORMULA_ERROR),
        ),
    ]


def _claim_diagnosis(found: Measurements) -> list[Claim]:
    return [
        claim_mean(
            f"perfect confounding, trained {LOOSE.name}",
            "a diagnosis rests on the site as much as on the biology: the site's share lies within .4 to .6",
            found.diagnosis(LOOSE, "confounded", "site_share").tolist(),
            Bounds(above=0.4, below=0.6),
            "differences of mean logits, held-out items of every combination",
        ),
        claim_mean(
            f"balanced sites, trained {LOOSE.name}",
            "a network learns to leave the batch effect aside: the site's share lies below .2",
            found.diagnosis(LOOSE, "balanced", "site_share").tolist(),
            Bounds(below=0.2),
        ),
    ]


def _claim_null(found: Measurements) -> list[Claim]:
    claims = []
    asked: list[tuple[Cohort, Norm]] = [("none", norm) for norm in (BATCH, TIGHT, LOOSE, LAYER)]
    asked += [("balanced", norm) for norm in (BATCH, LOOSE)]
    for cohort, norm in asked:
        told = "no batch effect" if cohort == "none" else "batch effect, balanced sites"
        estimate = estimate_rate(*found.count(cohort, norm.name))
        note = f"the interval {'lies above' if estimate.low > LEVEL else 'does not lie above'} {LEVEL}"
        if (cohort, norm) == ("balanced", BATCH):
            note += f"; a test that takes minibatches' means for known has {compute_centred_rate():.3f}"
        claims.append(
            claim_estimate(
                f"null arm, {told}, {norm.name}",
                f"false findings of a t test at {LEVEL} are no more than that: below {NOT_ABOVE_LEVEL}",
                estimate,
                Bounds(below=NOT_ABOVE_LEVEL),
                note,
            )
        )
    expected = "the batch effect that is retained passes for biology: false findings in more than half"
    estimate = estimate_rate(*found.count("confounded", LOOSE.name))
    name = f"null arm, perfect confounding, {LOOSE.name}"
    return [*claims, claim_estimate(name, expected, estimate, Bounds(above=0.5))]
