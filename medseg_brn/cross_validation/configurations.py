"""Finished cross-validations, read back from their folders; and what cannot be compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_brn.cases.dataset import Dataset
from medseg_brn.config import Experiment
from medseg_brn.cross_validation.execute import CONFIG_NAME
from medseg_brn.cross_validation.out_of_fold import OutOfFoldCase, read_case
from medseg_brn.errors import ConfigError, DataError, MedsegError
from medseg_brn.experiment import load_experiment
from medseg_brn.inference.manifest import digest
from medseg_brn.models.agreement import find_disagreement
from medseg_brn.models.description import EnsembleDescription, read_description
from medseg_brn.models.package import (
    DESCRIPTION_NAME,
    MEMBERS_NAME,
    WEIGHTS_NAME,
    find_model_folder,
    load_network,
)
from medseg_brn.reports.cross_validation_report import read_summary
from medseg_brn.training.data import Progress, open_dataset


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
    last = summary.get("final_run")
    if last is not None and last["status"] != "finished":
        missing.append("the last training, on all cases")
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
        DataError: classes, structures, folds, the cases of a fold, or their references differ.
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
    references, others = (
        {case["case"]: Path(case["reference"]) for case in found["cases"]} for found in (first, summary)
    )
    for name, reference in references.items():
        if not _is_same(reference, others[name]):
            raise DataError(
                f"{first_folder} and {folder} cannot be compared: case {name} has other references, "
                f"{reference} and {others[name]}, whose contents differ or cannot be read; cross-validate "
                "both on one dataset"
            )


def refuse_overlap(folders: Sequence[Path], output: Path) -> None:
    """Make sure that writing into `output` changes none of the folders.

    Raises:
        ConfigError: it is one of them, lies in one, or contains one.
    """
    target = output.resolve()
    for folder in folders:
        own = folder.resolve()
        if target.is_relative_to(own) or own.is_relative_to(target):
            raise ConfigError(
                f"The model would be written into {output}, which is, lies in or contains the "
                f"cross-validation {folder} and would overwrite its model; name another folder"
            )


def _is_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same, wherever they lie: a phantom cohort is made anew by each run."""
    if one == other:
        return True
    try:
        return digest(one) == digest(other)
    except (OSError, MedsegError):
        return False


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


def find_obstacle(pair: Sequence[Configuration]) -> str | None:
    """Why two configurations' models cannot be averaged, or None."""
    members = [find_model_folder(part.folder / "fold_0") for part in pair]
    return find_disagreement([(member, load_network(member)[1]) for member in members])


def list_members(path: Path) -> list[Path]:
    """The folders of a model's networks: the model's own, or its members' where it is an ensemble."""
    folder = find_model_folder(path)
    description = read_description(folder / DESCRIPTION_NAME)
    if isinstance(description, EnsembleDescription):
        return [folder / MEMBERS_NAME / member.folder for member in description.members]
    return [folder]
