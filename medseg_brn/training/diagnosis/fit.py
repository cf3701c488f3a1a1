"""How well a finished network fits cases that it was trained on, beside some that were held out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.config import Experiment
from medseg_brn.models.package import load_models_by_site
from medseg_brn.reports.diagnosis.cases import find_suspects
from medseg_brn.reports.step_records import read_patches
from medseg_brn.training.data import Progress, TrainingData
from medseg_brn.training.validation import validate_quickly
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.writing import write_volume

MOST_CASES = 8
MOST_SUSPECTS = 4


def measure_fit(
    network: nn.Module,
    data: TrainingData,
    experiment: Experiment,
    run_folder: Path,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """Write `fit.json`: the Dice of up to 8 training and as many held-out cases, on the network's grid.

    `training` and `held_out` map a case's name to its mean foreground Dice, null where it has none.
    """
    device = next(network.parameters()).device
    count = min(MOST_CASES, len(data.training), len(data.validation))
    groups = {"training": _spread(data.training, count), "held_out": _spread(data.validation, count)}
    done = iter(range(1, 2 * count + 1))

    def measure(case: PreparedCase) -> float | None:
        dice = validate_quickly(network, [case], experiment, data.dataset.targets, device, dtype)
        progress("comparing training and held-out cases", next(done), 2 * count)
        return None if np.isnan(dice) else dice

    found = {name: {case.name: measure(case) for case in cases} for name, cases in groups.items()}
    write_text_atomic(run_folder / "fit.json", json.dumps(found, indent=1) + "\n")


def segment_suspects(
    run_folder: Path, data: TrainingData, experiment: Experiment, progress: Progress
) -> None:
    """Write `suspects.json`, and the model's label maps (`suspects/`) of training cases that it fits badly.

    An entry of `cases` names the case and the paths of its image, reference and prediction, those in the run
    folder relative to it. There are at most 4, the worst first; the file is there though none is suspect.
    """
    found = find_suspects(read_patches(run_folder / "patches.csv"))[:MOST_SUSPECTS]
    by_name = {case.name: case for case in data.dataset.labelled_cases}
    models = load_models_by_site(run_folder, experiment.training.device) if found else {}
    entries: list[dict[str, Any]] = []
    for number, suspect in enumerate(found, 1):
        if suspect.case not in by_name:
            continue
        case = by_name[suspect.case]
        model = models.get(case.site, models[None])
        path = run_folder / "suspects" / f"{case.name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write_volume(model.predict(list(case.image_paths)), path)
        entries.append(
            {
                "case": case.name,
                "image": str(case.image_paths[0]),
                "reference": str(case.label_path),
                "prediction": str(path.relative_to(run_folder)),
            }
        )
        progress("segmenting suspect training cases", number, len(found))
    write_text_atomic(run_folder / "suspects.json", json.dumps({"cases": entries}, indent=1) + "\n")


def _spread(cases: Sequence[PreparedCase], count: int) -> list[PreparedCase]:
    """As many of the cases, evenly over their order."""
    return [cases[int(place)] for place in np.linspace(0, len(cases) - 1, count).round()] if count else []
