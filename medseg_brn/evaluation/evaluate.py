"""Evaluation of one case, and of folders of predictions against folders of references."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.ndimage import find_objects

from medseg_brn.cases.labels import find_values, map_to_classes
from medseg_brn.errors import DataError, MedsegError
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion
from medseg_brn.evaluation.pairing import Pair, find_description, pair_label_maps, read_class_names
from medseg_brn.evaluation.results import CaseEvaluation, ClassMetrics, Evaluation, Failure
from medseg_brn.evaluation.surface import (
    compute_average_surface_distance_mm,
    compute_hausdorff_distance_mm,
    compute_surface_dice,
    compute_surface_distances,
)
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume

DEFAULT_TOLERANCE_MM = 1.0
"""About what two experts differ by on high-resolution scans; take your task's own where it is known."""

FOUND_PREFIX = "class_"
"""A class that no description names is called by its value: `class_3`."""


def evaluate_case(
    prediction: Volume,
    reference: Volume,
    classes: Mapping[int, str] | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, ClassMetrics]:
    """Metrics of each class of one case, by class name; `results` says what an empty mask yields.

    Args:
        prediction: label map (X, Y, Z) on the reference's grid.
        reference: label map (X, Y, Z).
        classes: label value -> class name, background left out; None names the values found `class_<value>`.
        tolerance_mm: surfaces at most this far apart agree, for the surface Dice.

    Raises:
        DataError: the grids differ, a voxel is no integer, or a value is not among the classes.
    """
    difference = reference.grid.describe_difference(prediction.grid)
    if difference is not None:
        raise DataError(
            f"The prediction is not on the reference's grid (reference against prediction): {difference}; "
            "predict on the scan that the reference was drawn on, or resample the prediction to it."
        )
    if classes is None:
        classes = find_classes(prediction, reference)
    label_values = (0, *classes)
    predicted = map_to_classes(prediction.array, label_values, "of the prediction")
    referenced = map_to_classes(reference.array, label_values, "of the reference")
    return _compute_metrics(
        predicted, referenced, tuple(classes.values()), reference.affine[:3, :3], tolerance_mm
    )


def find_classes(prediction: Volume, reference: Volume) -> dict[int, str]:
    """Label value -> `class_<value>` for every value but 0 that one of the label maps holds, ascending."""
    places = {"of the prediction": prediction, "of the reference": reference}
    values = {int(value) for place, volume in places.items() for value in find_values(volume.array, place)[0]}
    return {value: f"{FOUND_PREFIX}{value}" for value in sorted(values - {0})}


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    classes: Mapping[int, str] | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates every prediction against the reference of the same name.

    A prediction that cannot be read or compared, or has no reference, becomes a `Failure`; the others
    are evaluated. References without a prediction are listed and otherwise passed over, so that one
    fold's predictions are evaluated against the whole dataset's references.

    Args:
        predictions: folder of label maps, or one label map.
        references: the same, or a CSV manifest, of which the label maps are taken.
        classes: label value -> class name; None takes those of a `dataset.json` in or beside the
            reference folder (for a manifest, of the JSON file of its name), or else the values found.
        tolerance_mm: for the surface Dice.
        jobs: cases evaluated at a time, each in its own process.
        progress: called with (done, total) after each case.

    Raises:
        DataError: nothing pairs, or a folder or `dataset.json` is not what it must be.
    """
    pairing = pair_label_maps(predictions, references)
    description = find_description(references) if classes is None else None
    if description is not None:
        classes = read_class_names(description)
    tasks = (delayed(_evaluate_pair)(pair, classes, tolerance_mm) for pair in pairing.pairs)
    outcomes = []
    for outcome in Parallel(n_jobs=jobs, return_as="generator")(tasks):
        outcomes.append(outcome)
        if progress is not None:
            progress(len(outcomes), len(pairing.pairs))
    cases = [outcome for outcome in outcomes if isinstance(outcome, CaseEvaluation)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    missing = "the prediction has no reference; remove it, or add the reference."
    return Evaluation(
        cases=tuple(cases if classes is not None else _with_all_found(cases)),
        tolerance_mm=tolerance_mm,
        failures=(*failures, *(Failure(name, missing) for name in pairing.without_reference)),
        unpredicted=pairing.without_prediction,
    )


def _evaluate_pair(
    pair: Pair, classes: Mapping[int, str] | None, tolerance_mm: float
) -> CaseEvaluation | Failure:
    """Reads and evaluates one case; what is wrong with it stays with it."""
    try:
        metrics = evaluate_case(
            read_volume(pair.prediction), read_volume(pair.reference), classes, tolerance_mm
        )
    except MedsegError as error:
        return Failure(pair.case, str(error))
    return CaseEvaluation(
        pair.case, metrics, {"prediction": str(pair.prediction), "reference": str(pair.reference)}
    )


def _compute_metrics(
    predicted: np.ndarray,
    referenced: np.ndarray,
    names: tuple[str, ...],
    voxel_axes_mm: np.ndarray,
    tolerance_mm: float,
) -> dict[str, ClassMetrics]:
    """Metrics from maps of consecutive classes, class k + 1 being `names[k]`; axes as `affine[:3, :3]`."""
    confusion = count_confusion(predicted, referenced, len(names) + 1)
    dice = compute_dice_from_confusion(confusion)
    voxel_ml = abs(float(np.linalg.det(voxel_axes_mm))) / 1000
    predicted_ml, referenced_ml = confusion.sum(axis=0) * voxel_ml, confusion.sum(axis=1) * voxel_ml
    metrics = {}
    boxes = _find_boxes(predicted, referenced, len(names))
    for label, (name, box) in enumerate(zip(names, boxes, strict=True), start=1):
        distances = compute_surface_distances(
            predicted[box] == label, referenced[box] == label, voxel_axes_mm
        )
        metrics[name] = ClassMetrics(
            dice=float(dice[label - 1]),
            surface_dice=compute_surface_dice(distances, tolerance_mm),
            hd95_mm=compute_hausdorff_distance_mm(distances),
            average_surface_distance_mm=compute_average_surface_distance_mm(distances),
            prediction_ml=float(predicted_ml[label]),
            reference_ml=float(referenced_ml[label]),
        )
    return metrics


def _find_boxes(predicted: np.ndarray, referenced: np.ndarray, classes: int) -> list[tuple[slice, ...]]:
    """For each class 1, 2, … the smallest box around it in both maps; an empty box for an absent one.

    One pass over each map finds all boxes; a class's masks then need not be made for the whole volume.
    """
    boxes = []
    for found in zip(
        *(find_objects(each, max_label=classes) for each in (predicted, referenced)), strict=True
    ):
        present = [box for box in found if box is not None]
        axes = zip(*present, strict=True) if present else [(slice(0, 0),)] * predicted.ndim
        boxes.append(tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes))
    return boxes


def _with_all_found(cases: list[CaseEvaluation]) -> list[CaseEvaluation]:
    """Cases with the same classes each: where the values found name the classes, a case may lack some."""
    absent = ClassMetrics(*(float("nan"),) * 4, prediction_ml=0.0, reference_ml=0.0)
    found = {name for case in cases for name in case.classes}
    names = sorted(found, key=lambda name: int(name.removeprefix(FOUND_PREFIX)))
    return [replace(case, classes={name: case.classes.get(name, absent) for name in names}) for case in cases]
