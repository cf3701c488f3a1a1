"""Validation on whole volumes: quick Dice while a run goes on, a full evaluation of its model at the end."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg_brn.cases.cache import PreparedCase
from medseg_brn.cases.dataset import Case, Dataset
from medseg_brn.cases.targets import Targets
from medseg_brn.config import Experiment
from medseg_brn.evaluation.evaluate import evaluate_case
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion, cut_ignored
from medseg_brn.evaluation.results import CaseEvaluation, Evaluation
from medseg_brn.inference.prediction import Options, compute_scores
from medseg_brn.inference.predictor import Predictor
from medseg_brn.models.package import Model
from medseg_brn.networks.domain_norm import find_sites, take_site
from medseg_brn.volumes.atomic import write_text_atomic
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.scratch import Scratch
from medseg_brn.volumes.writing import write_volume

TOLERANCE_MM = 1.0


def validate_quickly(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    experiment: Experiment,
    targets: Targets,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Mean foreground Dice over whole volumes on the network's own grid.

    Voxels to be ignored are left out, and so are classes (or regions) that are absent. Of a network with
    statistics of sites, each case gets those of its own where the network has them, else the mixture.
    """
    known, predictors = find_sites(network), {}
    options = Options(
        overlap=experiment.inference.overlap, exclusive=not targets.regions, probabilities=False
    )
    dice = []
    for case in cases:
        site = case.site if case.site in known else None
        if site not in predictors:
            own = take_site(network, site)
            predictors[site] = Predictor(own, experiment.patches.size, device, dtype)
        with Scratch() as scratch:
            scores = compute_scores([predictors[site]], [np.array(case.image())], options, scratch)
            label_map = np.concatenate([targets.decide(slab) for slab in scores.slabs])
        reference = np.array(case.label_map())
        cut_ignored(label_map, reference, targets.ignore_class)
        confusion = count_confusion(label_map, reference, targets.num_classes)
        dice.append(compute_dice_from_confusion(confusion, targets.structures.values()))
    per_class = np.array(dice)
    defined = [column[~np.isnan(column)].mean() for column in per_class.T if not np.isnan(column).all()]
    return float(np.mean(defined)) if defined else float("nan")


def validate_model(
    models: Mapping[str | None, Model],
    cases: Sequence[Case],
    dataset: Dataset,
    run_folder: Path,
    on_case: Callable[[int, int], None],
) -> dict[str, Any]:
    """Segment each held-out case with the model and evaluate it on the case's own grid.

    Label maps are written to `run_folder/validation/`, all metrics to `run_folder/validation.json`, in the
    form of `Evaluation.as_dict`.

    Args:
        models: the model for scans of each site, and under None that for those of any other
            (`load_models_by_site`).
        cases: the held-out ones.
        dataset: of the cases.
        run_folder: where to write.
        on_case: called with (cases done, cases in all).
    """
    results = []
    for number, case in enumerate(cases, 1):
        if case.label_path is None:
            continue
        model = models.get(case.site, models[None])
        prediction = model.predict(list(case.image_paths))
        path = run_folder / "validation" / f"{case.name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write_volume(prediction, path)
        metrics = evaluate_case(prediction, read_volume(case.label_path), dataset.structures, TOLERANCE_MM)
        paths = {
            "image": str(case.image_paths[0]),
            "reference": str(case.label_path),
            "prediction": str(path.relative_to(run_folder)),
        }
        results.append(CaseEvaluation(case.name, metrics, paths))
        on_case(number, len(cases))
    found = Evaluation(tuple(results), TOLERANCE_MM).as_dict()
    write_text_atomic(run_folder / "validation.json", json.dumps(found, indent=1) + "\n")
    return found
