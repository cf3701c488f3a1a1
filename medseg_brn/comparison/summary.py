"""What the runs of a norm have in common and how far they differ: at each batch size, and across them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medseg_brn.comparison.results import RunResult, collect_case_dice, group_cells, list_cases
from medseg_brn.comparison.statistics import estimate_mean
from medseg_brn.probes.curves import batch_size_ratio, batch_size_slope, find_collapses

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
    "scale_departure": "scale_departure",
    "shift_departure": "shift_departure",
    "worker_divergence": "worker_divergence",
    "leakage": "leakage",
    "intraclass_correlation": "intraclass_correlation",
    "effective_sample_size": "effective_sample_size",
    "variance_noise_first_order": "variance_noise_first_order",
    "seconds_per_step": "seconds_per_step",
    "peak_memory_mb": "peak_memory_mb",
}
"""Key of a summary → measurement of a run."""

_NOISES = ("variance_noise", "mean_noise")
"""Measured as `<name>_measured` and predicted as `<name>_theory`."""

_REDUCED: dict[str, Callable[[np.ndarray], Any]] = {
    "gradient_noise_scale": np.median,  # a ratio: one run with a denominator near 0 would be all of the mean
    "seconds_per_step": np.min,  # whatever else the machine did only added to it
}
"""Measurements of a cell's runs that are not told by their mean."""


def summarize_cells(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return a JSON-able summary of every norm, batch size and input, in the order of `runs`.

    Failed runs are counted and otherwise left out. A diverged run counts as Dice 0, and has no part in the
    measurements, which are means over finished runs (the gradient noise scale: the median; the time per step:
    the fastest run's) and null where none has one.

    Keys: `norm`, `batch_size`, `input`; `runs` (finished or diverged), `failed`, `collapsed` (diverged, or
    Dice below half the median of the input's runs that did not diverge); `dice_mean`, `dice_sd` over seeds
    (null for one), `dice_worst`, `dice_interval` (95 %, see `estimate_mean`: for other cases and, with two
    seeds or more, other seeds; cut to 0 to 1); the measurements; `variance_noise` and `mean_noise` with
    `measured` and `theory`.

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


def summarize_norms(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return how far the Dice of every norm and input depends on the batch size, JSON-able.

    Failed runs are left out; a diverged run counts as Dice 0.

    Keys: `norm`, `input`; `batch_size_slope`, Dice per doubling of the batch size, the mean over seeds of
    each seed's slope (null where no seed has two batch sizes); `batch_size_ratio`, mean Dice at the smallest
    batch size of the input over that at the largest (null where the norm has no Dice at either, where the
    latter is 0, or with one batch size).

    Raises:
        DataError: two runs are of the same input, batch size, norm and seed.
    """
    rows: dict[tuple[str, str], list[RunResult]] = {}
    sizes: dict[str, set[int]] = {}
    for (input_name, batch_size, norm), members in group_cells(runs).items():
        sizes.setdefault(input_name, set()).add(batch_size)
        known = [run for run in members if not math.isnan(run.run_dice)]
        rows.setdefault((input_name, norm), []).extend(known)
    return [
        {
            "norm": norm,
            "input": input_name,
            "batch_size_slope": _compute_slope(members),
            "batch_size_ratio": _compute_ratio(members, {min(sizes[input_name]), max(sizes[input_name])}),
        }
        for (input_name, norm), members in rows.items()
    ]


def _compute_slope(runs: list[RunResult]) -> float | None:
    slopes = []
    for seed in sorted({run.seed for run in runs}):
        members = [run for run in runs if run.seed == seed]
        slopes.append(batch_size_slope(*_list_dice(members)))
    return _reduce(np.array(slopes), np.mean)


def _compute_ratio(runs: list[RunResult], ends: set[int]) -> float | None:
    runs = [run for run in runs if run.batch_size in ends]
    return _reduce(np.array([batch_size_ratio(*_list_dice(runs))]), np.mean)


def _list_dice(runs: list[RunResult]) -> tuple[list[int], list[float]]:
    return [run.batch_size for run in runs], [run.run_dice for run in runs]


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
        "dice_interval": None if math.isnan(estimate.low) else [max(estimate.low, 0), min(estimate.high, 1)],
    }


def _summarize_measurements(runs: list[RunResult]) -> dict[str, Any]:
    typical: dict[str, Any] = {key: _measure(runs, name) for key, name in _MEASUREMENTS.items()}
    noises = {
        noise: {kind: _measure(runs, f"{noise}_{kind}") for kind in ("measured", "theory")}
        for noise in _NOISES
    }
    return typical | noises


def _measure(runs: list[RunResult], name: str) -> float | None:
    """A measurement's mean, or what `_REDUCED` says, over the runs that have it; None where none does."""
    values = np.array([run.measurement(name) for run in runs], dtype=np.float64)
    return _reduce(values, _REDUCED.get(name, np.mean))


def _reduce(values: np.ndarray, reduce: Callable[[np.ndarray], Any]) -> float | None:
    """The mean (or so) of what is finite; None where nothing is."""
    values = values[np.isfinite(values)]
    return float(reduce(values)) if values.size else None
