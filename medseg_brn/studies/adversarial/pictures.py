"""The study's drawings."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.special import ndtr

from medseg_brn.comparison.statistics import estimate_scalar
from medseg_brn.reports.curves import draw_curve
from medseg_brn.reports.drawing import INK, MUTED, SERIES, drawing, make_svg
from medseg_brn.reports.page import Figure
from medseg_brn.studies.adversarial.closed_form import LIMITS, compute_accuracy
from medseg_brn.studies.adversarial.statements import Measurements


def draw_leaks(found: Measurements, caption: str) -> Figure:
    """The closed form: leak over the separation, by the formula (lines) and as measured (dots)."""
    title = "Accuracy above that of the best rule for one sample"
    separations = found.separations()
    fine = np.linspace(min(separations), max(separations), 81)
    best = compute_best_accuracy(fine)
    with drawing(6.4, 3.6) as (figure, axes):
        axes.set_title(title)
        axes.set_xlabel("separation δ of real and fake, in standard deviations")
        axes.axhline(0, color=MUTED, linewidth=1)
        told = []
        for limits, colour in zip(LIMITS, SERIES, strict=False):
            formula = np.array([compute_accuracy(x, limits.r_max, limits.d_max) for x in fine]) - best
            # BatchNorm and tight limits coincide: the one is drawn wide below the other.
            wide = limits is LIMITS[0]
            axes.plot(fine, formula, color=colour, linewidth=4 if wide else 1.4, alpha=0.35 if wide else 1)
            measured = [_leak_at(found, limits.name, separation) for separation in separations]
            for place, values in zip(separations, measured, strict=True):
                _draw_point(axes, place, values, colour)
            told.append(f"{limits.name}: largest {formula.max():.3f}")
        axes.margins(y=0.15)  # room for the name above the highest line
        peak = fine[int(np.argmax([compute_accuracy(x, 1, 0) for x in fine] - best))]
        for name, limits, colour, lift in (
            ("BatchNorm and renorm (1.5, 0.5)", LIMITS[0], INK, 0.008),
            ("renorm (3, 1)", LIMITS[2], SERIES[2], 0.006),
            ("renorm (3, 5)", LIMITS[3], SERIES[3], -0.006),
        ):
            x = peak if limits is LIMITS[0] else 2.6
            y = compute_accuracy(x, limits.r_max, limits.d_max) - float(compute_best_accuracy(x))
            axes.annotate(name, (x, y + lift), color=colour, ha="left", va="center")
        return Figure(make_svg(figure, f"{title}. {'; '.join(told)}"), caption)


def compute_best_accuracy(separation: np.ndarray | float) -> np.ndarray:
    """Φ(δ/2): of the best rule for one sample."""
    return np.asarray(ndtr(np.asarray(separation) / 2))


def draw_courses(losses: Mapping[str, Sequence[np.ndarray]], label: str) -> list[Figure]:
    """A curve an arm: the discriminator's loss over steps, of all seeds together."""
    figures = []
    for arm, runs in losses.items():
        steps = np.repeat(np.arange(1, len(runs[0]) + 1), len(runs))
        figures.append(draw_curve(steps, np.stack(runs, 1).ravel(), label=f"{arm}: {label}", caption=arm))
    return figures


def _leak_at(found: Measurements, name: str, separation: float) -> np.ndarray:
    accuracy, best = (
        found.values("closed form", name, column, separation)
        for column in ("accuracy_training", "accuracy_single")
    )
    return accuracy - best


def _draw_point(axes: Axes, place: float, values: np.ndarray, colour: str) -> None:
    estimate = estimate_scalar(values)
    axes.plot(place, estimate.effect, "o", color=colour, markersize=4)
    if np.isfinite(estimate.low):
        axes.plot([place, place], [estimate.low, estimate.high], color=colour)
