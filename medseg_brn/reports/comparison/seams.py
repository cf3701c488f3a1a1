"""Seams between tiles as pictures."""

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from medseg_brn.reports.comparison.looks import WIDTH
from medseg_brn.reports.comparison.record import Seams
from medseg_brn.reports.drawing import make_image


def draw_seams(seams: Seams, largest: float, description: str) -> Markup:
    """`<img>` of the image, the volume in one piece, the tiles, and their absolute difference.

    Args:
        seams: the slice.
        largest: difference drawn brightest, so that pictures of several norms compare.
        description: what is shown, in words, for screen readers.
    """
    difference = np.abs(seams.tiled - seams.full)
    low, high = np.nanpercentile(seams.image, (1, 99)) if np.isfinite(seams.image).any() else (0.0, 1.0)
    shown = (
        ("image", seams.image, "gray", (low, max(high, low + 1e-6)), False),
        ("one piece", seams.full, "gray", (0, 1), False),
        ("tiles", seams.tiled, "gray", (0, 1), True),
        ("difference", difference, "inferno", (0, max(largest, 1e-6)), True),
    )
    across, up = seams.image.shape
    width = WIDTH / len(shown)
    figure = Drawing(figsize=(WIDTH, min(width * up / across, 4.0) + 0.25), facecolor="black")
    for number, (name, pixels, colours, (black, white), cut) in enumerate(shown):
        axes = figure.add_axes((number / len(shown) + 0.003, 0.0, 1 / len(shown) - 0.006, 0.9))
        axes.imshow(pixels.T, cmap=colours, vmin=black, vmax=white, origin="lower", interpolation="nearest")
        axes.set_title(name, color="white", fontsize=9, pad=3)
        if cut:
            style: dict[str, Any] = {
                "color": "#56b4e9",
                "linewidth": 0.7,
                "linestyle": (0, (3, 3)),
                "alpha": 0.8,
            }
            for place in seams.cuts_x:
                axes.axvline(place - 0.5, **style)
            for place in seams.cuts_y:
                axes.axhline(place - 0.5, **style)
        axes.set_axis_off()
        axes.set_xlim(-0.5, across - 0.5)
        axes.set_ylim(-0.5, up - 0.5)
    return make_image(figure, description, dots_per_inch=120)
