"""Evaluation of one case, and of folders of predictions against folders of references."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.ndimage import find_objects

from medseg_brn.cases.label_description import Structures
from medseg_brn.cases.labels import find_values, map_to_classes
from medseg_brn.errors import DataError, MedsegError
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion, cut_ignored
from medseg_brn.evaluation.pairing import Pair, find_description, pair_label_maps, read_structures
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
    structures: Structures | None = None,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, ClassMetrics]:
    """Metrics of each structure of one case, by name; `results` says what an empty mask yields.

    A structure is a set of label values: a class, or a region, which may overlap with others. Where the
    reference is to be ignored, both masks of every structure are cut off, so that these voxels count in no
    metric. A cut is a surface like any other: where little is annotated, a few slices for example, distances
    are those between the parts of both masks that lie there.

    Args:
        prediction: label map (X, Y, Z) on the reference's grid.
        reference: label map (X, Y, Z).
        structures: their label values, background left out, and the value that is to be ignored; None takes
            each value found as a structure, named `class_<value>`.
        tolerance_mm: surfaces at most this far apart agree, for the surface Dice.

    Raises:
        DataError: the grids differ, a voxel is no integer, a value belongs to no structure, or the prediction
            has the value to be ignored where the reference is annotated.
    """
    difference = reference.grid.describe_difference(prediction.grid)
    if difference is not None:
        raise DataError(
            f"The prediction is not on the reference's grid (reference against prediction): {difference}; "
            "predict on the scan that the reference was drawn on, or resample the prediction to it."
        )
    if structures is None:
        structures = find_structures(prediction, reference)
    values = sorted({value for own in structures.label_values.values() for value in own})
    classes = {
        name: tuple(values.index(value) + 1 for value in own) for name, own in structures.label_values.items()
    }
    label_values = (0, *values)
    if structures.ignore_value is not None:
        label_values += (structures.ignore_value,)
    predicted = map_to_classes(prediction.array, label_values, "of the prediction")
    referenced = map_to_classes(reference.array, label_values, "of the reference")
    if structures.ignore_value is not None:
        cut_ignored(predicted, referenced, len(values) + 1)
        _refuse_ignored(predicted, len(values) + 1, structures.ignore_value)
    return _compute_metrics(predicted, referenced, classes, reference.affine[:3, :3], tolerance_mm)


def find_structures(prediction: Volume, reference: Volume) -> Structures:
    """A structure `class_<value>` for every value but 0 that one of the label maps holds, ascending."""
    places = {"of the prediction": prediction, "of the reference": reference}
    values = {int(value) for place, volume in places.items() for value in find_values(volume.array, place)[0]}
    return Structures({f"{FOUND_PREFIX}{value}": (value,) for value in sorted(values - {0})})


def _refuse_ignored(predicted: np.ndarray, ignore_class: int, value: int) -> None:
    """Raise DataError where a prediction says that what is annotated is to be ignored."""
    wrong = np.count_nonzero(predicted == ignore_class)
    if wrong:
        raise DataError(
            f"The prediction has {wrong} voxels with {value}, the value to be ignored, where the reference "
            "is annotated; give them a class, or take the case out."
        )


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    structures: Structures | None = None,
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
        structures: as for `evaluate_case`; None takes those of a `dataset.json` in or beside the reference
            folder (for a manifest, of the JSON file of its name), or else the values found.
        tolerance_mm: for the surface Dice.
        jobs: cases evaluated at a time, each in its own process.
        progress: called with (done, total) after each case.

    Raises:
        DataError: nothing pairs, or a folder or `dataset.json` is not what it must be.
    """
    pairing = pair_label_maps(predictions, references)
    description = find_description(references) if structures is None else None
    if description is not None:
        structures = read_structures(description)
    tasks = (delayed(_evaluate_pair)(pair, structures, tolerance_mm) for pair in pairing.pairs)
    outcomes = []
    for outcome in Parallel(n_jobs=jobs, return_as="generator")(tasks):
        outcomes.append(outcome)
        if progress is not None:
            progress(len(outcomes), len(pairing.pairs))
    cases = [outcome for outcome in outcomes if isinstance(outcome, CaseEvaluation)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    missing = "the prediction has no reference; remove it, or add the reference."
    return Evaluation(
        cases=tuple(cases if structures is not None else _with_all_found(cases)),
        tolerance_mm=tolerance_mm,
        failures=(*failures, *(Failure(name, missing) for name in pairing.without_reference)),
        unpredicted=pairing.without_prediction,
    )


def _evaluate_pair(
    pair: Pair, structures: Structures | None, tolerance_mm: float
) -> CaseEvaluation | Failure:
    """Reads and evaluates one case; what is wrong with it stays with it."""
    try:
        metrics = evaluate_case(
            read_volume(pair.prediction), read_volume(pair.reference), structures, tolerance_mm
        )
    except MedsegError as error:
        return Failure(pair.case, str(error))
    return CaseEvaluation(
        pair.case, metrics, {"prediction": str(pair.prediction), "reference": str(pair.reference)}
    )


def _compute_metrics(
    predicted: np.ndarray,
    referenced: np.ndarray,
    structures: Mapping[str, Sequence[int]],
    voxel_axes_mm: np.ndarray,
    tolerance_mm: float,
) -> dict[str, ClassMetrics]:
    """Metrics from maps of consecutive classes and each structure's classes; axes as `affine[:3, :3]`."""
    num_classes = 1 + max((label for classes in structures.values() for label in classes), default=0)
    confusion = count_confusion(predicted, referenced, num_classes)
    dice = compute_dice_from_confusion(confusion, structures.values())
    voxel_ml = abs(float(np.linalg.det(voxel_axes_mm))) / 1000
    predicted_ml, referenced_ml = confusion.sum(axis=0) * voxel_ml, confusion.sum(axis=1) * voxel_ml
    metrics = {}
    boxes = _find_boxes(predicted, referenced, num_classes)
    for (name, classes), own_dice in zip(structures.items(), dice, strict=True):
        box = _join_boxes([found for label in classes for found in boxes[label - 1]], predicted.ndim)
        belongs = np.isin(np.arange(num_classes), classes)
        distances = compute_surface_distances(
            belongs[predicted[box]], belongs[referenced[box]], voxel_axes_mm
        )
        metrics[name] = ClassMetrics(
            dice=float(own_dice),
            surface_dice=compute_surface_dice(distances, tolerance_mm),
            hd95_mm=compute_hausdorff_distance_mm(distances),
            average_surface_distance_mm=compute_average_surface_distance_mm(distances),
            prediction_ml=float(predicted_ml[belongs].sum()),
            reference_ml=float(referenced_ml[belongs].sum()),
        )
    return metrics


def _find_boxes(
    predicted: np.ndarray, referenced: np.ndarray, num_classes: int
) -> list[list[tuple[slice, ...]]]:
    """For each class 1, 2, … the smallest boxes around it, one for each map that has it.

    One pass over each map finds all boxes; masks then need not be made for the whole volume.
    """
    found = (find_objects(each, max_label=num_classes - 1) for each in (predicted, referenced))
    return [[box for box in pair if box is not None] for pair in zip(*found, strict=True)]


def _join_boxes(boxes: list[tuple[slice, ...]], axes: int) -> tuple[slice, ...]:
    """The smallest box around all of the boxes; an empty one where there are none."""
    sides = zip(*boxes, strict=True) if boxes else [(slice(0, 0),)] * axes
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)


def _with_all_found(cases: list[CaseEvaluation]) -> list[CaseEvaluation]:
    """Cases with the same classes each: where the values found name the classes, a case may lack some."""
    absent = ClassMetrics(*(float("nan"),) * 4, prediction_ml=0.0, reference_ml=0.0)
    found = {name for case in cases for name in case.classes}
    names = sorted(found, key=lambda name: int(name.removeprefix(FOUND_PREFIX)))
    return [replace(case, classes={name: case.classes.get(name, absent) for name in names}) for case in cases]
