import math
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.report import figures

DRAWN = {
    "funnel": lambda: figures.funnel(
        "f", [("found", {"a": {"documents": 3, "bytes": 3000}}), ("kept", {"b": {"documents": 1, "bytes": 9}})]
    ),
    "loss": lambda: figures.loss("f", [1, 2, 3], [3.0, math.nan, 1.0], [(2, 2.0)], [1, 1, 0]),
    "intervals": lambda: figures.intervals("f", [("x & <y>", 0.5, 0.4, 0.6), ("$z", 0.1, None, None)], "l", ("k", 0.5)),
    "scatter": lambda: figures.scatter("f", {"one": [(1, 2)], "other": []}, "x", "y"),
    "scatter with a line": lambda: figures.scatter(
        "f", {"one": [(1, 2), (3, 4)], "two": [(2, 2)]}, "x", "y", {"one": [(1, 2), (3, 4)]}
    ),
    "law": lambda: figures.law("f", [(1e19, 2.0), (3e21, 1.5)], [(1e19, 2.0, 1.9, 2.1), (1e22, 1.4, 1.3, 1.5)], "FLOP", "loss"),
    "residuals": lambda: figures.residuals("f", [(1e-3, 0.1), (1e21, -0.1)], "FLOP", "%"),
    "panels": lambda: figures.panels("f", "step", list(range(2000)), {"up": list(range(2000)), "flat": [1.0] * 2000}),
    "panels with epochs": lambda: figures.panels(
        "f", "step", list(range(40)), {"up": list(range(40))}, {"up": [(20, 5.0), (40, 6.0)]}, [20.0]
    ),
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


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_by_itself_has_its_colours(name):
    picture = figures.as_file(DRAWN[name]())
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.get("width")) > 400
    assert set(re.findall(r"var\((--[\w-]+)\)", picture)) <= set(re.findall(r"(--[\w-]+):", picture))
    assert "prefers-color-scheme: dark" in picture


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


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6).flatmap(lambda values: st.tuples(st.just(values), st.booleans())),
)
def test_an_axis_holds_all_values_and_makes_no_small_difference_large(drawn):
    values, percent = drawn
    values = [100 * value for value in values] if percent else values
    start, end = figures._span(values, percent)
    assert start <= min(values) <= max(values) <= end and start < end
    if percent:
        assert start >= -3 and end <= 103 and end - start >= 10
    assert start <= 0 or max(values) - min(values) >= 0.4 * (end - start) or end - start <= (20 if percent else 0.3 * end)


def test_an_effect_of_five_points_fills_half_of_the_axis_which_says_where_it_begins():
    start, end = figures._span([52.0, 55.0, 57.0], percent=True)
    assert 5 / (end - start) > 0.3
    text = figures.intervals("f", [("a", 0.52, 0.50, 0.54), ("b", 0.57, 0.55, 0.59)], "share, %")
    [beginning] = re.findall(r"the axis begins at ([\d.]+), not at 0", text)
    assert 40 <= float(beginning) < 50
    assert "axis begins" not in figures.intervals("f", [("a", 0.02, 0.0, 0.05)], "share, %")


def test_epochs_are_marked_and_held_out_rows_stand_beside():
    text = DRAWN["panels with epochs"]()
    assert "end of an epoch" in text and "held-out" in text and "stroke-dasharray" in text
    plain = figures.panels("f", "step", list(range(40)), {"up": list(range(40))}, {"up": []}, [])
    assert "end of an epoch" not in plain and "held-out" not in plain


def test_the_last_held_out_loss_is_labelled_on_its_curve():
    assert ">3.42<" in figures.loss("f", [1, 2, 3], [5.0, 4.0, 3.0], [(1, 4.8), (3, 3.4249)], [1, 1, 0])


@pytest.mark.parametrize("name", ["law", "residuals"])
def test_powers_of_ten_are_written_as_such(name):
    text = DRAWN[name]()
    assert "mathdefault" not in text and "10²¹" in text
    assert 2 <= len(re.findall("10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", text)) <= 9  # and they do not cover each other


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["_raw", "日本語", "x" * 300])
def test_any_name_of_a_domain_is_in_the_legend(name):
    """Names of domains are those of files: a browser has the letters that the font here lacks."""
    sizes = {name: {"documents": 3, "bytes": 3000}}
    assert name in figures.funnel("f", [("found", sizes)])
    assert name in figures.scatter("f", {name: [(1, 2)]}, "x", "y")
