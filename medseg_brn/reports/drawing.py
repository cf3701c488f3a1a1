"""Drawings for pages: matplotlib figures as inline SVG that follows the page's colours, or as PNG.

Lines and text are drawn in the few colours below. In the SVG each becomes a CSS variable of the page, so
one drawing reads well on light and dark paper alike. Text stays text: it can be selected, searched, and
read aloud.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#1c1f24"
MUTED = "#5a616c"
LINE = "#dfe1e5"
SERIES = ("#0072b2", "#c24a00", "#00795a", "#a6457f", "#8a6100", "#3d6fd0")
"""Distinguishable with any common colour vision, and dark enough for text on light paper."""

_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
}


@contextmanager
def drawing(width: float = 5.2, height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """Yields a figure (size in inches) with one pair of axes, in the page's style while the block lasts."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def make_svg(figure: Figure, description: str) -> Markup:
    """Inline `<svg>` of a figure made in `drawing`.

    Args:
        figure: the drawing.
        description: what it shows, in words, for screen readers.
    """
    buffer = io.StringIO()
    # Identifiers must differ between the drawings of one page, and stay the same from run to run.
    name = sha256(description.encode()).hexdigest()[:8]
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, content = svg.split(">", 1)
    opening = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", opening)
    svg = f'{opening} role="img" aria-label="{escape(description)}">{content}'
    svg = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"d{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Markup(svg)


def make_svg_file(drawing: Markup) -> str:
    """A drawing of `make_svg` as a file of its own, in its own colours on white paper."""
    svg = str(drawing)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(variable, colour)
    opening, content = svg.split(">", 1)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return f"{opening.replace('<svg', f'<svg {names}', 1)}>{paper}{content}"


def make_image(figure: Figure, description: str, dots_per_inch: int = 150) -> Markup:
    """`<img>` of a figure as PNG inside the page."""
    buffer = io.BytesIO()
    figure.set_dpi(dots_per_inch)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(description, data)
