"""Claims on measurements made up by hand, so that the answers are known."""

import numpy as np
import pytest

from medseg_brn.studies.distributed.arms import (
    ARMS,
    LOCAL_BATCH,
    LOCAL_RENORM,
    MERGED_1,
    MERGED_10,
    SHARDS,
    SYNC_BATCH,
    Arm,
)
from medseg_brn.studies.distributed.counting import Traffic
from medseg_brn.studies.distributed.statements import (
    Measurements,
    late_divergence,
    make_claims,
    pool_seed_sd,
)
from medseg_brn.studies.distributed.training import Trial, TrialResult

DICE = {LOCAL_BATCH: 0.5, SYNC_BATCH: 0.8, LOCAL_RENORM: 0.6, MERGED_1: 0.79, MERGED_10: 0.75}
DIVERGENCE = {LOCAL_BATCH: 1.0, SYNC_BATCH: 0.0, LOCAL_RENORM: 1.0, MERGED_1: 0.01, MERGED_10: 0.1}


def make_result(arm: Arm, shards, repetition: int, workers: int) -> TrialResult:
    dice = DICE[arm] + (0.01, -0.01, 0.0)[repetition]
    level = DIVERGENCE[arm]
    before = [9.0, level * (1 + repetition), level]
    merged = arm.merge_every or 99
    after = [0.0 if step % merged == 0 else level for step in (5, 10, 20)]
    trial = Trial(arm, shards, repetition, 0, 10)
    return TrialResult(trial, workers, dice, dice - 0.1, dice, 0.01, [5, 10, 20], before, after)


def make_measurements(**changed) -> Measurements:
    results = [
        make_result(arm, shards, repetition, 2)
        for arm in ARMS
        for shards in SHARDS
        for repetition in (2, 0, 1)
    ]
    traffic = {
        (LOCAL_BATCH, 2): Traffic({"allreduce_": 10}, {"allreduce_": 4000}),
        (LOCAL_RENORM, 2): Traffic({"allreduce_": 10}, {"allreduce_": 4000}),
        (SYNC_BATCH, 2): Traffic(
            {"allreduce_": 60, "allgather_": 50}, {"allreduce_": 9000, "allgather_": 5000}
        ),
        (MERGED_1, 2): Traffic({"allreduce_": 20}, {"allreduce_": 13900}),
        (MERGED_10, 2): Traffic({"allreduce_": 11}, {"allreduce_": 4990}),
    }
    return Measurements(results, {**traffic, **changed}, norm_layers=5)


def claim(found: Measurements, name: str):
    return next(one for one in make_claims(found) if one.name == name)


def test_results_come_in_the_order_of_repetitions():
    found = make_measurements().read(MERGED_1, "iid", 2, "dice")
    assert found == pytest.approx([0.80, 0.78, 0.79])


def test_what_is_sent_beyond_gradients_is_claimed_by_number():
    found = make_measurements()
    assert [
        claim(found, f"collectives, {arm.name}").measured for arm in (SYNC_BATCH, MERGED_1, MERGED_10)
    ] == [
        10,
        1,
        0.1,
    ]
    assert claim(found, f"bytes, {MERGED_1.name}").measured == pytest.approx(0.99)
    assert claim(found, f"bytes, {MERGED_10.name}").measured == pytest.approx(0.099)
    exact = [one.holds for one in make_claims(found) if one.name.startswith(("collectives", "bytes"))]
    assert exact == [True] * 5


def test_one_message_more_is_a_claim_that_does_not_hold():
    found = make_measurements()
    changed = Measurements(
        found.results,
        {**found.traffic, (MERGED_1, 2): Traffic({"allreduce_": 21}, {"allreduce_": 15000})},
        norm_layers=5,
    )
    assert claim(changed, f"collectives, {MERGED_1.name}").holds is False
    assert claim(changed, f"bytes, {MERGED_1.name}").holds is False


def test_a_difference_of_one_seed_sd_holds_and_of_five_does_not():
    found = make_measurements()
    # 0.79 - 0.80 and 0.75 - 0.80 with a standard deviation of 0.01
    near = claim(found, f"iid, {MERGED_1.name} against SyncBatchNorm, 2 workers")
    far = claim(found, f"iid, {MERGED_10.name} against SyncBatchNorm, 2 workers")
    assert (near.measured, near.holds) == (pytest.approx(-1), True)
    assert (far.measured, far.holds) == (pytest.approx(-5), False)


def test_skewed_shards_are_judged_against_local_norms():
    found = make_measurements()
    assert claim(
        found, f"skewed, {MERGED_1.name} against local BatchNorm, 2 workers"
    ).measured == pytest.approx(0.29)
    own = claim(
        found, f"skewed, {MERGED_1.name} against local BatchNorm with each worker's own statistics, 2 workers"
    )
    assert own.measured == pytest.approx(0.39)
    assert claim(found, f"skewed, {MERGED_1.name} against local renorm, 2 workers").holds is True


def test_divergence_after_merges_is_zero_or_the_claim_falls():
    found = make_measurements()
    assert claim(found, "workers' statistics after a merge").holds is True
    worse = [
        TrialResult(**{**vars(one), "divergence_after": [1e-9] * 3}) if one.trial.arm == MERGED_1 else one
        for one in found.results
    ]
    assert claim(Measurements(worse, found.traffic, 5), "workers' statistics after a merge").holds is False


def test_divergence_between_merges_is_that_of_the_second_half():
    found = make_measurements()
    result = found.select(LOCAL_RENORM, "iid", 2)[1]
    assert late_divergence(result) == pytest.approx((2 + 1) / 2)  # steps 10 and 20 of a run of 10
    ratio = claim(found, "divergence between merges, iid, 2 workers")
    assert (ratio.measured, ratio.holds) == (pytest.approx(np.log(0.1)), True)


def test_the_seed_sd_is_that_within_arms():
    one, other = np.array([1.0, 3.0]), np.array([10.0, 16.0])
    assert pool_seed_sd(one, other) == pytest.approx(np.sqrt((2 + 18) / 2))
    assert np.isnan(pool_seed_sd(one[:1], other[:1]))
    assert np.isnan(pool_seed_sd(np.ones(3), np.ones(3)))
