"""The page stands alone, and nothing that a file or a class is called can become markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np

from medseg_brn.cases.label_description import Labels
from medseg_brn.reports.viewer.page import render_scene, tell_ml
from medseg_brn.reports.viewer.scene import make_scene
from medseg_brn.volumes.volume import Grid, Volume

HOSTILE = "</script><script>alert('\"&{{ 7 * 7 }}')</script>"


class Elements(HTMLParser):
    """Collects elements with their attributes and the text right inside."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def find(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def page(**changes) -> str:
    image = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 1, 1] = 1
    grid = Grid((4, 5, 6), np.eye(4))
    described = Labels(("background", HOSTILE, f"absent {HOSTILE}"), (0, 1, 2))
    scene = make_scene(
        Volume(image, grid), Volume(labels, grid), labels=described, notes=(f"note {HOSTILE}",)
    )
    return render_scene(scene, HOSTILE, f"subtitle {HOSTILE}")


def test_every_text_is_escaped_wherever_it_stands():
    found = Elements(page())
    kinds = [attributes.get("type") for attributes, _ in found.find("script")]
    assert kinds == ["application/json", "text/plain", "text/plain", None]
    assert found.find("title")[0][1].strip() == HOSTILE
    assert found.find("h1")[0][1].strip() == HOSTILE
    texts = [text.strip() for _, _, parts in found.elements for text in parts if "alert" in text]
    assert (
        len([text for text in texts if text.endswith(HOSTILE)]) == 6
    )  # title, h1, subtitle, class, absent, note
    facts = json.loads(found.find("script")[0][1])
    assert facts["classes"][0]["name"] == HOSTILE


def test_only_the_page_s_own_script_and_style_are_allowed_and_nothing_is_loaded():
    html = page()
    found = Elements(html)
    policy = next(a["content"] for a, _ in found.find("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for attribute in ("src", "href", "style", "onclick", "onload"):
        assert not [element for element in found.elements if attribute in element[1]]
    assert "://" not in html
    assert "@import" not in html and "url(" not in html


def test_every_control_has_a_label():
    found = Elements(page())
    labelled = {attributes.get("for") for attributes, _ in found.find("label")}
    html = page()
    for tag in ("input", "select"):
        for attributes, _ in found.find(tag):
            name = attributes.get("id")
            around = re.search(rf"<label[^>]*>(?:(?!</label>).)*<{tag}[^>]*{name or ''}", html, re.DOTALL)
            assert name in labelled or "aria-label" in attributes or around, attributes
    assert all(attributes.get("aria-label") for attributes, _ in found.find("canvas"))


def test_volumes_are_told_in_as_many_digits_as_are_read():
    assert [tell_ml(ml) for ml in (1234.5, 99.31, 4.104, 0.027)] == ["1234", "99.3", "4.10", "0.027"]
