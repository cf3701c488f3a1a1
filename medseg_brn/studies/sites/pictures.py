"""The study's drawings."""

from collections.abc import Sequence

import numpy as np

from medseg_brn.reports.drawing import drawing, make_image
from medseg_brn.reports.page import Figure
from medseg_brn.studies.pictures import ON_BLACK


def draw_scanners(images: np.ndarray, names: Sequence[str], caption: str) -> Figure:
    """One anatomy as every scanner stores it, all in the same window: (S, X, Y)."""
    columns = (len(names) + 1) // 2
    with drawing(1.7 * columns, 4.3) as (figure, axes):
        axes.remove()
        panels = figure.subplots(2, columns, squeeze=False).ravel()
        low, high = np.percentile(images, (1, 99))
        for panel in panels:
            panel.set_axis_off()
        for panel, image, name in zip(panels, images, names, strict=False):
            panel.imshow(image.T, cmap="gray", origin="lower", vmin=low, vmax=high, interpolation="nearest")
            panel.set_title(name, fontsize=8, color=ON_BLACK)
        return Figure(make_image(figure, f"One anatomy as stored by {', '.join(names)}"), caption)
