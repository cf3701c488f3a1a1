"""What the course of a run says: its numbers end, its loss, its gradients, its waiting, its fit."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_brn.config import Experiment
from medseg_brn.probes.curves import find_spikes
from medseg_brn.reports.diagnosis.finding import Finding, Weight
from medseg_brn.reports.step_records import PatchRecord

Metrics = Mapping[str, np.ndarray]

FEWEST_STEPS = 40
"""Below this number, a run is too short to speak of its course."""

FEWEST_CASES = 3
"""Of each group, for a gap between training and held-out cases to be told from chance."""

FREE_SHARE = 0.02
"""Up to this share of waiting, patches are made in the shadow of the network's computing."""


def check_divergence(divergence: Mapping[str, Any]) -> list[Finding]:
    """A run that ended because its numbers were not finite (`divergence.json`)."""
    if not divergence:
        return []
    seen = [
        f"Loss {divergence['loss']}, gradient norm {divergence['gradient_norm']}"
        if "loss" in divergence
        else "",
        divergence["found"],
        f"Patches of {', '.join(divergence['cases'])}" if divergence["cases"] else "",
    ]
    return [
        Finding(
            "divergence",
            3,
            f"The run stopped at step {divergence['step']} because its numbers were not finite",
            ". ".join(filter(None, seen)),
            divergence["remedy"],
        )
    ]


def check_learning(metrics: Metrics) -> list[Finding]:
    """A loss that has hardly fallen."""
    loss = metrics["loss"]
    if len(loss) < FEWEST_STEPS:
        return []
    tenth = len(loss) // 10
    first, last = float(np.median(loss[:tenth])), float(np.median(loss[-tenth:]))
    if last < 0.9 * first:
        return []
    return [
        Finding(
            "nothing learnt",
            3,
            "The training loss has hardly fallen",
            f"median {first:.3g} over the first {tenth} steps, {last:.3g} over the last {tenth}",
            "Try a training.learning_rate ten times lower, then ten times higher; look whether image and"
            " label map of a case lie on each other (`medseg-brn check`)",
        )
    ]


def share_waiting(metrics: Metrics) -> float:
    """Share of the training time spent waiting for patches, in [0, 1]; NaN without steps."""
    seconds = metrics["seconds"]
    if not seconds.size:
        return math.nan
    return float(np.average(metrics["loader_share"], weights=np.maximum(seconds, 1e-9)))


def describe_loading(metrics: Metrics, experiment: Experiment) -> str:
    """Whether patches or the network set the pace, in one sentence with numbers."""
    share = share_waiting(metrics)
    if math.isnan(share):
        return "No step has been recorded."
    step = float(np.median(metrics["seconds"])) * 1000
    workers = experiment.patches.workers
    told = f"{share:.1%} of the time went by waiting for patches (median step {step:.0f} ms, {workers} loader"
    told += f" process{'' if workers == 1 else 'es'})"
    if share > 0.15:
        return f"Bound by loading: {told}."
    free = "richer augmentation would cost no time, a larger network would"
    return f"Bound by computing: {told}{f'; {free}' if workers and share <= FREE_SHARE else ''}."


def check_loading(metrics: Metrics, experiment: Experiment) -> list[Finding]:
    """Time lost by waiting for patches."""
    share = share_waiting(metrics)
    if len(metrics["seconds"]) < FEWEST_STEPS or share <= 0.15:
        return []
    workers = experiment.patches.workers
    remedy = (
        "Set patches.workers=1, so that patches are made while the network computes"
        if workers == 0
        else f"Raise patches.workers above {workers} if there are idle cores, or make augmentation cheaper"
        " (patches.augmentation.spatial_probability, .elastic_probability); a larger network would be free"
    )
    return [
        Finding(
            "loader bound",
            2 if share > 0.4 else 1,
            "Training waits for its patches",
            f"{share:.0%} of the training time, {float(metrics['seconds'].sum()) * share:.0f} s in all",
            remedy,
        )
    ]


def share_clipped(metrics: Metrics, experiment: Experiment) -> float:
    """Share of the steps after warm-up whose gradient was clipped; 0 without clipping."""
    limit = experiment.training.gradient_clip
    norms = metrics["gradient_norm"][int(experiment.training.warmup_fraction * experiment.training.steps) :]
    return float((norms > limit).mean()) if limit is not None and norms.size else 0.0


def check_gradients(metrics: Metrics, experiment: Experiment) -> list[Finding]:
    """Gradients that are nearly always cut."""
    share = share_clipped(metrics, experiment)
    if share < 0.5 or len(metrics["loss"]) < FEWEST_STEPS:
        return []
    limit = experiment.training.gradient_clip
    return [
        Finding(
            "gradient clipped",
            1,
            "Most gradients are clipped, so training.gradient_clip sets the length of the steps",
            f"{share:.0%} of the steps after warm-up exceed {limit:g}; median norm"
            f" {np.median(metrics['gradient_norm']):.3g}",
            "Lower training.learning_rate, or raise training.gradient_clip above the usual norm",
        )
    ]


def check_spikes(metrics: Metrics, patches: Sequence[PatchRecord] = ()) -> list[Finding]:
    """Sudden jumps of the loss, and the cases that were trained on far more often then than by chance."""
    loss = metrics["loss"]
    if len(loss) < FEWEST_STEPS:
        return []
    spikes = find_spikes(loss)
    share = float(spikes.mean())
    if share < 0.02:
        return []
    steps = metrics["step"][spikes]
    highest = steps[np.argmax(loss[spikes])]
    return [
        Finding(
            "loss spikes",
            2 if share > 0.05 else 1,
            "The loss jumps",
            f"at {spikes.sum()} of {len(loss)} steps ({share:.1%}) by more than 6 robust standard deviations"
            f" above the steps before; highest {loss[spikes].max():.3g} at step {highest:.0f}"
            + _tell_frequent(patches, {int(step) for step in steps}, len(loss)),
            "Lower training.learning_rate or training.gradient_clip, or raise training.batch_size",
        )
    ]


def _tell_frequent(patches: Sequence[PatchRecord], chosen: set[int], num_steps: int) -> str:
    """Cases with patches at 3 or more of the chosen steps, and at 5 times as many as by chance."""
    steps: dict[str, set[int]] = defaultdict(set)
    for patch in patches:
        steps[patch.case].add(patch.step)
    frequent = {}
    for case, found in steps.items():
        together = len(found & chosen)
        if together >= 3 and together > 5 * len(found) * len(chosen) / num_steps:
            frequent[case] = together
    most = sorted(frequent, key=lambda case: -frequent[case])[:5]
    told = ", ".join(f"{case} at {frequent[case]}" for case in most)
    return f"; of these steps, patches of {told}" if told else ""


def describe_trend(metrics: Metrics) -> tuple[str, float]:
    """What is measured over the last quarter of the run, and by how much of its level it got better.

    The validation Dice where it was taken at least 4 times there, else the training loss; the change is that
    of the least-squares line over the quarter, and 0 where it is less than 3 standard errors.
    """
    steps, begin = metrics["step"], metrics["step"].max() * 0.75 if metrics["step"].size else 0
    late = steps > begin
    validated = late & np.isfinite(metrics["dice"])
    if validated.sum() >= 4:
        change, level = _fit_line(steps[validated], metrics["dice"][validated])
        return "validation Dice", change / level if level > 0 else 0.0
    if late.sum() < FEWEST_STEPS // 4:
        return "training loss", 0.0
    change, level = _fit_line(steps[late], metrics["loss"][late])
    return "training loss", -change / level if level > 0 else 0.0


def check_trend(metrics: Metrics, experiment: Experiment) -> list[Finding]:
    """A run that ended while it still improved; nothing is said of one that has not ended."""
    what, gain = describe_trend(metrics)
    if not metrics["step"].size or metrics["step"][-1] < experiment.training.steps:
        return []
    if gain < (0.02 if what == "validation Dice" else 0.1):
        return []
    return [
        Finding(
            "still improving",
            1,
            f"The {what} was still improving at the end",
            f"by {gain:.0%} over the last quarter of the steps",
            "More steps would probably help: raise training.steps and go on with --resume",
        )
    ]


def check_fit(fit: Mapping[str, Any]) -> list[Finding]:
    """Training cases fitted much better than held-out ones, or not fitted at all (`fit.json`)."""
    if not fit:
        return []
    training, held_out = (known_values(fit.get(group, {})) for group in ("training", "held_out"))
    if not (training.size and held_out.size):
        return []
    gap = training.mean() - held_out.mean()
    enough = min(len(training), len(held_out)) >= FEWEST_CASES
    told = (
        f"mean Dice {training.mean():.3f} on {len(training)} training cases, {held_out.mean():.3f} on"
        f" {len(held_out)} held-out ones"
    )
    if enough and gap > max(0.05, 2 * _standard_error(training, held_out)):
        weight: Weight = 2 if gap > 0.1 else 1
        return [
            Finding(
                "overfitting",
                weight,
                "The model fits its training cases better than others",
                f"{told}, a gap of {gap:.3f}",
                "It has learnt particulars of these cases: more cases, stronger patches.augmentation, more"
                " training.weight_decay, or fewer steps",
            )
        ]
    if training.mean() < 0.5:
        return [
            Finding(
                "underfitting",
                2,
                "The model does not even fit its training cases",
                told,
                "Train longer, with a larger network.channels or another training.learning_rate; look whether"
                " the label maps can be told from the images",
            )
        ]
    return []


def _standard_error(*groups: np.ndarray) -> float:
    """Of the difference of two groups' means."""
    return math.hypot(*(group.std(ddof=1) / math.sqrt(len(group)) for group in groups))


def read_renorm_clipping(probes: Path, experiment: Experiment) -> float | None:
    """Mean share of channels that renorm's limits cut, over the samples taken after the limits were widest.

    None where `probes.csv` has no such samples.
    """
    widest = max(experiment.network.renorm_schedule) * experiment.training.steps
    if not probes.is_file():
        return None
    rates = []
    with probes.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("layer") == "" and row.get("metric") in ("clip_rate_r", "clip_rate_d"):
                try:
                    if int(row["step"]) > widest:
                        rates.append(float(row["value"]))
                except (TypeError, ValueError):
                    break  # a line that a kill cut off
    return float(np.mean(rates)) if rates else None


def check_renorm(probes: Path, experiment: Experiment) -> list[Finding]:
    """Renorm whose limits cut most corrections to the end."""
    share = read_renorm_clipping(probes, experiment)
    if share is None or share < 0.25:
        return []
    return [
        Finding(
            "renorm clipped",
            1,
            "Renorm's limits cut many corrections to the end, so training and inference differ",
            f"{share:.0%} of the channels, mean of the samples taken since the limits were widest",
            "Raise network.r_max and network.d_max, or network.momentum: the statistics then follow faster",
        )
    ]


def _fit_line(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Change over the range of the steps, 0 where below 3 standard errors, and the level it starts from."""
    known = np.isfinite(values)
    x, y = steps[known] - steps[known].mean(), values[known]
    if len(x) < 4:
        return 0.0, 0.0
    slope = float(x @ (y - y.mean()) / (x @ x))
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / (len(x) - 2) / float(x @ x))
    change = slope * float(np.ptp(x)) if abs(slope) > 3 * error else 0.0
    return change, float(y.mean()) - change / 2


def known_values(values: Mapping[str, float | None]) -> np.ndarray:
    """The values that are not None, (n,) float64."""
    return np.array([value for value in values.values() if value is not None], dtype=np.float64)
