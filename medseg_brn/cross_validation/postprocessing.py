"""Which post-processing helps: decided on predictions of cases that their models have not seen.

Structure by structure, three rules are tried: pieces smaller than nearly all of the references' are
removed, all but the largest piece is removed, holes are filled. A rule is kept where it raises the
structure's Dice, with an interval of the difference, paired over cases, that lies above 0, and no other
structure's mean Dice falls. After a rule is kept, the others are tried again on top of it. So that chance
passes for help in one decision of twenty at most, the intervals' error rate is 5 % divided by the number of
trials that may come (Bonferroni), and below 5 cases nothing is kept. At the end, rules are dropped, the one
that gains least first, while all together lower a structure's mean Dice.

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

ERROR_RATE = 0.05
"""Of the whole decision: how often anything is kept where nothing helps."""

SMALL_PERCENTILE = 1
"""Of the volumes of the references' pieces; smaller pieces are tried without. The smallest of all may be a
slip of the annotator's."""

ROUNDING = 1e-9
"""A mean Dice that falls by less has not fallen."""

Prediction = tuple[Case, Path]
"""A case and its predicted label map."""

Rules = dict[str, PostprocessingConfig]
"""By the name of a structure."""


@dataclass(frozen=True)
class RuleTrial:
    """A rule that was tried for a structure.

    Attributes:
        structure: a class, or a region where there are any, by name.
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
    trials: tuple[RuleTrial, ...] = ()

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
    pieces = over_cases(_measure_pieces, "measuring pieces")
    waiting = {
        name: _list_options(np.concatenate(sizes_mm3))
        for name, sizes_mm3 in zip(dataset.targets.structures, zip(*pieces, strict=True), strict=True)
        if name not in given
    }
    # n options of a structure can be tried n times, then n - 1 times …
    most = sum(len(options) * (len(options) + 1) // 2 for options in waiting.values())
    confidence = 1 - ERROR_RATE / max(most, 1)
    rules: Rules = {}
    trials: list[RuleTrial] = []
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
            _judge(trial, dice[:, 0], dice[:, number], dataset, confidence)
            for number, trial in enumerate(tried, 1)
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
    trials = _drop_harmful(trials, dataset, over_cases)
    kept_rules = {trial.structure: trial.rule for trial in trials if trial.kept}  # the last one holds all
    return Decision(_order(given | kept_rules, dataset), tuple(trials))


def _list_options(sizes_mm3: np.ndarray) -> dict[str, Any]:
    """Option -> value to try, given the volumes of all the references' pieces."""
    options: dict[str, Any] = {"keep_largest": True, "fill_holes": True}
    if len(sizes_mm3):
        options["remove_below_mm3"] = round(float(np.percentile(sizes_mm3, SMALL_PERCENTILE)), 6)
    return options


def _drop_harmful(
    trials: Sequence[RuleTrial], dataset: Dataset, over_cases: Callable[..., list[np.ndarray]]
) -> list[RuleTrial]:
    """The trials, with fewer kept where all that were kept together lower a structure's mean Dice.

    A rule is tried for its structure alone, and two that are harmless each can do harm together, where one
    structure lies in another.
    """
    trials = list(trials)
    names = dataset.targets.structure_names
    while kept := {trial.structure: trial for trial in trials if trial.kept}:
        variants = [{}, _order({name: trial.rule for name, trial in kept.items()}, dataset)]
        dice = np.mean(over_cases(partial(_measure_dice, variants=variants), "trying all together"), axis=0)
        fallen = dice[1] - dice[0] < -ROUNDING
        if not fallen.any():
            break
        least = min(kept.values(), key=lambda trial: trial.gain.mean)
        dropped = replace(least, kept=False, harmed=names[int(fallen.argmax())])
        trials = [dropped if trial is least else trial for trial in trials]
    return trials


def _order(rules: Rules, dataset: Dataset) -> Rules:
    """The rules in the order of the structures, in which they are applied."""
    return {name: rules[name] for name in dataset.targets.structures if name in rules}


def _judge(
    tried: tuple[str, str, PostprocessingConfig],
    before: np.ndarray,
    after: np.ndarray,
    dataset: Dataset,
    confidence: float,
) -> RuleTrial:
    """What a rule does: Dice (cases, structures) before and after."""
    name, added, rule = tried
    names = dataset.targets.structure_names
    fallen = np.mean(after - before, axis=0) < -ROUNDING
    harmed = [other for other, falls in zip(names, fallen, strict=True) if falls and other != name]
    mine_before, mine_after = (dice[:, names.index(name)] for dice in (before, after))
    return RuleTrial(
        structure=name,
        rule=rule,
        added=added,
        dice_before=float(mine_before.mean()),
        dice_after=float(mine_after.mean()),
        gain=compare_paired(mine_before, mine_after, confidence),
        harmed=harmed[0] if harmed else None,
        kept=False,
    )


def _choose(judged: Sequence[RuleTrial]) -> dict[str, RuleTrial]:
    """The best trial of each structure among those that help and harm nothing."""
    best: dict[str, RuleTrial] = {}
    for trial in judged:
        helps = trial.gain.low > 0 and trial.gain.mean > ROUNDING and trial.harmed is None
        if helps and (trial.structure not in best or trial.gain.mean > best[trial.structure].gain.mean):
            best[trial.structure] = trial
    return best


def _over_cases(
    predictions: Sequence[Prediction],
    dataset: Dataset,
    jobs: int,
    progress: Callable[[str, int, int], None],
    measure: Callable[[Case, Path, Dataset], Any],
    stage: str,
) -> list[Any]:
    work = (delayed(measure)(case, path, dataset) for case, path in predictions)
    found: list[Any] = []
    for result in Parallel(n_jobs=min(jobs, len(predictions)), return_as="generator")(work):
        found.append(result)
        progress(stage, len(found), len(predictions))
    return found


def _measure_pieces(case: Case, path: Path, dataset: Dataset) -> list[np.ndarray]:
    """Volumes in mm³ of each structure's pieces in the reference: S arrays."""
    reference = read_label_map(case, dataset)
    voxel_mm3 = abs(float(np.linalg.det(reference.affine[:3, :3])))
    structures = dataset.targets.structures
    sizes_mm3: list[np.ndarray] = [np.zeros(0) for _ in structures]
    boxes = ndimage.find_objects(reference.array, max_label=dataset.num_classes - 1)
    for index, classes in enumerate(structures.values()):
        box = boxes[classes[0] - 1] if len(classes) == 1 else np.s_[:]
        if box is not None:
            pieces, _ = ndimage.label(np.isin(reference.array[box], classes))
            sizes_mm3[index] = np.bincount(pieces.ravel())[1:] * voxel_mm3
    return sizes_mm3


def _measure_dice(case: Case, path: Path, dataset: Dataset, variants: Sequence[Rules]) -> np.ndarray:
    """Dice (variants, structures) of a prediction under each variant's rules; 1 where neither map has any."""
    reference = read_label_map(case, dataset).array
    prediction = read_volume(path)
    predicted = map_to_classes(prediction.array, dataset.label_values, path)
    size = dataset.num_classes + (dataset.targets.ignore_class is not None)
    before = count_confusion(predicted, reference, size)
    dice = []
    for rules in variants:
        after = postprocess_label_map(Volume(predicted.copy(), prediction.grid), rules, dataset.targets).array
        changed = after != predicted
        confusion = before.copy()
        np.subtract.at(confusion, (reference[changed], predicted[changed]), 1)
        np.add.at(confusion, (reference[changed], after[changed]), 1)
        annotated = confusion[: dataset.num_classes, : dataset.num_classes]  # the last row is to be ignored
        dice.append(compute_dice_from_confusion(annotated, dataset.targets.structures.values()))
    return np.nan_to_num(dice, nan=1.0)
