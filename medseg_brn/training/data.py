"""From a dataset on disk to prepared training and validation cases of one fold."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medseg_brn.cases.cache import PreparedCase, prepare_cases
from medseg_brn.cases.dataset import Case, Dataset, read_dataset
from medseg_brn.cases.fingerprint import compute_fingerprint
from medseg_brn.cases.folds import split_folds
from medseg_brn.cases.phantom import make_phantom
from medseg_brn.cases.preprocessing import Preprocessing, resolve_preprocessing
from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import PHANTOM_PATHS
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
    def num_classes(self) -> int:
        """Classes, the background included."""
        return len(self.dataset.class_names)


def prepare_training_data(experiment: Experiment, run_folder: Path, progress: Progress) -> TrainingData:
    """Read the dataset, split it, resolve the preprocessing and prepare every case below `run_folder/cache`.

    The split is written to `split.json` and the resolved preprocessing to `preprocessing.json`; a resumed
    run takes the latter from there.

    Raises:
        DataError: the dataset or one of its cases is not what it must be.
    """
    dataset = open_dataset(experiment, run_folder, progress)
    training, held_out = split_dataset(dataset, experiment)
    names = {"training": [case.name for case in training], "validation": [case.name for case in held_out]}
    write_text_atomic(run_folder / "split.json", json.dumps(names, indent=2) + "\n")
    preprocessing = _resolve(experiment, dataset, training, run_folder / "preprocessing.json", progress)
    count = len(training) + len(held_out)
    done = iter(range(1, count + 1))
    prepared = prepare_cases(
        [*training, *held_out],
        dataset,
        preprocessing,
        run_folder / "cache",
        on_case=lambda _: progress("preparing cases", next(done), count),
    )
    return TrainingData(
        dataset, preprocessing, prepared[: len(training)], held_out, prepared[len(training) :]
    )


def open_dataset(experiment: Experiment, run_folder: Path, progress: Progress) -> Dataset:
    """The experiment's dataset; a phantom cohort is made below the run folder first."""
    config = experiment.dataset
    if config.path not in PHANTOM_PATHS:
        return read_dataset(Path(config.path), config.layout, config.modalities)
    folder = run_folder / config.path
    if not (folder / "dataset.json").is_file():
        progress("making the phantom cohort", 0, 1)
        make_phantom(folder, modality="ct" if config.path.endswith("ct") else "mri", seed=experiment.seed)
    return read_dataset(folder)


def split_dataset(dataset: Dataset, experiment: Experiment) -> tuple[list[Case], list[Case]]:
    """Training and held-out cases of the experiment's fold.

    Raises:
        ConfigError: there are fewer labelled cases than folds.
    """
    labelled = [case for case in dataset.cases if case.label_path is not None]
    config = experiment.dataset
    if config.fold is None:
        return sorted(labelled, key=lambda case: case.name), []
    if len(labelled) < config.folds:
        raise ConfigError(
            f"{len(labelled)} labelled cases cannot be split into dataset.folds = {config.folds}; lower it,"
            " or set dataset.fold to null to train on all of them"
        )
    folds = split_folds(labelled, config.folds, experiment.seed)
    held_out = folds[config.fold]
    training = [case for number, fold in enumerate(folds) if number != config.fold for case in fold]
    return sorted(training, key=lambda case: case.name), sorted(held_out, key=lambda case: case.name)


def _resolve(
    experiment: Experiment, dataset: Dataset, training: list[Case], path: Path, progress: Progress
) -> Preprocessing:
    if path.is_file():
        return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    done = iter(range(1, len(training) + 1))
    fingerprint = compute_fingerprint(
        dataset, training, on_case=lambda _: progress("measuring cases", next(done), len(training))
    )
    preprocessing = resolve_preprocessing(experiment.preprocessing, dataset, fingerprint)
    write_text_atomic(path, json.dumps(preprocessing.as_dict(), indent=2) + "\n")
    return preprocessing
