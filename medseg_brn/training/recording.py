"""What a run writes while it goes on: `metrics.csv`, one row per optimizer step, and TensorBoard."""

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from medseg_brn.reports.step_records import StepRecord, read_metrics
from medseg_brn.volumes.atomic import write_text_atomic


class Recorder:
    """Appends step records to the run folder's `metrics.csv` and TensorBoard files.

    On opening, rows after `first_step` are dropped: they were written after the checkpoint that a resumed
    run starts from, and will be written again.
    """

    def __init__(self, run_folder: Path, first_step: int) -> None:
        self._path = run_folder / "metrics.csv"
        header = [field.name for field in fields(StepRecord)]
        rows = [row for row in read_metrics(self._path) if row.step <= first_step]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(_as_row(row) for row in rows)
        write_text_atomic(self._path, text.getvalue())
        # line by line, so that a run can be watched while it goes on
        self._file = self._path.open("a", encoding="utf-8", newline="", buffering=1)
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, record: StepRecord) -> None:
        """Add one step."""
        self._writer.writerow(_as_row(record))
        for name in ("loss", "learning_rate", "gradient_norm", "dice"):
            value = getattr(record, name)
            if value is not None:
                self._tensorboard.add_scalar(name, value, record.step)

    def flush(self) -> None:
        """Bring what was written to disk."""
        self._file.flush()
        self._tensorboard.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._tensorboard.close()


def _as_row(record: StepRecord) -> list[str]:
    return [
        "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)
        for value in asdict(record).values()
    ]
