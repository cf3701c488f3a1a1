"""What the training patches held, and which cases, trained on or held out, stand out."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_brn.config import PatchesConfig
from medseg_brn.reports.diagnosis.finding import Finding, robust_z
from medseg_brn.reports.evaluation_blocks import mean_dice
from medseg_brn.reports.step_records import PatchRecord

RARE_FRACTION = 0.01
OUTLYING_Z = 3.5
FEWEST_CASES = 8
"""Below this number of cases, none can be called unlike the others."""
FEWEST_PATCHES, MOST_PATCHES = 3, 10
MISSED_DICE = 0.05


@dataclass(frozen=True)
class ClassShare:
    """How often a class was met: the number and share of patches that have it, its share of their voxels."""

    name: str
    patches: int
    patch_share: float
    voxel_share: float
    """Of the annotated voxels."""


@dataclass(frozen=True)
class Suspect:
    """A training case whose patches the network still predicts badly late in the run."""

    case: str
    loss: float
    """Mean over its last patches, in nats."""
    median_loss: float
    """Of all cases."""
    z: float


def share_classes(patches: Sequence[PatchRecord], names: Sequence[str]) -> list[ClassShare]:
    """One entry per class; empty without patches."""
    met: Counter[int] = Counter()
    voxels: Counter[int] = Counter()
    for patch in patches:
        met.update(patch.voxels.keys())
        voxels.update(patch.voxels)
    annotated = sum(voxels[index] for index in range(len(names)))
    return [
        ClassShare(
            name, met[index], met[index] / len(patches), voxels[index] / annotated if annotated else 0.0
        )
        for index, name in enumerate(names)
        if patches
    ]


def annotated_share(patches: Sequence[PatchRecord], num_classes: int) -> float:
    """Share of the patches' voxels that are not to be ignored, in [0, 1]; 1 without patches."""
    total = sum(sum(patch.voxels.values()) for patch in patches)
    ignored = sum(count for patch in patches for index, count in patch.voxels.items() if index >= num_classes)
    return 1 - ignored / total if total else 1.0


def check_classes(shares: Sequence[ClassShare], num_patches: int, sampling: PatchesConfig) -> list[Finding]:
    """Classes that were never, or almost never, trained on."""
    findings = []
    remedy = _advise_sampling(sampling)
    never = [share.name for share in shares if share.patches == 0]
    if never:
        findings.append(
            Finding(
                "classes never met",
                3,
                f"No training patch contained {_enumerate(never)}",
                f"0 of {num_patches} patches",
                f"{remedy}; if no training case has it, it cannot be learnt",
            )
        )
    rare = [share for share in shares if 0 < share.patch_share < RARE_FRACTION]
    if rare:
        findings.append(
            Finding(
                "classes rarely met",
                2,
                f"Few training patches contained {_enumerate([share.name for share in rare])}",
                ", ".join(f"{share.name} in {share.patches} of {num_patches} patches" for share in rare[:5]),
                remedy,
            )
        )
    return findings


def _advise_sampling(sampling: PatchesConfig) -> str:
    """How patches would meet a class more often, given how they are drawn."""
    share = sampling.foreground_fraction
    advice = [] if sampling.foreground_by == "class" else ["set patches.foreground_by=class"]
    if share < 1:
        advice.append(f"raise patches.foreground_fraction above {share:g}")
    advice.append("enlarge patches.size")
    joined = " and ".join(advice[:2]) if share == 0 and len(advice) > 2 else ", or ".join(advice)
    return joined[0].upper() + joined[1:]


def find_suspects(patches: Sequence[PatchRecord]) -> list[Suspect]:
    """Training cases whose late loss stands out from the others', the worst first.

    A case's late loss is the mean over its last 3 to 10 patches of the second half of the run; it stands out
    where the robust z-score of its logarithm, over all cases, exceeds 3.5. With fewer than 8 cases, or 3
    patches of a case, nothing is said.
    """
    losses: dict[str, list[float]] = defaultdict(list)
    half = patches[-1].step / 2 if patches else 0
    for patch in patches:
        if patch.step > half and np.isfinite(patch.loss):
            losses[patch.case].append(patch.loss)
    late = {
        case: float(np.mean(found[-MOST_PATCHES:]))
        for case, found in losses.items()
        if len(found) >= FEWEST_PATCHES
    }
    if len(late) < FEWEST_CASES:
        return []
    values = np.array(list(late.values()))
    scores = robust_z(np.log(np.maximum(values, 1e-12)))
    median = float(np.median(values))
    found = [
        Suspect(case, loss, median, float(z))
        for (case, loss), z in zip(late.items(), scores, strict=True)
        if z > OUTLYING_Z
    ]
    return sorted(found, key=lambda suspect: -suspect.z)


def check_suspects(suspects: Sequence[Suspect]) -> list[Finding]:
    """Training cases to look at."""
    if not suspects:
        return []
    several = len(suspects) > 1
    return [
        Finding(
            "suspect training cases",
            2,
            f"{len(suspects)} training {'cases are' if several else 'case is'} predicted far worse than the"
            " others, late in the run",
            ", ".join(f"{s.case} (loss {s.loss:.3g}, z = {s.z:.1f})" for s in suspects[:5])
            + (" …" if len(suspects) > 5 else "")
            + f"; median of all cases {suspects[0].median_loss:.3g}",
            "Suspects, no more: look at their label maps, which may be wrong, or the cases may be hard",
        )
    ]


def rank_held_out(evaluation: dict[str, Any] | None) -> list[tuple[float, dict[str, Any]]]:
    """Mean Dice and entry of each held-out case that has one, the worst first."""
    cases = evaluation["cases"] if evaluation is not None else []
    scored = [(dice, case) for case in cases if (dice := mean_dice(case)) is not None]
    return sorted(scored, key=lambda pair: pair[0])


def find_hard_cases(evaluation: dict[str, Any] | None) -> list[tuple[float, dict[str, Any]]]:
    """Held-out cases whose Dice is below half the median, or an outlier among at least 8; the worst first.

    None where there are fewer than 3 cases, or where the model finds nothing in most of them.
    """
    ranked = rank_held_out(evaluation)
    dice = np.array([value for value, _ in ranked])
    if len(dice) < 3 or np.median(dice) < MISSED_DICE:
        return []
    outlying = robust_z(dice) < -OUTLYING_Z if len(dice) >= FEWEST_CASES else np.zeros(len(dice), bool)
    hard = outlying | (dice < np.median(dice) / 2)
    return [pair for pair, stands_out in zip(ranked, hard, strict=True) if stands_out]


def check_held_out(evaluation: dict[str, Any] | None) -> list[Finding]:
    """Classes that are missed, and cases that fail."""
    if evaluation is None:
        return []
    findings = []
    classes = evaluation["summary"]["classes"]
    missed = {
        name: figures["dice_mean"]
        for name, figures in classes.items()
        if figures.get("dice_mean") is not None and figures["dice_mean"] < MISSED_DICE
    }
    if missed:
        findings.append(
            Finding(
                "classes missed",
                3,
                f"The model does not find {_enumerate(list(missed))} in the held-out cases",
                ", ".join(f"mean Dice of {name} {dice:.3f}" for name, dice in missed.items()),
                "See in the report how often the class was trained on; train longer, or give it weight with"
                " training.class_weights",
            )
        )
    hard = find_hard_cases(evaluation)
    if hard:
        median = float(np.median([dice for dice, _ in rank_held_out(evaluation)]))
        findings.append(
            Finding(
                "hard held-out cases",
                2,
                f"{len(hard)} held-out {'cases are' if len(hard) > 1 else 'case is'} segmented far worse than"
                " the others",
                ", ".join(f"{case['case']} (Dice {dice:.3f})" for dice, case in hard[:5])
                + (" …" if len(hard) > 5 else "")
                + f"; median {median:.3f}",
                "Look at their pictures in the report: an unusual scan, or a wrong label map",
            )
        )
    return findings


def _enumerate(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; more than six are counted."""
    if len(names) > 6:
        return f"{', '.join(names[:6])} and {len(names) - 6} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
