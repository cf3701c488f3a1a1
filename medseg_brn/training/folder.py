"""Opening a run folder: a new one, or the one that a run is continued in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg_brn.config import Experiment
from medseg_brn.errors import ConfigError
from medseg_brn.experiment import dump_experiment, load_experiment
from medseg_brn.volumes.atomic import write_text_atomic

# What may differ between a run and its continuation; anything else would make it another experiment.
MAY_CHANGE = (
    "name",
    "training.steps",
    "training.learning_rate",
    "training.gradient_clip",
    "training.validate_every",
    "training.validation_cases",
    "training.checkpoint_every",
    "training.probe_every",
    "patches.workers",
)
MAY_CHANGE_BELOW = ("inference.",)


def open_run_folder(experiment: Experiment, run_folder: Path, resume: bool) -> None:
    """Make the folder and write `config.yaml`, or check that the run in it is this experiment's.

    Raises:
        ConfigError: a run is there and `resume` is false; none is there and the folder is not empty; or
            the run's options differ in more than may change.
    """
    path = run_folder / "config.yaml"
    if path.is_file():
        if not resume:
            raise ConfigError(
                f"{run_folder} already holds a run; go on with it by --resume, or name another folder"
            )
        _check_same_experiment(load_experiment(path), experiment, path)
    elif run_folder.exists() and (not run_folder.is_dir() or _holds_something(run_folder)):
        raise ConfigError(f"{run_folder} is not empty and holds no run; name a new folder")
    write_text_atomic(path, dump_experiment(experiment))


def list_differences(old: Experiment, new: Experiment) -> dict[str, str]:
    """Options that differ: dotted key → "old → new"."""
    before, now = dict(_options(old.model_dump())), dict(_options(new.model_dump()))
    return {
        key: f"{before.get(key)} → {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def _check_same_experiment(old: Experiment, new: Experiment, path: Path) -> None:
    different = [
        f"{key} ({change})"
        for key, change in list_differences(old, new).items()
        if key not in MAY_CHANGE and not key.startswith(MAY_CHANGE_BELOW)
    ]
    if different:
        raise ConfigError(
            f"The run of {path} cannot be continued with other options: {', '.join(different)}. Use the"
            " options it was started with, or start a new run in another folder"
        )
    if new.training.steps < old.training.steps:
        raise ConfigError(
            f"training.steps {new.training.steps} is below the {old.training.steps} of the run of {path}; a"
            " run can be extended, not shortened"
        )


def _holds_something(folder: Path) -> bool:
    """Whether there is more in the folder than hidden files, such as a killed run's unfinished ones."""
    return any(not entry.name.startswith(".") for entry in folder.iterdir())


def _options(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
