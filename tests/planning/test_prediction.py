"""Predicted over measured, from files written by hand."""

import json

import pytest

from medseg_brn.errors import DataError
from medseg_brn.planning.prediction import check_prediction

HEADER = "step,loss,learning_rate,gradient_norm,seconds,loader_share,dice\n"


def test_ratios_are_predicted_over_measured(tmp_path):
    plan, run = tmp_path / "plan.json", tmp_path / "run"
    plan.write_text(json.dumps({"prediction": {"step_seconds": 0.6, "peak_memory_mb": 900}}))
    (run / "model").mkdir(parents=True)
    (run / "model" / "model.json").write_text(json.dumps({"training": {"peak_memory_mb": 1000}}))
    rows = "".join(
        f"{step},1,0.1,1,{seconds},0,\n" for step, seconds in enumerate((9.0, 0.5, 0.5, 0.4, 0.5), 1)
    )
    (run / "metrics.csv").write_text(HEADER + rows)
    ratios = check_prediction(plan, run)
    assert ratios == {"step_seconds": pytest.approx(1.2), "peak_memory_mb": pytest.approx(0.9)}


def test_what_cannot_be_compared_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be compared"):
        check_prediction(tmp_path / "none.json", tmp_path)
