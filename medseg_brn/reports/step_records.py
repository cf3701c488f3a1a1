"""`metrics.csv`: what each optimizer step of a run measured, and how it is read back."""

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: its number from 1, and what was measured.

    `seconds` is its duration, `loader_share` the share of it spent waiting for patches, and `dice` the
    validation's mean foreground Dice where one was made after the step.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    loader_share: float
    dice: float | None = None


def read_metrics(path: Path) -> list[StepRecord]:
    """Rows of a `metrics.csv`; an unfinished last line, left by a killed run, is passed over."""
    if not path.is_file():
        return []
    records = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                dice = float(row["dice"]) if row["dice"] else None
                numbers = {name: float(row[name]) for name in row if name not in ("step", "dice")}
                records.append(StepRecord(step=int(row["step"]), dice=dice, **numbers))
            except (KeyError, TypeError, ValueError):
                break
    return records
