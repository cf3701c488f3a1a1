"""What a comparison writes beside its report: `runs.csv`, `probes.csv`, `summary.json`."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medseg_brn.comparison.claims import judge
from medseg_brn.comparison.config import ComparisonConfig
from medseg_brn.comparison.results import RunResult, list_cases
from medseg_brn.comparison.summary import summarize_cells, summarize_norms
from medseg_brn.config import Experiment
from medseg_brn.inference.machine import processor_name
from medseg_brn.training.recording import read_samples
from medseg_brn.volumes.atomic import write_text_atomic

RUN_COLUMNS = ("name", "input", "norm", "batch_size", "seed", "status", "error", "dice")


def write_tables(comparison: ComparisonConfig, runs: Sequence[RunResult], folder: Path) -> None:
    """Write the three tables of finished, diverged and failed runs, each whole or not at all."""
    write_text_atomic(folder / "runs.csv", _write_csv(tabulate_runs(runs)))
    write_text_atomic(folder / "probes.csv", _write_csv(tabulate_probes(runs, folder)))
    summary = summarize(comparison, runs)
    write_text_atomic(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def summarize(comparison: ComparisonConfig, runs: Sequence[RunResult]) -> dict[str, Any]:
    """What was compared, cell by cell, and what can be concluded; JSON types."""
    threads = sorted({int(run.measurements["threads"] or 0) for run in runs if "threads" in run.measurements})
    base = Experiment.model_validate(comparison.experiment)
    return {
        "name": comparison.name,
        "description": comparison.description,
        "norms": list(comparison.arms),
        "norm_options": {name: norm.describe() for name, norm in comparison.arms.items()},
        "reference": comparison.reference_norm,
        "batch_sizes": list(comparison.batch_sizes),
        "inputs": list(comparison.inputs),
        "seeds": comparison.seeds,
        "cases": len(list_cases(runs)),
        "dataset": base.dataset.path,
        "patch_size": list(base.patches.size),
        "tile_size": list(comparison.probes.tile_size or base.patches.size),
        "budget": {
            "rule": "patches" if comparison.budget.patches else "steps",
            **comparison.budget.model_dump(),
        },
        "learning_rate": {
            "rule": comparison.learning_rate_rule,
            "base": base.training.learning_rate,
            "at_batch_size": base.training.batch_size,
        },
        "machine": {
            "cpu": processor_name(),
            "torch": torch.__version__,
            "threads_per_run": " or ".join(map(str, threads)),
        },
        "cells": summarize_cells(runs),
        "batch_size_dependence": summarize_norms(runs),
        "verdicts": [verdict.as_dict() for verdict in judge(runs, comparison.reference_norm)],
    }


def tabulate_runs(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row a run: what it was, its Dice, all measurements, and Dice per class."""
    measured = list(dict.fromkeys(name for run in runs for name in run.measurements))
    classes = list(dict.fromkeys(name for run in runs for name in run.class_dice))
    return [
        {name: getattr(run, name) for name in RUN_COLUMNS}
        | {name: run.measurements.get(name) for name in measured}
        | {f"dice_{name}": run.class_dice.get(name) for name in classes}
        for run in runs
    ]


def tabulate_probes(runs: Sequence[RunResult], folder: Path) -> list[dict[str, Any]]:
    """One row a sample of a run; then what was found in its finished network, by layer, without a step."""
    rows = []
    for run in runs:
        place = folder / "runs" / run.name
        keys = {
            "run": run.name,
            "input": run.input,
            "norm": run.norm,
            "batch_size": run.batch_size,
            "seed": run.seed,
        }
        rows += [keys | asdict(sample) for sample in read_samples(place / "probes.csv")]
        found = place / "examination.json"
        if not found.is_file():
            continue
        for layer, metrics in json.loads(found.read_text(encoding="utf-8"))["layers"].items():
            rows += [
                keys | {"step": None, "layer": layer, "metric": metric, "value": value}
                for metric, value in metrics.items()
            ]
    return rows


def _write_csv(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.8g}" if isinstance(value, float) else value
