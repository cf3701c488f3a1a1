"""The runs of a comparison: one experiment each, alike in all but norm, batch size, seed and input."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medseg_brn.comparison.config import INTENSITIES, ComparisonConfig, Input, NormConfig
from medseg_brn.config import Experiment
from medseg_brn.experiment import parse_experiment
from medseg_brn.inference.precision import choose_device, has_native_bf16

_POWERS = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class PlannedRun:
    """One network to train."""

    name: str
    """Names its folder: `zscored-batch_renorm-b1-s0`."""
    input: Input
    norm: str
    batch_size: int
    seed: int
    experiment: Experiment


def plan_runs(comparison: ComparisonConfig) -> list[PlannedRun]:
    """Every run of the grid, all cells of one seed before the next seed: a part of them is a smaller grid.

    For one seed, runs share initial weights, folds and the stream of patches, whatever the norm.

    Raises:
        ConfigError: the experiment or a norm's options are not valid.
    """
    base = parse_experiment(comparison.experiment, f"experiment of {comparison.name!r}")
    return [
        PlannedRun(
            name=f"{source}-{norm.name}-b{batch_size}-s{seed}",
            input=source,
            norm=norm.name,
            batch_size=batch_size,
            seed=base.seed + seed,
            experiment=_make_experiment(comparison, base, source, norm, batch_size, seed),
        )
        for seed in range(comparison.seeds)
        for source, batch_size, norm in _list_cells(comparison)
    ]


def compute_learning_rate_at(comparison: ComparisonConfig, base: Experiment, batch_size: int) -> float:
    """The experiment's learning rate, carried from its own batch size to another by the comparison's rule."""
    training = base.training
    power = _POWERS[comparison.learning_rate_rule]
    return float(f"{training.learning_rate * (batch_size / training.batch_size) ** power:.4g}")


def _list_cells(comparison: ComparisonConfig) -> Iterator[tuple[Input, int, NormConfig]]:
    for source, batch_sizes in comparison.inputs.items():
        for batch_size in comparison.batch_sizes if batch_sizes is None else batch_sizes:
            for norm in comparison.arms.values():
                yield source, batch_size, norm


def _make_experiment(
    comparison: ComparisonConfig,
    base: Experiment,
    source: Input,
    norm: NormConfig,
    batch_size: int,
    seed: int,
) -> Experiment:
    options: dict[str, Any] = copy.deepcopy(comparison.experiment)
    steps = comparison.budget.count_steps(batch_size)
    sections: dict[str, dict[str, Any]] = {
        "dataset": {"split_seed": base.split_seed},
        "patches": {"workers": 0} | (options.get("patches") or {}),  # the runs themselves are side by side
        "preprocessing": {"intensity": INTENSITIES[source]},
        "network": {"weight_standardization": False} | norm.network,
        "training": {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": compute_learning_rate_at(comparison, base, batch_size),
            "probe_every": max(1, steps // comparison.probes.samples),
        }
        | norm.training,
    }
    for section, values in sections.items():
        options[section] = {**(options.get(section) or {}), **values}
    training = options["training"]
    if training.get("precision", "auto") == "auto":
        # by what the machine has: each run would try for itself which is faster, and they might disagree
        native = has_native_bf16(choose_device(training.get("device", "auto")))
        training["precision"] = "bf16" if native else "fp32"
    options["name"] = f"{norm.name}, batch size {batch_size}, {source}, seed {base.seed + seed}"
    options["seed"] = base.seed + seed
    return parse_experiment(options, f"norm {norm.name!r} of {comparison.name!r}")
