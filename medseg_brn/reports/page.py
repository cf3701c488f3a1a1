"""Self-contained HTML pages: one file that opens anywhere, needs no network and runs nothing foreign.

A page is data (sections of blocks); `page.html.jinja` and `page.css` say what it looks like. Every text is
escaped by the template, so a hostile case name stays a name; only drawings, which are made here and
nowhere else, enter as markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medseg_brn.volumes.atomic import write_text_atomic

TEMPLATE_FOLDER = Path(__file__).parent / "template"


@dataclass(frozen=True)
class Link:
    """Text that leads to another file, in a table."""

    text: str
    path: str
    """Relative to the page, its parts separated by slashes."""

    def __html__(self) -> str:
        # The dot keeps a path such as "javascript:x" from being read as more than a path.
        return Markup('<a href="./{}">{}</a>').format(quote(self.path), self.text)


Cell = str | float | int | Link | None


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and their values, as a short two-column table."""

    kind: ClassVar[str] = "facts"
    caption: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Tile:
    """One figure that matters most, in large type."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A row of figures that matter most."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading and, for numbers, their format specification such as `.3f`."""

    heading: str
    form: str | None = None

    def tell(self, cell: Cell) -> str | Link:
        """The cell as text; what is undefined is a dash."""
        if cell is None:
            return "–"
        if isinstance(cell, Link):
            return cell
        return format(cell, self.form) if self.form is not None else str(cell)


@dataclass(frozen=True)
class Table:
    """Rows under headings; a click on a heading sorts them."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A drawing, what it shows in words for those who cannot see it, and its caption."""

    drawing: Markup
    """`<svg>` or `<img>` markup from `drawing.py`."""
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Figures side by side where the screen is wide enough, or one under the other when `wide`."""

    kind: ClassVar[str] = "gallery"
    figures: Sequence[Figure]
    wide: bool = False


@dataclass(frozen=True)
class Listing:
    """Preformatted text behind a heading that opens it."""

    kind: ClassVar[str] = "listing"
    heading: str
    text: str


Block = Paragraph | Facts | Tiles | Table | Gallery | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def render_page(page: Page) -> str:
    """The page as one HTML document, styles, script and drawings inside."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (
        Markup((TEMPLATE_FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html.jinja").render(page=page, style=style, script=script)


def write_page(page: Page, path: Path) -> None:
    """Writes the page, whole or not at all."""
    write_text_atomic(path, render_page(page))
