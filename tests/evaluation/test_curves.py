"""Curves as pictures: what is drawn is what was given, in colours that the page names, with nothing fetched."""

import math
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from mcontriever.evaluation import curves
from mcontriever.evaluation.curves import Curve, Panel

HOSTILE = '<script>alert("&")</script>'


def line(label="a", values=(3.0, 1.0, 2.0), **options):
    return Curve(label, list(range(1, len(values) + 1)), list(values), **options)


def paths(svg, colour):
    """The points of every line of a colour, in the picture's own units."""
    found = re.findall(rf'd="([^"]+)"[^>]*style="fill: none; stroke: var\({colour}\)', svg)
    return [[tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in found]


def test_higher_values_lie_higher_and_later_ones_to_the_right():
    (drawn,) = paths(curves.element(Panel("Loss", [line()]), "x"), "--c0")
    across, down = zip(*drawn, strict=True)
    assert list(across) == sorted(across)
    assert down[0] < down[2] < down[1], "SVG counts from the top"
    assert (down[1] - down[0]) == pytest.approx(2 * (down[1] - down[2]), rel=1e-3)


def test_an_element_is_drawn_the_same_each_time_and_uses_the_pages_colours_alone():
    panel = Panel("Loss", [line("a"), line("b", (1.0, 2.0, 3.0), colour=1, dash=1, told=True)])
    svg = curves.element(panel, "x")
    assert svg == curves.element(panel, "x")
    xml.fromstring(svg)
    assert set(re.findall(r"(?:stroke|fill): (#\w+)", svg)) <= {"#000000"}
    assert {"var(--ink)", "var(--faint)", "var(--c0)", "var(--c1)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert 'aria-label="Loss"' in svg
    assert "stroke-dasharray" in svg
    assert not re.search(r'(?:href|src)="(?!#)', svg)


def test_a_name_is_text_whatever_it_says():
    svg = curves.element(Panel(HOSTILE, [line(HOSTILE, told=True)]), HOSTILE)
    assert "<script" not in svg
    assert HOSTILE in {element.text for element in xml.fromstring(svg).iter()}
    whole = curves.picture([Panel(HOSTILE, [line()])], [HOSTILE], "svg").decode()
    assert "<script" not in whole


def test_a_missing_value_breaks_the_line():
    svg = curves.element(Panel("Loss", [line(values=(3.0, 1.0, math.nan, 2.0, 4.0))]), "x")
    (path,) = re.findall(r'd="([^"]+)"[^>]*style="fill: none; stroke: var\(--c0\)', svg)
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_many_points_become_means_of_their_neighbours():
    values = np.arange(1000.0)
    thin = curves._thinned(Curve("a", values, values))
    assert len(thin.values) == len(thin.steps) == 200
    assert thin.values[0] == 2.0
    assert thin.values[-1] == 997.0
    assert thin.steps[-1] == 999.0
    gaps = curves._thinned(Curve("a", values, [math.nan] * 1000))
    assert all(math.isnan(value) for value in gaps.values)


def test_bands_fill_the_whole(monkeypatch):
    shares = [line("ar", (0.5, 0.25)), line("en", (0.5, 0.75), colour=1)]
    svg = curves.element(Panel("Languages", shares, kind="bands"), "x")
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg


def test_labels_at_the_end_never_lie_on_each_other():
    told = [line(str(number), (1.0, 1.0 + number / 1000), told=True) for number in range(12)]
    svg = curves.element(Panel("x", told), "x")
    texts = {element.text: element.attrib for element in xml.fromstring(svg).iter() if element.tag == "text"}
    heights = [float(re.search(r"[\d.]+\)?$", texts[str(n)]["y"]).group()) for n in range(12) if "y" in texts[str(n)]]
    heights = heights or [
        float(re.search(r"translate\([\d.]+ ([\d.]+)\)", texts[str(n)]["transform"]).group(1)) for n in range(12)
    ]
    gaps = np.diff(sorted(heights))
    assert len(heights) == 12
    assert gaps.min() > 5


@pytest.mark.parametrize("legend", [[], ["one", "two"]])
def test_a_whole_picture_is_one_file_for_light_and_dark(legend):
    svg = curves.picture([Panel("Loss", [line()]), Panel("Norm", [line()], logarithmic=True)], legend, "svg").decode()
    root = xml.fromstring(svg)
    words = {element.text for element in root.iter() if element.text}
    assert {"Loss", "Norm", *legend} <= words
    assert "@media (prefers-color-scheme: dark)" in svg
    for name in set(re.findall(r"var\((--\w+)\)", svg)):
        assert svg.count(f"{name}: #") == 2, f"{name} has a colour for light and one for dark"
    png = curves.picture([Panel("Loss", [line()])], legend, "png")
    assert png.startswith(b"\x89PNG")
