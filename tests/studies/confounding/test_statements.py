"""Claims judged on measurements made up so that the answer is known."""

from dataclasses import replace

import pytest

from medseg_brn.studies.confounding.association import ASSOCIATIONS, Kept, compute_expected
from medseg_brn.studies.confounding.association import NORMS as ASSOCIATION_NORMS
from medseg_brn.studies.confounding.layers import Retained
from medseg_brn.studies.confounding.norms import BATCH, LAYER, LOOSE, MIDDLE, TIGHT
from medseg_brn.studies.confounding.null_arm import COHORTS, EXPERIMENTS
from medseg_brn.studies.confounding.null_arm import NORMS as NULL_NORMS
from medseg_brn.studies.confounding.statements import Measurements, make_claims
from medseg_brn.studies.confounding.training import DiagnosisResult, MarkerResult

RETAINED = {BATCH: 0.0, TIGHT: 0.4, MIDDLE: 0.7, LOOSE: 1.0, LAYER: 1.0}


def make_measurements() -> Measurements:
    """What would uphold every claim, in three seeds that differ a little."""
    seeds = (0.0, 0.001, 0.002)
    return Measurements(
        layers=[
            [Retained(kind, 2.0, TIGHT, 1.0, 0.5 + e, 0.5, 0.4 + e, 0.4) for kind in ("mixture", "pure")]
            for e in seeds
        ],
        associations=[
            [
                Kept(v, norm, *(one + e for one in compute_expected(v, norm.d_max)), 0.0, 0.0)
                for v in ASSOCIATIONS
                for norm in ASSOCIATION_NORMS
            ]
            for e in seeds
        ],
        markers=[
            [
                MarkerResult(norm, 0.8, 0.7 + 0.1 * kept + e, 0.1, kept + e, kept, 1.0, 1.0, 1.0)
                for norm, kept in RETAINED.items()
            ]
            for e in seeds
        ],
        diagnoses=[
            [
                DiagnosisResult(LOOSE, "confounded", 1.0, 0.5, 1.0, 1.0 + e),
                DiagnosisResult(LOOSE, "balanced", 1.0, 1.0, 1.0, 0.1 + e),
            ]
            for e in seeds
        ],
        findings=[
            {
                (cohort, norm.name): EXPERIMENTS // 20 if cohort != "confounded" else EXPERIMENTS
                for cohort in COHORTS
                for norm in NULL_NORMS
            }
            for _ in range(20)
        ],
    )


def judge(found: Measurements) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in make_claims(found)}


def test_all_claims_can_hold():
    verdicts = judge(make_measurements())
    assert set(verdicts.values()) == {True}
    assert len(verdicts) == len(make_claims(make_measurements())) == 22


def test_a_formula_that_is_off_is_told():
    found = make_measurements()
    wrong = [[replace(one, measured=one.measured + 0.05) for one in seed] for seed in found.layers]
    verdicts = judge(replace(found, layers=wrong))
    assert verdicts["formula, statistics of the mixture"] is False
    assert verdicts["formula, statistics of pure minibatches"] is False
    assert verdicts["formula of the effect size"] is True


def test_clips_that_change_nothing_falsify_the_rise():
    found = make_measurements()
    same = [[replace(one, retained=0.4) for one in seed] for seed in found.markers]
    verdicts = judge(replace(found, markers=same))
    assert verdicts["retained, renorm (1.5, 0.5) over BatchNorm"] is False
    assert verdicts["retained, renorm (3, 5) over renorm (3, 1)"] is False


def test_a_batch_effect_that_is_dropped_while_biology_is_kept_falsifies_the_cost():
    found = make_measurements()
    better = [[replace(one, batch_effect=0.0, biology=1.0) for one in seed] for seed in found.associations]
    assert judge(replace(found, associations=better))["perfect confounding, layers"] is False


@pytest.mark.parametrize(("rate", "expected"), [(0.05, True), (0.055, None), (0.07, False)])
def test_a_rate_above_nominal_falsifies_the_null_arm(rate, expected):
    found = make_measurements()
    counts = [seed | {("none", LOOSE.name): round(rate * EXPERIMENTS)} for seed in found.findings]
    claims = {claim.name: claim for claim in make_claims(replace(found, findings=counts))}
    claim = claims["null arm, no batch effect, renorm (3, 5)"]
    assert claim.holds is expected
    assert claim.measured == pytest.approx(rate)
    above = "the interval lies above 0.05" if rate > 0.05 else "the interval does not lie above 0.05"
    assert claim.note == above
