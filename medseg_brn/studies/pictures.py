"""Drawings that studies share: rows of arms with their seeds, and slices with outlines."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from medseg_brn.comparison.statistics import estimate_scalar
from medseg_brn.reports.drawing import INK, MUTED, SERIES, drawing, make_image, make_svg
from medseg_brn.reports.page import Figure

REFERENCE, PREDICTION = "#56b4e9", "#ff9a3d"
ON_BLACK = "#e8e8e8"
"""Images stand on black, whatever the paper."""
Series = Mapping[str, np.ndarray]
"""Row -> one number per seed; NaN or absent where there is none."""


def draw_series(
    series: Mapping[str, Series],
    *,
    label: str,
    caption: str,
    limits: tuple[float, float] | None = None,
    expected: Mapping[str, float] | None = None,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """A row an arm, a colour a series: every seed a dot, the mean and its 95 % interval, the mean in numbers.

    Args:
        series: name -> its rows; the first has all rows, in their order.
        label: what is measured.
        caption: what stands under the figure.
        limits: of the horizontal axis; by default those of the numbers.
        expected: row -> what a formula says, as an open diamond.
        reference: name -> a number that all are seen against, as a dashed line; an empty name is not written.
    """
    names = list(next(iter(series.values())))
    step = 0.23
    with drawing(8.8, 1.1 + (step * len(series) + 0.16) * len(names)) as (figure, axes):
        for place in (reference or {}).values():
            axes.axvline(place, color=MUTED, linewidth=1.1, linestyle="--")
        for number, (rows, colour) in enumerate(zip(series.values(), SERIES, strict=False)):
            shift = (number - (len(series) - 1) / 2) * step / (step * len(series) + 0.16)
            for row, name in enumerate(names):
                if name in rows and np.isfinite(rows[name]).any():
                    _draw_row(axes, row + shift, rows[name], colour)
        for name, place in (expected or {}).items():
            if name in names:
                row = names.index(name)
                axes.plot(place, row, "D", color=SERIES[1], markerfacecolor="none", markersize=8)
        style_rows(axes, names, label, limits)
        if len(series) > 1:
            _name_series(axes, list(series))
        name_references(axes, reference or {}, lifted=len(series) > 1)
        return Figure(make_svg(figure, f"{label}. {_tell(series)}"), caption)


def draw_outlines(
    images: np.ndarray, reference: np.ndarray, predictions: Mapping[str, np.ndarray], caption: str
) -> Figure:
    """A column an arm, a row a scan: its slice, windowed by itself, with outlines.

    Args:
        images: (n, X, Y).
        reference: (n, X, Y) bool.
        predictions: arm -> (n, X, Y) bool.
        caption: what stands under the figure.
    """
    with drawing(1.3 * len(predictions), 1.5 * len(images) + 0.4) as (figure, axes):
        axes.remove()
        panels = figure.subplots(len(images), len(predictions), squeeze=False)
        for column, (name, predicted) in enumerate(predictions.items()):
            panels[0, column].set_title(_break_lines(name), fontsize=6.5, color=ON_BLACK)
            for row, image in enumerate(images):
                panel = panels[row, column]
                panel.imshow(image.T, cmap="gray", origin="lower", interpolation="nearest")
                _outline(panel, reference[row], REFERENCE, "solid")
                _outline(panel, predicted[row], PREDICTION, "dashed")
                panel.set_axis_off()
        return Figure(make_image(figure, f"Slices with outlines: {'; '.join(predictions)}"), caption)


def _break_lines(name: str) -> str:
    """The parts of an arm's name below each other; the comma between two clips is none between parts."""
    return re.sub(r", (?=[a-z])|(?<=specific) ", "\n", name)


def style_rows(
    axes: Axes, names: Sequence[str], label: str, limits: tuple[float, float] | None = None
) -> None:
    """Rows with their names at the left, from the top down."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if limits is not None:
        axes.set_xlim(*limits)
    axes.set_xlabel(f"{label} (number at the right: mean)")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def space_apart(places: Sequence[float], gap: float) -> list[float]:
    """Places, in their order, moved as little as need be to lie at least `gap` apart.

    Those that crowd are laid out around their mean, so that nothing drifts to one side.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and _overlap(clusters[-2], clusters[-1], places, gap):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    moved = [0.0] * len(places)
    for cluster in clusters:
        for index, place in zip(cluster, _lay_out(cluster, places, gap), strict=True):
            moved[index] = place
    return moved


def _overlap(one: list[int], other: list[int], places: Sequence[float], gap: float) -> bool:
    return _lay_out(other, places, gap)[0] - _lay_out(one, places, gap)[-1] < gap - 1e-12


def _lay_out(cluster: list[int], places: Sequence[float], gap: float) -> list[float]:
    middle = float(np.mean([places[index] for index in cluster]))
    return [middle + gap * (number - (len(cluster) - 1) / 2) for number in range(len(cluster))]


def _outline(axes: Axes, mask: np.ndarray, colour: str, style: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask.T, [0.5], colors=[colour], linestyles=style, linewidths=1.2)


def _draw_row(axes: Axes, row: float, values: np.ndarray, colour: str) -> None:
    estimate = estimate_scalar(values)
    axes.plot(values, np.full(len(values), row), ".", color=colour, alpha=0.5, markeredgewidth=0)
    if np.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.4, alpha=0.8)
    axes.plot(estimate.effect, row, "|", color=colour, markersize=9, markeredgewidth=2)
    axes.annotate(
        f"{round(estimate.effect, 3) + 0.0:.3f}",  # no "-0.000"
        (1.01, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        color=colour,
        fontsize=8,
        annotation_clip=False,
    )


def _name_series(axes: Axes, names: Sequence[str]) -> None:
    for number, (name, colour) in enumerate(zip(names, SERIES, strict=False)):
        place = (number / len(names), 1.0)
        axes.annotate(
            f"● {name}",
            place,
            (0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colour,
            annotation_clip=False,
        )


def name_references(axes: Axes, reference: Mapping[str, float], lifted: bool) -> None:
    for name, place in reference.items():
        axes.annotate(
            name,
            (place, 1.0),
            (0, 18 if lifted else 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            annotation_clip=False,
        )


def _tell(series: Mapping[str, Series]) -> str:
    told = {
        name: [f"{row} {np.nanmean(values):.3f}" for row, values in rows.items() if np.isfinite(values).any()]
        for name, rows in series.items()
    }
    return "; ".join(f"{name}: {', '.join(means)}" for name, means in told.items())
