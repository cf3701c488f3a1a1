"""All folds of an experiment: trained side by side, evaluated out of fold, and made into one model.

RUN/cross_validation.yaml        what was asked for, the voxel size resolved
    data/                        prepared cases, which all folds share
    fold_0/ … fold_{k-1}/        ordinary run folders; all/ where a last model is trained on every case
    out_of_fold/CASE.nii.gz      each case as the model of its fold segments it, which has not seen it
    summary.json  report.html    what was found
    model/                       the model that it ends with
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.fingerprint import compute_median_spacing_mm
from medseg_brn.config import Experiment
from medseg_brn.cross_validation.final import Final, write_final_model
from medseg_brn.cross_validation.fold import DONE_NAME, Fold, FoldResult, do_fold
from medseg_brn.cross_validation.out_of_fold import collect_cases
from medseg_brn.cross_validation.summary import SUMMARY_NAME, write_summary
from medseg_brn.cross_validation.watching import watch_folds
from medseg_brn.errors import ConfigError, MedsegError
from medseg_brn.experiment import dump_experiment, load_experiment
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.precision import choose_device, has_native_bf16
from medseg_brn.inference.side_by_side import Backend, do_side_by_side
from medseg_brn.reports.cross_validation_report import REPORT_NAME, write_cross_validation_report
from medseg_brn.training.data import Progress, open_dataset, prepare_training_data, survey_dataset
from medseg_brn.training.folder import MAY_CHANGE, list_differences
from medseg_brn.training.sites import list_fold_sites
from medseg_brn.training.state import check_network
from medseg_brn.volumes.atomic import write_text_atomic

CONFIG_NAME = "cross_validation.yaml"
LEARNT_WITH = ("training.learning_rate", "training.gradient_clip")
"""Options that a run may change on its way, and a finished one cannot have had."""
KILLED = (
    "the process was killed, probably for want of memory; go on with --resume and fewer --processes, and "
    "the folds that are done are kept"
)


def run_cross_validation(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    final: Final = "ensemble",
    processes: int | None = None,
    backend: Backend = "processes",
    progress: Progress = lambda *_: None,
    on_fold: Callable[[FoldResult, int, int], None] = lambda *_: None,
) -> list[FoldResult]:
    """Do every fold that is not done; where all are, evaluate them together and write the model.

    Where `preprocessing.spacing_mm` is null, the voxel size is measured once, on all labelled cases, so that
    the folds' models can be averaged: it is geometry, and no label or intensity of a held-out case enters.
    Intensity constants are measured on the training cases of each fold.

    Args:
        experiment: what to train; its `dataset.fold` is of no account.
        folder: made when absent.
        resume: go on with the cross-validation that is there.
        final: the model at the end: the folds' models averaged, or one more trained on all cases.
        processes: folds at once; None is one per GPU, and one on a CPU. Each has its share of the cores.
        backend: processes of this machine, or those of a Ray cluster.
        progress: told of stages, and of each fold's steps.
        on_fold: called with (result, folds done, folds in all) when a fold is done or has failed.

    Returns:
        The folds' results in order, and that of the last training with `final="single"`. Where one failed,
        summary and report are of the others, and there is no model, nor one of an earlier call.

    Raises:
        ConfigError: the options are not valid, or not those that the cross-validation can go on with; or the
            folder holds something else or, without `resume`, a cross-validation.
        DataError: the dataset is not what it must be.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "The folds are spread over processes by --processes, and not by torchrun; train one fold with "
            "--fold under torchrun, or start --all-folds without it"
        )
    device = choose_device(experiment.training.device)
    check_network(experiment, device)
    _check_folder(folder, resume)
    experiment = _continue(experiment, folder)
    data_folder = folder.absolute() / "data"
    dataset = open_dataset(experiment, data_folder, progress)
    resolved = _resolve(experiment, dataset, data_folder, device, progress)
    write_text_atomic(folder / CONFIG_NAME, dump_experiment(resolved))
    count = len(list_fold_sites(resolved, dataset)) or resolved.dataset.folds
    folds = [_make_fold(resolved, number, folder.absolute(), data_folder) for number in range(count)]
    results = _do_folds(folds, processes, device, backend, progress, on_fold)
    if final == "single" and not any(result.error for result in results):
        last = _make_fold(resolved, None, folder.absolute(), data_folder)
        results += _do_folds([last], 1, device, backend, progress, on_fold)
    _sum_up(resolved, folder, dataset, folds, results, final, progress)
    return results


def _sum_up(
    experiment: Experiment,
    folder: Path,
    dataset: Dataset,
    folds: Sequence[Fold],
    results: Sequence[FoldResult],
    final: Final,
    progress: Progress,
) -> None:
    """Evaluate the folds that are done together; where nothing failed, write the model."""
    failed = any(result.error for result in results)
    if failed:  # what an earlier call made is not of these folds
        shutil.rmtree(folder / "model", ignore_errors=True)
    finished = [fold for fold, result in zip(folds, results, strict=False) if result.error is None]
    if not finished:
        for name in (SUMMARY_NAME, REPORT_NAME):
            (folder / name).unlink(missing_ok=True)
        return
    cases = collect_cases(finished, dataset, folder / "out_of_fold")
    summary = write_summary(folder, experiment, dataset, folds, results, cases, final, progress)
    if not failed:
        write_final_model(folder, experiment, folds, summary, final)
    progress("writing the report", 0, 1)
    write_cross_validation_report(folder)
    progress("writing the report", 1, 1)


def _do_folds(
    folds: Sequence[Fold],
    processes: int | None,
    device: torch.device,
    backend: Backend,
    progress: Progress,
    on_fold: Callable[[FoldResult, int, int], None],
) -> list[FoldResult]:
    """The folds' results, in their order; those that are done are not done again."""
    results = {fold.name: FoldResult(fold.name) for fold in folds if fold.is_done}
    for fold in folds:
        if fold.is_done:
            progress(fold.name, fold.experiment.training.steps, fold.experiment.training.steps)
        elif (error := _prepare(fold, progress)) is not None:
            results[fold.name] = FoldResult(fold.name, error)
            on_fold(results[fold.name], len(results), len(folds))
    waiting = [fold for fold in folds if fold.name not in results]
    with watch_folds(waiting, progress):
        for result in _train(waiting, processes or _count_places(device, backend), device, backend):
            results[result.name] = result
            on_fold(result, len(results), len(folds))
    return [results[fold.name] for fold in folds]


def _train(
    folds: Sequence[Fold], processes: int, device: torch.device, backend: Backend
) -> Iterator[FoldResult]:
    processes = max(1, min(processes, len(folds)))
    threads = max(1, core_count() // processes)
    return do_side_by_side(
        partial(_do_with_threads, threads=threads),
        folds,
        processes=processes,
        backend=backend,
        on_killed=lambda fold: FoldResult(fold.name, KILLED),
        threads=threads,
        gpus=int(device.type == "cuda"),
    )


def _do_with_threads(fold: Fold, threads: int) -> FoldResult:
    torch.set_num_threads(threads)
    return do_fold(fold)


def _count_places(device: torch.device, backend: Backend) -> int:
    """How many folds at once. On a CPU one: several would need several times the memory."""
    if backend == "ray":
        return sys.maxsize
    return torch.cuda.device_count() if device.type == "cuda" else 1


def _make_fold(experiment: Experiment, number: int | None, folder: Path, data_folder: Path) -> Fold:
    dataset = experiment.dataset.model_copy(update={"fold": number})
    own = experiment.model_copy(update={"dataset": dataset})
    return Fold(own, folder / ("all" if number is None else f"fold_{number}"), data_folder)


def _prepare(fold: Fold, progress: Progress) -> str | None:
    """Prepare a fold's cases, before processes would do it several times over; return why that failed."""
    try:
        prepare_training_data(
            fold.experiment,
            fold.data_folder / fold.name,
            lambda stage, done, total: progress(f"{fold.name}: {stage}", done, total),
            core_count(),
            fold.data_folder,
        )
    except MedsegError as error:
        return str(error)
    return None


def _resolve(
    experiment: Experiment, dataset: Dataset, data_folder: Path, device: torch.device, progress: Progress
) -> Experiment:
    """The experiment with what all folds must have alike: voxel size, and the format of numbers."""
    preprocessing, training = experiment.preprocessing, experiment.training
    if preprocessing.spacing_mm is None:
        facts = survey_dataset(dataset, data_folder, progress, core_count())
        spacing_mm = compute_median_spacing_mm([found.spacing_mm for found in facts.values()])
        preprocessing = preprocessing.model_copy(update={"spacing_mm": spacing_mm})
    if training.precision == "auto":
        # by what the machine has: each fold would try for itself which is faster, and they might disagree
        native = "bf16" if has_native_bf16(device) else "fp32"
        training = training.model_copy(update={"precision": native})
    return experiment.model_copy(
        update={
            "preprocessing": preprocessing,
            "training": training,
            "dataset": experiment.dataset.model_copy(update={"fold": None}),
        }
    )


def _check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that is not for this, before anything is written into it."""
    if (folder / CONFIG_NAME).is_file():
        if not resume:
            raise ConfigError(
                f"{folder} already holds a cross-validation; go on with it by --resume, or name another "
                "folder"
            )
        return
    # A call that was killed while it read the dataset leaves `data` alone.
    if folder.exists() and (
        not folder.is_dir()
        or any(entry.name != "data" and not entry.name.startswith(".") for entry in folder.iterdir())
    ):
        raise ConfigError(f"{folder} is not empty and holds no cross-validation; name a new folder")


def _continue(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with what was resolved when its cross-validation began, where there is one.

    Raises:
        ConfigError: an option differs that what is done already cannot have any more.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return experiment
    before = load_experiment(path)
    spacing_mm = experiment.preprocessing.spacing_mm or before.preprocessing.spacing_mm
    precision = experiment.training.precision
    if precision == "auto":
        precision = before.training.precision
    now = experiment.model_copy(
        update={
            "preprocessing": experiment.preprocessing.model_copy(update={"spacing_mm": spacing_mm}),
            "training": experiment.training.model_copy(update={"precision": precision}),
            "dataset": experiment.dataset.model_copy(update={"fold": None}),
        }
    )
    done = sorted(mark.parent.name for mark in folder.glob(f"*/{DONE_NAME}"))
    changed = []
    for key, change in list_differences(before, now).items():
        if not key.startswith(MAY_CHANGE):
            changed.append(f"{key} ({change})")
        elif done and key in LEARNT_WITH:
            changed.append(f"{key} ({change}; {', '.join(done)} learnt with the former value)")
        elif key == "training.steps" and now.training.steps < before.training.steps:
            changed.append(f"{key} ({change}; it can be raised, not lowered)")
    if changed:
        raise ConfigError(
            f"The cross-validation of {folder} cannot go on with other options: {', '.join(changed)}. "
            "Use the options it was started with, or another folder"
        )
    return now
