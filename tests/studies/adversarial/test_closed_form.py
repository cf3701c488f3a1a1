"""The closed form against drawn pairs and the numbers that were known before."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from medseg_brn.probes.leakage import bayes_accuracy
from medseg_brn.studies.adversarial.closed_form import LIMITS, Draw, compute_accuracy, do_draw


@pytest.mark.parametrize(
    ("limits", "known"), [((1, 0), 0.760), ((1.5, 0.5), 0.760), ((3, 1), 0.700), ((3, 5), 0.695)]
)
def test_the_known_accuracies_at_separation_1(limits, known):
    assert compute_accuracy(1.0, *limits) == pytest.approx(known, abs=0.0006)


def test_the_two_ends():
    for separation in (0.0, 0.5, 1.0, 2.0, 4.0):
        assert compute_accuracy(separation, 1, 0) == pytest.approx(ndtr(separation / 2**0.5), abs=1e-8)
        # 1/r_max = 0.001 instead of 0: pairs that close are rare
        assert compute_accuracy(separation, 1e3, 1e3) == pytest.approx(bayes_accuracy(separation), abs=1e-3)
    assert compute_accuracy(0.0, 3, 1) == pytest.approx(0.5, abs=1e-8)


def draw_naively(separation: float, r_max: float, d_max: float, pairs: int) -> float:
    """Ioffe's formulas, value by value."""
    random = np.random.default_rng(0)
    real, fake = random.normal(separation / 2, 1, pairs), random.normal(-separation / 2, 1, pairs)
    mean, spread, sigma = (real + fake) / 2, np.abs(real - fake) / 2, np.sqrt(1 + separation**2 / 4)
    r, d = np.clip(spread / sigma, 1 / r_max, r_max), np.clip(mean / sigma, -d_max, d_max)
    right = ((real - mean) / spread * r + d > 0).mean() + ((fake - mean) / spread * r + d <= 0).mean()
    return right / 2


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 4), st.floats(1, 5), st.floats(0, 5))
def test_any_limits_against_drawn_pairs(separation, r_max, d_max):
    assume(min(abs(d_max - r_max), abs(d_max - 1 / r_max)) > 1e-6)  # else x̂·r + d is often 0
    naive = draw_naively(separation, r_max, d_max, 100_000)
    # five standard errors of a share among at least as many independent pairs
    assert compute_accuracy(separation, r_max, d_max) == pytest.approx(naive, abs=5 * 0.5 / 100_000**0.5)


def test_a_draw_measures_all_norms_on_the_same_pairs():
    rows = do_draw(Draw(3, 0, (0.0, 1.0), 5000))
    assert [row["arm"] for row in rows] == [limits.name for limits in LIMITS] * 2
    assert rows == do_draw(Draw(3, 0, (0.0, 1.0), 5000))
    at_1 = {row["arm"]: row for row in rows if row["separation"] == 1.0}
    for row in at_1.values():
        assert row["accuracy_training"] == pytest.approx(row["accuracy_formula"], abs=5 * 0.5 / 5000**0.5)
    # r of 1/1.5 and more outweighs d of 0.5 at most: the sign is that of the larger value, pair by pair, but
    # where the two are so close that eps counts, which is one pair in some hundreds
    tight, batch = (at_1[name]["accuracy_training"] for name in ("renorm (1.5, 0.5)", "BatchNorm"))
    assert tight == pytest.approx(batch, abs=0.002)
