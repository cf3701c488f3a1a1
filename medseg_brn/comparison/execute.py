"""The whole grid: data prepared once, runs side by side, results as they come, tables and report at the end.

DIR/comparison.yaml             what was asked for
    data/INPUT/                 prepared cases, which all runs share
    runs/NAME/                  one folder a run
    runs.csv  probes.csv  summary.json  report.html  dice_INPUT.svg
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from medseg_brn.comparison.config import ComparisonConfig, ProbesConfig
from medseg_brn.comparison.grid import PlannedRun, plan_runs
from medseg_brn.comparison.results import RunResult
from medseg_brn.comparison.run import do_run, make_result, read_result
from medseg_brn.comparison.tables import write_tables
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import dump_experiment, load_experiment
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.precision import choose_device
from medseg_brn.inference.side_by_side import Backend, do_side_by_side
from medseg_brn.reports.comparison.report import write_comparison_report
from medseg_brn.training.data import Progress, prepare_training_data
from medseg_brn.training.folder import list_differences
from medseg_brn.training.state import check_network
from medseg_brn.volumes.atomic import write_text_atomic

REPORT_SECONDS = 300
"""While runs go on, tables and report are written anew after this time, with the runs that are done."""

# What may differ between the runs of one grid that was done in several calls: it changes no result.
_MAY_DIFFER = ("name", "patches.workers", "training.checkpoint_every", "training.probe_every")
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
        on_result: called with (result, runs done, runs in all) after each run of this call.

    Returns:
        The results in the order of the grid.

    Raises:
        ConfigError: the experiment or a norm's options are not valid, or a run in the folder has others.
        DataError: the dataset is not what it must be.
    """
    planned = plan_runs(comparison)
    device = choose_device(planned[0].experiment.training.device)
    for run in planned:
        check_network(run.experiment, device)
    _check_runs(planned, folder)
    _prepare_data(planned, folder, progress)
    write_text_atomic(folder / "comparison.yaml", dump_experiment(comparison))

    probes = comparison.probes
    results = {run.name: done for run in planned if (done := read_result(folder / "runs" / run.name, probes))}
    waiting = [run for run in planned if run.name not in results]
    progress("runs", len(results), len(planned))
    told = time.monotonic()
    for result in _do_runs(waiting, folder, probes, device, jobs, backend):
        results[result.name] = result
        on_result(result, len(results), len(planned))
        if time.monotonic() - told > REPORT_SECONDS:
            _tell(comparison, planned, results, folder)
            told = time.monotonic()
    progress("writing the report", 0, 1)
    _tell(comparison, planned, results, folder)
    progress("writing the report", 1, 1)
    return [results[run.name] for run in planned]


def _do_runs(
    runs: Sequence[PlannedRun],
    folder: Path,
    probes: ProbesConfig,
    device: torch.device,
    jobs: int | None,
    backend: Backend,
) -> Iterator[RunResult]:
    """The runs' results as they come; each run has its share of the cores, or a GPU."""
    jobs = min(jobs or _count_places(device, backend), max(1, len(runs)))
    threads = max(1, core_count() // jobs)
    yield from do_side_by_side(
        partial(_do_run, folder=folder.absolute(), probes=probes, threads=threads),
        runs,
        processes=jobs,
        backend=backend,
        on_killed=_killed,
        threads=threads,
        gpus=int(device.type == "cuda"),
    )


def _tell(
    comparison: ComparisonConfig,
    planned: Sequence[PlannedRun],
    results: dict[str, RunResult],
    folder: Path,
) -> None:
    """Write tables and report of the runs that are done."""
    write_tables(comparison, [results[run.name] for run in planned if run.name in results], folder)
    write_comparison_report(folder)


def _count_places(device: torch.device, backend: Backend) -> int:
    """How many runs at once: one per GPU or core of this machine; a cluster has its own queue."""
    if backend == "ray":
        return sys.maxsize
    return torch.cuda.device_count() if device.type == "cuda" else core_count()


def _killed(run: PlannedRun) -> RunResult:
    return make_result(run, "failed", error=KILLED)


def _check_runs(planned: Sequence[PlannedRun], folder: Path) -> None:
    """Refuse a folder whose runs were made with other options: their results would be of another grid."""
    for run in planned:
        path = folder / "runs" / run.name / "config.yaml"
        if path.is_file():
            _refuse_differences(path, load_experiment(path), run.experiment)


def _refuse_differences(path: Path, old: Experiment, new: Experiment) -> None:
    changed = [
        f"{key} ({change})" for key, change in list_differences(old, new).items() if key not in _MAY_DIFFER
    ]
    if changed:
        raise ConfigError(
            f"{path.parent} was made with other options: {', '.join(changed)}. Use another folder, or remove "
            "that one"
        )


def _prepare_data(planned: Sequence[PlannedRun], folder: Path, progress: Progress) -> None:
    """Prepare the cases of each input once, before processes would do it several times over.

    Raises:
        ConfigError: they have been prepared with other options.
    """
    for source in dict.fromkeys(run.input for run in planned):
        experiment = next(run.experiment for run in planned if run.input == source)
        prepared_with = Experiment(
            seed=experiment.split_seed, dataset=experiment.dataset, preprocessing=experiment.preprocessing
        )
        path = folder / "data" / source / "config.yaml"
        if path.is_file():
            _refuse_differences(path, load_experiment(path), prepared_with)
        prepare_training_data(
            experiment,
            path.parent,
            lambda stage, done, total, source=source: progress(f"{source}: {stage}", done, total),  # type: ignore[misc]
            core_count(),
            data_folder=path.parent,
        )
        write_text_atomic(path, dump_experiment(prepared_with))


def _do_run(run: PlannedRun, folder: Path, probes: ProbesConfig, threads: int) -> RunResult:
    torch.set_num_threads(threads)
    return do_run(run, folder, probes)
