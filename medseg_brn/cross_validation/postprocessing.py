"""Which post-processing helps: decided on predictions of cases that their models have not seen.

Structure by structure, three rules are tried: pieces smaller than the smallest of all references are
removed, all but the largest piece is removed, holes are filled. A rule is kept where it raises the
structure's Dice, with a 95 % interval of the difference, paired over cases, that lies above 0, and no other
structure's mean Dice falls. After a rule is kept, the others are tried again on top of it.

For the decision alone, a structure that neither map has counts as Dice 1: a false alarm that is removed
altogether is then a gain of 1, where a mean over defined values would not see it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy import ndimage

from medseg_brn.cases.case import Case
from medseg_brn.cases.dataset import Dataset, read_label_map
from medseg_brn.cases.labels import map_to_classes
from medseg_brn.config import PostprocessingConfig
from medseg_brn.cross_validation.intervals import Difference, compare_paired
from medseg_brn.evaluation.overlap import compute_dice_from_confusion, count_confusion
from medseg_brn.inference.machine import core_count
from medseg_brn.inference.postprocessing import postprocess_label_map
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume

ROUNDING = 1e-9
"""A mean Dice that falls by less has not fallen."""

Prediction = tuple[Case, Path]
"""A case and its predicted label map."""

Rules = dict[str, PostprocessingConfig]
"""By the name of a class."""


@dataclass(frozen=True)
class Trial:
    """A rule that was tried for a structure.

    Attributes:
        structure: a class by name.
        rule: what was tried, rules that were kept before included.
        added: the option by which it differs from what was kept before.
        dice_before, dice_after: mean over cases, what neither map has counted as 1.
        gain: of the structure's Dice, paired over cases.
        harmed: another structure whose mean Dice falls, or None.
        kept: whether it is part of the result.
    """

    structure: str
    rule: PostprocessingConfig
    added: str
    dice_before: float
    dice_after: float
    gain: Difference
    harmed: str | None
    kept: bool

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "structure": self.structure,
            "added": self.added,
            "rule": self.rule.model_dump(mode="json"),
            "dice_before": self.dice_before,
            "dice_after": self.dice_after,
            **self.gain.as_dict(),
            "harmed": self.harmed,
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Decision:
    """What is done to label maps, and what was tried to find it.

    Attributes:
        rules: by structure; those that were given stand unchanged.
        trials: in the order they were made.
    """

    rules: Rules = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "rules": {name: rule.model_dump(mode="json") for name, rule in self.rules.items()},
            "tried": [trial.as_dict() for trial in self.trials],
        }


def decide_postprocessing(
    predictions: Sequence[Prediction],
    dataset: Dataset,
    given: Mapping[str, PostprocessingConfig] | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    jobs: int | None = None,
) -> Decision:
    """Returns the rules that help on these predictions.

    Args:
        predictions: of held-out cases with references.
        dataset: what the label values mean.
        given: rules that were applied already; their structures are left as they are.
        progress: told of cases.
        jobs: processes; None is one per core.

    Raises:
        DataError: a label map cannot be read, or holds a value that the dataset does not describe.
    """
    given = dict(given or {})
    over_cases = partial(_over_cases, predictions, dataset, core_count() if jobs is None else jobs, progress)
    smallest = np.min(over_cases(_measure_smallest, "measuring pieces"), axis=0)
    waiting = {
        name: _list_options(float(size_mm3))
        for name, size_mm3 in zip(dataset.class_names[1:], smallest, strict=True)
        if name not in given
    }
    rules: Rules = {}
    trials: list[Trial] = []
    while waiting:
        tried = [
            (name, added, rules.get(name, PostprocessingConfig()).model_copy(update={added: value}))
            for name, options in waiting.items()
            for added, value in options.items()
        ]
        variants = [_order(rules | {name: rule}, dataset) for name, _, rule in tried]
        stage = f"trying {len(tried)} post-processings"
        dice = np.stack(
            over_cases(partial(_measure_dice, variants=[_order(rules, dataset), *variants]), stage)
        )
        judged = [
            _judge(trial, dice[:, 0], dice[:, number], dataset) for number, trial in enumerate(tried, 1)
        ]
        kept = _choose(judged)
        trials += [replace(trial, kept=trial is kept.get(trial.structure)) for trial in judged]
        rules |= {name: trial.rule for name, trial in kept.items()}
        # Where nothing more helps a structure, nothing more is tried.
        waiting = {
            name: {option: value for option, value in waiting[name].items() if option != trial.added}
            for name, trial in kept.items()
        }
        waiting = {name: options for name, options in waiting.items() if options}
    return Decision(_order(given | rules, dataset), tuple(trials))


def _list_options(smallest_mm3: float) -> dict[str, Any]:
    """Option -> value to try."""
    options: dict[str, Any] = {"keep_largest": True, "fill_holes": True}
    if np.isfinite(smallest_mm3):
        options["remove_below_mm3"] = round(smallest_mm3, 6)
    return options


def _order(rules: Rules, dataset: Dataset) -> Rules:
    """The rules in the order of the classes, in which they are applied."""
    return {name: rules[name] for name in dataset.class_names if name in rules}


def _judge(
    tried: tuple[str, str, PostprocessingConfig], before: np.ndarray, after: np.ndarray, dataset: Dataset
) -> Trial:
    """What a rule does: Dice (cases, structures) before and after."""
    name, added, rule = tried
    structures = dataset.targets.structures
    value = dataset.class_names.index(name)
    own = [value in classes for classes in structures.values()]
    fallen = np.mean(after - before, axis=0) < -ROUNDING
    harmed = [
        other for other, is_own, falls in zip(structures, own, fallen, strict=True) if falls and not is_own
    ]
    mine_before, mine_after = before[:, own].mean(axis=1), after[:, own].mean(axis=1)
    return Trial(
        structure=name,
        rule=rule,
        added=added,
        dice_before=float(mine_before.mean()),
        dice_after=float(mine_after.mean()),
        gain=compare_paired(mine_before, mine_after),
        harmed=harmed[0] if harmed else None,
        kept=False,
    )


def _choose(judged: Sequence[Trial]) -> dict[str, Trial]:
    """The best trial of each structure among those that help and harm nothing."""
    best: dict[str, Trial] = {}
    for trial in judged:
        helps = trial.gain.is_gain and trial.gain.mean > ROUNDING and trial.harmed is None
        if helps and (trial.structure not in best or trial.gain.mean > best[trial.structure].gain.mean):
            best[trial.structure] = trial
    return best


def _over_cases(
    predictions: Sequence[Prediction],
    dataset: Dataset,
    jobs: int,
    progress: Callable[[str, int, int], None],
    measure: Callable[[Case, Path, Dataset], np.ndarray],
    stage: str,
) -> list[np.ndarray]:
    work = (delayed(measure)(case, path, dataset) for case, path in predictions)
    found = []
    for result in Parallel(n_jobs=min(jobs, len(predictions)), return_as="generator")(work):
        found.append(result)
        progress(stage, len(found), len(predictions))
    return found


def _measure_smallest(case: Case, path: Path, dataset: Dataset) -> np.ndarray:
    """Volume in mm³ of each class's smallest piece in the reference: (classes - 1,), infinite without one."""
    reference = read_label_map(case, dataset)
    voxel_mm3 = abs(float(np.linalg.det(reference.affine[:3, :3])))
    smallest = np.full(dataset.num_classes - 1, np.inf)
    boxes = ndimage.find_objects(reference.array, max_label=dataset.num_classes - 1)
    for index, box in enumerate(boxes):
        if box is not None:
            pieces, _ = ndimage.label(reference.array[box] == index + 1)
            smallest[index] = np.bincount(pieces.ravel())[1:].min() * voxel_mm3
    return smallest


def _measure_dice(case: Case, path: Path, dataset: Dataset, variants: Sequence[Rules]) -> np.ndarray:
    """Dice (variants, structures) of a prediction under each variant's rules; 1 where neither map has any."""
    reference = read_label_map(case, dataset).array
    prediction = read_volume(path)
    predicted = map_to_classes(prediction.array, dataset.label_values, path)
    size = dataset.num_classes + (dataset.targets.ignore_class is not None)
    before = count_confusion(predicted, reference, size)
    dice = []
    for rules in variants:
        by_class = {dataset.class_names.index(name): rule for name, rule in rules.items()}
        after = postprocess_label_map(Volume(predicted.copy(), prediction.grid), by_class).array
        changed = after != predicted
        confusion = before.copy()
        np.subtract.at(confusion, (reference[changed], predicted[changed]), 1)
        np.add.at(confusion, (reference[changed], after[changed]), 1)
        annotated = confusion[: dataset.num_classes, : dataset.num_classes]  # the last row is to be ignored
        dice.append(compute_dice_from_confusion(annotated, dataset.targets.structures.values()))
    return np.nan_to_num(dice, nan=1.0)
