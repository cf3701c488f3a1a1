"""From runs to verdicts: the claims a comparison makes, each with its effect, interval, p and conclusion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medseg_brn.comparison.results import Cell, RunResult, collect_case_dice, group_cells, list_cases
from medseg_brn.comparison.statistics import (
    Estimate,
    adjust_holm,
    compare_spreads,
    estimate_mean,
    estimate_scalar,
)
from medseg_brn.probes.curves import batch_size_slope

QUESTIONS = ("dice", "disparity", "tile_mismatch", "spread", "batch_size_slope")

LEVEL = 0.05
"""An adjusted p below it makes a difference distinguishable."""

ROUNDING = 1e-6
"""Differences of probabilities below it are those of float32, and count as 0."""

_MEASURED = {
    "disparity": ("train_eval_disparity", "a smaller train/eval disparity"),
    "tile_mismatch": ("tile_mismatch", "a smaller tile mismatch"),
}
"""Question → the measurement that answers it, and what is claimed of the reference."""


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it. A number that does not exist is NaN."""

    claim: str
    question: str
    """One of `QUESTIONS`."""
    norm: str
    other: str | None
    """The norm it is compared with; None for a batch size slope, which is compared with 0."""
    batch_size: int | None
    input: str
    effect: float
    """Of `norm` minus of `other`: Dice, disparity, mismatch or standard deviation; Dice per doubling of B."""
    interval: tuple[float, float] | None
    """95 %, not adjusted."""
    p: float
    p_adjusted: float
    conclusion: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: null for NaN."""
        return {
            "claim": self.claim,
            "question": self.question,
            "norm": self.norm,
            "other": self.other,
            "batch_size": self.batch_size,
            "input": self.input,
            "effect": _null_if_nan(self.effect),
            "interval": None if self.interval is None else list(self.interval),
            "p": _null_if_nan(self.p),
            "p_adjusted": _null_if_nan(self.p_adjusted),
            "conclusion": self.conclusion,
        }


def judge(runs: Sequence[RunResult], reference: str = "batch_renorm") -> list[Verdict]:
    """Return what the runs say of each claim, question by question.

    The claims follow from the grid alone, not from its results.
    For every input and batch size, the reference against every other norm: Dice (paired over seeds and
    cases), train/eval disparity and tile mismatch (paired over seeds), and the spread of Dice over seeds
    (Brown–Forsythe, which takes the norms' runs for independent). For every norm and input: whether Dice
    changes with the batch size, by its slope over log2 B in every seed and case.

    Holm's adjustment runs over one family per question: a reader asks each question by itself, and for each
    the chance of any false finding over all norms, batch sizes and inputs stays below .05. One family for all
    would make the answer about Dice depend on how many probes were run beside it.

    Failed runs are left out, and claims without data; a diverged run has Dice 0 in every case and no probes.
    With one seed no claim has a p, and nothing is distinguishable.

    Args:
        runs: one per input, batch size, norm and seed.
        reference: norm the others are compared with; the first in `runs` where the grid lacks it.

    Raises:
        DataError: two runs are of the same input, batch size, norm and seed.
    """
    cells = group_cells([run for run in runs if run.counts])
    norms = list(dict.fromkeys(norm for _, _, norm in cells))
    if not norms:
        return []
    if reference not in norms:
        reference = norms[0]
    cases = list_cases(runs)  # of all runs: a diverged one names none
    return _conclude(_compare_with_reference(cells, reference, cases) + _judge_slopes(cells, cases))


def _compare_with_reference(
    cells: Mapping[Cell, list[RunResult]], reference: str, cases: Sequence[str]
) -> list[Verdict]:
    """Drafts of verdicts: without adjusted p, and with the caveat only for a conclusion."""
    drafts: list[Verdict | None] = []
    for (input_name, batch_size, norm), theirs in cells.items():
        ours = cells.get((input_name, batch_size, reference))
        if norm == reference or ours is None:
            continue
        shared = {run.seed for run in ours} & {run.seed for run in theirs}
        drafts.append(_compare_spread(ours, theirs))
        ours, theirs = ([run for run in group if run.seed in shared] for group in (ours, theirs))
        drafts += [_compare_dice(ours, theirs, cases), *_compare_measurements(ours, theirs)]
    return [draft for draft in drafts if draft is not None]


def _compare_dice(ours: list[RunResult], theirs: list[RunResult], cases: Sequence[str]) -> Verdict | None:
    estimate = estimate_mean(collect_case_dice(ours, cases) - collect_case_dice(theirs, cases))
    return _draft_pair("dice", "a higher Dice", ours, theirs, estimate)


def _compare_measurements(ours: list[RunResult], theirs: list[RunResult]) -> list[Verdict | None]:
    drafts = []
    for question, (key, claimed) in _MEASURED.items():
        values = [
            one.measurement(key) - other.measurement(key) for one, other in zip(ours, theirs, strict=True)
        ]
        values = [0.0 if abs(value) < ROUNDING else value for value in values]
        measured = np.count_nonzero(~np.isnan(values))
        caveat = f"{measured} of {len(values)} seeds have it" if measured < len(values) else ""
        estimate = estimate_scalar(np.array(values))
        drafts.append(_draft_pair(question, claimed, ours, theirs, estimate, caveat))
    return drafts


def _compare_spread(ours: list[RunResult], theirs: list[RunResult]) -> Verdict | None:
    dice = [np.array([run.run_dice for run in runs]) for runs in (ours, theirs)]
    dice = [values[~np.isnan(values)] for values in dice]
    fewest, most = sorted(map(len, dice))
    if fewest == 0:
        return None
    spreads = [float(values.std(ddof=1)) if len(values) > 1 else math.nan for values in dice]
    caveat = ""
    if fewest == 1:
        caveat = "one seed: nothing can be said of the spread"
    elif fewest < 3 or most < 4:  # see compare_spreads
        caveat = f"{fewest} seeds are too few for this test"
    draft = _draft_pair("spread", "a smaller spread of Dice", ours, theirs, None, caveat)
    effect = spreads[0] - spreads[1]
    return None if draft is None else replace(draft, effect=effect, p=compare_spreads(dice))


def _draft_pair(
    question: str,
    claimed: str,
    ours: list[RunResult],
    theirs: list[RunResult],
    estimate: Estimate | None,
    caveat: str = "",
) -> Verdict | None:
    """Draft about two norms in one cell; None where there is an estimate, but of nothing."""
    if not ours or (estimate is not None and math.isnan(estimate.effect)):
        return None
    first, norm, other = ours[0], ours[0].norm, theirs[0].norm
    claim = f"{norm} has {claimed} than {other} at batch size {first.batch_size} ({first.input})"
    estimate = estimate or Estimate(math.nan, math.nan, math.nan, math.nan)
    return _draft(claim, question, (norm, other, first.batch_size, first.input), estimate, caveat)


def _judge_slopes(cells: Mapping[Cell, list[RunResult]], cases: Sequence[str]) -> list[Verdict]:
    drafts = []
    rows: dict[tuple[str, str], list[RunResult]] = {}
    for (input_name, _, norm), runs in cells.items():
        rows.setdefault((input_name, norm), []).extend(runs)
    for (input_name, norm), runs in rows.items():
        estimate = estimate_mean(_compute_slopes(runs, cases))
        if not math.isnan(estimate.effect):
            claim = f"Dice of {norm} changes with the batch size ({input_name})"
            drafts.append(_draft(claim, "batch_size_slope", (norm, None, None, input_name), estimate))
    return drafts


def _compute_slopes(runs: list[RunResult], cases: Sequence[str]) -> np.ndarray:
    """Slope of Dice over log2 B in each seed and case, (seeds, cases); NaN for seeds of one batch size."""
    slopes = []
    for seed in sorted({run.seed for run in runs}):
        members = [run for run in runs if run.seed == seed]
        sizes = [run.batch_size for run in members]
        slopes.append(batch_size_slope(sizes, collect_case_dice(members, cases)))
    return np.array(slopes)


def _draft(
    claim: str,
    question: str,
    subject: tuple[str, str | None, int | None, str],
    estimate: Estimate,
    caveat: str = "",
) -> Verdict:
    interval = None if math.isnan(estimate.low) else (estimate.low, estimate.high)
    p = estimate.p
    if not estimate.covers_seeds:
        one_seed = (
            "one seed: the interval is for other cases only" if interval else "one seed: it cannot be tested"
        )
        caveat = "; ".join(filter(None, (caveat, one_seed)))
        p = math.nan  # a claim is about norms, and one run of each may differ by its seed alone
    return Verdict(
        claim,
        question,
        *subject,
        estimate.effect,
        interval,
        p,
        p_adjusted=math.nan,
        conclusion=caveat,
    )


def _conclude(drafts: list[Verdict]) -> list[Verdict]:
    """Verdicts question by question, each with its p adjusted and its conclusion in words."""
    verdicts = []
    for question in QUESTIONS:
        family = [draft for draft in drafts if draft.question == question]
        for draft, adjusted in zip(family, adjust_holm([draft.p for draft in family]), strict=True):
            verdicts.append(replace(draft, p_adjusted=adjusted, conclusion=_word(draft, adjusted)))
    return verdicts


def _word(draft: Verdict, p_adjusted: float) -> str:
    size = f"{abs(draft.effect):.3g}"
    if not p_adjusted < LEVEL:
        finding = "not distinguishable"
    elif draft.question == "batch_size_slope":
        finding = (
            f"Dice {'rises' if draft.effect > 0 else 'falls'} by {size} with each doubling of the batch size"
        )
    else:
        finding = f"{draft.norm} {'higher' if draft.effect > 0 else 'lower'} by {size}"
    return f"{finding} ({draft.conclusion})" if draft.conclusion else finding


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
