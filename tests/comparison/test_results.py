"""Run results as dictionaries, in cells and as matrices."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medseg_brn.comparison.results import RunResult, collect_case_dice, group_cells, list_cases
from medseg_brn.errors import DataError

RESULT = RunResult(
    name="batch-b2-zscored-s1",
    input="zscored",
    norm="batch",
    batch_size=2,
    seed=1,
    status="finished",
    dice=0.8,
    case_dice={"p1": 0.7, "p2": 0.9, "p3": None},
    class_dice={"liver": 0.8, "kidney": None},
    measurements={"tile_mismatch": 0.01, "clip_rate_r": None},
)
DIVERGED = replace(RESULT, seed=2, status="diverged", error="the loss is NaN", dice=0.0, case_dice={})


class TestDictionaries:
    def test_round_trip_through_json(self) -> None:
        for result in (RESULT, DIVERGED):
            assert RunResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result

    def test_what_is_not_finite_becomes_null(self) -> None:
        result = replace(RESULT, dice=math.nan, measurements={"gradient_noise_scale": math.inf})
        entries = json.loads(json.dumps(result.as_dict(), allow_nan=False))
        assert entries["dice"] is None
        assert entries["measurements"] == {"gradient_noise_scale": None}

    def test_missing_keys_are_named(self) -> None:
        entries = RESULT.as_dict()
        del entries["seed"], entries["case_dice"]
        with pytest.raises(DataError, match=r"^runs/a/result.json lacks seed, case_dice;"):
            RunResult.from_dict(entries, "runs/a/result.json")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("status", "done", "status 'done'; it is one of finished, diverged, failed"),
            ("dice", "0.8", "dice is '0.8'; it is a number or null"),
            ("batch_size", 2.5, "batch_size is 2.5; it is a whole number"),
            ("case_dice", [0.8], r"case_dice is \[0.8\]; it maps names to numbers"),
            ("measurements", {"leakage": True}, "measurements, leakage is True; it is a number or null"),
        ],
    )
    def test_wrong_values_are_named(self, key: str, value: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            RunResult.from_dict(RESULT.as_dict() | {key: value})


class TestNumbers:
    def test_dice_of_a_run(self) -> None:
        assert RESULT.run_dice == 0.8
        assert replace(DIVERGED, dice=None).run_dice == 0
        assert math.isnan(replace(RESULT, dice=None).run_dice)

    def test_measurements(self) -> None:
        assert RESULT.measurement("tile_mismatch") == 0.01
        assert math.isnan(RESULT.measurement("clip_rate_r"))
        assert math.isnan(RESULT.measurement("leakage"))

    def test_case_matrix(self) -> None:
        """A diverged run is 0 everywhere, what a run lacks is NaN."""
        runs = [RESULT, replace(RESULT, case_dice={"p0": 0.5, "p1": 0.6}), DIVERGED]
        assert list_cases(runs) == ["p0", "p1", "p2", "p3"]
        nan = math.nan
        expected = [[nan, 0.7, 0.9, nan], [0.5, 0.6, nan, nan], [0, 0, 0, 0]]
        np.testing.assert_array_equal(collect_case_dice(runs, list_cases(runs)), expected)


class TestGroupCells:
    def test_seeds_ascend_within_a_cell(self) -> None:
        other = replace(RESULT, norm="group")
        cells = group_cells([DIVERGED, other, RESULT])
        assert list(cells) == [("zscored", 2, "batch"), ("zscored", 2, "group")]
        assert cells["zscored", 2, "batch"] == [RESULT, DIVERGED]

    def test_a_seed_counts_once(self) -> None:
        with pytest.raises(DataError, match=r"'batch-b2-zscored-s1' and 'again' are both seed 1 of batch"):
            group_cells([RESULT, replace(RESULT, name="again")])
