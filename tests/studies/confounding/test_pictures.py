"""Drawings that say what they show."""

from medseg_brn.studies.confounding.pictures import Line, draw_lines


def test_lines_are_named_and_told():
    line = Line("clip 1", [0, 1], [0.0, 0.5], [0, 1], [[0.01, 0.03], [0.5, 0.52]])
    figure = draw_lines([line], title="Retained", x_label="Δ", caption="below")
    assert "clip 1: 0.020, 0.510" in figure.drawing
    assert figure.drawing.count("clip 1") == 2
