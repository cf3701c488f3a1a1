"""Charts of a comparison of norms over batch sizes: lines, rows of marks, and measured against predicted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medseg_brn.reports.comparison.looks import (
    WIDTH,
    Look,
    Looks,
    Margins,
    add_legend,
    keep_finite,
    label_decades,
    make_panels,
    measure_names,
    shorten,
)
from medseg_brn.reports.drawing import INK, MUTED, drawing, make_svg
from medseg_brn.reports.page import Figure

BAND = 0.15
"""Relative difference from theory that still counts as agreement."""
LEAST = 1e-5
"""A difference of probabilities below it is rounding, and lies below a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """A mean at one batch size and its interval, NaN where undefined."""

    batch_size: int
    value: float
    low: float
    high: float


def draw_by_batch_size(
    lines: Mapping[str, Sequence[Point]],
    looks: Looks,
    *,
    label: str,
    caption: str,
    floor: float = -math.inf,
) -> Figure:
    """One line per norm over batch sizes (log2), with interval bars, named at its right end.

    Args:
        lines: norm -> points, ascending in batch size.
        looks: of every norm drawn.
        label: what is measured.
        caption: what stands under the figure.
        floor: where the axis begins if anything is below: that is an open mark at the lower edge, and its
            number.
    """
    known = {norm: [p for p in points if np.isfinite(p.value)] for norm, points in lines.items()}
    known = {norm: points for norm, points in known.items() if points}
    sizes = sorted({point.batch_size for points in known.values() for point in points})
    places = np.log2(sizes)
    gap = float(np.diff(places).min()) if len(sizes) > 1 else 1.0
    shifts = np.linspace(-0.22, 0.22, len(known)) * gap if len(known) > 1 else np.zeros(1)
    with drawing(WIDTH, 4.6) as (figure, axes):
        axes.set_title(label)
        axes.set_xlabel("batch size")
        axes.set_xticks(places, [str(size) for size in sizes])
        axes.grid(axis="x", visible=False)
        if known:
            axes.set_xlim(places[0] - 0.35 * gap, places[-1] + 0.3 * gap)
            axes.set_ylim(_bound(list(known.values()), floor))
        ends = {
            norm: _draw_line(axes, points, looks[norm], shift, floor)
            for (norm, points), shift in zip(known.items(), shifts, strict=False)
        }
        _name_lines(axes, ends, looks)
        told = "; ".join(
            f"{shorten(norm)}: " + ", ".join(f"{p.value:.3g} at {p.batch_size}" for p in points)
            for norm, points in known.items()
        )
        return Figure(make_svg(figure, f"{label} against batch size. {told}"), caption)


def draw_by_norm(
    values: Mapping[int, Mapping[str, Sequence[float]]],
    looks: Looks,
    *,
    label: str,
    caption: str,
    form: str = ".3f",
    floor: float = -math.inf,
    log_scale: bool = False,
) -> Figure:
    """One panel per batch size, one row per norm, every value a mark, the mean as a line and in numbers.

    What is below the floor is an open mark at the left edge. On a logarithmic scale the floor lies below all
    values from `LEAST` up, so that the open marks are those of zeros and of rounding.

    Args:
        values: batch size -> norm -> values; NaN is left out, what is missing is a dash.
        looks: norms in the order of the rows.
        label: what is measured.
        caption: what stands under the figure.
        form: format of the number at the right.
        floor: where a linear axis begins if anything is below.
        log_scale: whether the values differ by orders of magnitude.
    """
    known = {size: {norm: keep_finite(group) for norm, group in row.items()} for size, row in values.items()}
    merged = np.concatenate([*(group for row in known.values() for group in row.values()), np.empty(0)])
    if log_scale:
        floor = _find_log_floor(merged)
    margins = Margins(left=measure_names(list(looks)), right=0.55, top=0.3, bottom=0.5, between=0.65)
    height = 0.8 + 0.27 * len(looks)
    with make_panels(1, len(values), height, sharex=True, sharey=True, margins=margins) as (figure, grid):
        first = grid[0][0]
        if log_scale:
            first.set_xscale("log")
        for axes, (size, row) in zip(grid[0], known.items(), strict=True):
            _style_rows(axes, f"batch size {size}")
            for place, (norm, look) in enumerate(looks.items()):
                group = row.get(norm, np.empty(0))
                _write_mean(axes, place, group, form)
                if group.size:
                    _draw_row(axes, place, group, look, floor, stem=log_scale)
        _scale_values(first, merged, floor, log_scale)
        first.set_yticks(range(len(looks)), [shorten(norm) for norm in looks])
        first.set_ylim(len(looks) - 0.5, -0.5)
        figure.supxlabel(label, fontsize=9, color=MUTED, y=0.06 / height)
        told = "; ".join(
            f"{shorten(norm)} at batch size {size}: {group.mean():{form}}"
            for size, row in known.items()
            for norm, group in row.items()
            if group.size
        )
        return Figure(make_svg(figure, f"{label} of each norm. {told}"), caption)


def draw_agreement(
    points: Mapping[str, Sequence[tuple[float, float]]], looks: Looks, *, label: str, caption: str
) -> Figure:
    """Measured against predicted, both logarithmic, with the identity and the band of agreement.

    Args:
        points: norm -> (theory, measured); what is not positive is left out.
        looks: of every norm drawn.
        label: what is measured.
        caption: what stands under the figure; the share of points in the band is added.
    """
    known = {
        norm: np.array([p for p in pairs if min(p) > 0]).reshape(-1, 2) for norm, pairs in points.items()
    }
    known = {norm: pairs for norm, pairs in known.items() if pairs.size}
    merged = np.concatenate([*known.values(), np.empty((0, 2))])
    with drawing(5.2, 5.0) as (figure, axes):
        axes.set_title(label)
        axes.set_xlabel("predicted by theory")
        axes.set_ylabel("measured")
        if merged.size:
            ends = np.array([merged.min() / 1.4, merged.max() * 1.4])
            axes.fill_between(
                ends, ends * (1 - BAND), ends * (1 + BAND), color=MUTED, alpha=0.16, linewidth=0
            )
            axes.plot(ends, ends, color=MUTED, linewidth=1)
            axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
            for axis in (axes.xaxis, axes.yaxis):
                label_decades(axis, *ends)
        for norm, pairs in known.items():
            look = looks[norm]
            fill = look.colour if look.dashes == "solid" else "none"
            axes.plot(
                *pairs.T,
                look.marker,
                color=look.colour,
                markerfacecolor=fill,
                markersize=5,
                alpha=0.85,
                label=shorten(norm),
            )
        add_legend(figure, columns=3)
        within = int((np.abs(merged[:, 1] / merged[:, 0] - 1) <= BAND).sum())
        share = f"{within} of {len(merged)} lie within {100 * BAND:.0f}\u00a0% of theory."
        return Figure(make_svg(figure, f"{label}, measured against theory. {share}"), f"{caption} {share}")


def _bound(lines: Sequence[Sequence[Point]], floor: float) -> tuple[float, float]:
    """Lower and upper end of the axis: every point and interval, but not below the floor."""
    numbers = keep_finite([n for points in lines for p in points for n in (p.value, p.low, p.high)])
    low, high = max(float(numbers.min()), floor), float(numbers.max())
    margin = max(0.05 * (high - low), 0.02)
    return low - margin, high + margin


def _draw_line(
    axes: Axes, points: Sequence[Point], look: Look, shift: float, floor: float
) -> tuple[float, float]:
    """One norm's line, marks and bars; returns where it ends."""
    x = np.log2([point.batch_size for point in points]) + shift
    y = np.array([point.value for point in points])
    placed = np.maximum(y, axes.get_ylim()[0])
    style: dict[str, Any] = {"color": look.colour, "linewidth": look.width, "markersize": 5, "clip_on": False}
    axes.plot(x, placed, linestyle=look.dashes, **style)
    for where, fill in ((y >= floor, look.colour), (y < floor, "none")):
        if not where.any():
            continue  # a line without points would count as one at the figure's corner in the layout
        axes.plot(x[where], placed[where], look.marker, markerfacecolor=fill, **style)
    lows, highs = np.array([(point.low, point.high) for point in points]).T
    axes.vlines(x, lows, highs, color=look.colour, linewidth=1.1, alpha=0.65)
    for place, value in zip(x[y < floor], y[y < floor], strict=True):
        axes.annotate(
            f"{value:.2g}",
            (place, axes.get_ylim()[0]),
            (0, 6),
            color=look.colour,
            fontsize=8,
            textcoords="offset points",
            ha="center",
        )
    return float(x[-1]), float(placed[-1])


def _style_rows(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK, length=0)


def _write_mean(axes: Axes, place: int, values: np.ndarray, form: str) -> None:
    """The mean at the right of a row; a dash where there is none, and a plain 0 for what is exactly 0."""
    text = "–" if not values.size else format(values.mean(), form) if values.any() else "0"
    axes.annotate(
        text,
        (1, place),
        (5, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK if values.size else MUTED,
    )


def _draw_row(axes: Axes, place: int, values: np.ndarray, look: Look, floor: float, *, stem: bool) -> None:
    """A norm's values at one batch size, from left to right, and a stem from the floor to their mean."""
    placed = np.maximum(values, floor)
    if stem:
        axes.plot([floor, placed.mean()], [place, place], color=look.colour, linewidth=1.2, alpha=0.5)
    style: dict[str, Any] = {"color": look.colour, "markersize": 4.5, "alpha": 0.85, "clip_on": False}
    for where, fill in ((values >= floor, look.colour), (values < floor, "none")):
        axes.plot(placed[where], np.full(where.sum(), place), look.marker, markerfacecolor=fill, **style)
    if values.size > 1:
        axes.plot([placed.mean()] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.4)


def _find_log_floor(values: np.ndarray) -> float:
    """A power of ten at most half the smallest value from `LEAST` up."""
    shown = values[values >= LEAST]
    return float(10 ** np.floor(np.log10(shown.min() / 2))) if shown.size else LEAST


def _scale_values(axes: Axes, values: np.ndarray, floor: float, log_scale: bool) -> None:
    """The value axis of `draw_by_norm`, shared by all panels."""
    if log_scale:
        axes.set_xlim(floor, 1.5 * max(values.max(initial=floor), 10 * floor))
        label_decades(axes.xaxis, *axes.get_xlim(), most=3)
    elif values.size:
        low, high = max(float(values.min()), floor), float(values.max())
        margin = 0.04 * max(high - low, 0.02)
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(3))


def _name_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], looks: Looks) -> None:
    """Names at the right, moved apart so that none covers another, each joined to its line's end."""
    low, high = axes.get_ylim()
    wanted = [(y - low) / (high - low) for _, y in ends.values()]
    for (norm, end), place in zip(ends.items(), spread_apart(wanted, 0.046), strict=True):
        look = looks[norm]
        axes.annotate(
            shorten(norm),
            end,
            (1.03, place),
            textcoords=axes.transAxes,
            va="center",
            color=look.colour,
            fontweight="bold" if look.width > 2 else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.6,
                "alpha": 0.55,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
    axes.set_ylim(low, high)


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of the wanted ones and close to them, within [0, 1].

    Where there are too many to fit, they keep the gap and leave the range at its lower end.
    """
    order = np.argsort(wanted, kind="stable")
    placed = np.asarray(wanted, float)[order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()
