"""What a run writes while it goes on: `metrics.csv`, `patches.csv`, `probes.csv`, TensorBoard files."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from medseg_brn.probes.watching import Sample
from medseg_brn.reports.step_records import (
    ADVERSARIAL_COLUMNS,
    PatchRecord,
    StepRecord,
    read_metrics,
    read_patches,
)
from medseg_brn.volumes.atomic import write_text_atomic


class Recorder:
    """Appends step records to the run folder's `metrics.csv` and TensorBoard files, patches to `patches.csv`,
    samples to `probes.csv`.

    On opening, rows after `first_step` are dropped: they were written after the checkpoint that a resumed
    run starts from, and will be written again. The discriminator's columns of `metrics.csv` are there where
    the run is `adversarial`.
    """

    def __init__(self, run_folder: Path, first_step: int, adversarial: bool = False) -> None:
        path = run_folder / "metrics.csv"
        columns = _name_columns(StepRecord)
        self._columns = [name for name in columns if adversarial or name not in ADVERSARIAL_COLUMNS]
        kept = [self._as_row(row) for row in read_metrics(path) if row.step <= first_step]
        self._file = _open_table(path, self._columns, kept)
        self._writer = csv.writer(self._file, lineterminator="\n")
        path = run_folder / "patches.csv"
        trained = [patch.as_row() for patch in read_patches(path) if patch.step <= first_step]
        self._patches = _open_table(path, _name_columns(PatchRecord), trained)
        self._patch_writer = csv.writer(self._patches, lineterminator="\n")
        self._folder, self._first_step = run_folder, first_step
        self._samples: TextIO | None = None
        self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: StepRecord) -> None:
        """Add one step."""
        self._writer.writerow(self._as_row(record))
        for name in ("loss", "learning_rate", "gradient_norm", "dice", *ADVERSARIAL_COLUMNS):
            value = getattr(record, name)
            if value is not None:
                self._tensorboard.add_scalar(name, value, record.step)

    def write_patches(self, patches: Sequence[PatchRecord]) -> None:
        """Add the patches of a step."""
        self._patch_writer.writerows(patch.as_row() for patch in patches)

    def write_samples(self, samples: Sequence[Sample]) -> None:
        """Add what the probes saw; a run without probes has no file for it."""
        if self._samples is None and samples:
            path = self._folder / "probes.csv"
            kept = [_sample_row(sample) for sample in read_samples(path) if sample.step <= self._first_step]
            self._samples = _open_table(path, _name_columns(Sample), kept)
        if self._samples is not None:
            csv.writer(self._samples, lineterminator="\n").writerows(map(_sample_row, samples))

    def flush(self) -> None:
        """Bring what was written to disk."""
        for file in (self._file, self._patches, self._samples, self._tensorboard):
            if file is not None:
                file.flush()

    def _as_row(self, record: StepRecord) -> list[str]:
        values = [getattr(record, name) for name in self._columns]
        return ["" if v is None else f"{v:.8g}" if isinstance(v, float) else str(v) for v in values]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._file, self._patches, self._samples, self._tensorboard):
            if file is not None:
                file.close()


def read_samples(path: Path) -> list[Sample]:
    """Rows of a `probes.csv`, none where it is missing; an unfinished last line is passed over."""
    if not path.is_file():
        return []
    samples = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                samples.append(Sample(int(row["step"]), row["layer"], row["metric"], float(row["value"])))
            except (KeyError, TypeError, ValueError):
                break
    return samples


def _name_columns(kind: Any) -> list[str]:
    """Those of a table of a dataclass's records."""
    return [field.name for field in fields(kind)]


def _open_table(path: Path, columns: list[str], rows: list[list[str]]) -> TextIO:
    """A CSV file with these rows, open for more."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())
    # line by line, so that a run can be watched while it goes on
    return path.open("a", encoding="utf-8", newline="", buffering=1)


def _sample_row(sample: Sample) -> list[str]:
    return [str(sample.step), sample.layer, sample.metric, f"{sample.value:.8g}"]
