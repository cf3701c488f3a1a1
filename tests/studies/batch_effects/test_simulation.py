"""The simulated expression data: the association is exact, and each effect is where the formula has it."""

import numpy as np
import pytest

from medseg_brn.studies.batch_effects.measures import compute_cramers_v
from medseg_brn.studies.batch_effects.simulation import Setting, simulate_dataset

LARGE = Setting(genes=400, differing=100, samples=400)


@pytest.mark.parametrize("association", [0, 0.25, 0.5, 0.75, 1])
def test_the_association_is_what_was_asked_for(association):
    data = simulate_dataset(association, True, (1,))
    for part in (data.training, data.held_out):
        assert compute_cramers_v(part.groups, part.batches) == pytest.approx(association, abs=1e-12)
        assert np.bincount(part.groups).tolist() == [48, 48]
        assert np.bincount(part.batches).tolist() == [24] * 4


def test_at_a_half_three_quarters_of_a_batch_are_of_one_group():
    data = simulate_dataset(0.5, True, (1,)).training
    assert [int(data.groups[data.batches == batch].sum()) for batch in range(4)] == [18, 18, 6, 6]


def test_a_batch_shifts_its_own_samples_whatever_the_association():
    far, near = (simulate_dataset(v, False, (3,), LARGE) for v in (0.0, 1.0))
    np.testing.assert_array_equal(far.training.values, near.training.values)  # δ = 0: nothing else differs
    means = np.stack([far.training.values[far.training.batches == b].mean(axis=0) for b in range(4)])
    assert means.std(axis=0, ddof=1).mean() == pytest.approx(0.92, abs=0.05)  # E of s of 4 normals: .921 σ


def test_groups_differ_in_the_differing_genes_and_only_there():
    data = simulate_dataset(0.0, True, (2,), LARGE)
    part = data.training
    difference = part.values[part.groups == 1].mean(axis=0) - part.values[part.groups == 0].mean(axis=0)
    assert data.differing.sum() == 100
    error = np.sqrt(1 / 800 + 1 / 800)  # batches are balanced, so that only the noise is left
    assert difference[~data.differing].std() == pytest.approx(error, rel=0.15)
    assert difference[data.differing].std() == pytest.approx(np.hypot(0.5, error), rel=0.2)


def test_the_unseen_batch_is_balanced_and_shifted_by_a_batch_effect_of_its_own():
    data = simulate_dataset(1.0, False, (4,), LARGE)
    assert set(data.unseen.batches) == {4} and data.unseen.groups.mean() == 0.5
    level = np.stack([data.training.values[data.training.batches == b].mean(axis=0) for b in range(4)])
    shifts = data.unseen.values.mean(axis=0) - level
    assert (shifts.std(axis=1) > 1.2).all()  # the difference of two γ has standard deviation √2


def test_a_dataset_is_drawn_from_its_key_alone():
    first, again, other = (
        simulate_dataset(0.5, True, key).training.values for key in ((1, 2), (1, 2), (1, 3))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_count_that_is_no_whole_number_is_refused():
    with pytest.raises(ValueError, match=r"10 samples cannot hold 6\.25"):
        simulate_dataset(0.25, True, (0,), Setting(samples=10))
