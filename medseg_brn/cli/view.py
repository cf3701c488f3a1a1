"""`medseg-brn view`: a scan and its label map as one page to look through in a browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medseg_brn.models.description import Description


def view(
    image: Annotated[Path, typer.Argument(help="Image file, or folder with a DICOM series.")],
    labels: Annotated[
        Path | None, typer.Argument(help="Label map on the image's voxels; none shows the image alone.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an .html file.")],
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Model, by path or name, that names the classes; else they have numbers."
        ),
    ] = None,
    channel: Annotated[int, typer.Option(min=0, help="Which channel of a 4D image to show, from 0 on.")] = 0,
) -> None:
    """Write one HTML page that shows a scan in three linked planes, with its label map over it.

    `medseg-brn view scan.nii.gz label_map.nii.gz -o page.html --names runs/mine`

    The page holds all it needs and loads nothing: it opens in any recent browser, without network, and can be
    sent as it is (it holds the scan's voxels and the names of its files). It tells value, place and class
    under the cross-hair, and each class's volume.
    """
    from medseg_brn.cli.progress import StageDisplay
    from medseg_brn.errors import DataError
    from medseg_brn.reports.viewer.page import PAGE_SUFFIX, render_scene
    from medseg_brn.reports.viewer.reading import read_scene
    from medseg_brn.volumes.atomic import write_text_atomic

    if output.suffix.lower() != PAGE_SUFFIX:
        raise DataError(f"Cannot write {output}: the page's name must end in {PAGE_SUFFIX}; change -o.")
    description = _read_description(names) if names is not None else None
    with StageDisplay() as display:
        display.update("reading", 0, 1)
        scene = read_scene(image, labels, description, channel)
        display.update("reading", 1, 1)
        page = render_scene(
            scene,
            image.resolve().name,
            labels.resolve().name if labels is not None else "",
            lambda done, total: display.update("packing", done, total),
        )
        write_text_atomic(output, page)
    for note in scene.notes:
        typer.echo(note)
    typer.echo(f"{output}, {output.stat().st_size / 1e6:.1f} MB")


def _read_description(model: Path) -> "Description":
    from medseg_brn.models.description import read_description
    from medseg_brn.models.package import DESCRIPTION_NAME, find_model_folder

    return read_description(find_model_folder(model) / DESCRIPTION_NAME)
