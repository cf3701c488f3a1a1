"""What is read off the measurements: rates with their intervals, p values, and places of labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_brn.studies.batch_effects.findings import Findings, estimate_rate
from medseg_brn.studies.batch_effects.own_page import OwnFindings
from medseg_brn.studies.batch_effects.pictures import spread_labels


def test_a_rate_of_none_in_ten_by_hand():
    found = estimate_rate(0, 10)  # the upper end solves (1 - p)^10 = 0.025
    assert (found.effect, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025**0.1)
    assert math.isnan(estimate_rate(0, 0).effect)


def make_row(dataset, null, **columns):
    return {
        "association": 0.5,
        "null": null,
        "dataset": dataset,
        "method": "renorm",
        "mini_batches": "pure",
    } | columns


def test_values_come_in_the_order_of_the_datasets():
    rows = [make_row(1, 0, auc=0.7), make_row(0, 0, auc=0.6), make_row(0, 1, auc=0.5, p_above_chance=0.04)]
    rows.append(make_row(1, 1, auc=0.4, p_above_chance=0.06))
    findings = Findings(rows)
    assert findings.take("renorm, pure", 0.5, "auc").tolist() == [0.6, 0.7]
    assert findings.take("renorm, pure", 0.5, "auc", null=True).tolist() == [0.5, 0.4]
    assert findings.estimate("renorm, pure", 0.5, "auc").effect == pytest.approx(0.65)
    assert findings.estimate_false_positives("renorm, pure", 0.5).effect == 0.5
    assert math.isnan(findings.estimate("renorm, pure", 1.0, "auc").effect)


def test_a_p_value_counts_the_labellings_that_do_as_well():
    rows = [{"method": "renorm", "mini_batches": "pure", "labelling": 0, "auc": 0.8}]
    rows += [
        {"method": "renorm", "mini_batches": "pure", "labelling": number, "auc": auc}
        for number, auc in enumerate((0.5, 0.8, 0.9), start=1)
    ]
    assert OwnFindings(rows).compute_p("renorm, pure") == 3 / 4
    assert math.isnan(OwnFindings(rows).compute_p("ComBat, pure"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_labels_keep_their_distance_order_and_room(heights):
    placed = spread_labels(heights, 0, 1, 0.1)
    order = np.argsort(heights, kind="stable")
    ordered = np.array(placed)[order]
    assert (np.diff(ordered) > 0.1 - 1e-9).all()
    assert ordered[0] > -1e-9 and ordered[-1] < 1 + 1e-9


def test_labels_that_have_room_stay():
    assert spread_labels([0.5, 0.2, 0.9], 0, 1, 0.1) == [0.5, 0.2, 0.9]
