"""The choice among several cross-validated configurations, and the model of the one that is chosen.

OUTPUT/model/                    the chosen model
    choice.json  choice.html     the contenders, how they compare, and why this one
    candidates/NAME/             what pairs of configurations predict out of fold, kept for the next call
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from medseg_brn.cases.dataset import Dataset
from medseg_brn.cross_validation.configurations import (
    Configuration,
    find_obstacle,
    list_members,
    read_configurations,
    refuse_overlap,
)
from medseg_brn.cross_validation.final import EXPECTED, describe_quality, save_single
from medseg_brn.cross_validation.intervals import Difference, compare_evaluations
from medseg_brn.cross_validation.pairs import predict_pair
from medseg_brn.cross_validation.postprocessing import decide_postprocessing
from medseg_brn.cross_validation.summary import evaluate_postprocessed, evaluate_together
from medseg_brn.evaluation.results import CaseEvaluation, Evaluation
from medseg_brn.models.ensemble import save_ensemble
from medseg_brn.reports.choice_report import write_choice_report
from medseg_brn.training.data import Progress
from medseg_brn.volumes.atomic import write_text_atomic

MARGIN = 0.01
"""Of mean Dice: a simpler contender is taken where it is surely not worse than the best one by more."""

SAME_SIZE = 1.1
"""Networks whose weights differ by a factor up to this are equally simple."""

CHOSEN = (
    "The configuration was chosen among others for these metrics, and is therefore expected to be a little "
    "worse on new cases."
)


@dataclass(frozen=True)
class Contender:
    """A configuration, or two whose probabilities are averaged.

    Attributes:
        parts: the configurations.
        evaluation: of the cases out of fold, in the order of the configurations' cases.
    """

    parts: tuple[Configuration, ...]
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """Of the folders."""
        return "+".join(part.name for part in self.parts)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Of the evaluation."""
        return self.evaluation.summary()

    @property
    def dice_mean(self) -> float:
        """The summary's mean Dice: per structure over cases, then over structures. NaN without any."""
        return math.nan if (dice := self.summary["dice_mean"]) is None else float(dice)

    @property
    def weights_bytes(self) -> int:
        """Of its networks for one fold."""
        return sum(part.weights_bytes for part in self.parts)

    def is_simpler_than(self, other: "Contender") -> bool:
        """Whether it has fewer networks, or as many with weights that are smaller by more than a tenth."""
        if len(self.parts) != len(other.parts):
            return len(self.parts) < len(other.parts)
        return self.weights_bytes * SAME_SIZE < other.weights_bytes


def choose_model(
    folders: Sequence[Path],
    output: Path,
    *,
    ensembles: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Compare cross-validations, write the best one's model into `output`, and return why.

    Args:
        folders: finished cross-validations of the same cases in the same folds.
        output: made when absent.
        ensembles: also try each pair, predicting the held-out cases again with both folds' models.
        progress: told of stages.

    Returns:
        The content of `choice.json`.

    Raises:
        ConfigError: fewer than two folders, one of them twice, one that is not finished, or `output` is,
            lies in or contains one.
        DataError: they are not of the same cases, folds and structures.
    """
    refuse_overlap(folders, output)
    configurations, dataset = read_configurations(folders, progress)
    contenders = [
        _make_contender((each,), [case.evaluation for case in each.cases]) for each in configurations
    ]
    skipped = {}
    for pair in combinations(configurations, 2) if ensembles else ():
        name = "+".join(part.name for part in pair)
        reason = find_obstacle(pair)
        if reason is not None:
            skipped[name] = reason
            continue
        ordered = _best_first(pair, contenders)
        predicted = predict_pair(
            [part.folder for part in ordered],
            ordered[0].cases,
            ordered[0].experiment,
            dataset,
            output / "candidates" / name,
            lambda done, total, name=name: progress(f"predicting {name}", done, total),  # type: ignore[misc]
        )
        contenders.append(_make_contender(ordered, predicted))
    chosen, differences = choose_contender(contenders)
    found = _describe_choice(contenders, chosen, differences, skipped)
    found |= _write_model(chosen, dataset, output, progress)
    write_text_atomic(output / "choice.json", json.dumps(found, indent=1) + "\n")
    write_choice_report(output)
    return found


def choose_contender(contenders: Sequence[Contender]) -> tuple[Contender, list[Difference]]:
    """The simplest contender that is shown to be as good as the best, and each one's difference from that.

    The best has the highest mean Dice; of several with the same, the simplest. Another one is as good where
    the 95 % interval of its difference from the best, a bootstrap paired over cases, lies above -`MARGIN`:
    that no difference can be seen, as with few cases, is not enough. Of equally simple ones, the better.
    """
    best = max(contenders, key=lambda one: (_lowest_if_nan(one), -len(one.parts), -one.weights_bytes))
    differences = [compare_evaluations(best.evaluation, one.evaluation) for one in contenders]
    as_good = [
        one
        for one, difference in zip(contenders, differences, strict=True)
        if one is best or difference.low > -MARGIN
    ]
    simplest = [one for one in as_good if not any(other.is_simpler_than(one) for other in as_good)]
    return max(simplest, key=_lowest_if_nan), differences


def _lowest_if_nan(contender: Contender) -> float:
    return -math.inf if math.isnan(contender.dice_mean) else contender.dice_mean


def _make_contender(parts: Sequence[Configuration], cases: Sequence[CaseEvaluation]) -> Contender:
    return Contender(tuple(parts), evaluate_together(cases, parts[0].cases[0].tolerance_mm))


def _best_first(pair: Sequence[Configuration], contenders: Sequence[Contender]) -> tuple[Configuration, ...]:
    """The pair, the better one first: an ensemble takes its inference settings."""
    dice = {contender.parts[0].name: contender.dice_mean for contender in contenders}
    return tuple(sorted(pair, key=lambda part: -dice[part.name]))


def _describe_choice(
    contenders: Sequence[Contender],
    chosen: Contender,
    differences: Sequence[Difference],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """The contenders, best first, and the reason in words."""
    found = sorted(zip(contenders, differences, strict=True), key=lambda pair: -_lowest_if_nan(pair[0]))
    rows = [
        {
            "name": one.name,
            "folders": [str(part.folder) for part in one.parts],
            "dice_mean": one.summary["dice_mean"],
            "classes": {name: figures["dice_mean"] for name, figures in one.summary["classes"].items()},
            "networks_per_fold": len(one.parts),
            "weights_bytes_per_fold": one.weights_bytes,
            "from_best": difference.as_dict(),
        }
        for one, difference in found
    ]
    return {
        "chosen": chosen.name,
        "reason": tell_reason(contenders, chosen),
        "cases": len(chosen.evaluation.cases),
        "margin": MARGIN,
        "candidates": rows,
        "not_averaged": skipped,
    }


def tell_reason(contenders: Sequence[Contender], chosen: Contender) -> str:
    """Why this one was chosen, in a sentence."""
    best = max(contenders, key=_lowest_if_nan)
    interval = "(95 % interval of the difference, paired over cases)"
    if chosen.dice_mean < best.dice_mean:
        return (
            f"{best.name} has the highest mean Dice out of fold, but {chosen.name} is simpler, and its mean "
            f"Dice is lower by less than {MARGIN:g} {interval}."
        )
    reason = f"{chosen.name} has the highest mean Dice out of fold"
    if not any(one.is_simpler_than(chosen) for one in contenders):
        return f"{reason}, and none is simpler."
    return (
        f"{reason}, and no simpler one is shown to be as good, which is to be lower by less than {MARGIN:g} "
        f"{interval}."
    )


def _write_model(chosen: Contender, dataset: Dataset, output: Path, progress: Progress) -> dict[str, Any]:
    """Decide the chosen contender's post-processing out of fold, and write its model."""
    first = chosen.parts[0]
    cases = first.cases
    if len(chosen.parts) > 1:
        cases = tuple(
            replace(case, prediction=Path(evaluation.paths["prediction"]), evaluation=evaluation)
            for case, evaluation in zip(cases, chosen.evaluation.cases, strict=True)
        )
    decision = decide_postprocessing(
        [(case.case, case.prediction) for case in cases],
        dataset,
        first.experiment.inference.postprocessing,
        progress,
    )
    quality = {
        "folds": first.summary["folds"],
        "spread_over_folds": first.summary["spread_over_folds"] if len(chosen.parts) == 1 else None,
        "summary": chosen.summary,
        "postprocessed": evaluate_postprocessed(cases, dataset, decision, chosen.evaluation, progress),
    }
    inference = first.experiment.inference.model_copy(update={"postprocessing": decision.rules})
    name = " + ".join(part.experiment.name for part in chosen.parts)
    members = [member for part in chosen.parts for member in list_members(part.folder)]
    kind = "pair" if len(chosen.parts) > 1 else "ensemble" if len(members) > 1 else "single"
    training = {"cross_validation": describe_quality(quality, f"{EXPECTED[kind]} {CHOSEN}")}
    if len(members) > 1:
        save_ensemble(output / "model", members, name=name, inference=inference, training=training)
    else:
        save_single(output / "model", members[0], inference, training)
    return {
        "postprocessing": decision.as_dict(),
        "summary": quality["summary"],
        "postprocessed": quality["postprocessed"],
    }
