"""Groups and sites: assignment, formula and measured layers."""

import pytest
import torch
from scipy.stats.contingency import association as scipy_association

from medseg_brn.studies.confounding import association
from medseg_brn.studies.confounding.association import (
    ASSOCIATIONS,
    ITEMS,
    assign_groups,
    compute_expected,
    sweep_association,
)
from medseg_brn.studies.confounding.norms import BATCH, LOOSE


@pytest.mark.parametrize("v", ASSOCIATIONS)
def test_the_association_is_cramers_v(v):
    by_site = {site: assign_groups(site, v) for site in (-1, 1)}
    table = [[int((by_site[site] == group).sum()) for group in (-1, 1)] for site in (-1, 1)]
    assert sum(map(sum, table)) == 2 * ITEMS
    assert scipy_association(torch.tensor(table).numpy(), method="cramer") == pytest.approx(v)


def test_expected_by_hand():
    """Δ = 2: balanced, BatchNorm keeps biology alone; confounded, σ is 1 and 2·.5·1/2 is kept of both."""
    assert compute_expected(0.0, 0.0) == (1.0, 0.0)
    assert compute_expected(1.0, 0.0) == (0.0, 0.0)
    assert compute_expected(1.0, 0.5) == (0.5, 0.5)
    assert compute_expected(0.5, 5.0) == (1.0, 1.0)
    # V = .5: σ² = 1.75, .25 of the mean's .5 at most is given back: 1 - .25 + .5·min(.5, .66) = 1
    assert compute_expected(0.5, 0.5) == (1.0, 0.5)
    # V = .5, d_max .2: 2·.2·1.3229/2 = .26458; .75 + .5·.26458 = .88229
    assert compute_expected(0.5, 0.2)[0] == pytest.approx(0.88229, abs=1e-5)


def test_layers_retain_what_is_expected(monkeypatch):
    monkeypatch.setattr(association, "LEARNING_BATCHES", 400)
    found = sweep_association(1)
    assert len(found) == 3 * len(ASSOCIATIONS)
    for one in found:
        assert one.biology == pytest.approx(one.expected_biology, abs=0.03)
        assert one.batch_effect == pytest.approx(one.expected_batch_effect, abs=0.03)
    balanced = {one.norm: one for one in found if one.association == 0}
    assert balanced[BATCH].biology - balanced[BATCH].batch_effect > 0.9
    assert abs(balanced[LOOSE].biology - balanced[LOOSE].batch_effect) < 0.03
