"""Curves over a run and the spread over cases, labelled where they are instead of in a legend."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from medseg_brn.reports.drawing import INK, SERIES, drawing, make_svg
from medseg_brn.reports.page import Figure

Numbers = Sequence[float] | np.ndarray

MOST_POINTS = 150
"""A curve of more steps is drawn as medians with a band, which shows what a line through all would hide."""


def draw_curve(
    steps: Numbers,
    values: Numbers,
    *,
    label: str,
    caption: str,
    colour: str = SERIES[0],
    log_scale: bool = False,
) -> Figure:
    """One measurement per step: medians of neighbouring steps, and their 10th to 90th percentile as a band.

    Args:
        steps: (N,) ascending.
        values: (N,); NaN and infinity are left out.
        label: what is measured.
        caption: what stands under the figure.
        colour: one of `SERIES`.
        log_scale: whether to draw the values on a logarithmic scale.
    """
    known = np.isfinite(values)
    step_bins, value_bins = (
        np.array_split(np.asarray(data, float)[known], max(1, min(MOST_POINTS, int(known.sum()))))
        for data in (steps, values)
    )
    described = f"{label} over steps"
    with drawing() as (figure, axes):
        _style_steps(axes, label)
        if known.any():
            middles = [group.mean() for group in step_bins]
            low, median, high = np.array([np.percentile(group, (10, 50, 90)) for group in value_bins]).T
            axes.fill_between(middles, low, high, color=colour, alpha=0.22, linewidth=0)
            axes.plot(middles, median, color=colour)
            _write(axes, f"{median[-1]:.3g}", (middles[-1], median[-1]), colour, fontweight="bold")
            if log_scale and low.min() > 0:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
            described += f": from {median[0]:.3g} to {median[-1]:.3g}"
        return Figure(make_svg(figure, described), caption)


def draw_points(
    steps: Numbers, values: Numbers, *, label: str, caption: str, colour: str = SERIES[1]
) -> Figure:
    """Few measurements in [0, 1], such as validations, each marked; the best and the last in numbers."""
    with drawing() as (figure, axes):
        _style_steps(axes, label)
        axes.plot(steps, values, color=colour, marker="o", markersize=4.5)
        best, last = int(np.nanargmax(values)), len(values) - 1
        _write(axes, f"{values[last]:.3f}", (steps[last], values[last]), colour, fontweight="bold")
        if best != last:
            _write(
                axes, f"{values[best]:.3f}", (steps[best], values[best]), colour, offset=(0, 9), ha="center"
            )
        axes.set_ylim(top=min(1.0, max(values) + 0.25 * (max(values) - min(values)) + 0.02))
        described = (
            f"{label} over steps: last {values[last]:.3f}, best {values[best]:.3f} at step {steps[best]:g}"
        )
        return Figure(make_svg(figure, described), caption)


def draw_spread(groups: Mapping[str, Sequence[float]], *, label: str, caption: str) -> Figure:
    """One row per group: every value as a dot, the quartiles as a box, the median in words.

    Args:
        groups: name -> values in [0, 1]; NaN is left out.
        label: what is measured.
        caption: what stands under the figure.
    """
    defined = {name: _defined(values) for name, values in groups.items()}
    random = np.random.default_rng(0)  # the dots' vertical scatter, which only keeps them apart
    with drawing(8.6, 0.85 + 0.5 * len(groups)) as (figure, axes):
        for row, values in enumerate(defined.values()):
            if not values.size:
                continue
            low, median, high = np.percentile(values, (25, 50, 75))
            axes.barh(row, high - low, left=low, height=0.62, color=SERIES[0], alpha=0.16)
            axes.plot([median, median], [row - 0.31, row + 0.31], color=INK, solid_capstyle="butt")
            scatter = random.uniform(-0.22, 0.22, values.size)
            axes.plot(
                values, row + scatter, ".", color=SERIES[0], alpha=0.75, markersize=6, markeredgewidth=0
            )
            _write(axes, f"{median:.3f}", (1, row), INK, xycoords=axes.get_yaxis_transform())
        axes.set_yticks(range(len(groups)), [_shorten(name) for name in groups])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(f"{label} (number at the right: median)")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _fit_unit_range(axes, np.concatenate([*defined.values(), np.empty(0)]))
        medians = "; ".join(f"{name}: median {np.median(v):.3f}" for name, v in defined.items() if v.size)
        return Figure(make_svg(figure, f"{label} per case. {medians}"), caption)


def _style_steps(axes: Axes, label: str) -> None:
    """Steps along x, the measurement's name as the title: it reads faster than a turned axis label."""
    axes.set_title(label)
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)


def _write(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    colour: str,
    offset: tuple[int, int] = (6, 0),
    **style: Any,
) -> None:
    """A value beside its point, off by `offset` typographic points."""
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        va="center",
        color=colour,
        annotation_clip=False,
        **style,
    )


def _fit_unit_range(axes: Axes, values: np.ndarray) -> None:
    """Shows [lowest, 1] of values in [0, 1], from a round tenth below the lowest."""
    lowest = np.floor(10 * values.min() - 0.2) / 10 if values.size else 0.0
    axes.set_xlim(max(0.0, min(lowest, 0.9)) - 0.01, 1.005)


def _defined(values: Sequence[float]) -> np.ndarray:
    known = np.asarray(values, dtype=float)
    return known[np.isfinite(known)]


def _shorten(name: str, longest: int = 24) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
