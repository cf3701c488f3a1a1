"""Overlap of a predicted and a reference label map: Dice, and the counts it comes from."""

from collections.abc import Iterable, Sequence

import numpy as np


def compute_dice_from_confusion(confusion: np.ndarray, structures: Iterable[Sequence[int]]) -> np.ndarray:
    """Dice of each structure, fast enough for validation during training.

        Dice = 2 |P ∩ R| / (|P| + |R|)

    Args:
        confusion: voxels by reference class (row) and predicted class (column), from `count_confusion`.
        structures: the classes of each.

    Returns:
        (S,) float64 in [0, 1], 1 being perfect. A structure in neither map has no Dice (0/0) and is NaN, so
        that a mean over cases can leave it out; a structure in one map only is 0.
    """
    rows = [list(classes) for classes in structures]
    intersection = np.array([confusion[np.ix_(own, own)].sum() for own in rows], np.int64)
    total = np.array([confusion[own].sum() + confusion[:, own].sum() for own in rows], np.int64)
    with np.errstate(invalid="ignore"):
        return 2 * intersection / total


def count_confusion(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Voxels by reference class (row) and predicted class (column): (num_classes, num_classes) integers.

    Args:
        prediction: integer label map (X, Y, Z) with values in [0, num_classes).
        reference: label map of the same shape and range.
        num_classes: number of classes, background included.

    Raises:
        ValueError: the shapes differ, or a label lies outside [0, num_classes).
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"{name} holds labels {labels.min()} to {labels.max()}; they must lie in [0, {num_classes})"
            )
    counts = np.zeros(num_classes**2, dtype=np.int64)
    # Slab by slab along the slowest axis in memory: the wide integers of the pairs never exist for the
    # whole volume, and each slab is read in one go.
    axis = int(np.argmax(np.abs(reference.strides)))
    for predicted, referenced in zip(
        np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), strict=True
    ):
        pairs = referenced.astype(np.intp) * num_classes + predicted.astype(np.intp, copy=False)
        counts += np.bincount(pairs.ravel(order="K"), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def cut_ignored(prediction: np.ndarray, reference: np.ndarray, ignore_class: int | None) -> None:
    """Make background, in both label maps and in place, of what is to be ignored in the reference."""
    if ignore_class is not None:
        ignored = reference == ignore_class
        prediction[ignored] = 0
        reference[ignored] = 0
