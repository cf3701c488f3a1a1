"""The study's own drawing: how far apart the workers' statistics are, over a run."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import NullLocator

from medseg_brn.reports.drawing import SERIES, drawing, make_svg
from medseg_brn.reports.page import Figure
from medseg_brn.studies.pictures import space_apart

SMALLEST = 1e-6
"""Nats; less is drawn as this, as a logarithmic axis has no 0."""


def draw_courses(
    courses: Mapping[str, tuple[Sequence[int], Sequence[Sequence[float]]]], *, title: str, caption: str
) -> Figure:
    """Each arm's divergence, logarithmic: geometric mean over repetitions, least and most as a band.

    Args:
        courses: arm -> steps, and for each repetition one number per step.
        title: what is measured.
        caption: what stands under the figure.
    """
    with drawing(5.8, 3.4) as (figure, axes):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        ends = []
        for (steps, repetitions), colour in zip(courses.values(), SERIES, strict=False):
            values = np.maximum(np.asarray(repetitions, float), SMALLEST)
            mean = np.exp(np.log(values).mean(0))
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, mean, color=colour, linewidth=1.4)
            ends.append(float(mean[-1]))
        low, high = axes.get_ylim()
        heights = np.log(np.array(ends) / low) / np.log(high / low)
        for name, height, colour in zip(courses, space_apart(list(heights), 0.07), SERIES, strict=False):
            axes.text(1.02, height, name, transform=axes.transAxes, va="center", color=colour)
        told = "; ".join(f"{name}: {end:.3g} at the end" for name, end in zip(courses, ends, strict=True))
        return Figure(make_svg(figure, f"{title}. {told}"), caption)
