"""The whole grid: data prepared once, runs side by side, results as they come, tables and report at the end.

DIR/comparison.yaml             what was asked for
    data/INPUT/                 prepared cases, which all runs share
    runs/NAME/                  one folder a run
    runs.csv  probes.csv  summary.json  report.html
"""

import multiprocessing
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from medseg_brn.comparison.config import ComparisonConfig, ProbesConfig
from medseg_brn.comparison.grid import PlannedRun, plan_runs
from medseg_brn.comparison.results import RunResult
from medseg_brn.comparison.run import do_run, make_result, read_result
from medseg_brn.comparison.tables import write_tables
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import dump_experiment, load_experiment
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.precision import choose_device
from medseg_brn.inference.side_by_side import Backend, do_side_by_side
from medseg_brn.reports.comparison.report import write_comparison_report
from medseg_brn.training.data import Progress, prepare_training_data
from medseg_brn.training.folder import list_differences
from medseg_brn.volumes.atomic import write_text_atomic

KILLED = (
    "the process was killed, probably for want of memory; call the command again with fewer --jobs, and it "
    "goes on with the runs that are not done"
)


def run_comparison(
    comparison: ComparisonConfig,
    folder: Path,
    *,
    jobs: int | None = None,
    backend: Backend = "processes",
    progress: Progress = lambda *_: None,
    on_result: Callable[[RunResult, int, int], None] = lambda *_: None,
) -> list[RunResult]:
    """Do every run that is not done, then write tables and report.

    Runs that are done are taken from the folder, runs that were begun go on, failed ones are tried again.

    Args:
        comparison: the grid.
        folder: made when absent.
        jobs: runs at once; None is one per GPU, or else one per core. Each has its share of the cores.
        backend: processes of this machine, or those of a Ray cluster.
        progress: told of stages.
        on_result: called with (result, runs done, runs in all).

    Returns:
        The results in the order of the grid.

    Raises:
        ConfigError: the experiment or a norm's options are not valid, or a run in the folder has others.
        DataError: the dataset is not what it must be.
    """
    planned = plan_runs(comparison)
    _check_folder(planned, folder)
    write_text_atomic(folder / "comparison.yaml", dump_experiment(comparison))
    _prepare_data(planned, folder, progress)
    device = choose_device(planned[0].experiment.training.device)
    jobs = jobs or (torch.cuda.device_count() if device.type == "cuda" else core_count())
    threads = max(1, core_count() // jobs)

    results = {run.name: done for run in planned if (done := read_result(folder / "runs" / run.name))}
    for number, result in enumerate(results.values(), 1):
        on_result(result, number, len(planned))
    ended = do_side_by_side(
        partial(_do_run, folder=folder.absolute(), probes=comparison.probes, threads=threads),
        [run for run in planned if run.name not in results],
        processes=jobs,
        backend=backend,
        on_killed=lambda run: make_result(run, "failed", error=KILLED),
        threads=threads,
        gpus=int(device.type == "cuda"),
    )
    for result in ended:
        results[result.name] = result
        on_result(result, len(results), len(planned))
    ordered = [results[run.name] for run in planned]
    progress("writing the report", 0, 1)
    write_tables(comparison, ordered, folder, jobs=jobs, threads=threads)
    write_comparison_report(folder)
    progress("writing the report", 1, 1)
    return ordered


def _check_folder(planned: Sequence[PlannedRun], folder: Path) -> None:
    """Refuse a folder whose runs were made with other options: their results would be of another grid."""
    for run in planned:
        path = folder / "runs" / run.name / "config.yaml"
        if not path.is_file():
            continue
        changed = list_differences(load_experiment(path), run.experiment)
        if changed:
            listing = ", ".join(f"{key} ({change})" for key, change in changed.items())
            raise ConfigError(
                f"{path.parent} was run with other options: {listing}. Use another folder, or remove that one"
            )


def _prepare_data(planned: Sequence[PlannedRun], folder: Path, progress: Progress) -> None:
    """Prepare the cases of each input once, before processes would do it several times over."""
    for source in dict.fromkeys(run.input for run in planned):
        first = next(run for run in planned if run.input == source)
        place = folder / "data" / source
        prepare_training_data(
            first.experiment,
            place,
            lambda stage, done, total, source=source: progress(f"{source}: {stage}", done, total),  # type: ignore[misc]
            core_count(),
        )


def _do_run(run: PlannedRun, folder: Path, probes: ProbesConfig, threads: int) -> RunResult:
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        # loky's processes are numbered from 1; those of a Ray cluster see their own GPU only
        number = re.search(r"(\d+)$", multiprocessing.current_process().name)
        torch.cuda.set_device((int(number[1]) - 1 if number else 0) % torch.cuda.device_count())
    return do_run(run, folder, probes)
