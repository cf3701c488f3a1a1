"""What a study leaves: `summary.json` (claims), `measurements.csv` (what they rest on), `report.html`."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medseg_brn.errors import DataError, TrainingError
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.side_by_side import do_side_by_side
from medseg_brn.reports.page import Section
from medseg_brn.reports.study_report import SUMMARY_NAME, write_study_report
from medseg_brn.studies.claims import Claim
from medseg_brn.volumes.atomic import write_text_atomic

Progress = Callable[[str, int, int], None]
"""Told of a stage, and how much of it is done."""

Row = Mapping[str, str | int | float]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """A finished study."""

    study: str
    """Its name on the command line."""
    title: str
    question: str
    """What was asked and how, in a few sentences: the page's introduction."""
    settings: Mapping[str, Any]
    """What the numbers were obtained with, JSON-able: seed, scale, seeds, steps …"""
    claims: Sequence[Claim]
    rows: Sequence[Row]
    """Measurements, one observation a row; not all rows need all columns."""
    sections: Sequence[Section]
    """The page's pictures and tables, after the claims."""


def check_folder(folder: Path, study: str) -> None:
    """Refuse to write into a folder that holds anything but an earlier outcome of the same study.

    Raises:
        DataError: it does.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give the folder of the study as -o")
    summary = folder / SUMMARY_NAME
    if summary.is_file():
        try:
            if json.loads(summary.read_text(encoding="utf-8")).get("study") == study:
                return
        except (ValueError, AttributeError):
            pass
    elif not any(folder.iterdir()):
        return
    raise DataError(
        f"{folder} holds something else than an earlier outcome of the study {study!r}; give another folder"
    )


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write the three files into the folder, each whole."""
    summary = {
        "study": outcome.study,
        "title": outcome.title,
        "question": outcome.question,
        "settings": dict(outcome.settings),
        "claims": [claim.as_dict() for claim in outcome.claims],
    }
    write_text_atomic(folder / "measurements.csv", _as_csv(outcome.rows))
    write_text_atomic(folder / SUMMARY_NAME, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_study_report(folder, outcome.sections)


def do_all(
    work: Callable[[Item], Result], items: Sequence[Item], stage: str, progress: Progress
) -> list[Result]:
    """The results of independent pieces of work in their order, done on all cores with one thread each.

    One thread each makes the results the same whatever the number of cores.

    Raises:
        TrainingError: a process was killed.
    """
    results: list[Result | None] = [None] * len(items)
    numbered = list(enumerate(items))
    progress(stage, 0, len(items))
    pieces = do_side_by_side(
        partial(_do_numbered, work),
        numbered,
        processes=min(core_count(), max(1, len(items))),
        on_killed=_killed,
        threads=1,
    )
    for done, (index, result) in enumerate(pieces, start=1):
        results[index] = result
        progress(stage, done, len(items))
    return results  # type: ignore[return-value]  # every piece has yielded


def _do_numbered(work: Callable[[Item], Result], numbered: tuple[int, Item]) -> tuple[int, Result]:
    import torch

    torch.set_num_threads(1)
    index, item = numbered
    return index, work(item)


def _killed(numbered: tuple[int, Any]) -> Any:
    raise TrainingError(
        f"the process of {numbered[1]} was killed, probably for want of memory; free some, or lower --scale"
    )


def _as_csv(rows: Sequence[Row]) -> str:
    """Columns in the order in which rows bring them; what a row lacks is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(
        {key: f"{value:.8g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return text.getvalue()
