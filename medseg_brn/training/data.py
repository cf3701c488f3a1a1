"""From a dataset on disk to prepared training and validation cases of one fold."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_brn.cases.cache import PreparedCase, prepare_cases
from medseg_brn.cases.dataset import Case, Dataset, read_dataset
from medseg_brn.cases.fingerprint import compute_fingerprint
from medseg_brn.cases.folds import split_folds
from medseg_brn.cases.mirroring import find_mirrored_classes
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.cases.preprocessing import Preprocessing, resolve_preprocessing
from medseg_brn.cases.presence import LabelMapFacts, survey_label_maps
from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError, DataError, ModelError
from medseg_brn.experiment import PHANTOM_PATHS
from medseg_brn.inference.postprocessing import check_rules
from medseg_brn.training.losses import make_loss_of
from medseg_brn.training.sites import check_sites, hold_out_site, name_held_out_site
from medseg_brn.volumes.atomic import write_text_atomic

SPLIT_NAME = "split.json"
PREPROCESSING_NAME = "preprocessing.json"

Progress = Callable[[str, int, int], None]
"""Told of a stage's name, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class TrainingData:
    """Everything that a run needs to know of its patients."""

    dataset: Dataset
    preprocessing: Preprocessing
    training: list[PreparedCase]
    validation_cases: list[Case]
    validation: list[PreparedCase]

    @property
    def in_channels(self) -> int:
        """Image channels."""
        return len(self.dataset.modalities)

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: one per region, else one per class."""
        return self.dataset.targets.num_outputs


def prepare_training_data(
    experiment: Experiment,
    run_folder: Path,
    progress: Progress,
    jobs: int = 1,
    data_folder: Path | None = None,
) -> TrainingData:
    """Read the dataset, split it, resolve the preprocessing and prepare every case below `data_folder/cache`.

    The split, and a digest of each case's contents and options, are written to `split.json`; the resolved
    preprocessing to `preprocessing.json`. A resumed run must find the same ones. `data_folder` is the run
    folder itself where none is given; in one that runs share, both files stand in a folder for each fold, and
    in the run's own.

    Raises:
        ConfigError: an option names what the dataset does not have.
        DataError: the dataset or one of its cases is not what it must be, or not what the run began with.
    """
    folder = run_folder if data_folder is None else data_folder
    dataset = open_dataset(experiment, folder, progress)
    check_names(experiment, dataset.targets)
    records = [run_folder] if data_folder is None else [run_folder, folder / name_fold(experiment)]
    # Runs of a grid once shared the records in the data folder itself.
    places = [place for place in dict.fromkeys([*records, folder]) if (place / SPLIT_NAME).is_file()]
    splits = ((place, _split_as_before(place / SPLIT_NAME, dataset, experiment)) for place in places)
    known = next(((place, split) for place, split in splits if split is not None), None)
    training, held_out = known[1] if known else split_dataset(dataset, experiment, folder, progress, jobs)
    check_sites(experiment, training)
    preprocessing = _resolve(experiment, dataset, training, known[0] if known else None, progress)
    count = len(training) + len(held_out)
    done = iter(range(1, count + 1))
    prepared = prepare_cases(
        [*training, *held_out],
        dataset,
        preprocessing,
        folder / "cache",
        on_case=lambda _: progress("preparing cases", next(done), count),
        jobs=jobs,
    )
    split = prepared[: len(training)], prepared[len(training) :]
    for place in records:
        _keep(place / SPLIT_NAME, _describe_split(dataset, experiment, *split))
        _keep(place / PREPROCESSING_NAME, preprocessing.as_dict())
    return TrainingData(dataset, preprocessing, split[0], held_out, split[1])


def check_names(experiment: Experiment, targets: Targets) -> None:
    """Check all names of classes and regions in the options, before hours of preparing and training.

    Raises:
        ConfigError: there is no such class or region, or the mirror image of a region is none.
    """
    check_rules(experiment.inference.postprocessing, targets)
    make_loss_of(experiment, targets)
    if experiment.patches.augmentation is not None:
        find_mirrored_classes(experiment.patches.augmentation.mirrored_classes, targets)


def open_dataset(experiment: Experiment, run_folder: Path, progress: Progress) -> Dataset:
    """The experiment's dataset; a phantom cohort is made below the run folder first."""
    config = experiment.dataset
    if config.path not in PHANTOM_PATHS:
        return read_dataset(Path(config.path), config.layout, config.modalities)
    folder = run_folder / config.path
    if not (folder / "dataset.json").is_file():
        progress("making the phantom cohort", 0, 1)
        make_phantom(
            folder, modality="ct" if config.path.endswith("ct") else "mri", seed=experiment.split_seed
        )
    return read_dataset(folder)


def split_dataset(
    dataset: Dataset, experiment: Experiment, folder: Path, progress: Progress, jobs: int = 1
) -> tuple[list[Case], list[Case]]:
    """Training and held-out cases of the experiment's fold, both ordered by name.

    Raises:
        ConfigError: there are fewer labelled cases than folds, or fewer sites than the fold's number.
        DataError: a label map cannot be read, or all of it is to be ignored; or folds go by sites, and a case
            names none, or a patient was seen at several.
    """
    labelled = sorted(dataset.labelled_cases, key=lambda case: case.name)
    config = experiment.dataset
    if dataset.ignore_value is not None:
        _refuse_ignored(survey_dataset(dataset, folder, progress, jobs), dataset.ignore_value)
    if config.fold is None:
        return labelled, []
    if config.folds_by == "site":
        held_out = hold_out_site(experiment, labelled)
    else:
        if len(labelled) < config.folds:
            raise ConfigError(
                f"{len(labelled)} labelled cases cannot be split into dataset.folds = {config.folds}; lower "
                "it, or set dataset.fold to null to train on all of them"
            )
        facts = survey_dataset(dataset, folder, progress, jobs)
        structures = set(dataset.label_values[1:])
        classes = {name: structures.intersection(found.values) for name, found in facts.items()}
        held_out = split_folds(labelled, config.folds, experiment.split_seed, classes)[config.fold]
    names = {case.name for case in held_out}
    return (
        [case for case in labelled if case.name not in names],
        [case for case in labelled if case.name in names],
    )


def _refuse_ignored(facts: dict[str, LabelMapFacts], ignore_value: int) -> None:
    """Refuse cases of which nothing is annotated: there is nothing in them to learn or to evaluate."""
    ignored = sorted(name for name, found in facts.items() if set(found.values) <= {ignore_value})
    if ignored:
        raise DataError(
            f"All voxels of the label map of {', '.join(ignored[:5])}"
            f"{f' and {len(ignored) - 5} more' if len(ignored) > 5 else ''} have the value {ignore_value}, "
            "which is to be ignored; annotate a part of it, or take the label map out of the dataset"
        )


def survey_dataset(
    dataset: Dataset, folder: Path, progress: Progress, jobs: int = 1
) -> dict[str, LabelMapFacts]:
    """Which values each label map holds, by the name of the case; kept in the data folder's cache.

    Raises:
        DataError: a label map cannot be read.
    """
    return survey_label_maps(
        dataset.labelled_cases,
        folder / "cache" / "labels.json",
        lambda done, total: progress("reading label maps", done, total),
        jobs,
    )


def name_fold(experiment: Experiment) -> str:
    """What a folder of the experiment's fold is called: `fold_0`, or `all` where nothing is held out."""
    fold = experiment.dataset.fold
    return "all" if fold is None else f"fold_{fold}"


def _split_as_before(
    path: Path, dataset: Dataset, experiment: Experiment
) -> tuple[list[Case], list[Case]] | None:
    """The split that a run began with; None where it was drawn from other cases or otherwise."""
    before = _read_record(path)
    names = [before.get(part) for part in ("training", "validation")]
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
        raise _damaged(path, "it does not list the cases of training and validation")
    cases = {case.name: case for case in dataset.labelled_cases}
    drawn = _describe_draw(experiment)
    training, validation = before["training"], before["validation"]
    if before.get("drawn", drawn) != drawn or sorted(cases) != sorted(training + validation):
        return None
    return [cases[name] for name in training], [cases[name] for name in validation]


def _read_record(path: Path) -> dict[str, Any]:
    """What is written in `split.json` or `preprocessing.json`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise _damaged(path, "it holds no JSON object")
    return record


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be used: {why}. It says what the run began with; restore the file to go on, or start "
        "a new run in another folder"
    )


def _describe_draw(experiment: Experiment) -> dict[str, int | str | None]:
    """What a split depends on besides the cases."""
    config = experiment.dataset
    if config.folds_by == "site":
        return {"fold": config.fold, "folds_by": "site"}
    return {"fold": config.fold, "folds": config.folds, "seed": experiment.split_seed}


def _describe_split(
    dataset: Dataset, experiment: Experiment, training: list[PreparedCase], validation: list[PreparedCase]
) -> dict[str, Any]:
    """What is trained on and what held out, and what is learnt of it, in plain JSON types."""
    structures = dataset.structures
    sites = {case.name: case.site for case in [*training, *validation] if case.site is not None}
    held_out_site = name_held_out_site(experiment, validation)
    return {
        "training": [case.name for case in training],
        "validation": [case.name for case in validation],
        "drawn": _describe_draw(experiment),
        **({} if held_out_site is None else {"held_out_site": held_out_site}),
        **({"sites": sites} if sites else {}),
        "classes": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        "structures": {name: list(values) for name, values in structures.label_values.items()},
        "ignore_value": structures.ignore_value,
        # the folder of a prepared case is named after a digest of its files and options
        "contents": {case.name: case.image_path.parent.name for case in [*training, *validation]},
    }


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write what a run begins with, or check that it is what the run began with."""
    if not path.is_file():
        indent = 1 if path.name == SPLIT_NAME else 2
        write_text_atomic(path, json.dumps(record, indent=indent) + "\n")
        return
    before = _read_record(path)
    if record | before == record:  # a run of an earlier version kept less
        return
    old, new = before.get("contents", {}), record.get("contents", {})
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    differing = next(name for name in before if before[name] != record.get(name))
    difference = f"{differing} {before[differing]}, now {record.get(differing)}"
    if changed:
        difference = f"cases added, removed or changed: {', '.join(changed[:5])}"
    raise DataError(
        f"The dataset is not the one that the run of {path.parent} began with ({difference}). Restore it to"
        " go on, or start a new run in another folder"
    )


def _resolve(
    experiment: Experiment, dataset: Dataset, training: list[Case], known: Path | None, progress: Progress
) -> Preprocessing:
    """The preprocessing that was resolved where the split is known from, or that of the training cases."""
    path = None if known is None else known / PREPROCESSING_NAME
    if path is not None and path.is_file():
        try:
            return Preprocessing.from_dict(_read_record(path))
        except ModelError as error:
            raise _damaged(path, str(error)) from None
    done = iter(range(1, len(training) + 1))
    fingerprint = compute_fingerprint(
        dataset, training, on_case=lambda _: progress("measuring cases", next(done), len(training))
    )
    return resolve_preprocessing(experiment.preprocessing, dataset, fingerprint)
