import math
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from groundup.report import figures

DRAWN = {
    "funnel": lambda: figures.funnel(
        "f", [("found", {"a": {"documents": 3, "bytes": 3000}}), ("kept", {"b": {"documents": 1, "bytes": 9}})]
    ),
    "loss": lambda: figures.loss("f", [1, 2, 3], [3.0, math.nan, 1.0], [(2, 2.0)], [1, 1, 0]),
    "intervals": lambda: figures.intervals("f", [("x & <y>", 0.5, 0.4, 0.6), ("$z", 0.1, None, None)], "l", ("k", 0.5)),
    "scatter": lambda: figures.scatter("f", {"one": [(1, 2)], "other": []}, "x", "y"),
    "panels": lambda: figures.panels("f", "step", list(range(2000)), {"up": list(range(2000)), "flat": [1.0] * 2000}),
}
EMPTY = {
    "funnel": lambda: figures.funnel("f", []),
    "loss": lambda: figures.loss("f", [], [], [], []),
    "intervals": lambda: figures.intervals("f", [], "label", percent=False),
    "scatter": lambda: figures.scatter("f", {}, "x", "y"),
    "panels": lambda: figures.panels("f", "step", [], {"nothing": []}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_is_an_element_without_outside_references(name):
    text = DRAWN[name]()
    assert text == DRAWN[name]()
    ElementTree.fromstring(text.replace("xlink:href", "href"))
    assert text.startswith('<svg viewBox="') and "http" not in text and "<style" not in text
    assert not any(colour in text for colour in figures._VARIABLES), "every colour is the style sheet's"
    assert "var(--ink)" in text
    assert len(text) < 200_000


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_draw_is_no_error(name):
    assert EMPTY[name]().startswith("<svg")


def test_labels_are_text_and_are_escaped():
    text = DRAWN["intervals"]()
    assert "x &amp; &lt;y&gt;" in text and "$z" in text


def test_ids_carry_the_name():
    root = ElementTree.fromstring(figures.scatter("mine", {"a": [(1, 2)]}, "x", "y").replace("xlink:href", "href"))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids and all(one.startswith("mine-") for one in ids) and len(ids) == len(set(ids))


def test_a_bar_is_as_long_as_its_documents():
    """Two steps, of which the second keeps half: its bar is half as long."""
    text = figures.funnel("f", [(step, {"a": {"documents": n, "bytes": n}}) for step, n in (("x", 80), ("y", 40))])
    root = ElementTree.fromstring(text.replace("xlink:href", "href"))
    widths = []
    for path in root.iter("path"):
        if "series-1" in path.get("style", ""):
            points = [float(part) for part in path.get("d").replace("M", "").replace("L", "").replace("z", "").split()]
            widths.append(max(points[::2]) - min(points[::2]))
    assert widths[0] / widths[1] == pytest.approx(2, rel=1e-4)


def test_smoothing_keeps_a_constant_and_carries_gaps():
    assert figures._smoothed([2.0] * 90) == pytest.approx([2.0] * 90)
    assert figures._smoothed([math.nan, 1.0, math.nan, 1.0])[1:] == [1.0, 1.0, 1.0]


def test_a_smoothed_curve_runs_among_its_points_from_the_start_on():
    """A falling loss with noise: an average that looks back only lies above every raw point where the curve falls."""
    curve = [3 + 7 * (1 + step) ** -0.5 for step in range(600)]
    noisy = [value + 0.2 * (-1) ** step for step, value in enumerate(curve)]
    smooth = figures._smoothed(noisy)
    assert all(abs(mean - true) < 0.21 for mean, true in zip(smooth, curve, strict=True))
    for start in (5, 10, 20, 40, 80):
        points, line = noisy[start : start + 20], smooth[start : start + 20]
        assert 5 <= sum(point > mean for point, mean in zip(points, line, strict=True)) <= 15
    assert max(map(abs, (smooth[place] - curve[place] for place in range(100, 600)))) < 0.03


def test_importing_does_not_load_matplotlib():
    code = "import sys, groundup.report.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
