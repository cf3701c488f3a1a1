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
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.cases.preprocessing import Preprocessing, resolve_preprocessing
from medseg_brn.cases.presence import LabelMapFacts, survey_label_maps
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError, DataError
from medseg_brn.experiment import PHANTOM_PATHS
from medseg_brn.inference.postprocessing import choose_rules
from medseg_brn.volumes.atomic import write_text_atomic

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
    folder itself where none is given; in one that runs share, both files stand in a folder for each fold.

    Raises:
        DataError: the dataset or one of its cases is not what it must be, or not what the run began with.
    """
    folder = run_folder if data_folder is None else data_folder
    dataset = open_dataset(experiment, folder, progress)
    choose_rules(experiment.inference.postprocessing, dataset.class_names)  # before hours of training
    records = folder if data_folder is None else folder / name_fold(experiment)
    training, held_out = _split_as_before(records / "split.json", dataset, experiment) or split_dataset(
        dataset, experiment, folder, progress, jobs
    )
    preprocessing = _resolve(experiment, dataset, training, records, progress)
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
    _keep_split(records / "split.json", dataset, experiment, *split)
    if records != run_folder:
        for name in ("split.json", "preprocessing.json"):
            write_text_atomic(run_folder / name, (records / name).read_text(encoding="utf-8"))
    return TrainingData(dataset, preprocessing, split[0], held_out, split[1])


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
        ConfigError: there are fewer labelled cases than folds.
        DataError: a label map cannot be read.
    """
    labelled = sorted(dataset.labelled_cases, key=lambda case: case.name)
    config = experiment.dataset
    if config.fold is None:
        return labelled, []
    if len(labelled) < config.folds:
        raise ConfigError(
            f"{len(labelled)} labelled cases cannot be split into dataset.folds = {config.folds}; lower it,"
            " or set dataset.fold to null to train on all of them"
        )
    facts = survey_dataset(dataset, folder, progress, jobs)
    structures = set(dataset.label_values[1:])
    classes = {name: structures.intersection(found.values) for name, found in facts.items()}
    folds = split_folds(labelled, config.folds, experiment.split_seed, classes)
    held_out = {case.name for case in folds[config.fold]}
    return (
        [case for case in labelled if case.name not in held_out],
        [case for case in labelled if case.name in held_out],
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
    """The split that a run began with; None where it is new, or drawn from other cases or otherwise."""
    if not path.is_file():
        return None
    before = json.loads(path.read_text(encoding="utf-8"))
    cases = {case.name: case for case in dataset.labelled_cases}
    drawn = _describe_draw(experiment)
    if before.get("drawn", drawn) != drawn or sorted(cases) != sorted(
        before["training"] + before["validation"]
    ):
        return None
    return [cases[name] for name in before["training"]], [cases[name] for name in before["validation"]]


def _describe_draw(experiment: Experiment) -> dict[str, int | None]:
    """What a split depends on besides the cases."""
    config = experiment.dataset
    return {"fold": config.fold, "folds": config.folds, "seed": experiment.split_seed}


def _keep_split(
    path: Path,
    dataset: Dataset,
    experiment: Experiment,
    training: list[PreparedCase],
    validation: list[PreparedCase],
) -> None:
    """Write what is trained on and what held out, or check that it is what the run began with."""
    structures = dataset.structures
    split: dict[str, Any] = {
        "training": [case.name for case in training],
        "validation": [case.name for case in validation],
        "drawn": _describe_draw(experiment),
        "classes": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        "structures": {name: list(values) for name, values in structures.label_values.items()},
        "ignore_value": structures.ignore_value,
        # the folder of a prepared case is named after a digest of its files and options
        "contents": {case.name: case.image_path.parent.name for case in [*training, *validation]},
    }
    if not path.is_file():
        write_text_atomic(path, json.dumps(split, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if split | before == split:  # a run of an earlier version kept less
        return
    old, new = before.get("contents", {}), split["contents"]
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    differing = next(name for name in before if before[name] != split.get(name))
    difference = f"{differing} {before[differing]}, now {split.get(differing)}"
    if changed:
        difference = f"cases added, removed or changed: {', '.join(changed[:5])}"
    raise DataError(
        f"The dataset is not the one that the run of {path.parent} began with ({difference}). Restore it to"
        " go on, or start a new run in another folder"
    )


def _resolve(
    experiment: Experiment, dataset: Dataset, training: list[Case], run_folder: Path, progress: Progress
) -> Preprocessing:
    path = run_folder / "preprocessing.json"
    if (run_folder / "split.json").is_file() and path.is_file():
        return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    done = iter(range(1, len(training) + 1))
    fingerprint = compute_fingerprint(
        dataset, training, on_case=lambda _: progress("measuring cases", next(done), len(training))
    )
    preprocessing = resolve_preprocessing(experiment.preprocessing, dataset, fingerprint)
    write_text_atomic(path, json.dumps(preprocessing.as_dict(), indent=2) + "\n")
    return preprocessing
