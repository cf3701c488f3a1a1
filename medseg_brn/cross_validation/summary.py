"""`summary.json`: what a cross-validation found, over all cases, over its folds, and with post-processing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cases.labels import map_to_classes
from medseg_brn.config import Experiment, PostprocessingConfig
from medseg_brn.cross_validation.fold import Fold, FoldResult
from medseg_brn.cross_validation.out_of_fold import OutOfFoldCase
from medseg_brn.cross_validation.postprocessing import Decision, decide_postprocessing
from medseg_brn.evaluation.evaluate import evaluate_case
from medseg_brn.evaluation.results import CaseEvaluation, Evaluation, bootstrap_dice_interval
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.postprocessing import postprocess_label_map
from medseg_brn.reports.run_record import tabulate_metrics
from medseg_brn.training.data import Progress
from medseg_brn.training.sites import list_fold_sites
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume

SUMMARY_NAME = "summary.json"


def write_summary(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    folds: Sequence[Fold],
    results: Sequence[FoldResult],
    cases: Sequence[OutOfFoldCase],
    final: str,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate the cases together, decide the post-processing, and write `summary.json`; return it.

    Args:
        folder: of the cross-validation.
        experiment: of all folds.
        dataset: of the cases.
        folds: all of them.
        results: of the folds, in their order, and of a last training.
        cases: those that finished folds held out.
        final: what the model is made of.
        progress: told of stages.
    """
    evaluation = evaluate_together([case.evaluation for case in cases], cases[0].tolerance_mm)
    decision = decide_postprocessing(
        [(case.case, case.prediction) for case in cases],
        dataset,
        experiment.inference.postprocessing,
        progress,
    )
    summary = {
        "name": experiment.name,
        "dataset": experiment.dataset.path,
        "folds": len(folds),
        "folds_by": experiment.dataset.folds_by,
        "split_seed": experiment.split_seed,
        "steps": experiment.training.steps,
        "spacing_mm": experiment.preprocessing.spacing_mm,
        "final": final,
        "label_values": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        "ignore_value": dataset.ignore_value,
        **describe_evaluation(evaluation, cases, folder),
        "per_fold": [
            _describe_fold(fold, result, cases, list_fold_sites(experiment, dataset))
            for fold, result in zip(folds, results, strict=False)
        ],
        "postprocessing": decision.as_dict(),
        "postprocessed": evaluate_postprocessed(cases, dataset, decision, evaluation, progress),
    }
    last = results[len(folds) :]
    summary["final_run"] = {"status": last[0].status, "error": last[0].error} if last else None
    summary["spread_over_folds"] = _describe_spread(summary["per_fold"])
    write_text_atomic(folder / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")
    return summary


def evaluate_together(cases: Sequence[CaseEvaluation], tolerance_mm: float) -> Evaluation:
    """The cases as one cohort."""
    return Evaluation(tuple(cases), tolerance_mm)


def describe_evaluation(
    evaluation: Evaluation, cases: Sequence[OutOfFoldCase], folder: Path
) -> dict[str, Any]:
    """As in `validation.json`, where each structure has an interval too, and each case its fold."""
    described = evaluation.as_dict()
    dice = evaluation.values("dice")
    for column, structure in enumerate(evaluation.class_names):
        interval = bootstrap_dice_interval(dice[:, [column]])
        described["summary"]["classes"][structure]["dice_interval_95"] = interval
    for plain, case in zip(described["cases"], cases, strict=True):
        plain["fold"] = case.fold
        plain["prediction"] = str(case.prediction.relative_to(folder))
    return {name: described[name] for name in ("summary", "cases", "conventions")}


def evaluate_postprocessed(
    cases: Sequence[OutOfFoldCase],
    dataset: Dataset,
    decision: Decision,
    before: Evaluation,
    progress: Progress,
) -> dict[str, Any] | None:
    """The cohort's `summary` with the post-processing that was decided; None where there is none."""
    added = {trial.structure for trial in decision.trials if trial.kept}
    if not added:
        return None
    rules = {name: rule for name, rule in decision.rules.items() if name in added}
    work = (delayed(_evaluate_postprocessed)(case, dataset, rules) for case in cases)
    evaluations = []
    jobs = min(core_count(), len(cases))
    for found in Parallel(n_jobs=jobs, return_as="generator")(work):
        evaluations.append(found)
        progress("evaluating with post-processing", len(evaluations), len(cases))
    return evaluate_together(evaluations, before.tolerance_mm).summary()


def _evaluate_postprocessed(
    case: OutOfFoldCase, dataset: Dataset, rules: Mapping[str, PostprocessingConfig]
) -> CaseEvaluation:
    assert case.case.label_path is not None
    prediction = read_volume(case.prediction)
    classes = map_to_classes(prediction.array, dataset.label_values, case.prediction)
    processed = postprocess_label_map(Volume(classes, prediction.grid), rules, dataset.targets)
    values = np.asarray(dataset.label_values)[processed.array]
    return evaluate_label_map(case, Volume(values, prediction.grid), dataset)


def evaluate_label_map(case: OutOfFoldCase, label_map: Volume, dataset: Dataset) -> CaseEvaluation:
    """The evaluation of another label map of the case, as `validate_model` does it."""
    assert case.case.label_path is not None
    reference = read_volume(case.case.label_path)
    metrics = evaluate_case(label_map, reference, dataset.structures, case.tolerance_mm)
    return replace(case.evaluation, classes=metrics)


def _describe_fold(
    fold: Fold, result: FoldResult, cases: Sequence[OutOfFoldCase], sites: Sequence[str]
) -> dict[str, Any]:
    """One row of the table of folds; `sites` are those that the folds hold out, where they hold out sites."""
    number = fold.experiment.dataset.fold
    assert number is not None
    own = [case for case in cases if case.fold == number]
    described: dict[str, Any] = {
        "fold": number,
        **({"site": sites[number]} if sites else {}),
        "status": result.status,
        "error": result.error,
        "cases": len(own),
        "training_seconds": round(float(tabulate_metrics(fold.folder / "metrics.csv")["seconds"].sum()), 1),
    }
    if own:
        summary = evaluate_together([case.evaluation for case in own], own[0].tolerance_mm).summary()
        described["dice_mean"] = summary["dice_mean"]
        described["classes"] = {
            name: {
                "dice_mean": found["dice_mean"],
                "cases_with_reference": sum(case.evaluation.classes[name].reference_ml > 0 for case in own),
            }
            for name, found in summary["classes"].items()
        }
    return described


def _describe_spread(per_fold: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much the folds' mean Dice differ: chance of cases and of training together."""
    means = [fold["dice_mean"] for fold in per_fold if fold.get("dice_mean") is not None]
    return {
        "dice_mean_sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "dice_mean_lowest": min(means, default=None),
        "dice_mean_highest": max(means, default=None),
    }
