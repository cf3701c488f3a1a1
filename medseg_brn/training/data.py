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
    def num_classes(self) -> int:
        """Classes, the background included."""
        return len(self.dataset.class_names)


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
    folder itself where none is given.

    Raises:
        DataError: the dataset or one of its cases is not what it must be, or not what the run began with.
    """
    folder = run_folder if data_folder is None else data_folder
    dataset = open_dataset(experiment, folder, progress)
    choose_rules(experiment.inference.postprocessing, dataset.class_names)  # before hours of training
    training, held_out = split_dataset(dataset, experiment)
    preprocessing = _resolve(experiment, dataset, training, folder, progress)
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
    _keep_split(folder / "split.json", dataset, *split)
    if folder != run_folder:
        for name in ("split.json", "preprocessing.json"):
            write_text_atomic(run_folder / name, (folder / name).read_text(encoding="utf-8"))
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
    folds = split_folds(labelled, config.folds, experiment.split_seed)
    held_out = folds[config.fold]
    training = [case for number, fold in enumerate(folds) if number != config.fold for case in fold]
    return sorted(training, key=lambda case: case.name), sorted(held_out, key=lambda case: case.name)


def _keep_split(
    path: Path, dataset: Dataset, training: list[PreparedCase], validation: list[PreparedCase]
) -> None:
    """Write what is trained on and what held out, or check that it is what the run began with."""
    split: dict[str, Any] = {
        "training": [case.name for case in training],
        "validation": [case.name for case in validation],
        "classes": dict(zip(dataset.class_names, dataset.label_values, strict=True)),
        # the folder of a prepared case is named after a digest of its files and options
        "contents": {case.name: case.image_path.parent.name for case in [*training, *validation]},
    }
    if not path.is_file():
        write_text_atomic(path, json.dumps(split, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before == split:
        return
    old, new = before.get("contents", {}), split["contents"]
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    difference = f"classes {before.get('classes')}, now {split['classes']}"
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
