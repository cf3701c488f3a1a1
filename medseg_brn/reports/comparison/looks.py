"""What the charts of a comparison share: each norm keeps its colour, marker and dashes in all of them.

Six colours are as many as one can tell apart; beyond six norms the dashes, and in every case the markers,
carry the difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullLocator

from medseg_brn.reports.drawing import INK, LINE, SERIES, drawing

MARKERS = "osD^vPX<>phd"
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)))
WIDTH = 9.2
"""Of a figure as wide as the page, in inches."""

Sharing = bool | Literal["none", "all", "row", "col"]


@dataclass(frozen=True)
class Look:
    """How one norm is drawn wherever it appears."""

    colour: str
    marker: str
    dashes: Any
    width: float = 1.4


Looks = Mapping[str, Look]


def choose_looks(norms: Sequence[str], reference: str = "") -> dict[str, Look]:
    """One look per norm, the same in every chart; the reference's line is thicker."""
    return {
        norm: Look(
            SERIES[number % len(SERIES)],
            MARKERS[number % len(MARKERS)],
            DASHES[number // len(SERIES) % len(DASHES)],
            2.6 if norm == reference else 1.4,
        )
        for number, norm in enumerate(norms)
    }


def shorten(name: str, longest: int = 24) -> str:
    """A name for a chart: underscores as spaces, control characters as dots, an ellipsis where it is long."""
    name = "".join(mark if mark.isprintable() else "·" for mark in name.replace("_", " "))
    return name if len(name) <= longest else name[: longest - 1] + "…"


@dataclass(frozen=True)
class Margins:
    """Room about a grid of panels and between its columns, in inches."""

    left: float
    right: float
    top: float
    bottom: float
    between: float


@contextmanager
def make_panels(
    rows: int,
    columns: int,
    height: float,
    *,
    sharex: Sharing,
    sharey: Sharing,
    margins: Margins | None = None,
) -> Iterator[tuple[Drawing, np.ndarray]]:
    """A figure and its (rows, columns) axes, each as `drawing` would make it.

    Without margins the layout is found from what is drawn, which many panels make slow.
    """
    with drawing(WIDTH, height) as (figure, axes):
        axes.remove()
        grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        for panel in grid.flat:
            panel.patch.set_alpha(0)
        if margins is not None:
            across = (WIDTH - margins.left - margins.right - (columns - 1) * margins.between) / columns
            figure.set_layout_engine(None)
            figure.subplots_adjust(
                left=margins.left / WIDTH,
                right=1 - margins.right / WIDTH,
                top=1 - margins.top / height,
                bottom=margins.bottom / height,
                wspace=margins.between / across,
            )
        yield figure, grid


def measure_names(norms: Sequence[str]) -> float:
    """Inches that the longest of the names takes as a label, and a little air."""
    return 0.2 + 0.071 * max((len(shorten(norm)) for norm in norms), default=0)


def label_decades(axis: Any, low: float, high: float, most: int = 6) -> None:
    """Plain numbers on a logarithmic axis, at most that many."""
    decades = np.log10(high / low)
    axis.set_major_formatter("{x:g}")
    axis.set_major_locator(LogLocator(subs=(1, 3) if decades < 0.5 * most - 0.5 else (1,), numticks=most))
    axis.set_minor_locator(NullLocator())


def add_legend(figure: Drawing, columns: int) -> None:
    """Marks and names below the panels, where there is anything to name."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        legend = figure.legend(
            loc="outside lower center", ncols=columns, fontsize=8, labelcolor=INK, edgecolor=LINE
        )
        legend.get_frame().set_alpha(0)


def keep_finite(values: Sequence[float]) -> np.ndarray:
    """The values without NaN and infinity, as (N,) float64."""
    known = np.asarray(values, dtype=float)
    return known[np.isfinite(known)]
