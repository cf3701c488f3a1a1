"""What one run of a comparison leaves: its Dice, case by case, and what the probes measured."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

from medseg_brn.errors import DataError

Status = Literal["finished", "diverged", "failed"]
Cell = tuple[str, int, str]
"""A cell of the grid: input, batch size, norm."""


@dataclass(frozen=True)
class RunResult:
    """One trained network: one norm, batch size, input and seed."""

    name: str
    input: str
    """How intensities entered the network: `zscored` or `raw`."""
    norm: str
    batch_size: int
    seed: int
    status: Status
    """`diverged`: training reached a loss that is not finite. `failed`: the run broke and says nothing."""
    error: str | None = None
    """Why it did not finish; of a finished run, why it could not be probed."""
    dice: float | None = None
    """Mean over the cases of `case_dice`, 0 to 1; 0 where diverged, None where failed.

    So each case weighs the same, as it does in intervals, however many of its classes are defined."""
    case_dice: dict[str, float | None] = field(default_factory=dict)
    """Case → mean Dice over its classes, None where no class has one; empty where the run did not finish."""
    class_dice: dict[str, float | None] = field(default_factory=dict)
    measurements: dict[str, float | None] = field(default_factory=dict)
    """Probe → its number, None where it does not apply."""

    @property
    def counts(self) -> bool:
        """Whether the run says something of its norm: diverging does, a failure does not."""
        return self.status != "failed"

    @property
    def run_dice(self) -> float:
        """`dice` as a number: 0 where diverged, NaN where there is none."""
        if self.status == "diverged":
            return 0.0
        return math.nan if self.dice is None else self.dice

    def measurement(self, key: str) -> float:
        """A probe's number, NaN where there is none."""
        value = self.measurements.get(key)
        return math.nan if value is None else value

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: null for what is not finite."""
        return {entry.name: _null_unless_finite(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], where: str = "run result") -> "RunResult":
        """Make a result from what `as_dict` gave; unknown keys are ignored.

        Args:
            entries: the keys and values.
            where: the file they came from, for messages.

        Raises:
            DataError: a key is missing, or a value is not of its kind.
        """
        names = [entry.name for entry in fields(cls)]
        missing = [name for name in names if name not in entries]
        if missing:
            raise DataError(f"{where} lacks {', '.join(missing)}; a run result has {', '.join(names)}")
        if entries["status"] not in get_args(Status):
            raise DataError(
                f"{where} has the status {entries['status']!r}; it is one of {', '.join(get_args(Status))}"
            )
        numbers = {name: _read_number(entries[name], f"{where}, {name}") for name in ("dice",)}
        mappings = {
            name: _read_numbers(entries[name], f"{where}, {name}")
            for name in ("case_dice", "class_dice", "measurements")
        }
        counts = {name: _read_count(entries[name], f"{where}, {name}") for name in ("batch_size", "seed")}
        return cls(**{name: entries[name] for name in names} | numbers | mappings | counts)


def group_cells(runs: Sequence[RunResult]) -> dict[Cell, list[RunResult]]:
    """Runs by cell of the grid, in the order of their first appearance, seeds ascending within.

    Raises:
        DataError: a cell has two runs of the same seed.
    """
    cells: dict[Cell, list[RunResult]] = {}
    for run in runs:
        cells.setdefault((run.input, run.batch_size, run.norm), []).append(run)
    for cell, members in cells.items():
        members.sort(key=lambda run: run.seed)
        for one, next_one in itertools.pairwise(members):
            if one.seed == next_one.seed:
                raise DataError(
                    f"runs {one.name!r} and {next_one.name!r} are both seed {one.seed} of {cell[2]} at "
                    f"batch size {cell[1]} ({cell[0]}); a seed counts once, so leave one out"
                )
    return cells


def list_cases(runs: Sequence[RunResult]) -> list[str]:
    """Names of the cases any of the runs has, sorted."""
    return sorted({case for run in runs for case in run.case_dice})


def collect_case_dice(runs: Sequence[RunResult], cases: Sequence[str]) -> np.ndarray:
    """Dice of runs in cases: (runs, cases), NaN where undefined or missing, 0 where the run diverged."""
    rows = [
        [0.0 if run.status == "diverged" else _nan_if_none(run.case_dice.get(case)) for case in cases]
        for run in runs
    ]
    return np.array(rows, dtype=np.float64).reshape(len(runs), len(cases))


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value


def _null_unless_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_unless_finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {value!r}; it is a number or null")
    return float(value)


def _read_numbers(value: Any, where: str) -> dict[str, float | None]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {value!r}; it maps names to numbers or null")
    return {key: _read_number(entry, f"{where}, {key}") for key, entry in value.items()}


def _read_count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where} is {value!r}; it is a whole number")
    return value
