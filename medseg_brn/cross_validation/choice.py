"""The choice among several cross-validated configurations, and the model of the one that is chosen.

OUTPUT/model/                    the chosen model
    choice.json  choice.html     the candidates, how they compare, and why this one
    candidates/NAME/             what pairs of configurations predict out of fold, kept for the next call
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from medseg_brn.cases.dataset import Dataset
from medseg_brn.config import Experiment
from medseg_brn.cross_validation.execute import CONFIG_NAME
from medseg_brn.cross_validation.final import describe_quality, save_single
from medseg_brn.cross_validation.intervals import Difference, compare_paired
from medseg_brn.cross_validation.out_of_fold import OutOfFoldCase, read_case
from medseg_brn.cross_validation.pairs import predict_pair
from medseg_brn.cross_validation.postprocessing import decide_postprocessing
from medseg_brn.cross_validation.summary import evaluate_postprocessed, evaluate_together
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.evaluation.results import CaseEvaluation
from medseg_brn.experiment import load_experiment
from medseg_brn.models.description import EnsembleDescription, find_disagreement, read_description
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.models.package import (
    DESCRIPTION_NAME,
    MEMBERS_NAME,
    WEIGHTS_NAME,
    find_model_folder,
    load_network,
)
from medseg_brn.reports.cross_validation_report import read_summary, write_choice_report
from medseg_brn.training.data import Progress, open_dataset
from medseg_brn.volumes.atomic import write_text_atomic


@dataclass(frozen=True)
class Configuration:
    """A finished cross-validation.

    Attributes:
        name: of its folder.
        folder: that `train --all-folds` wrote.
        experiment: of its folds.
        summary: what its `summary.json` holds.
        cases: out of fold, ordered by name.
        weights_bytes: of one fold's network.
    """

    name: str
    folder: Path
    experiment: Experiment
    summary: dict[str, Any]
    cases: tuple[OutOfFoldCase, ...]
    weights_bytes: int


@dataclass(frozen=True)
class Candidate:
    """A configuration, or two whose probabilities are averaged.

    Attributes:
        parts: the configurations.
        evaluations: of the cases out of fold, in the order of the configurations' cases.
    """

    parts: tuple[Configuration, ...]
    evaluations: tuple[CaseEvaluation, ...]

    @property
    def name(self) -> str:
        """Of the folders."""
        return "+".join(part.name for part in self.parts)

    @property
    def case_dice(self) -> list[float]:
        """Mean Dice of each case."""
        return [case.dice_mean for case in self.evaluations]

    @property
    def dice_mean(self) -> float:
        """Mean over cases of the case's mean Dice, where it is defined: what is compared."""
        defined = [dice for dice in self.case_dice if not math.isnan(dice)]
        return math.fsum(defined) / len(defined) if defined else math.nan

    @property
    def simplicity(self) -> tuple[int, int]:
        """Networks, and bytes of their weights: the less, the simpler."""
        return len(self.parts), sum(part.weights_bytes for part in self.parts)


def choose_model(
    folders: Sequence[Path],
    output: Path,
    *,
    ensembles: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Compare cross-validations, write the best one's model into `output`, and return why.

    Args:
        folders: finished cross-validations of the same cases in the same folds.
        output: made when absent.
        ensembles: also try each pair, predicting the held-out cases again with both folds' models.
        progress: told of stages.

    Returns:
        The content of `choice.json`.

    Raises:
        ConfigError: fewer than two folders, one of them twice, or one that is not finished.
        DataError: they are not of the same cases, folds and structures.
    """
    configurations, dataset = read_configurations(folders, progress)
    candidates = [
        Candidate((each,), tuple(case.evaluation for case in each.cases)) for each in configurations
    ]
    skipped = {}
    for pair in combinations(configurations, 2) if ensembles else ():
        name = "+".join(part.name for part in pair)
        reason = _find_obstacle(pair)
        if reason is not None:
            skipped[name] = reason
            continue
        ordered = _best_first(pair, candidates)
        predicted = predict_pair(
            [part.folder for part in ordered],
            ordered[0].cases,
            ordered[0].experiment,
            dataset,
            output / "candidates" / name,
            lambda done, total, name=name: progress(f"predicting {name}", done, total),  # type: ignore[misc]
        )
        candidates.append(Candidate(ordered, predicted))
    chosen, differences = choose_candidate(candidates)
    found = _describe_choice(candidates, chosen, differences, skipped)
    found |= _write_model(chosen, dataset, output, progress)
    write_text_atomic(output / "choice.json", json.dumps(found, indent=1) + "\n")
    write_choice_report(output)
    return found


def choose_candidate(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Difference]]:
    """The simplest candidate that cannot be told from the best one, and each one's difference from that.

    The best has the highest mean Dice over cases. A candidate can be told from it where the 95 % interval of
    the difference, paired over cases, excludes 0.
    """
    best = max(candidates, key=lambda one: one.dice_mean)
    differences = [compare_paired(best.case_dice, one.case_dice) for one in candidates]
    alike = [
        one
        for one, difference in zip(candidates, differences, strict=True)
        if one is best or not difference.is_distinguishable
    ]
    return min(alike, key=lambda one: (one.simplicity, -one.dice_mean)), differences


def read_configurations(folders: Sequence[Path], progress: Progress) -> tuple[list[Configuration], Dataset]:
    """The cross-validations in these folders, and the dataset of all of them.

    Raises:
        ConfigError: fewer than two folders, one of them twice, or one that is not finished.
        DataError: they are not of the same cases, folds and structures.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < max(2, len(resolved)):
        raise ConfigError(
            f"A choice is among two cross-validations or more, and {', '.join(map(str, folders)) or 'none'} "
            "was given; name each folder once"
        )
    summaries = [read_summary(folder) for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        refuse_unfinished(folder, summary)
        refuse_differences((folders[0], summaries[0]), (folder, summary))
    experiments = [load_experiment(folder / CONFIG_NAME) for folder in folders]
    dataset = open_dataset(experiments[0], folders[0] / "data", progress)
    names = _name_apart(resolved)
    return [
        Configuration(
            name,
            folder,
            experiment,
            summary,
            _read_cases(folder, summary, dataset),
            (find_model_folder(folder / "fold_0") / WEIGHTS_NAME).stat().st_size,
        )
        for name, folder, experiment, summary in zip(names, resolved, experiments, summaries, strict=True)
    ], dataset


def refuse_unfinished(folder: Path, summary: dict[str, Any]) -> None:
    """Make sure that every fold is done and the model there.

    Raises:
        ConfigError: it is not.
    """
    missing = [f"fold {fold['fold']}" for fold in summary["per_fold"] if fold["status"] != "finished"]
    if missing or not (folder / "model" / DESCRIPTION_NAME).is_file():
        raise ConfigError(
            f"The cross-validation of {folder} is not finished ({', '.join(missing) or 'it has no model'}); "
            "finish it with --resume"
        )


def refuse_differences(one: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> None:
    """Make sure that two cross-validations can be compared case by case.

    Args:
        one, other: folder and summary of each.

    Raises:
        DataError: classes, structures, folds, or the cases of a fold differ.
    """
    (first_folder, first), (folder, summary) = one, other
    aspects: dict[str, Callable[[dict[str, Any]], Any]] = {
        "label values": lambda found: found["label_values"],
        "structures": lambda found: list(found["summary"]["classes"]),
        "number of folds": lambda found: found["folds"],
    }
    for aspect, read in aspects.items():
        if read(first) != read(summary):
            raise DataError(
                f"{first_folder} and {folder} cannot be compared: their {aspect} differ, {read(first)} and "
                f"{read(summary)}; cross-validate both on one dataset"
            )
    folds, others = ({case["case"]: case["fold"] for case in found["cases"]} for found in (first, summary))
    differing = sorted(name for name in folds.keys() | others.keys() if folds.get(name) != others.get(name))
    if differing:
        name = differing[0]
        raise DataError(
            f"{first_folder} and {folder} cannot be compared: {len(differing)} cases are held out by "
            f"different folds or missing, {name} by fold {folds.get(name, 'none')} and "
            f"{others.get(name, 'none')}; "
            "cross-validate both with the same dataset.folds and dataset.split_seed"
        )


def _read_cases(folder: Path, summary: dict[str, Any], dataset: Dataset) -> tuple[OutOfFoldCase, ...]:
    cases = {case.name: case for case in dataset.labelled_cases}
    tolerance_mm = summary["summary"]["tolerance_mm"]
    found = []
    for plain in summary["cases"]:
        if plain["case"] not in cases:
            raise DataError(
                f"{folder} evaluated case {plain['case']!r}, which dataset {dataset.name!r} no longer has; "
                "restore it, or cross-validate again"
            )
        prediction = folder.resolve() / plain["prediction"]
        found.append(
            OutOfFoldCase(cases[plain["case"]], plain["fold"], prediction, read_case(plain), tolerance_mm)
        )
    return tuple(found)


def _name_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of its parents' as tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["-".join(folder.parts[-depth:]).strip("/\\:") for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _best_first(pair: Sequence[Configuration], candidates: Sequence[Candidate]) -> tuple[Configuration, ...]:
    """The pair, the better one first: an ensemble takes its inference settings."""
    dice = {candidate.parts[0].name: candidate.dice_mean for candidate in candidates}
    return tuple(sorted(pair, key=lambda part: -dice[part.name]))


def _find_obstacle(pair: Sequence[Configuration]) -> str | None:
    """Why two configurations' models cannot be averaged, or None."""
    members = [find_model_folder(part.folder / "fold_0") for part in pair]
    return find_disagreement([(member, load_network(member)[1]) for member in members])


def _describe_choice(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    differences: Sequence[Difference],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """The candidates, best first, and the reason in words."""
    rows = [
        {
            "name": one.name,
            "folders": [str(part.folder) for part in one.parts],
            "dice_mean": one.dice_mean,
            "classes": {
                name: found["dice_mean"]
                for name, found in evaluate_together(one.evaluations, one.parts[0].cases[0].tolerance_mm)
                .summary()["classes"]
                .items()
            },
            "networks_per_fold": one.simplicity[0],
            "weights_bytes_per_fold": one.simplicity[1],
            "from_best": difference.as_dict(),
        }
        for one, difference in zip(candidates, differences, strict=True)
    ]
    rows.sort(key=lambda row: -float(row["dice_mean"]))  # type: ignore[arg-type]
    best = str(rows[0]["name"])
    reason = f"{best} has the highest mean Dice out of fold"
    if best == chosen.name:
        reason += (
            ", and every simpler candidate differs from it by more than chance (95 % interval of the "
            "difference, paired over cases)"
        )
    else:
        reason += (
            f", but {chosen.name} is simpler, and the 95 % interval of their difference, paired over cases, "
            "includes 0"
        )
    return {
        "chosen": chosen.name,
        "reason": f"{reason}.",
        "cases": len(chosen.evaluations),
        "candidates": rows,
        "not_averaged": skipped,
    }


def _write_model(chosen: Candidate, dataset: Dataset, output: Path, progress: Progress) -> dict[str, Any]:
    """Decide the chosen candidate's post-processing out of fold, and write its model."""
    first = chosen.parts[0]
    cases = first.cases
    if len(chosen.parts) > 1:
        cases = tuple(
            replace(case, prediction=Path(evaluation.paths["prediction"]), evaluation=evaluation)
            for case, evaluation in zip(cases, chosen.evaluations, strict=True)
        )
    decision = decide_postprocessing(
        [(case.case, case.prediction) for case in cases],
        dataset,
        first.experiment.inference.postprocessing,
        progress,
    )
    evaluation = evaluate_together(chosen.evaluations, cases[0].tolerance_mm)
    quality = {
        "folds": first.summary["folds"],
        "spread_over_folds": first.summary["spread_over_folds"] if len(chosen.parts) == 1 else None,
        "summary": evaluation.summary(),
        "postprocessed": evaluate_postprocessed(cases, dataset, decision, evaluation, progress),
    }
    inference = first.experiment.inference.model_copy(update={"postprocessing": decision.rules})
    name = " + ".join(part.experiment.name for part in chosen.parts)
    meaning = (
        "Out-of-fold metrics of this configuration, which was chosen among others for them, and is therefore "
        "expected to be a little worse on new cases."
    )
    training = {"cross_validation": describe_quality(quality, meaning)}
    members = [member for part in chosen.parts for member in list_members(part.folder)]
    if len(members) > 1:
        save_ensemble(output / "model", members, name=name, inference=inference, training=training)
    else:
        save_single(output / "model", members[0], inference, training)
    return {
        "postprocessing": decision.as_dict(),
        "summary": quality["summary"],
        "postprocessed": quality["postprocessed"],
    }


def list_members(path: Path) -> list[Path]:
    """The folders of a model's networks: the model's own, or its members' where it is an ensemble."""
    folder = find_model_folder(path)
    description = read_description(folder / DESCRIPTION_NAME)
    if isinstance(description, EnsembleDescription):
        return [folder / MEMBERS_NAME / member.folder for member in description.members]
    return [folder]
