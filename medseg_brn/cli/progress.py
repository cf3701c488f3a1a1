"""What a person sees while a command works: one progress line per stage, on stderr."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from medseg_brn.comparison.results import RunResult
    from medseg_brn.cross_validation.fold import FoldResult
    from medseg_brn.reports.step_records import StepRecord
    from medseg_brn.studies.claims import Claim
    from medseg_brn.training.run import RunSummary


class StageDisplay:
    """Progress bars, one per stage; under `torchrun` only the first process shows them."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are finished in `stage`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, note=note)
        self._progress.update(self._tasks[stage], completed=done, total=total, note=note)


class TrainingDisplay(StageDisplay):
    """Stages of a run; the training stage shows loss, Dice and what the loader costs."""

    def __init__(self) -> None:
        super().__init__()
        self._loss: float | None = None
        self._dice: float | None = None
        self._waiting = 0.0

    def step(self, record: "StepRecord", total: int) -> None:
        """Show a finished optimizer step; loss and loader share are running means."""
        self._loss = record.loss if self._loss is None else 0.95 * self._loss + 0.05 * record.loss
        self._waiting = 0.95 * self._waiting + 0.05 * record.loader_share
        self._dice = record.dice if record.dice is not None else self._dice
        dice = "" if self._dice is None else f"  Dice {self._dice:.3f}"
        self.update(
            "training", record.step, total, f"loss {self._loss:.3f}{dice}  loader {self._waiting:.0%}"
        )

    def summarize(self, summary: "RunSummary") -> None:
        """Say what was made and how good it is."""
        folder: Path = summary.run_folder
        console = Console(quiet=self.console.quiet, highlight=False, soft_wrap=True)
        if summary.dice_mean is not None:
            console.print(
                f"Mean foreground Dice on {summary.validation_cases} held-out cases: {summary.dice_mean:.3f}"
            )
        if summary.findings:
            console.print(f"Diagnosis: {len(summary.findings)} findings, the weightiest:")
            for finding in summary.findings[:3]:
                console.print(f"- {finding}", markup=False)
        console.print(f"Model:  {folder / 'model'}\nReport: {folder / 'report.html'}", markup=False)


class ComparisonDisplay(StageDisplay):
    """Stages of a comparison; the runs' stage names the last one and its Dice."""

    def result(self, result: "RunResult", done: int, total: int) -> None:
        """Show a finished run; one that failed is told at once."""
        dice = "" if result.dice is None else f" Dice {result.dice:.3f}"
        self.update("runs", done, total, f"{result.name}: {result.status}{dice}")
        if result.error is not None:
            self.console.print(f"{result.name} {result.status}: {result.error}", markup=False, soft_wrap=True)

    def summarize(self, results: "list[RunResult]", folder: Path) -> None:
        """Say what was made."""
        counts = dict.fromkeys(("finished", "diverged", "failed"), 0)
        for result in results:
            counts[result.status] += 1
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        console = Console(quiet=self.console.quiet, highlight=False, soft_wrap=True)
        console.print(
            f"{len(results)} runs: {told}\nReport:  {folder / 'report.html'}\n"
            f"Numbers: {folder / 'summary.json'}, runs.csv, probes.csv",
            markup=False,
        )


class StudyDisplay(StageDisplay):
    """Stages of a study."""

    def summarize(self, claims: "Sequence[Claim]", folder: Path) -> None:
        """Say which claims hold, and where the report is."""
        from medseg_brn.reports.study_report import VERDICTS, tell_interval, tell_number

        console = Console(highlight=False, soft_wrap=True)
        for claim in claims:
            found = claim.as_dict()
            interval = "" if claim.interval is None else f" ({tell_interval(claim.interval)})"
            measured = f"{tell_number(found['measured'])}{interval}"
            console.print(
                f"{VERDICTS[claim.holds]:14}{claim.name}: {measured}; expected {claim.expected}",
                markup=False,
            )
        console.print(f"Report:  {folder / 'report.html'}", markup=False)


class FoldsDisplay(StageDisplay):
    """Stages of a cross-validation; each fold's steps have a line of their own."""

    def fold(self, result: "FoldResult", done: int, total: int) -> None:
        """Show that a fold is done; one that failed is told at once."""
        self.update("folds", done, total, f"{result.name}: {result.status}")
        if result.error is not None:
            self.console.print(f"{result.name} failed: {result.error}", markup=False, soft_wrap=True)

    def summarize(self, results: "list[FoldResult]", folder: Path) -> None:
        """Say how good the folds' models are on what they had not seen, and what was made."""
        console = Console(highlight=False, soft_wrap=True)
        failed = [result.name for result in results if result.error is not None]
        path = folder / "summary.json"
        if len(failed) < len(results) and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))["summary"]
            interval = found["dice_interval_95"]
            told = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
            dice = "undefined" if found["dice_mean"] is None else f"{found['dice_mean']:.3f}"
            console.print(f"Mean Dice of {found['cases']} cases, out of fold: {dice}{told}")
            console.print(f"Report: {folder / 'report.html'}\nNumbers: {path}", markup=False)
        if failed:
            console.print(
                f"Failed: {', '.join(failed)}; no model was made. The same command with --resume goes on",
                markup=False,
            )
        else:
            console.print(f"Model:  {folder / 'model'}", markup=False)
