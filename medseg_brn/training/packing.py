"""From a trained network to the model folder of its run."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg_brn.config import Experiment
from medseg_brn.inference.machine import peak_resident_bytes
from medseg_brn.models.description import ModelDescription, describe_regions
from medseg_brn.models.package import save_model
from medseg_brn.reports.step_records import read_metrics
from medseg_brn.training.data import TrainingData
from medseg_brn.training.initial_weights import FILE_NAME as INITIAL_WEIGHTS_NAME
from medseg_brn.training.sites import list_norm_sites, name_held_out_site


def save_trained_model(
    run_folder: Path,
    experiment: Experiment,
    data: TrainingData,
    network: nn.Module,
    validation: dict[str, Any] | None = None,
) -> None:
    """Write `run_folder/model`; `validation` is the summary of the held-out cases' evaluation, once known."""
    augmentation = experiment.patches.augmentation
    description = ModelDescription(
        name=experiment.name,
        network=experiment.network,
        sites=list_norm_sites(experiment, data.training),
        class_names=data.dataset.class_names,
        label_values=data.dataset.label_values,
        regions=describe_regions(data.dataset),
        modalities=data.dataset.modalities,
        preprocessing=data.preprocessing,
        patch_size=experiment.patches.size,
        mirrored_classes=augmentation.mirrored_classes if augmentation is not None else (),
        inference=experiment.inference,
        training=summarize_training(run_folder, experiment, data) | {"validation": validation},
        licence=data.dataset.licence,
    )
    save_model(run_folder / "model", network, description)


def summarize_training(run_folder: Path, experiment: Experiment, data: TrainingData) -> dict[str, Any]:
    """What was trained on, for how long, with what: plain JSON types."""
    records = read_metrics(run_folder / "metrics.csv")
    seconds = sum(record.seconds for record in records)
    waiting = sum(record.seconds * record.loader_share for record in records)
    return {
        "dataset": data.dataset.name,
        "training_cases": len(data.training),
        "validation_cases": len(data.validation_cases),
        "fold": experiment.dataset.fold,
        **(
            {"held_out_site": name_held_out_site(experiment, data.validation_cases)}
            if experiment.dataset.folds_by == "site"
            else {}
        ),
        **_tell_initial_weights(run_folder),
        "seed": experiment.seed,
        "steps": experiment.training.steps,
        "batch_size": experiment.training.batch_size,
        "seconds": round(seconds, 1),
        "loader_share": round(waiting / seconds, 4) if seconds else None,
        "peak_memory_mb": round(peak_resident_bytes() / 1e6) or None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "medseg_brn": version("medseg-brn"),
        "python": platform.python_version(),
    }


def _tell_initial_weights(run_folder: Path) -> dict[str, Any]:
    """The model that training began with, where it began with one."""
    path = run_folder / INITIAL_WEIGHTS_NAME
    if not path.is_file():
        return {}
    told = json.loads(path.read_text(encoding="utf-8"))
    return {"initial_weights": {name: told[name] for name in ("model", "weights_sha256")}}
