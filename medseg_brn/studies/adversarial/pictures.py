"""The study's drawings."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.special import ndtr

from medseg_brn.comparison.statistics import estimate_scalar
from medseg_brn.reports.curves import draw_curve
from medseg_brn.reports.drawing import INK, MUTED, SERIES, drawing, make_image, make_svg
from medseg_brn.reports.page import Figure
from medseg_brn.studies.adversarial.closed_form import LIMITS, compute_accuracy
from medseg_brn.studies.adversarial.statements import Measurements

REFERENCE, PREDICTION = "#56b4e9", "#ff9a3d"


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


def draw_rows(
    groups: Mapping[str, np.ndarray],
    *,
    label: str,
    caption: str,
    second: Mapping[str, np.ndarray] | None = None,
    names: tuple[str, str] = ("", ""),
    line: float | None = None,
) -> Figure:
    """A row a group: every seed a dot, the mean and its 95 % interval as a bar, the mean in numbers.

    Args:
        groups: name -> one number per seed.
        label: what is measured.
        caption: what stands under the figure.
        second: name -> other numbers per seed, drawn below the first in another colour.
        names: what first and second are.
        line: a number that all are seen against.
    """
    with drawing(8.6, 1.0 + (0.42 if second is None else 0.56) * len(groups)) as (figure, axes):
        if line is not None:
            axes.axvline(line, color=MUTED, linewidth=1.1, linestyle="--")
        for row, (name, values) in enumerate(groups.items()):
            _draw_row(axes, row - (0.17 if second else 0), values, SERIES[0])
            if second is not None and name in second:
                _draw_row(axes, row + 0.2, second[name], SERIES[1])
        axes.set_yticks(range(len(groups)), list(groups))
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.set_xlabel(f"{label} (number at the right: mean)")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if second is not None:
            for name, colour, place in zip(names, SERIES, (0.0, 0.5), strict=False):
                axes.annotate(
                    f"● {name}", (place, 1.02), xycoords="axes fraction", color=colour, annotation_clip=False
                )
        told = "; ".join(f"{name}: mean {np.nanmean(values):.3f}" for name, values in groups.items())
        return Figure(make_svg(figure, f"{label}. {told}"), caption)


def draw_courses(losses: Mapping[str, Sequence[np.ndarray]], label: str) -> list[Figure]:
    """A curve an arm: the discriminator's loss over steps, of all seeds together."""
    figures = []
    for arm, runs in losses.items():
        steps = np.repeat(np.arange(1, len(runs[0]) + 1), len(runs))
        figures.append(draw_curve(steps, np.stack(runs, 1).ravel(), label=f"{arm}: {label}", caption=arm))
    return figures


def draw_examples(
    images: np.ndarray, reference: np.ndarray, predictions: Mapping[str, np.ndarray], caption: str
) -> Figure:
    """A column an arm, a row a volume: the middle slice with the outlines of reference and prediction.

    Args:
        images: (n, X, Y).
        reference: (n, X, Y) bool.
        predictions: arm -> (n, X, Y) bool.
        caption: what stands under the figure.
    """
    rows, columns = len(images), len(predictions)
    with drawing(1.35 * columns, 1.35 * rows + 0.3) as (figure, axes):
        axes.remove()
        panels = figure.subplots(rows, columns, squeeze=False)
        for column, (name, predicted) in enumerate(predictions.items()):
            panels[0, column].set_title(name, fontsize=7)
            for row in range(rows):
                panel = panels[row, column]
                panel.imshow(images[row].T, cmap="gray", origin="lower", interpolation="nearest")
                for mask, colour, style in (
                    (reference, REFERENCE, "solid"),
                    (predicted, PREDICTION, "dashed"),
                ):
                    if mask[row].any() and not mask[row].all():
                        panel.contour(mask[row].T, [0.5], colors=[colour], linestyles=style, linewidths=1.2)
                panel.set_axis_off()
        return Figure(make_image(figure, f"Middle slices with outlines: {', '.join(predictions)}"), caption)


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


def _draw_row(axes: Axes, row: float, values: np.ndarray, colour: str) -> None:
    estimate = estimate_scalar(values)
    axes.plot(values, np.full(len(values), row), ".", color=colour, alpha=0.5, markeredgewidth=0)
    if np.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.4, alpha=0.8)
    axes.plot(estimate.effect, row, "|", color=colour, markersize=11, markeredgewidth=2)
    axes.annotate(
        f"{estimate.effect:.3f}",
        (1.01, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        color=colour,
        annotation_clip=False,
    )
