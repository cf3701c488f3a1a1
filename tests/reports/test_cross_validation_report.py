"""What the report of a cross-validation says in words."""

import pytest

from medseg_brn.reports.cross_validation_report import say_rule


@pytest.mark.parametrize(
    ("volume", "expected"), [(0.25, "0.25"), (27.456, "27.5"), (300, "300"), (12432.1, "12,400")]
)
def test_small_volumes_are_not_rounded_away(volume, expected):
    assert say_rule({"remove_below_mm3": volume}) == f"remove pieces below {expected} mm³"


def test_a_rule_is_said_in_words_and_one_that_does_nothing_not_at_all():
    rule = {"keep_largest": True, "fill_holes": True, "remove_below_mm3": 0.0}
    assert say_rule(rule) == "keep the largest piece, fill holes"
    assert say_rule({"keep_largest": False, "fill_holes": False, "remove_below_mm3": 0.0}) == ""
