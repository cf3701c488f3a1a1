"""Pictures over the association: one line per method with its intervals, labelled at its end."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from medseg_brn.comparison.statistics import Estimate
from medseg_brn.reports.drawing import INK, MUTED, SERIES, drawing, make_svg
from medseg_brn.reports.page import Figure

COLOURS = {
    "renorm": SERIES[0],
    "BatchNorm": SERIES[1],
    "LayerNorm": SERIES[2],
    "ComBat": SERIES[3],
    "ComBat with group": SERIES[4],
    "z-score per batch": SERIES[5],
    "batch in the model": SERIES[2],
    "no correction": INK,
}
OFFSET = 0.006
"""Lines are drawn this far apart along V, so that intervals do not hide each other."""


def draw_over_association(
    estimates: Mapping[str, Mapping[float, Estimate]],
    *,
    label: str,
    caption: str,
    level: tuple[float, str] | None = None,
) -> Figure:
    """Draw means with 95 % intervals over Cramér's V; of shares, which lie between 0 and 1.

    Args:
        estimates: method -> V -> estimate; NaN is left out.
        label: what is measured.
        caption: what stands under the figure.
        level: a value to compare with, and what it is.
    """
    with drawing(5.6, 3.9) as (figure, axes):
        axes.set_title(label)
        axes.set_xlabel("Cramér's V of group and batch")
        axes.grid(axis="x", visible=False)
        if level is not None:
            axes.axhline(level[0], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ends = {}
        for number, (name, over) in enumerate(estimates.items()):
            shift = OFFSET * (number - (len(estimates) - 1) / 2)
            known = {v: one for v, one in over.items() if not math.isnan(one.effect)}
            if known:
                _draw_line(axes, known, shift, COLOURS[name])
                ends[name] = (max(known) + shift, known[max(known)].effect)
        if level is not None:
            axes.annotate(
                level[1],
                (0.125, level[0]),
                (0, 4),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=8,
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks(sorted({v for over in estimates.values() for v in over}))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.03), min(high, 1.03))  # an interval from few data sets may reach further
        _label_ends(axes, ends)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{one.effect:.2f} at {v:g}" for v, one in over.items())
            for name, over in estimates.items()
        )
        return Figure(make_svg(figure, f"{label} over Cramér's V. {told}"), caption)


def _draw_line(axes: Axes, known: Mapping[float, Estimate], shift: float, colour: str) -> None:
    places = [v + shift for v in known]
    axes.plot(places, [one.effect for one in known.values()], color=colour, marker="o", markersize=3.5)
    for place, one in zip(places, known.values(), strict=True):
        if not math.isnan(one.low):
            axes.plot([place, place], [one.low, one.high], color=colour, linewidth=1.1, solid_capstyle="butt")


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Names beside the picture, each near its line's end and none over another."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = spread_labels([height for _, height in ends.values()], low, high, 0.062 * (high - low))
    for (name, (place, height)), label_height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name,
            (place, height),
            (1.08, label_height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=COLOURS[name],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": COLOURS[name], "linewidth": 0.6, "alpha": 0.6},
        )


def spread_labels(heights: Sequence[float], low: float, high: float, distance: float) -> list[float]:
    """Return heights in the same order, at least `distance` apart from each other where the room allows it.

    Args:
        heights: wanted.
        low: end of the room.
        high: end of the room.
        distance: between neighbours.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    floor = low
    for index in order:
        placed[index] = floor = max(heights[index], floor)
        floor += distance
    ceiling = high
    for index in reversed(order):
        placed[index] = ceiling = min(placed[index], ceiling)
        ceiling -= distance
    return placed


def collect(
    names: Sequence[str], associations: Sequence[float], estimate: Callable[[str, float], Estimate]
) -> dict[str, dict[float, Estimate]]:
    """Return the estimate of each name at each association."""
    return {name: {v: estimate(name, v) for v in associations} for name in names}


def draw_against_permuted(
    observed: Mapping[str, np.ndarray], permuted: Mapping[str, np.ndarray], *, label: str, caption: str
) -> Figure:
    """Draw a row per method: measurements as dots over the band of what permuted groups reach.

    Args:
        observed: method -> (repeats,); empty where the method was not possible.
        permuted: method -> (permutations,).
        label: what is measured.
        caption: what stands under the figure.
    """
    names = [name for name, values in observed.items() if values.size]
    with drawing(8.6, 0.9 + 0.42 * len(names)) as (figure, axes):
        for row, name in enumerate(names):
            if permuted[name].size:
                low, median, high = np.percentile(permuted[name], (5, 50, 95))
                axes.barh(row, high - low, left=low, height=0.6, color=MUTED, alpha=0.25)
                axes.plot([median, median], [row - 0.3, row + 0.3], color=MUTED, solid_capstyle="butt")
            axes.plot(observed[name], [row] * len(observed[name]), "o", color=COLOURS[name], markersize=5)
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
        told = "; ".join(f"{name}: mean {observed[name].mean():.2f}" for name in names)
        return Figure(make_svg(figure, f"{label} per method. {told}"), caption)
