"""Drawings fit into a page: no foreign address, the page's colours, text as text."""

import re
from xml.etree import ElementTree

from markupsafe import Markup

from medseg_brn.reports.drawing import INK, SERIES, drawing, make_image, make_svg, make_svg_file


def draw(label: str, description: str = "a line") -> str:
    with drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=SERIES[0], marker="o")
        axes.set_title(label)
        return str(make_svg(figure, description))


def test_svg_is_well_formed_and_names_no_address():
    svg = draw("Loss")
    assert "://" not in svg
    root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "a line"


def test_colours_are_the_pages():
    svg = draw("Loss")
    assert "var(--series-1)" in svg
    assert "var(--ink)" in svg
    assert SERIES[0] not in svg
    assert INK not in svg


def test_a_file_of_its_own_is_well_formed_and_has_its_colours():
    svg = make_svg_file(Markup(draw("Loss")))
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in svg
    assert SERIES[0] in svg


def test_hostile_names_are_text():
    svg = draw('$x_<script>"&', 'say "<b>"')
    root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert '$x_<script>"&' in "".join(root.itertext())
    assert root.get("aria-label") == 'say "<b>"'


def test_two_drawings_share_no_identifier_and_each_finds_its_own():
    one, other = draw("Loss", "one"), draw("Loss", "other")
    ids_of_one, ids_of_other = (set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other))
    assert not ids_of_one & ids_of_other
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', one))
    assert used
    assert used <= ids_of_one


def test_the_same_drawing_twice_is_the_same_text():
    assert draw("Loss") == draw("Loss")


def test_image_is_inside_the_page():
    with drawing() as (figure, _):
        image = make_image(figure, 'a "quoted" name')
    assert image.startswith('<img alt="a &#34;quoted&#34; name" src="data:image/png;base64,iVBOR')
