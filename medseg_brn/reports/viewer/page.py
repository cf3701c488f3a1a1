"""The viewer's page: a scene, a template, a style sheet and scripts in one file that needs nothing else.

What may run and what may style are the page's own script and style, known by their hashes; nothing is loaded.
Every text from a file is escaped by the template, so a hostile class name stays a name.
"""

import base64
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medseg_brn.models.description import Description
from medseg_brn.models.scan import PreparedScan
from medseg_brn.reports.viewer.packing import pack
from medseg_brn.reports.viewer.scene import Scene, make_scene, tell_channel
from medseg_brn.reports.wording import times
from medseg_brn.volumes.volume import Volume

TEMPLATE_FOLDER = Path(__file__).parent / "template"

SCRIPTS = ("unpacking.js", "plane.js", "pointing.js", "viewer.js")
"""In the order in which they build on each other."""

PAGE_SUFFIX = ".html"


def render_scene(
    scene: Scene,
    title: str,
    subtitle: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """The page as one HTML document.

    Args:
        scene: what is shown.
        title: the scan.
        subtitle: what is shown on it.
        progress: called with (parts done, parts in all).
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tell_ml"] = tell_ml
    style = _read("viewer.css")
    script = '"use strict";\n' + "\n".join(map(_read, SCRIPTS))
    return environment.get_template("viewer.html.jinja").render(
        title=title,
        subtitle=subtitle,
        size=f"{times(scene.file_grid.shape)} voxels of {times(scene.file_grid.spacing_mm)} mm, "
        f"{scene.file_grid.orientation}",
        scene=scene,
        facts=_gather_facts(scene),
        image=Markup(pack(scene.image.codes, progress)),
        labels=Markup(pack(scene.labels.codes)) if scene.labels is not None else "",
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
    )


def render_prediction(scan: PreparedScan, label_map: Volume, description: Description) -> str:
    """The page of what a model said of a scan; of several channels the first one is shown.

    Args:
        scan: with its channels kept.
        label_map: on the scan's own grid.
        description: of the model, for the names of classes and whether the scan is a CT.
    """
    scene = make_scene(
        scan.channels[0],
        label_map,
        labels=description.labels,
        colours=description.colours,
        is_ct=description.modalities[0] == "ct",
        notes=tell_channel(0, len(scan.channels)),
    )
    return render_scene(scene, scan.name, f"Segmented by the model {description.name}")


def tell_ml(volume_ml: float) -> str:
    """A volume in as many digits as a person reads."""
    if volume_ml >= 100:
        return f"{volume_ml:.0f}"
    if volume_ml >= 10:
        return f"{volume_ml:.1f}"
    return f"{volume_ml:.2f}" if volume_ml >= 1 else f"{volume_ml:.3g}"


def _gather_facts(scene: Scene) -> dict[str, Any]:
    """What the script needs, as plain JSON."""
    image, labels = scene.image, scene.labels
    return {
        "shape": scene.grid.shape,
        "spacing": scene.grid.spacing_mm,
        "affine": scene.grid.affine[:3].tolist(),
        "pageToFile": scene.page_to_file.tolist(),
        "at": scene.at,
        "step": image.step,
        "offset": image.offset,
        "low": image.low,
        "high": image.high,
        "missing": image.missing > 0,
        "digits": _needed_digits(image.low, image.high, image.step),
        "windows": [{"width": one.width, "level": one.level} for one in scene.windows],
        "start": scene.start,
        "labelBytes": labels.codes.dtype.itemsize if labels is not None else 0,
        "classes": [
            {"name": one.name, "colour": one.colour, "centre": one.centre}
            for one in (labels.classes if labels is not None else ())
        ],
    }


def _needed_digits(low: float, high: float, step: float) -> int:
    """Significant digits that tell values a tenth of a step apart."""
    largest = max(abs(low), abs(high), step)
    return min(17, max(1, math.ceil(math.log10(largest) - math.log10(step)) + 2))


def _read(name: str) -> str:
    return (TEMPLATE_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
