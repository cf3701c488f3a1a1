"""Networks on the linear model."""

import pytest
import torch

from medseg_brn.networks.domain_norm import find_sites
from medseg_brn.networks.normalization import has_batch_statistics
from medseg_brn.studies.sites.arms import BATCH, DOMAIN, GROUP, LAYER, LINEAR_ARMS, WIDE, Arm
from medseg_brn.studies.sites.linear_training import (
    BATCH_SIZE,
    MOMENTUM,
    SEEN,
    SITES,
    LinearTrial,
    list_turns,
    make_network,
    make_rng,
    train_linear,
)


def train(arm: Arm, steps: int = 60) -> dict:
    return dict(train_linear(LinearTrial(arm, 0, 7, steps)))


def test_pure_batches_have_one_laboratory_and_balanced_ones_all():
    pure, balanced = (list_turns(kind, 12, 3).reshape(12, BATCH_SIZE) for kind in ("pure", "balanced"))
    assert [len(set(batch.tolist())) for batch in pure] == [1] * 12
    assert sorted(pure[:SEEN, 0].tolist()) == list(range(SEEN))
    assert [len(set(batch.tolist())) for batch in balanced] == [SEEN] * 12
    assert torch.bincount(balanced.flatten()).tolist() == [12 * BATCH_SIZE // SEEN] * SEEN


def test_what_sees_one_item_has_no_gap_and_nothing_to_set_anew():
    row = train(Arm(LAYER, "pure"))
    assert row["seen_training"] == pytest.approx(row["seen_evaluation"], abs=0.001)
    assert "seen_recalibrated" not in row and "unseen_adapted" not in row
    assert 0.4 < row["unseen_evaluation"] <= 1 and 0.5 < row["seen_best"] < 1


@pytest.mark.parametrize("arm", [Arm(DOMAIN, "pure"), Arm(WIDE, "balanced")], ids=lambda arm: arm.name)
def test_a_norm_with_statistics_is_tried_with_new_ones(arm):
    row = train(arm)
    assert {"seen_recalibrated", "unseen_adapted"} <= row.keys()
    assert row == train(arm)


def test_harmonized_input_is_not_adapted_twice():
    row = train(Arm(BATCH, "pure", harmonized=True))
    assert "seen_recalibrated" in row and "unseen_adapted" not in row


def test_batch_norm_learns_pure_batches_and_shows_it_in_training_mode_only():
    """The study's effect, at a size at which it cannot be missed."""
    row = train(Arm(BATCH, "pure"), steps=400)
    assert row["seen_training"] > row["seen_evaluation"] + 0.02
    assert row["unseen_adapted"] > row["unseen_evaluation"]


def test_all_arms_begin_with_the_same_weights():
    networks = [make_network(arm.norm, 100, make_rng(1, 2)) for arm in LINEAR_ARMS]
    for network in networks[1:]:
        for place in (0, 3, 6):
            assert torch.equal(network[place].weight, networks[0][place].weight)


def test_norms_are_made_as_their_arms_say():
    domain = make_network(DOMAIN, 100, make_rng(0))
    assert find_sites(domain) == SITES
    renorm = make_network(WIDE, 100, make_rng(0))[1]
    assert (renorm.r_max, renorm.d_max, renorm.momentum) == (3.0, 5.0, MOMENTUM)
    assert renorm.schedule == (2, 10, 16)
    assert not has_batch_statistics(make_network(GROUP, 100, make_rng(0))[1])
    assert GROUP.has_statistics is False and BATCH.has_statistics is True
