"""Pictures of cases that an evaluation or a record names: scan, reference and prediction."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medseg_brn.errors import MedsegError
from medseg_brn.reports.overlays import LEGEND, draw_overlay
from medseg_brn.reports.page import Block, Figure, Gallery, Paragraph
from medseg_brn.volumes.reading import read_channels, read_volume


def show_cases(
    cases: Sequence[tuple[str, Mapping[str, Any]]],
    locate: Callable[[str], Path],
    ignore_value: int | None,
    through: Literal["reference", "difference"] = "reference",
) -> list[Block]:
    """A gallery of the cases, and a paragraph for each that cannot be drawn; empty without cases.

    Args:
        cases: label and entry of each, the entry naming its `image`, `reference` and `prediction`.
        locate: gives the path of a file that an entry names.
        ignore_value: of reference voxels that nobody annotated, or None.
        through: whether slices go where the reference is largest or where the two differ most.
    """
    where = ", where the two differ most" if through == "difference" else ""
    figures, problems = [], []
    for label, entry in cases:
        try:
            image, reference, prediction = (
                locate(entry[name]) for name in ("image", "reference", "prediction")
            )
            drawing = draw_overlay(
                read_channels(image)[0],
                read_volume(reference),
                read_volume(prediction),
                f"{label}: axial, coronal and sagittal slice{where}, {LEGEND}",
                through=through,
                ignore_value=ignore_value,
            )
            figures.append(Figure(drawing, f"{label}{where} ({LEGEND})"))
        except MedsegError as error:
            problems.append(Paragraph(f"{label}: not drawn. {error}"))
    gallery: list[Block] = [Gallery(figures, wide=True)] if figures else []
    return [*gallery, *problems]
