"""Claims follow what was measured."""

import numpy as np
import pytest

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
from medseg_brn.studies.sites.statements import LINEAR, PARTS, SCANS, Measurements, judge


def score(part: str, arm: Arm) -> dict[str, float]:
    """Numbers of an arm with which every claim holds."""
    if arm.harmonized:
        return {"seen_training": 0.85, "seen_evaluation": 0.85, "unseen_evaluation": 0.85}
    if arm.norm == INSTANCE:
        return {"seen_training": 0.83, "seen_evaluation": 0.83, "unseen_evaluation": 0.8}
    if arm.norm == DOMAIN:
        return {
            "seen_training": 0.83, "seen_evaluation": 0.83, "unseen_evaluation": 0.6, "unseen_adapted": 0.8
        }  # fmt: skip
    training, evaluation = 0.8, 0.8
    if arm.batches == "pure" and arm.norm in (BATCH, TIGHT):
        evaluation = 0.65
    if arm.batches == "pure" and arm.norm == WIDE:
        training, evaluation = 0.74, 0.735
    return {
        "seen_training": training, "seen_evaluation": evaluation, "unseen_evaluation": 0.6,
        "unseen_adapted": 0.8,
    }  # fmt: skip


def make_rows(changed: dict[tuple[str, Arm], dict[str, float]] | None = None) -> list[dict]:
    """Three seeds that differ a little."""
    rows = []
    for part, arms in PARTS.items():
        for arm in arms:
            numbers = score(part, arm) | (changed or {}).get((part, arm), {})
            for seed in range(3):
                moved = {name: value + 0.001 * seed for name, value in numbers.items()}
                rows.append({"part": part, "seed": seed, "arm": arm.name, **moved})
    return rows


def judge_by_name(**scores) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in judge(Measurements(make_rows(**scores)))}


def test_all_claims_hold_where_everything_is_as_expected():
    verdicts = judge_by_name()
    assert {name for name, holds in verdicts.items() if holds is not True} == set()
    assert len(verdicts) == 15 + 16


def test_a_renorm_with_batch_norms_gap_falsifies():
    changed = {(part, Arm(WIDE, "pure")): {"seen_training": 0.8, "seen_evaluation": 0.65} for part in PARTS}
    verdicts = judge_by_name(changed=changed)
    for part in PARTS:
        assert verdicts[f"{part}: renorm has hardly a gap"] is False
        assert verdicts[f"{part}: renorm's gap is smaller than BatchNorm's"] is False
        assert verdicts[f"{part}: renorm does better than BatchNorm in evaluation"] is False
        assert verdicts[f"{part}: BatchNorm has a gap"] is True


def test_a_renorm_at_home_everywhere_falsifies_that_it_leaves_the_effect():
    changed = {(part, Arm(WIDE, "balanced")): {"unseen_evaluation": 0.82} for part in PARTS}
    verdicts = judge_by_name(changed=changed)
    assert verdicts["linear: renorm does not remove the laboratory's effect"] is False
    assert verdicts["linear: no norm alone is at home in an unseen laboratory"] is False
    assert verdicts["linear: harmonized input removes the laboratory's effect"] is False
    assert verdicts["scans: renorm is not at home at an unseen site"] is False
    assert verdicts["scans: InstanceNorm does better than renorm at an unseen site"] is False
    assert verdicts["scans: GroupNorm does no worse than renorm at an unseen site"] is False


def test_statistics_without_effect_falsify_what_is_said_of_them():
    changed = {
        (LINEAR, Arm(DOMAIN, "pure")): {"seen_evaluation": 0.62, "unseen_evaluation": 0.6},
        (LINEAR, Arm(BATCH, "pure")): {"unseen_adapted": 0.6},
    }
    verdicts = judge_by_name(changed=changed)
    assert verdicts["linear: statistics of each site serve a seen one"] is False
    assert verdicts["linear: statistics of each site do not serve an unseen one"] is False
    assert verdicts["linear: statistics set anew help BatchNorm at an unseen site"] is False


def test_a_gap_of_a_norm_without_statistics_would_be_told():
    verdicts = judge_by_name(
        changed={
            (LINEAR, Arm(LAYER, "pure")): {"seen_training": 0.802},
            (SCANS, Arm(GROUP, "balanced")): {"seen_training": 0.802},
        }
    )
    assert verdicts["linear: what sees one item has no gap"] is False
    assert verdicts["scans: what sees one scan has no gap"] is False


def test_numbers_are_read_seed_by_seed():
    rows = make_rows()
    found = Measurements(reversed(rows))
    np.testing.assert_allclose(found.values(LINEAR, Arm(WIDE, "pure"), "seen_training"), [0.74, 0.741, 0.742])
    np.testing.assert_allclose(found.gap(SCANS, Arm(BATCH, "pure")), [0.15] * 3)
    np.testing.assert_allclose(found.drop(SCANS, Arm(INSTANCE, "balanced")), [0.03] * 3)
    np.testing.assert_allclose(found.best_unharmonized(SCANS), [0.8, 0.801, 0.802])
    assert np.isnan(found.values(LINEAR, Arm(WIDE, "pure"), "nothing")).all()


def test_arms_have_names_of_their_own():
    for arms in (LINEAR_ARMS, SCAN_ARMS):
        assert len({arm.name for arm in arms}) == len(arms)
    assert Arm(WIDE, "pure", harmonized=True).name == "renorm (3, 5), harmonized, pure"


@pytest.mark.parametrize("part", PARTS)
def test_every_claim_says_its_bound(part):
    claims = [claim for claim in judge(Measurements(make_rows())) if claim.name.startswith(part)]
    assert all(any(character.isdigit() for character in claim.expected) for claim in claims)
