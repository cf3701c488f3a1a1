"""One line per norm, batch size and input: what its runs have in common, and how far they differ."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg_brn.comparison.results import RunResult, collect_case_dice, group_cells, list_cases
from medseg_brn.comparison.statistics import estimate_mean
from medseg_brn.probes.curves import find_collapses

_MEASUREMENTS = {
    "train_eval_disparity": "train_eval_disparity",
    "dice_disparity": "dice_disparity",
    "tile_mismatch": "tile_mismatch",
    "estimation_shift": "estimation_shift_mean",
    "estimation_shift_var": "estimation_shift_var",
    "clip_rate_r": "clip_rate_r",
    "clip_rate_d": "clip_rate_d",
    "clipped_mass_r": "clipped_mass_r",
    "clipped_mass_d": "clipped_mass_d",
    "spike_fraction": "spike_fraction",
    "gradient_noise_scale": "gradient_noise_scale",
    "gradient_fidelity": "gradient_fidelity",
    "batchmate_dependence": "batchmate_dependence",
    "backward_cross_talk": "backward_cross_talk",
    "statistics_drift": "statistics_drift",
    "worker_divergence": "worker_divergence",
    "leakage": "leakage",
    "intraclass_correlation": "intraclass_correlation",
    "seconds_per_step": "seconds_per_step",
    "peak_memory_mb": "peak_memory_mb",
}
"""Key of a summary → measurement of a run."""

_NOISES = ("variance_noise", "mean_noise")
"""Measured as `<name>_measured` and predicted as `<name>_theory`."""


def summarize_cells(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return a JSON-able summary of every norm, batch size and input, in the order of `runs`.

    Failed runs are counted and otherwise left out. A diverged run counts as Dice 0, and has no part in the
    means of measurements, which are over finished runs and null where none has one.

    Keys: `norm`, `batch_size`, `input`; `runs` (finished or diverged), `failed`, `collapsed` (diverged, or
    Dice below half the median of the input's runs that did not diverge); `dice_mean`, `dice_sd` over seeds
    (null for one), `dice_worst`, `dice_interval` (95 %, see `estimate_mean`: for other cases and, with two
    seeds or more, other seeds); the measurements; `variance_noise` and `mean_noise` with `measured` and
    `theory`.

    Raises:
        DataError: two runs are of the same input, batch size, norm and seed.
    """
    collapsed = _find_collapsed(runs)
    cases = list_cases(runs)  # of all runs: a diverged one names none
    return [
        {"norm": norm, "batch_size": batch_size, "input": input_name}
        | _summarize_dice([run for run in members if run.counts], cases, collapsed)
        | {"failed": sum(not run.counts for run in members)}
        | _summarize_measurements([run for run in members if run.status == "finished"])
        for (input_name, batch_size, norm), members in group_cells(runs).items()
    ]


def _find_collapsed(runs: Sequence[RunResult]) -> set[int]:
    """The `id` of each collapsed run, among all runs of its input."""
    collapsed: set[int] = set()
    for input_name in {run.input for run in runs}:
        members = [run for run in runs if run.input == input_name and run.counts]
        dice = np.array([math.nan if run.status == "diverged" else run.run_dice for run in members])
        collapsed |= {id(run) for run, found in zip(members, find_collapses(dice), strict=True) if found}
    return collapsed


def _summarize_dice(runs: list[RunResult], cases: Sequence[str], collapsed: set[int]) -> dict[str, Any]:
    dice = np.array([run.run_dice for run in runs], dtype=np.float64)
    dice = dice[~np.isnan(dice)]
    estimate = estimate_mean(collect_case_dice(runs, cases))
    return {
        "runs": len(runs),
        "collapsed": sum(id(run) in collapsed for run in runs),
        "dice_mean": float(dice.mean()) if dice.size else None,
        "dice_sd": float(dice.std(ddof=1)) if dice.size > 1 else None,
        "dice_worst": float(dice.min()) if dice.size else None,
        "dice_interval": None if math.isnan(estimate.low) else [estimate.low, estimate.high],
    }


def _summarize_measurements(runs: list[RunResult]) -> dict[str, Any]:
    means: dict[str, Any] = {key: _mean(runs, name) for key, name in _MEASUREMENTS.items()}
    noises = {
        noise: {kind: _mean(runs, f"{noise}_{kind}") for kind in ("measured", "theory")} for noise in _NOISES
    }
    return means | noises


def _mean(runs: list[RunResult], name: str) -> float | None:
    """Mean of a measurement over the runs that have it; None where none does."""
    values = np.array([run.measurement(name) for run in runs], dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None
