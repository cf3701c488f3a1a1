"""The study's drawings: marks are what was measured, lines what the formulas say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from medseg_brn.comparison.statistics import Estimate, estimate_scalar
from medseg_brn.reports.drawing import INK, MUTED, SERIES, drawing, make_svg
from medseg_brn.reports.page import Figure
from medseg_brn.studies.pictures import name_references, space_apart, style_rows

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """One formula as a curve, and what was measured of it."""

    name: str
    x: Numbers
    y: Numbers
    measured_x: Numbers
    measured: Sequence[Numbers]
    """At each of `measured_x` one number per seed."""


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    caption: str,
    top: float = 1.05,
    width: float = 5.6,
    dots: bool = True,
) -> Figure:
    """Formulas as lines and measurements as means with 95 % intervals over seeds, named at the right end.

    Args:
        lines: at most as many as there are colours.
        title: what is measured.
        x_label: of the axis below.
        caption: what stands under the figure.
        top: of the vertical axis, which begins at 0.
        width: in inches.
        dots: whether measurements are marks, or else a line of their own beside a dashed formula.
    """
    with drawing(width, 3.4) as (figure, axes):
        axes.set_title(title)
        axes.set_xlabel(x_label)
        for line, colour in zip(lines, SERIES, strict=False):
            axes.plot(line.x, line.y, color=colour, linewidth=1.3, linestyle="-" if dots else "--")
            if dots:
                _mark(axes, line.measured_x, line.measured, colour)
            else:
                axes.plot(line.measured_x, [np.mean(one) for one in line.measured], color=colour)
        axes.set_ylim(min(-0.05, *(float(np.min(one)) for line in lines for one in line.measured)), top)
        _name_ends(axes, [line.name for line in lines], [float(line.y[-1]) for line in lines])
        told = "; ".join(
            f"{line.name}: " + ", ".join(f"{np.mean(one):.3f}" for one in list(line.measured)[:12])
            for line in lines
        )
        return Figure(make_svg(figure, f"{title} against {x_label}. {told}"), caption)


def draw_estimates(
    estimates: Mapping[str, Estimate],
    *,
    label: str,
    caption: str,
    limits: tuple[float, float],
    reference: Mapping[str, float],
) -> Figure:
    """One row an estimate: a mark with its interval, and the number; see `draw_series`."""
    with drawing(8.6, 1.05 + 0.36 * len(estimates)) as (figure, axes):
        for row, estimate in enumerate(estimates.values()):
            _draw_estimate(axes, row, estimate, form=".4f")
        for place in reference.values():
            axes.axvline(place, color=MUTED, linewidth=1.1, linestyle="--")
        style_rows(axes, list(estimates), label, limits)
        name_references(axes, reference, lifted=False)
        told = "; ".join(f"{name}: {one.effect:.4f}" for name, one in estimates.items())
        return Figure(make_svg(figure, f"{label}. {told}"), caption)


def _mark(axes: Axes, x: Numbers, measured: Sequence[Numbers], colour: str) -> None:
    for place, values in zip(x, measured, strict=True):
        estimate = estimate_scalar(np.asarray(values, float))
        axes.plot(place, estimate.effect, "o", color=colour, markersize=4.5)
        if np.isfinite(estimate.low):
            axes.plot([place, place], [estimate.low, estimate.high], color=colour)


def _name_ends(axes: Axes, names: Sequence[str], ends: Sequence[float]) -> None:
    """Names at the right; lines that end together share a line of text, in ink."""
    together: dict[float, list[int]] = {}
    for number, y in enumerate(ends):
        place = next((one for one in together if abs(one - y) < 0.015), y)
        together.setdefault(place, []).append(number)
    low, high = axes.get_ylim()
    places = space_apart(list(together), 0.065 * (high - low))
    for numbers, place in zip(together.values(), places, strict=True):
        axes.text(
            1.02,
            place,
            ", ".join(names[number] for number in numbers),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=SERIES[numbers[0]] if len(numbers) == 1 else INK,
        )


def _draw_estimate(axes: Axes, row: int, estimate: Estimate, form: str = ".3f") -> None:
    if np.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], color=INK, linewidth=2.4, alpha=0.8)
    axes.plot(estimate.effect, row, "|", color=INK, markersize=13, markeredgewidth=2)
    axes.annotate(
        f"{round(estimate.effect, int(form[1])) + 0.0:{form}}",  # no "-0.000"
        (1.01, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        color=INK,
        annotation_clip=False,
    )
