"""What a run folder tells: options, measurements per step, and the evaluation of its held-out cases."""

import json
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.config import Experiment
from medseg_brn.errors import DataError
from medseg_brn.experiment import load_experiment
from medseg_brn.reports.step_records import PatchRecord, StepRecord, read_metrics, read_patches


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it."""

    folder: Path
    experiment: Experiment
    config_text: str
    """`config.yaml` as it is."""
    metrics: dict[str, np.ndarray]
    """Column of `metrics.csv` -> (steps,) float64; NaN where a row has no value."""
    evaluation: dict[str, Any] | None
    """`validation.json`, or None where there is none or it holds no case."""
    split: dict[str, Any]
    """`split.json`: `training` and `validation` case names among others; empty where it is missing."""
    model: dict[str, Any]
    """`model/model.json`; empty where it is missing."""
    patches: list[PatchRecord] = field(default_factory=list)
    """`patches.csv`; empty where it is missing, as in runs of earlier versions."""
    fit: dict[str, Any] = field(default_factory=dict)
    """`fit.json`: case → Dice of some `training` and `held_out` cases; empty where it is missing."""
    suspects: list[dict[str, str]] = field(default_factory=list)
    """`suspects.json`: name and paths of training cases that are badly fitted."""
    divergence: dict[str, Any] = field(default_factory=dict)
    """`divergence.json`; empty unless the run ended by it."""
    initial_weights: dict[str, Any] = field(default_factory=dict)
    """`initial_weights.json`; empty unless the run began with a model's weights."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, background first; empty where `split.json` is missing."""
        return list(self.split.get("classes", []))

    def locate(self, path: str) -> Path:
        """A path of a record: relative to the run folder where it is there, else as it stands."""
        inside = self.folder / path
        return inside if inside.exists() else Path(path)


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder, finished or not.

    Raises:
        DataError: there is no `config.yaml`, or a JSON file is damaged.
        ConfigError: `config.yaml` is not an experiment.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise DataError(
            f"{folder} is no run folder: it has no config.yaml; give the folder that train wrote."
        )
    evaluation = _read_json(folder / "validation.json")
    return RunRecord(
        folder=folder,
        experiment=load_experiment(config),
        config_text=config.read_text(encoding="utf-8"),
        metrics=tabulate_metrics(folder / "metrics.csv"),
        evaluation=evaluation if evaluation.get("cases") else None,
        split=_read_json(folder / "split.json"),
        model=_read_json(folder / "model" / "model.json"),
        patches=read_patches(folder / "patches.csv"),
        fit=_read_json(folder / "fit.json"),
        suspects=_read_json(folder / "suspects.json").get("cases", []),
        divergence=_read_json(folder / "divergence.json"),
        initial_weights=_read_json(folder / "initial_weights.json"),
    )


def tabulate_metrics(path: Path) -> dict[str, np.ndarray]:
    """Columns of a `metrics.csv`, empty where the file is missing."""
    rows = [astuple(record) for record in read_metrics(path)]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(fields(StepRecord)))
    return {field.name: column for field, column in zip(fields(StepRecord), table.T, strict=True)}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); remove it, and resume the run to make it anew."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; an object is expected.")
    return content
