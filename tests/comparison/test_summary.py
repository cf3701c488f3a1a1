"""Summaries of cells against numbers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medseg_brn.comparison.results import RunResult
from medseg_brn.comparison.statistics import estimate_mean
from medseg_brn.comparison.summary import summarize_cells, summarize_norms

KEYS = {
    *("norm", "batch_size", "input", "runs", "failed", "dice_mean", "dice_sd", "dice_worst", "dice_interval"),
    *("train_eval_disparity", "dice_disparity", "tile_mismatch", "estimation_shift", "estimation_shift_var"),
    *("clip_rate_r", "clip_rate_d", "clipped_mass_r", "clipped_mass_d", "spike_fraction", "collapsed"),
    *("gradient_noise_scale", "gradient_fidelity", "batchmate_dependence", "backward_cross_talk"),
    *("statistics_drift", "worker_divergence", "leakage", "intraclass_correlation"),
    *("scale_departure", "shift_departure", "effective_sample_size", "variance_noise_first_order"),
    *("variance_noise", "mean_noise", "seconds_per_step", "peak_memory_mb"),
}


def make_run(seed: int, dice: float, norm: str = "batch", **measurements: float | None) -> RunResult:
    """A finished run with Dice `dice` ± 0.1 in two cases."""
    return RunResult(
        name=f"{norm}-s{seed}",
        input="zscored",
        norm=norm,
        batch_size=1,
        seed=seed,
        status="finished",
        dice=dice,
        case_dice={"p1": dice - 0.1, "p2": dice + 0.1},
        measurements=measurements,
    )


def diverge(run: RunResult) -> RunResult:
    return replace(run, status="diverged", error="NaN loss", dice=0.0, case_dice={})


def fail(run: RunResult) -> RunResult:
    return replace(run, status="failed", error="out of memory", dice=None, case_dice={}, measurements={})


class TestSummarizeCells:
    def test_keys(self) -> None:
        (cell,) = summarize_cells([make_run(0, 0.8)])
        assert set(cell) == KEYS
        json.dumps(cell, allow_nan=False)

    def test_one_cell_for_each_norm_batch_size_and_input(self) -> None:
        one, other = make_run(0, 0.8), make_run(0, 0.7, "group")
        runs = [one, other, replace(one, batch_size=2), replace(one, input="raw"), make_run(1, 0.8)]
        cells = [(cell["norm"], cell["batch_size"], cell["input"]) for cell in summarize_cells(runs)]
        assert cells == [
            *(("batch", 1, "zscored"), ("group", 1, "zscored")),
            *(("batch", 2, "zscored"), ("batch", 1, "raw")),
        ]

    def test_dice_by_hand(self) -> None:
        (cell,) = summarize_cells([make_run(seed, dice) for seed, dice in enumerate((0.6, 0.7, 0.8))])
        assert cell["dice_mean"] == pytest.approx(0.7)
        assert cell["dice_sd"] == pytest.approx(0.1)
        assert cell["dice_worst"] == 0.6
        assert (cell["runs"], cell["failed"], cell["collapsed"]) == (3, 0, 0)

    def test_interval_is_that_of_seeds_and_cases(self) -> None:
        (cell,) = summarize_cells([make_run(seed, dice) for seed, dice in enumerate((0.6, 0.7, 0.8))])
        estimate = estimate_mean(np.array([[0.5, 0.7], [0.6, 0.8], [0.7, 0.9]]))
        assert (estimate.low < 0, estimate.high > 1) == (True, True)
        assert cell["dice_interval"] == [0, 1]  # two cases and three seeds say nothing, but Dice has bounds

    def test_one_seed_has_no_spread(self) -> None:
        (cell,) = summarize_cells([make_run(0, 0.8)])
        assert cell["dice_sd"] is None
        assert cell["dice_interval"] is not None

    def test_diverged_runs_count_as_zero(self) -> None:
        (cell,) = summarize_cells([make_run(0, 0.8), diverge(make_run(1, 0.8))])
        assert (cell["runs"], cell["collapsed"]) == (2, 1)
        assert (cell["dice_mean"], cell["dice_worst"]) == (0.4, 0)

    def test_a_cell_that_diverged_is_zero_in_the_cases_of_the_others(self) -> None:
        runs = [diverge(make_run(0, 0.8)), diverge(make_run(1, 0.8)), make_run(0, 0.8, "group")]
        cell = summarize_cells(runs)[0]
        assert (cell["dice_mean"], cell["dice_interval"]) == (0, [0, 0])

    def test_failed_runs_are_only_counted(self) -> None:
        (cell,) = summarize_cells([make_run(0, 0.8), fail(make_run(1, 0.1))])
        assert (cell["runs"], cell["failed"], cell["dice_mean"]) == (1, 1, 0.8)

    def test_a_cell_of_failures_is_empty(self) -> None:
        (cell,) = summarize_cells([fail(make_run(0, 0.8))])
        assert (cell["runs"], cell["failed"], cell["collapsed"]) == (0, 1, 0)
        assert cell["dice_mean"] is None
        assert cell["dice_interval"] is None

    def test_collapse_is_measured_by_all_norms_of_an_input(self) -> None:
        """The median of .8, .8, .3, .8 is .8, so .3 collapsed; alone on raw input it is the median."""
        runs = [make_run(0, 0.8), make_run(1, 0.8), make_run(0, 0.3, "group"), make_run(1, 0.8, "group")]
        raw = replace(make_run(0, 0.3, "group"), input="raw")
        assert [cell["collapsed"] for cell in summarize_cells([*runs, raw])] == [0, 1, 0]

    def test_collapse_where_most_diverge(self) -> None:
        runs = [make_run(0, 0.8), diverge(make_run(1, 0.8)), diverge(make_run(2, 0.8))]
        assert summarize_cells(runs)[0]["collapsed"] == 2

    def test_measurements_are_means_of_finished_runs(self) -> None:
        runs = [
            make_run(0, 0.8, estimation_shift_mean=0.1, leakage=0.2, variance_noise_measured=0.08),
            make_run(1, 0.8, estimation_shift_mean=0.3, leakage=None, variance_noise_theory=0.09),
            diverge(make_run(2, 0.8, estimation_shift_mean=99.0)),
        ]
        (cell,) = summarize_cells(runs)
        assert cell["estimation_shift"] == pytest.approx(0.2)
        assert cell["leakage"] == 0.2
        assert cell["gradient_fidelity"] is None
        assert cell["variance_noise"] == {"measured": 0.08, "theory": 0.09}
        assert cell["mean_noise"] == {"measured": None, "theory": None}

    def test_gradient_noise_scale_is_a_median(self) -> None:
        """A ratio whose denominator came close to 0 in one run says nothing of the others."""
        runs = [make_run(seed, 0.8, gradient_noise_scale=scale) for seed, scale in enumerate((3.0, 5.0, 1e6))]
        assert summarize_cells(runs)[0]["gradient_noise_scale"] == 5

    def test_time_per_step_is_the_fastest_run_s(self) -> None:
        runs = [make_run(seed, 0.8, seconds_per_step=time) for seed, time in enumerate((0.3, 0.2, 0.9))]
        assert summarize_cells(runs)[0]["seconds_per_step"] == 0.2

    def test_what_was_sampled_and_predicted_is_carried(self) -> None:
        names = ("scale_departure", "shift_departure", "effective_sample_size", "variance_noise_first_order")
        (cell,) = summarize_cells(
            [make_run(seed, 0.8, **dict.fromkeys(names, value)) for seed, value in enumerate((0.1, 0.3))]
        )
        assert [cell[name] for name in names] == pytest.approx([0.2] * 4)

    def test_interval_is_about_the_mean_where_a_case_lacks_a_class(self) -> None:
        """p1 has two classes and p2 one: each case weighs the same, in a run's Dice and in the interval."""
        runs = []
        for seed, (first, second, only) in enumerate([(0.2, 0.4, 0.9), (0.2, 0.4, 0.92), (0.22, 0.42, 0.9)]):
            case_dice = {"p1": (first + second) / 2, "p2": only}
            run = make_run(seed, sum(case_dice.values()) / 2)
            runs.append(replace(run, case_dice=case_dice))
        (cell,) = summarize_cells(runs)
        low, high = cell["dice_interval"]
        assert cell["dice_mean"] == pytest.approx((0.6 + 0.61 + 0.61) / 3)
        assert low < cell["dice_mean"] < high
        values = np.array([list(run.case_dice.values()) for run in runs])
        assert estimate_mean(values).effect == pytest.approx(cell["dice_mean"])


def at_size(batch_size: int, dice: float, seed: int = 0, norm: str = "batch") -> RunResult:
    return replace(make_run(seed, dice, norm), batch_size=batch_size)


class TestSummarizeNorms:
    def test_by_hand(self) -> None:
        """Slopes .1 and .2 per doubling; the means at 1 and 4 are .45 and .75."""
        levels = {0: {1: 0.5, 2: 0.6, 4: 0.7}, 1: {1: 0.4, 2: 0.6, 4: 0.8}}
        runs = [at_size(size, dice, seed) for seed, row in levels.items() for size, dice in row.items()]
        (row,) = summarize_norms(runs)
        assert (row["norm"], row["input"]) == ("batch", "zscored")
        assert row["batch_size_slope"] == pytest.approx(0.15)
        assert row["batch_size_ratio"] == pytest.approx(0.45 / 0.75)

    def test_one_row_for_each_input_and_norm(self) -> None:
        runs = [at_size(size, 0.8, norm=norm) for norm in ("batch", "group") for size in (1, 2)]
        rows = summarize_norms([*runs, *(replace(run, input="raw") for run in runs)])
        assert [(row["input"], row["norm"]) for row in rows] == [
            *(("zscored", "batch"), ("zscored", "group"), ("raw", "batch"), ("raw", "group")),
        ]
        json.dumps(rows, allow_nan=False)

    def test_diverged_runs_count_as_zero_and_failed_ones_not(self) -> None:
        runs = [at_size(1, 0.8), at_size(2, 0.8), diverge(at_size(1, 0.8, 1)), at_size(2, 0.8, 1)]
        failed = [fail(at_size(size, 0.1, 2)) for size in (1, 2)]
        (row,) = summarize_norms([*runs, *failed])
        assert row["batch_size_slope"] == pytest.approx((0 + 0.8) / 2)
        assert row["batch_size_ratio"] == pytest.approx(0.5)

    def test_ratio_needs_both_ends_of_the_grid(self) -> None:
        """The group norm's runs at batch size 4 failed: 1 to 2 is another ratio than 1 to 4."""
        runs = [at_size(size, 0.8) for size in (1, 2, 4)]
        runs += [at_size(1, 0.6, norm="group"), at_size(2, 0.7, norm="group")]
        row = summarize_norms([*runs, fail(at_size(4, 0.8, norm="group"))])[1]
        assert row["batch_size_slope"] == pytest.approx(0.1)
        assert row["batch_size_ratio"] is None

    def test_nothing_known(self) -> None:
        nothing = {"batch_size_slope": None, "batch_size_ratio": None}
        assert summarize_norms([]) == []
        for runs in ([at_size(1, 0.8)], [fail(at_size(size, 0.8)) for size in (1, 2)]):
            assert summarize_norms(runs) == [{"norm": "batch", "input": "zscored"} | nothing]
