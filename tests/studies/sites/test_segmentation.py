"""U-Nets on scans of several scanners."""

from itertools import islice

import numpy as np
import pytest
import torch

from medseg_brn.studies.sites.anatomies import OwnScans
from medseg_brn.studies.sites.arms import BATCH, DOMAIN, GROUP, WIDE, Arm
from medseg_brn.studies.sites.cohort import NEEDED, SEEN, TRAINING, Cohort, draw_cohort
from medseg_brn.studies.sites.segmentation import (
    MOMENTUM,
    ScanTrial,
    draw_batches,
    measure_dice,
    train_on_scans,
)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Bright balls in the dark, (8, 8, 8) voxels."""
    random = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"))
    centres = random.uniform(3, 4, (NEEDED, 3, 1, 1, 1))
    masks = ((places - centres) ** 2).sum(1) < 6
    return draw_cohort(OwnScans("balls", 0.8 * masks.astype(np.float32) + 0.1, masks), 0, 0)


@pytest.mark.parametrize(("batches", "sites"), [("pure", 1), ("balanced", 2)])
def test_batches_hold_one_site_or_two_and_every_scan_in_turn(cohort, batches, sites):
    count = len(SEEN) * TRAINING // 2
    drawn = list(islice(draw_batches(cohort.training, Arm(BATCH, batches), cohort), count))
    assert [len(set(batch["sites"])) for batch in drawn] == [sites] * count
    cases = [case for batch in drawn for case in batch["cases"]]
    assert len(set(cases)) == len(cases) == len(SEEN) * TRAINING
    batch = drawn[0]
    site, scan = SEEN.index(batch["sites"][1]), int(batch["cases"][1].split()[-1])
    assert torch.equal(batch["image"][1], cohort.training.images[site, scan])
    assert torch.equal(batch["label"][1], cohort.training.masks[site, scan])


def test_dice_by_hand():
    masks = torch.zeros(1, 2, 1, 2, 2, 1, dtype=torch.int64)
    predicted = masks.clone()
    masks[0, 0, 0, :, 0] = 1
    predicted[0, 0, 0, :, :] = 1  # 2 of 4 voxels: Dice 2·2/(2 + 4)
    masks[0, 1, 0, 0, 0] = 1
    predicted[0, 1, 0, 1, 1] = 1  # none of 1: Dice 0
    assert measure_dice(predicted, masks) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("arm", "anew"),
    [
        (Arm(DOMAIN, "pure"), {"seen_recalibrated", "unseen_adapted"}),
        (Arm(WIDE, "balanced", harmonized=True), {"seen_recalibrated"}),
        (Arm(GROUP, "balanced"), set()),
    ],
    ids=lambda value: value.name if isinstance(value, Arm) else "",
)
def test_an_arm_is_tried_on_seen_and_unseen_sites(cohort, arm, anew):
    one, again = (train_on_scans((ScanTrial(arm, 3), cohort)) for _ in range(2))
    assert one.row == again.row
    scores = {"seen_training", "seen_evaluation", "unseen_evaluation"}
    assert one.row.keys() == {"part", "seed", "arm"} | scores | anew
    assert all(0 <= float(one.row[name]) <= 1 for name in scores | anew)
    assert one.shown.shape == (4, 8, 8) and one.shown.dtype == bool
    if arm.norm == GROUP:
        assert one.row["seen_training"] == pytest.approx(one.row["seen_evaluation"], abs=0.001)


def test_an_experiment_is_the_toolkits_with_the_arms_norm(cohort):
    experiment = ScanTrial(Arm(WIDE, "pure"), 40).make_experiment(cohort)
    network = experiment.network
    assert (network.norm, network.r_max, network.d_max) == ("batch_renorm", 3.0, 5.0)
    assert network.momentum == MOMENTUM and not network.weight_standardization
    assert experiment.patches.sites == "pure" and experiment.patches.size == (8, 8, 8)
    other = ScanTrial(Arm(GROUP, "balanced"), 40).make_experiment(cohort)
    assert other.seed == experiment.seed
