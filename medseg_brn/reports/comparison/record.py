"""What the folder of a comparison of normalizations tells: its summary, runs, probes, curves and seams."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.errors import DataError
from medseg_brn.reports.run_record import tabulate_metrics

PROBES_SHOWN = ("clip_rate_r", "clip_rate_d", "statistics_drift")
"""Metrics kept of `probes.csv`, which holds many more rows than a report can show."""

_REMEDY = "remove it, and run the comparison's summary again to make it anew."

Samples = dict[int, dict[str, dict[int, list[float]]]]
"""Batch size -> norm -> step -> one value per seed."""


@dataclass(frozen=True)
class Cell:
    """One norm at one batch size and input normalization, over its seeds."""

    norm: str
    batch_size: int
    input: str
    values: Mapping[str, Any]
    """The cell as it stands in `summary.json`."""

    def number(self, key: str) -> float:
        """A value as a float; NaN where it is missing, null, or no number. A dot leads to an inner value."""
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return as_number(value)

    def defined(self, key: str) -> float | None:
        """The same for tables, where None is a dash."""
        return finite_or_none(self.number(key))

    def count(self, key: str) -> int:
        """A count; 0 where it is undefined."""
        return int(self.defined(key) or 0)

    def interval(self, key: str) -> tuple[float, float]:
        """Lower and upper bound; NaN where undefined."""
        return as_interval(self.values.get(key))

    def theory_and_measured(self, key: str) -> tuple[float, float]:
        """What theory predicts and what was measured; NaN where undefined."""
        return self.number(f"{key}.theory"), self.number(f"{key}.measured")


@dataclass(frozen=True)
class Run:
    """A row of `runs.csv`: one seed of one cell."""

    name: str
    norm: str
    batch_size: int
    input: str
    seed: int
    status: str
    """`finished`, `diverged` or `failed`."""
    error: str
    """Why it did not finish; of a finished run, why it could not be probed. Empty where all went well."""
    dice: float
    """Mean foreground Dice in evaluation mode; NaN where there is none."""

    @property
    def outcome(self) -> str:
        """The status in words."""
        return "finished, not probed" if self.status == "finished" and self.error else self.status


@dataclass(frozen=True)
class Probe:
    """A row of `probes.csv` that is a mean over layers."""

    metric: str
    norm: str
    batch_size: int
    input: str
    step: int
    value: float


@dataclass(frozen=True, eq=False)
class Seams:
    """A slice segmented in one piece and from tiles whose norms saw only their tile."""

    image: np.ndarray
    """(X, Y), as a slice of a volume: the first axis is drawn to the right, the second up."""
    full: np.ndarray
    """(X, Y) foreground probability of the volume in one piece."""
    tiled: np.ndarray
    """(X, Y) foreground probability stitched from tiles."""
    cuts_x: np.ndarray
    """Tile boundaries along the first axis, in voxels."""
    cuts_y: np.ndarray
    """Tile boundaries along the second axis, in voxels."""


@dataclass(frozen=True)
class ComparisonRecord:
    """A comparison as its files tell it."""

    folder: Path
    summary: Mapping[str, Any]
    """`summary.json`."""
    cells: Sequence[Cell]
    verdicts: Sequence[Mapping[str, Any]]
    runs: Sequence[Run]
    probes: Sequence[Probe]

    @property
    def norms(self) -> list[str]:
        """In the summary's order; what only a cell or a run names comes last."""
        return [str(norm) for norm in self._collect("norms", lambda row: row.norm)]

    @property
    def inputs(self) -> list[str]:
        """In the summary's order."""
        return [str(name) for name in self._collect("inputs", lambda row: row.input)]

    @property
    def batch_sizes(self) -> list[int]:
        """Ascending."""
        sizes = self._collect("batch_sizes", lambda row: row.batch_size)
        return sorted(size for size in sizes if isinstance(size, int))

    @property
    def reference(self) -> str:
        """The norm that the others are compared with."""
        return str(self.summary.get("reference", ""))

    @property
    def seeds(self) -> int:
        """How many seeds each cell was to have; 0 where the summary does not say."""
        seeds = as_number(self.summary.get("seeds"))
        return int(seeds) if math.isfinite(seeds) else 0

    def batch_sizes_of(self, input_name: str) -> list[int]:
        """Batch sizes of one input normalization, ascending."""
        rows: list[Cell | Run] = [*self.cells, *self.runs]
        return sorted({row.batch_size for row in rows if row.input == input_name})

    def cells_of(self, input_name: str) -> list[Cell]:
        """Cells of one input normalization."""
        return [cell for cell in self.cells if cell.input == input_name]

    def samples_of(self, metric: str, input_name: str) -> Samples:
        """A metric's samples during training, mean over layers."""
        samples: Samples = {}
        for probe in self.probes:
            if (probe.metric, probe.input) == (metric, input_name):
                steps = samples.setdefault(probe.batch_size, {}).setdefault(probe.norm, {})
                steps.setdefault(probe.step, []).append(probe.value)
        return samples

    def _collect(self, key: str, tell: Callable[[Cell | Run], Any]) -> list[Any]:
        listed = self.summary.get(key)
        listed = listed if isinstance(listed, list) else []
        return list(dict.fromkeys([*listed, *map(tell, self.cells), *map(tell, self.runs)]))


def read_comparison(folder: Path) -> ComparisonRecord:
    """Reads a comparison's folder, complete or not.

    Raises:
        DataError: there is no `summary.json`, or a file is damaged.
    """
    summary = _read_summary(folder / "summary.json")
    try:
        cells = [
            Cell(str(row["norm"]), int(row["batch_size"]), str(row["input"]), row)
            for row in summary.get("cells") or []
        ]
        verdicts = [dict(row) for row in summary.get("verdicts") or []]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / 'summary.json'} has a cell or a verdict that does not say which it is ({error!r}); "
            f"each needs norm, batch_size and input: {_REMEDY}"
        ) from None
    return ComparisonRecord(
        folder=folder,
        summary=summary,
        cells=cells,
        verdicts=verdicts,
        runs=_read_rows(folder / "runs.csv", _make_run),
        probes=_read_rows(folder / "probes.csv", _make_probe),
    )


def find_run_file(folder: Path, run: Run, name: str) -> Path | None:
    """A file of a run, or None where it is missing or the run's name is no plain folder name."""
    if run.name in ("", ".", "..") or any(mark in run.name for mark in "/\\\0"):
        return None  # never outside the comparison's folder, whatever the table says
    path = folder / "runs" / run.name / name
    return path if path.is_file() else None


def read_losses(folder: Path, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a run, each (steps,); empty where nothing was recorded."""
    path = find_run_file(folder, run, "metrics.csv")
    if path is None:
        return np.empty(0), np.empty(0)
    metrics = tabulate_metrics(path)
    return metrics["step"], metrics["loss"]


def read_seams(path: Path) -> Seams:
    """Reads a `seams.npz`.

    Raises:
        DataError: it is damaged, or its pictures differ in shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            pictures = [np.asarray(file[name], dtype=np.float64) for name in ("image", "full", "tiled")]
            cuts = [np.asarray(file[name], dtype=np.int64).ravel() for name in ("cuts_x", "cuts_y")]
    except Exception as error:  # NumPy's reader raises nearly anything on damaged files
        raise DataError(
            f"{path} is damaged ({error}); it needs image, full, tiled, cuts_x, cuts_y."
        ) from None
    shapes = [picture.shape for picture in pictures]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise DataError(f"{path}: image, full and tiled have shapes {shapes}; one 2-D shape is expected.")
    return Seams(*pictures, *cuts)


def as_number(value: Any) -> float:
    """A float; NaN for whatever is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)


def finite_or_none(value: float) -> float | None:
    """The value for tables, where None is a dash."""
    return value if math.isfinite(value) else None


def as_interval(value: Any) -> tuple[float, float]:
    """Lower and upper bound; NaN for whatever is no pair of numbers."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return math.nan, math.nan
    return as_number(value[0]), as_number(value[1])


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"{path.parent} is no finished comparison: it has no summary.json; "
            f"give the folder that the comparison wrote."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); {_REMEDY}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; an object is expected: {_REMEDY}")
    return content


def _read_rows(path: Path, make: Callable[[Mapping[str, str]], Any]) -> list[Any]:
    """Rows of a table; empty where the file is missing."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            made = [make(row) for row in csv.DictReader(file)]
            return [row for row in made if row is not None]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} has a damaged row or lacks a column ({error!r}); {_REMEDY}") from None


def _make_run(row: Mapping[str, str]) -> Run:
    return Run(
        name=row["name"],
        norm=row["norm"],
        batch_size=int(row["batch_size"]),
        input=row["input"],
        seed=int(row["seed"]),
        status=row["status"],
        error=row.get("error") or "",
        dice=float(row.get("dice") or "nan"),
    )


def _make_probe(row: Mapping[str, str]) -> Probe | None:
    """A sample's row; None for a single layer, another metric, or what was found after training."""
    if row["layer"] or row["metric"] not in PROBES_SHOWN or not row["step"] or not row["value"]:
        return None
    return Probe(
        metric=row["metric"],
        norm=row["norm"],
        batch_size=int(row["batch_size"]),
        input=row["input"],
        step=int(row["step"]),
        value=float(row["value"]),
    )
