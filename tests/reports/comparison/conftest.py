"""Fixtures of the reports: folders of made-up comparisons."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

NORMS = (
    "batch_renorm",
    "batch_norm",
    "instance_norm",
    "group_norm",
    "layer_norm",
    "sync_batch_norm",
    "moving_average_batch_norm",
    "filter_response_norm",
    "switchable_norm",
    "position_norm",
    "evo_norm",
    "none",
)
BATCHED = ("batch_renorm", "batch_norm", "sync_batch_norm", "moving_average_batch_norm", "switchable_norm")
RUN_COLUMNS = ("name", "input", "norm", "batch_size", "seed", "status", "error", "dice")
PROBE_COLUMNS = ("run", "input", "norm", "batch_size", "seed", "step", "layer", "metric", "value")
STEP_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds", "loader_share", "dice")


@pytest.fixture
def folders() -> SimpleNamespace:
    """Makers of comparisons, as large as a real one or as small as one can be, and of the files in them."""
    return SimpleNamespace(
        make_large=make_large_comparison,
        make_small=make_small_comparison,
        write_runs=lambda folder, rows: write_table(folder / "runs.csv", RUN_COLUMNS, rows),
        write_probes=lambda folder, rows: write_table(folder / "probes.csv", PROBE_COLUMNS, rows),
        write_seams=write_seams,
    )


def make_large_comparison(
    folder: Path, norms: tuple[str, ...] = NORMS, sizes: tuple[int, ...] = (1, 2, 4, 8)
) -> Path:
    """12 norms, 4 batch sizes, 2 inputs, 3 seeds: one norm lost altogether, one cell missing."""
    random = np.random.default_rng(3)
    inputs, seeds = ("zscored", "raw"), 3
    cells, runs, probes = [], [], []
    for place, norm in enumerate(norms):
        for input_name in inputs:
            for size in sizes:
                if (norm, size) == ("evo_norm", 8):
                    continue
                lost = norm == "none"
                level = 0.93 - 0.012 * place - (0.25 if norm in BATCHED[1:] else 0.05) / size
                dices = np.clip(level + random.normal(0, 0.02 + 0.03 / size, seeds), 0, 1) * (not lost)
                cells.append(_make_cell(random, norm, size, input_name, dices))
                for seed in range(seeds):
                    name = f"{input_name}-{norm}-b{size}-s{seed}"
                    runs.append(
                        {
                            "name": name,
                            "input": input_name,
                            "norm": norm,
                            "batch_size": size,
                            "seed": seed,
                            "status": "diverged" if lost else "finished",
                            "error": f"The loss is NaN at step {40 + seed}." if lost else "",
                            "dice": dices[seed],
                            "unknown": "x",
                        }
                    )
                    run_folder = folder / "runs" / name
                    run_folder.mkdir(parents=True)
                    _write_steps(random, run_folder, 45 if lost else 300, 0.05 / size)
                    if not lost:
                        (run_folder / "report.html").write_text("<p>", encoding="utf-8")
                        if norm in BATCHED:
                            probes += _make_probes(random, runs[-1], renorm=norm == "batch_renorm")
                        if size == 1 and seed == 0:
                            mismatch = 0.0 if norm == "batch_renorm" else 0.02 * place
                            write_seams(run_folder / "seams.npz", mismatch)
    summary = {
        "name": "Normalization at small batch sizes",
        "description": "The same 3D U-Net with twelve norms, on synthetic volumes of two classes.",
        "norms": norms,
        "batch_sizes": sizes,
        "inputs": inputs,
        "seeds": seeds,
        "cases": 24,
        "dataset": "data/phantom",
        "patch_size": [32, 32, 32],
        "tile_size": [16, 16, 32],
        "reference": "batch_renorm",
        "budget": {"rule": "patches", "patches": 4800, "steps": None},
        "learning_rate": {"rule": "sqrt", "base": 0.01, "at_batch_size": 2},
        "norm_options": {norm: f"{norm.replace('_', ' ')}, momentum 0.1" for norm in norms},
        "machine": {
            "cpu": "Example CPU",
            "torch": "2.13.0",
            "threads_per_run": "1 or 2",
        },
        "cells": cells,
        "batch_size_dependence": _relate_to_batch_size(cells),
        "verdicts": _make_verdicts(random),
        "unknown": {"extra": True},
    }
    write_json(folder / "summary.json", summary)
    write_table(folder / "runs.csv", (*RUN_COLUMNS, "unknown"), runs)
    write_table(folder / "probes.csv", PROBE_COLUMNS, probes)
    return folder


def make_small_comparison(folder: Path, norm: str = "batch_renorm", **changes: Any) -> Path:
    """One norm, one batch size, one input, one seed, and nothing that can be left out."""
    folder.mkdir(parents=True, exist_ok=True)
    cell = {"norm": norm, "batch_size": 1, "input": "zscored", "runs": 1, "dice_mean": 0.5, "dice_sd": None}
    summary = {
        "name": "small",
        "norms": [norm],
        "batch_sizes": [1],
        "inputs": ["zscored"],
        "seeds": 1,
        "cells": [cell],
    }
    write_json(folder / "summary.json", summary | changes)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_seams(path: Path, mismatch: float) -> None:
    """A disc in a picture of 40 × 32 voxels; the tiles right of x = 20 are off by `mismatch`."""
    x, y = np.meshgrid(np.arange(40), np.arange(32), indexing="ij")
    full = 1 / (1 + np.exp(np.hypot(x - 20, y - 16) - 9))
    np.savez(
        path,
        image=full + 0.1 * np.sin(x),
        full=full,
        tiled=np.clip(full + mismatch * (x >= 20), 0, 1),
        cuts_x=np.array([20]),
        cuts_y=np.array([10, 21]),
    )


def _make_cell(
    random: np.random.Generator, norm: str, size: int, input_name: str, dices: np.ndarray
) -> dict[str, Any]:
    cell: dict[str, Any] = {"norm": norm, "batch_size": size, "input": input_name, "runs": 3, "unknown": [1]}
    if not dices.any():
        lost = {"failed": 0, "collapsed": 3, "dice_mean": 0.0, "dice_sd": 0.0, "dice_worst": 0.0}
        return (
            cell | lost | {"dice_interval": [0.0, 0.0], "variance_noise": {"measured": None, "theory": None}}
        )
    mean, sd = float(dices.mean()), float(dices.std(ddof=1))
    uses_batch = norm in BATCHED
    noise = 0.2 / size**0.5 * float(random.uniform(0.5, 2))
    renorm = norm == "batch_renorm"
    return cell | {
        "failed": 0,
        "dice_mean": mean,
        "dice_sd": sd,
        "dice_worst": float(dices.min()),
        "dice_interval": [mean - 2.5 * sd, min(1.0, mean + 2.5 * sd)],
        "train_eval_disparity": 0.05 / size * float(random.uniform(0.5, 2)) if uses_batch else 0.0,
        "dice_disparity": -0.1 / size if uses_batch else 0.0,
        "tile_mismatch": 0.0 if renorm else 0.03 * float(random.uniform(0.1, 2)),
        "estimation_shift": 0.1 if uses_batch else None,
        "clip_rate_r": 0.04 if renorm else None,
        "clip_rate_d": 0.02 if renorm else None,
        "spike_fraction": 0.01,
        "collapsed": int(norm == "batch_norm" and size == 1),
        "gradient_noise_scale": 12.5,
        "statistics_drift": 0.0012 if uses_batch else None,
        "scale_departure": 0.07 if uses_batch else None,
        "shift_departure": 0.05 if uses_batch else None,
        "worker_divergence": 0.01 if uses_batch else None,
        "leakage": 0.06 if uses_batch else 0.0,
        "intraclass_correlation": 0.02,
        "effective_sample_size": 120.0,
        "variance_noise_first_order": 0.8 * noise,
        "variance_noise": {"theory": noise, "measured": noise * float(random.uniform(0.8, 1.25))},
        "mean_noise": {"theory": noise / 2, "measured": noise / 2 * float(random.uniform(0.8, 1.25))},
        "seconds_per_step": 0.1 * size * float(random.uniform(1, 1.4)),
        "peak_memory_mb": 400 + 150 * size,
    }


def _relate_to_batch_size(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for norm, input_name in dict.fromkeys((cell["norm"], cell["input"]) for cell in cells):
        members = [cell for cell in cells if (cell["norm"], cell["input"]) == (norm, input_name)]
        dice = {cell["batch_size"]: cell["dice_mean"] for cell in members}
        lost = not dice[1]
        rows.append(
            {
                "norm": norm,
                "input": input_name,
                "batch_size_slope": float(np.polyfit(np.log2(list(dice)), list(dice.values()), 1)[0]),
                "batch_size_ratio": None if lost else dice[min(dice)] / dice[max(dice)],
            }
        )
    return rows


def _make_verdicts(random: np.random.Generator) -> list[dict[str, Any]]:
    verdicts = []
    for question in ("dice", "disparity", "tile_mismatch", "spread"):
        for size in (1, 2, 4, 8):
            for other in NORMS[1:5]:
                effect, clear = float(random.normal(0, 0.05)), size == 1 and question != "spread"
                found = f"batch_renorm {'higher' if effect > 0 else 'lower'} by {abs(effect):.3g}"
                verdicts.append(
                    {
                        "claim": f"batch_renorm differs from {other} at batch size {size} (zscored)",
                        "question": question,
                        "effect": effect,
                        "interval": [effect - 0.02, effect + 0.02] if clear else None,
                        "p": 0.001,
                        "p_adjusted": 0.004 if clear else 0.4,
                        "conclusion": found if clear else "not distinguishable",
                        "norm": "batch_renorm",
                        "other": other,
                        "batch_size": size,
                        "input": "zscored",
                    }
                )
    for norm in NORMS[:4]:
        slope, clear = float(random.uniform(0.01, 0.03)), norm == "batch_norm"
        rises = f"Dice rises by {slope:.3g} with each doubling of the batch size"
        verdicts.append(
            {
                "claim": f"Dice of {norm} changes with the batch size (zscored)",
                "question": "batch_size_slope",
                "effect": slope,
                "interval": [slope - 0.02, slope + 0.02],
                "p": 0.001,
                "p_adjusted": 0.004 if clear else 0.4,
                "conclusion": rises if clear else "not distinguishable",
                "norm": norm,
                "other": None,
                "batch_size": None,
                "input": "zscored",
            }
        )
    return verdicts


def _make_probes(random: np.random.Generator, run: dict[str, Any], renorm: bool) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, 301, 10):
        decay = float(np.exp(-step / 100))
        metrics = {"statistics_drift": 0.1 * decay * float(random.uniform(0.5, 2)) / run["batch_size"]}
        if renorm:
            metrics |= {
                "clip_rate_r": 0.3 * decay,
                "clip_rate_d": 0.2 * decay * float(random.uniform(0.5, 1)),
            }
        for layer in ("", "encoder.0"):
            rows += [
                {key: run[key] for key in ("input", "norm", "batch_size", "seed")}
                | {"run": run["name"], "step": step, "layer": layer, "metric": metric, "value": value}
                for metric, value in metrics.items()
            ]
    return rows


def _write_steps(random: np.random.Generator, folder: Path, steps: int, noise: float) -> None:
    rows = []
    for step in range(1, steps + 1):
        loss = float(0.2 + 0.9 * np.exp(-step / 60) + random.normal(0, noise))
        spike = 0.5 if step in (150, 220) and noise > 0.02 else 0.0
        values = (step, loss + spike, 0.01, 1.0, 0.2, 0.1, None)
        rows.append(dict(zip(STEP_COLUMNS, values, strict=True)))
    write_table(folder / "metrics.csv", STEP_COLUMNS, rows)
