"""What a comparison says in words, figures in large type and tables."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from medseg_brn.reports.comparison.record import (
    Cell,
    ComparisonRecord,
    as_number,
    find_run_file,
    finite_or_none,
)
from medseg_brn.reports.comparison.texts import BATCH_SIZE, INPUTS, SETTING, say_input
from medseg_brn.reports.comparison.verdicts import conclude
from medseg_brn.reports.page import Block, Column, Facts, Link, Paragraph, Table, Tile, Tiles
from medseg_brn.reports.wording import times

QUALITY = {
    "runs": Column("Runs", "g"),
    "failed": Column("Failed", "g"),
    "collapsed": Column("Collapsed", "g"),
    "dice_mean": Column("Dice", ".3f"),
    "dice_sd": Column("SD", ".3f"),
    "dice_worst": Column("Worst", ".3f"),
    "spike_fraction": Column("Spikes", ".2%"),
}
USE = {
    "dice_disparity": Column("Dice, eval − train", "+.3f"),
    "train_eval_disparity": Column("Train/eval disparity", ".2g"),
    "tile_mismatch": Column("Tile mismatch", ".2g"),
    "leakage": Column("Leakage", ".3f"),
}
STATISTICS = {
    "estimation_shift": Column("Shift of mean", ".3g"),
    "estimation_shift_var": Column("Shift of variance", ".3g"),
    "scale_departure": Column("Departure of scale", ".2g"),
    "shift_departure": Column("Departure of mean", ".2g"),
    "statistics_drift": Column("Drift", ".2g"),
    "worker_divergence": Column("Worker divergence", ".2g"),
}
CLIPS = {
    "clip_rate_r": Column("Clip rate r", ".1%"),
    "clip_rate_d": Column("Clip rate d", ".1%"),
    "clipped_mass_r": Column("Clipped mass r", ".2g"),
    "clipped_mass_d": Column("Clipped mass d", ".2g"),
}
NOISE = {
    "variance_noise.measured": Column("Noise of variance", ".3g"),
    "variance_noise.theory": Column("Predicted", ".3g"),
    "variance_noise_first_order": Column("First order", ".3g"),
    "mean_noise.measured": Column("Noise of mean", ".3g"),
    "mean_noise.theory": Column("Predicted", ".3g"),
    "effective_sample_size": Column("Effective sample size", ".3g"),
    "intraclass_correlation": Column("Intraclass correlation", ".3f"),
}
GRADIENTS = {
    "gradient_noise_scale": Column("Gradient noise scale", ".3g"),
    "gradient_fidelity": Column("Gradient fidelity", ".3f"),
    "batchmate_dependence": Column("Batchmate dependence", ".2g"),
    "backward_cross_talk": Column("Backward cross-talk", ".2g"),
    "seconds_per_step": Column("Seconds per step", ".3f"),
    "peak_memory_mb": Column("Peak memory (MB)", ".0f"),
}


def make_summary(record: ComparisonRecord) -> list[Block]:
    """The figures that matter most, and what can and cannot be concluded."""
    return [Tiles(_make_tiles(record)), *conclude(record)]


def describe_setting(record: ComparisonRecord) -> list[Block]:
    """What was compared, and what was held equal."""
    summary = record.summary
    options = _mapping(summary.get("norm_options"))
    machine = _mapping(summary.get("machine"))
    facts = {
        "Network": "the same 3D U-Net in every run; what differs is told with each norm above",
        "Batch sizes": ", ".join(map(str, record.batch_sizes)),
        "Input": "; ".join(map(_explain_input, record.inputs)),
        "Seeds": f"{record.seeds} per cell; runs of one seed share initial weights and patches"
        if record.seeds
        else "",
        "Budget": _tell_budget(_mapping(summary.get("budget"))),
        "Learning rate": _tell_learning_rate(_mapping(summary.get("learning_rate"))),
        "Dataset": str(summary.get("dataset") or ""),
        "Held-out cases": str(summary.get("cases") or ""),
        "Patches (voxels)": _tell_size(summary.get("patch_size")),
        "Tiles (voxels)": _tell_size(summary.get("tile_size")),
        "Reference": record.reference,
        "Machine": _tell_machine(machine),
    }
    facts = {name: value for name, value in facts.items() if value}
    return [
        Paragraph(SETTING),
        Facts("The norms", {norm: str(options.get(norm, "–")) for norm in record.norms}),
        Facts("What was held equal, and where", facts),
    ]


def make_batch_size_table(record: ComparisonRecord) -> list[Block]:
    """How far each norm depends on the batch size; nothing with one batch size."""
    listed = record.summary.get("batch_size_dependence")
    rows: list[list[str | float | None]] = []
    for row in map(_mapping, listed if isinstance(listed, list) else []):
        numbers = (as_number(row.get(key)) for key in ("batch_size_slope", "batch_size_ratio"))
        rows.append([str(row.get("norm")), str(row.get("input")), *map(finite_or_none, numbers)])
    if len(record.batch_sizes) < 2 or not rows:
        return []
    columns = [
        Column("Norm"),
        Column("Input"),
        Column("Dice per doubling", "+.3f"),
        Column("Dice at smallest / at largest", ".3f"),
    ]
    return [
        Paragraph(BATCH_SIZE),
        Table("Dependence on the batch size; click a heading to sort.", columns, rows),
    ]


def make_cell_tables(record: ComparisonRecord) -> list[Block]:
    """Every figure of every cell, in tables that fit a screen.

    Columns without a value are left out, and cells without one: clips are renorm's alone.
    """
    tables: list[Block] = []
    for caption, columns in (
        ("Quality and stability", QUALITY),
        ("Training against use", USE),
        ("Running statistics", STATISTICS),
        ("What the clips cut off", CLIPS),
        ("Noise of a batch's statistics", NOISE),
        ("Gradients, time and memory", GRADIENTS),
    ):
        known = [key for key in columns if any(cell.defined(key) is not None for cell in record.cells)]
        if known:
            tables.append(
                Table(
                    f"{caption}; click a heading to sort.",
                    [
                        Column("Norm"),
                        Column("Batch size", "g"),
                        Column("Input"),
                        *(columns[key] for key in known),
                    ],
                    [
                        [cell.norm, cell.batch_size, cell.input, *(cell.defined(key) for key in known)]
                        for cell in record.cells
                        if any(cell.defined(key) is not None for key in known)
                    ],
                )
            )
    return tables


def make_run_table(record: ComparisonRecord) -> list[Block]:
    """What went wrong first, then every run, with a link to its own report where it has one."""
    if not record.runs:
        return []
    broken = [run for run in record.runs if run.outcome != "finished"]
    head = [Column("Run"), Column("Norm"), Column("Batch size", "g"), Column("Input"), Column("Seed", "g")]
    blocks: list[Block] = []
    if broken:
        rows = [
            [run.name, run.norm, run.batch_size, run.input, run.seed, run.outcome, run.error or None]
            for run in broken
        ]
        caption = "Runs that diverged, failed or could not be probed"
        blocks.append(Table(caption, [*head, Column("Status"), Column("Error")], rows))
    else:
        blocks.append(Paragraph(f"All {len(record.runs)} runs finished and were probed."))
    every = [
        [
            Link(run.name, f"runs/{run.name}/report.html")
            if find_run_file(record.folder, run, "report.html")
            else run.name,
            run.norm,
            run.batch_size,
            run.input,
            run.seed,
            run.outcome,
            finite_or_none(run.dice),
        ]
        for run in record.runs
    ]
    columns = [*head, Column("Status"), Column("Dice", ".3f")]
    return [*blocks, Table("Every run; a name leads to the run's own report.", columns, every)]


def _make_tiles(record: ComparisonRecord) -> list[Tile]:
    known = [cell for cell in record.cells if cell.defined("dice_mean") is not None]
    tiles = []
    if known:
        best = max(known, key=lambda cell: cell.number("dice_mean"))
        tiles.append(Tile("Best cell, mean Dice", f"{best.number('dice_mean'):.3f}", _tell_cell(best)))
    tiles.append(_make_stability_tile(record))
    runs = sum(cell.count("runs") for cell in record.cells)
    lost = Counter(run.outcome for run in record.runs)
    outcomes = ("diverged", "failed", "finished, not probed")
    lost_note = "; ".join(f"{lost[name]} {name}" for name in outcomes if lost[name])
    tiles.append(Tile("Runs", str(len(record.runs) or runs), lost_note or "none diverged or failed"))
    collapsed = sum(cell.count("collapsed") for cell in record.cells)
    tiles.append(Tile("Collapsed", str(collapsed), "diverged, or a Dice below half the median"))
    return tiles


def _make_stability_tile(record: ComparisonRecord) -> Tile:
    """The norm with the smallest mean spread over seeds, among those of which no run was lost."""
    spreads = {}
    for norm in record.norms:
        cells = [cell for cell in record.cells if cell.norm == norm]
        lost = sum(cell.count("collapsed") + cell.count("failed") for cell in cells)
        spread = float(np.mean([cell.number("dice_sd") for cell in cells])) if cells else math.nan
        if not lost and math.isfinite(spread):
            spreads[norm] = spread
    if not spreads:
        return Tile("Most stable", "–", "no norm has two seeds in every cell and lost no run")
    norm = min(spreads, key=lambda name: spreads[name])
    return Tile("Most stable", norm, f"Dice varies by {spreads[norm]:.3f} (SD over seeds, mean over cells)")


def _tell_budget(budget: Mapping[str, Any]) -> str:
    match budget.get("rule"):
        case "patches":
            patches = budget.get("patches")
            return f"{patches} patches per run at every batch size, so fewer steps with larger batches"
        case "steps":
            steps = budget.get("steps")
            return f"{steps} steps per run at every batch size, so more patches with larger batches"
        case _:
            return ""


def _tell_learning_rate(rate: Mapping[str, Any]) -> str:
    base = as_number(rate.get("base"))
    at = f"{base:g} at batch size {rate.get('at_batch_size')}"
    match rate.get("rule"):
        case "constant":
            return f"{base:g} at every batch size"
        case "sqrt":
            return f"{at}, in proportion to the square root of the batch size"
        case "linear":
            return f"{at}, in proportion to the batch size"
        case _:
            return ""


def _tell_machine(machine: Mapping[str, Any]) -> str:
    parts = {
        "cpu": "{}",
        "torch": "torch {}",
        "threads_per_run": "threads per run: {}",
    }
    return ", ".join(form.format(machine[key]) for key, form in parts.items() if machine.get(key))


def _explain_input(name: str) -> str:
    said, meaning = INPUTS.get(name, (name, ""))
    return f"{said} ({meaning})" if meaning else said


def _tell_size(size: Any) -> str:
    return times(size) if isinstance(size, list) else ""


def _tell_cell(cell: Cell) -> str:
    return f"{cell.norm}, batch size {cell.batch_size}, {say_input(cell.input)}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
