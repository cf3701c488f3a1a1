"""The null arm: its test, its interval, and rates known beforehand."""

import numpy as np
import pytest

from medseg_brn.studies.confounding import null_arm
from medseg_brn.studies.confounding.norms import BATCH, LOOSE
from medseg_brn.studies.confounding.null_arm import (
    RAW,
    compute_centred_rate,
    compute_p,
    count_findings,
    estimate_rate,
)


def test_p_by_hand():
    """Values 0, 1, 2 against 1, 2, 3: t = -1/sqrt(2/3), 4 degrees of freedom."""
    values = np.array([[0.0, 1, 2, 1, 2, 3]]).T
    in_group = np.array([True] * 3 + [False] * 3)
    assert compute_p(values, in_group) == pytest.approx(0.287864, abs=1e-6)


def test_groups_that_differ_by_rounding_do_not_differ():
    values = np.array([[0.0, 0.0, 1e-9, 1e-9]]).T
    assert compute_p(values, np.array([False, False, True, True])) == 1


def test_the_interval_is_exact():
    """No finding in 10: the upper end solves (1 - p)^10 = .025."""
    estimate = estimate_rate(0, 10)
    assert (estimate.effect, estimate.low) == (0, 0)
    assert estimate.high == pytest.approx(1 - 0.025**0.1)


def test_minibatches_means_taken_for_known_make_a_test_lenient():
    """Simulated without any layer: balanced minibatches, each of which loses its mean."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(null_arm.BATCHES, null_arm.ITEMS, 40_000))
    values -= values.mean(1, keepdims=True)
    in_group = np.tile([True, False], null_arm.BATCHES * null_arm.ITEMS // 2)
    rate = (compute_p(values.reshape(-1, 40_000), in_group) < 0.05).mean()
    expected = compute_centred_rate()
    assert expected > 0.055
    assert rate == pytest.approx(expected, abs=4 * (0.05 / 40_000) ** 0.5)


@pytest.fixture(scope="module")
def findings():
    return count_findings(5)


def test_what_is_not_normalized_has_the_nominal_rate(findings):
    low, high = estimate_rate(findings["none", RAW.name], null_arm.EXPERIMENTS).low, 0.0
    high = estimate_rate(findings["none", RAW.name], null_arm.EXPERIMENTS).high
    assert low < 0.05 < high


def test_batch_norm_leaves_pure_minibatches_nothing_to_find(findings):
    assert findings["none", BATCH.name] == findings["confounded", BATCH.name] == 0


def test_a_batch_effect_passes_for_biology_where_it_is_confounded(findings):
    assert findings["confounded", LOOSE.name] > 0.9 * null_arm.EXPERIMENTS
    assert findings["balanced", LOOSE.name] < 0.05 * null_arm.EXPERIMENTS


def test_a_seed_gives_the_same_findings(findings):
    assert count_findings(5) == findings
