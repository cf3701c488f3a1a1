"""Courses of a comparison over training steps: what was probed, and the loss."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medseg_brn.probes.curves import find_spikes
from medseg_brn.reports.comparison.looks import (
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
from medseg_brn.reports.comparison.record import Samples
from medseg_brn.reports.drawing import INK, MUTED, make_svg
from medseg_brn.reports.page import Figure

MOST_POINTS = 80
"""Of a line in a small panel; a longer curve is drawn as medians of neighbouring steps."""

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and losses of one run, each (steps,)."""


def draw_over_steps(
    samples: Samples, looks: Looks, *, label: str, caption: str, log_scale: bool = False
) -> Figure:
    """One panel per batch size: each norm's median over seeds, and their range as a band.

    Args:
        samples: batch size -> norm -> step -> values.
        looks: of every norm drawn.
        label: what is measured.
        caption: what stands under the figure.
        log_scale: whether the values differ by orders of magnitude; what is not positive is then left out.
    """
    drawn = [norm for norm in looks if any(norm in norms for norms in samples.values())]
    with make_panels(1, len(samples), 3.0 + 0.2 * -(-len(drawn) // 5), sharex=False, sharey=True) as (
        figure,
        grid,
    ):
        for axes, (size, norms) in zip(grid[0], sorted(samples.items()), strict=True):
            axes.set_title(f"batch size {size}")
            _style_steps(axes)
            for norm in (norm for norm in drawn if norm in norms):
                _draw_course(axes, looks[norm], *summarize(norms[norm], log_scale))
        first = grid[0][0]
        if log_scale and any(axes.lines for axes in grid[0]):
            first.set_yscale("log")
            label_decades(first.yaxis, *first.get_ylim())
        first.set_ylabel(label)
        for norm in drawn:  # once each, whichever panels show it
            look = looks[norm]
            first.plot([], [], color=look.colour, linestyle=look.dashes, label=shorten(norm))
        add_legend(figure, columns=5)
        return Figure(make_svg(figure, f"{caption} {label} over steps of {', '.join(drawn)}."), caption)


def draw_losses(curves: Mapping[str, Mapping[int, Sequence[Curve]]], looks: Looks, *, caption: str) -> Figure:
    """One row per norm, one column per batch size, one line per seed; ticks at the top mark spikes.

    Args:
        curves: norm -> batch size -> runs.
        looks: of every norm drawn.
        caption: what stands under the figure.
    """
    sizes = sorted({size for cells in curves.values() for size in cells})
    margins = Margins(left=measure_names(list(curves)) + 0.45, right=0.15, top=0.35, bottom=0.5, between=0.2)
    height = 0.85 + 0.8 * len(curves)
    spikes, medians = 0, []
    with make_panels(len(curves), len(sizes), height, sharex="col", sharey=True, margins=margins) as (
        figure,
        grid,
    ):
        for row, (norm, cells) in zip(grid, curves.items(), strict=True):
            row[0].set_ylabel(shorten(norm), rotation=0, ha="right", va="center", color=INK, labelpad=8)
            for axes, size in zip(row, sizes, strict=True):
                _style_steps(axes)
                for steps, losses in cells.get(size, ()):
                    medians.append(_draw_loss(axes, steps, losses, looks[norm].colour))
                    spikes += int(find_spikes(losses).sum())
                if not cells.get(size):
                    axes.text(0.5, 0.5, "no run", transform=axes.transAxes, ha="center", color=MUTED)
        for axes, size in zip(grid[0], sizes, strict=True):
            axes.set_title(f"batch size {size}")
        for axes in grid[:-1].flat:
            axes.set_xlabel("")
        _fit_losses(grid[0][0], np.concatenate([*medians, np.empty(0)]))
        described = f"{caption} Norms: {', '.join(map(shorten, curves))}; {spikes} spikes in all."
        return Figure(make_svg(figure, described), f"{caption} {spikes} spikes in all.")


def smooth(steps: np.ndarray, losses: np.ndarray) -> Curve:
    """At most `MOST_POINTS` medians of neighbouring steps; NaN and infinity are left out."""
    known = np.isfinite(losses)
    if not known.any():
        return np.empty(0), np.empty(0)
    parts = min(MOST_POINTS, int(known.sum()))
    steps_of, losses_of = (np.array_split(data[known], parts) for data in (steps, losses))
    return np.array([group.mean() for group in steps_of]), np.array([np.median(g) for g in losses_of])


def summarize(
    steps: Mapping[int, Sequence[float]], positive: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and over the seeds the lowest, median and highest value of each."""
    known = {step: keep_finite(values) for step, values in sorted(steps.items())}
    if positive:
        known = {step: values[values > 0] for step, values in known.items()}
    known = {step: values for step, values in known.items() if values.size}
    rows = [(step, values.min(), np.median(values), values.max()) for step, values in known.items()]
    table = np.array(rows[:: -(-len(rows) // MOST_POINTS) or 1], float).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def _style_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _draw_course(axes: Axes, look: Look, steps: np.ndarray, *bounds: np.ndarray) -> None:
    """A median and its band, the same look as everywhere."""
    low, middle, high = bounds
    if steps.size:
        axes.fill_between(steps, low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=look.colour, linestyle=look.dashes, linewidth=look.width)


def _draw_loss(axes: Axes, steps: np.ndarray, losses: np.ndarray, colour: str) -> np.ndarray:
    """A smoothed loss, and a tick at the top for each spike; returns the smoothed losses."""
    smoothed = smooth(steps, losses)
    axes.plot(*smoothed, color=colour, linewidth=1, alpha=0.8)
    spiked = steps[find_spikes(losses)]
    heights = np.full(len(spiked), 0.93)
    axes.plot(spiked, heights, "|", color=INK, markersize=5, transform=axes.get_xaxis_transform())
    return smoothed[1]


def _fit_losses(axes: Axes, losses: np.ndarray) -> None:
    """Shows nearly all of the losses: a diverging run must not press the others into a line."""
    if losses.size:
        low, typical, high = losses.min(), np.percentile(losses, 98), losses.max()
        top = min(high, low + 1.5 * (typical - low)) if typical > low else high
        margin = 0.08 * max(top - low, 1e-6)
        axes.set_ylim(low - margin, top + 2 * margin)
    axes.yaxis.set_major_locator(MaxNLocator(3))
