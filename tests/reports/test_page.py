"""Pages stand alone, and nothing that a dataset is called can become markup."""

from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from medseg_brn.reports.page import (
    Column,
    Facts,
    Figure,
    Gallery,
    Listing,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    render_page,
    write_page,
)

HOSTILE = "<script>alert('\"&{{ 7 * 7 }}')</script>"


class Elements(HTMLParser):
    """Collects elements, and text by the element around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data.strip())

    def names(self) -> list[str]:
        return [tag for tag, _ in self.elements]


def page_of(*blocks) -> Page:
    return Page("title", "subtitle", [Section("first", blocks)])


def test_every_text_is_escaped_wherever_it_stands():
    blocks = [
        Paragraph(HOSTILE),
        Facts(HOSTILE, {HOSTILE: HOSTILE}),
        Tiles([Tile(HOSTILE, HOSTILE, HOSTILE)]),
        Table(HOSTILE, [Column(HOSTILE), Column(HOSTILE, ".2f")], [[HOSTILE, 1.0]]),
        Gallery([Figure(Markup("<svg></svg>"), HOSTILE)]),
        Listing(HOSTILE, HOSTILE),
    ]
    found = Elements(render_page(Page(HOSTILE, HOSTILE, [Section(HOSTILE, blocks)])))
    assert found.names().count("script") == 1  # the page's own
    shown = [text for text in found.texts if "alert" in text]
    assert shown == [HOSTILE] * 19


def test_a_page_allows_nothing_from_outside():
    html = render_page(page_of(Paragraph("text")))
    policy = dict(Elements(html).elements)["meta"]["content"]
    assert "default-src 'none'" in policy
    assert "://" not in html
    assert "@import" not in html


def test_numbers_are_formatted_and_keep_their_value_for_sorting():
    table = Table("caption", [Column("case"), Column("dice", ".2f")], [["a", 0.987], ["b", None]])
    found = Elements(render_page(page_of(table)))
    cells = [attributes.get("data-value") for tag, attributes in found.elements if tag == "td"]
    assert cells == ["0.987", ""]
    assert "0.99" in found.texts
    assert "–" in found.texts


def test_tables_have_captions_and_scopes():
    found = Elements(
        render_page(page_of(Table("caption", [Column("case")], [["a"]]), Facts("facts", {"k": "v"})))
    )
    assert found.names().count("caption") == found.names().count("table") == 2
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.elements if tag == "th")


def test_a_page_that_cannot_be_rendered_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    write_page(page_of(Paragraph("old")), path)
    with pytest.raises(ValueError, match="format"):
        write_page(page_of(Table("caption", [Column("x"), Column("n", ".2f")], [["a", "no number"]])), path)
    assert "old" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
