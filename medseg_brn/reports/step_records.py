"""What each step of a run measured (`metrics.csv`) and was trained on (`patches.csv`), and how it is read."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: its number from 1, and what was measured.

    `seconds` is its duration, `loader_share` the share of it spent waiting for patches, and `dice` the
    validation's mean foreground Dice where one was made after the step. Where the network deceives a
    discriminator, `adversarial_loss` is -mean D(fake), which `loss` does not contain, and
    `discriminator_loss` the discriminator's own.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    loader_share: float
    dice: float | None = None
    adversarial_loss: float | None = None
    discriminator_loss: float | None = None


ADVERSARIAL_COLUMNS = ("adversarial_loss", "discriminator_loss")
"""What only runs with a discriminator have."""
_OPTIONAL = ("dice", *ADVERSARIAL_COLUMNS)


def read_metrics(path: Path) -> list[StepRecord]:
    """Rows of a `metrics.csv`; an unfinished last line, left by a killed run, is passed over."""
    if not path.is_file():
        return []
    records = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                given = {name: text for name, text in row.items() if text or name not in _OPTIONAL}
                step = int(given.pop("step"))
                records.append(StepRecord(step, **{name: float(text) for name, text in given.items()}))
            except (KeyError, TypeError, ValueError):
                break
    return records


@dataclass(frozen=True)
class PatchRecord:
    """One training patch: the optimizer step that it was part of, and what it was.

    `loss` is its mean cross-entropy in nats (NaN where all its voxels are to be ignored), `voxels` the number
    of its voxels by class, for the classes that it has.
    """

    step: int
    case: str
    loss: float
    voxels: Mapping[int, int]

    def as_row(self) -> list[str]:
        """The record as a row of the table: step, case, loss, and voxels as `0:8120 2:72`."""
        voxels = " ".join(f"{index}:{count}" for index, count in self.voxels.items())
        return [str(self.step), self.case, f"{self.loss:.6g}", voxels]


def read_patches(path: Path) -> list[PatchRecord]:
    """Rows of a `patches.csv`, none where it is missing; an unfinished last line is passed over."""
    if not path.is_file():
        return []
    records = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                pairs = (entry.split(":") for entry in row["voxels"].split())
                voxels = {int(index): int(count) for index, count in pairs}
                records.append(PatchRecord(int(row["step"]), row["case"], float(row["loss"]), voxels))
            except (AttributeError, KeyError, TypeError, ValueError):
                break
    return records
