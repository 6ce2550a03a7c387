"""Whole sheets as matplotlib draws them."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot

from optuna_glocal.visualization.drawing.figure import Sheet
from optuna_glocal.visualization.drawing.matplotlib_backend import axes_of

LINE = {"color": "#0072B2", "width": 2}


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def filled(sheet):
    for panel in sheet.panels():
        trace = {"type": "scatter", "mode": "lines", "line": LINE, "x": [1, 9], "y": [1, 2]}
        sheet.traces.append((panel, {**trace, "name": f"series {panel[0]}"}))
    return sheet


def test_one_panel_is_one_axes_and_several_are_an_array_in_their_order():
    sheet = filled(Sheet(1, 1))
    sheet.update_layout(title="A &lt;title&gt;", width=500, height=300)
    figure = axes_of(sheet, pyplot).figure
    assert figure.get_size_inches().tolist() == [5.0, 3.0]
    assert figure.get_suptitle() == "A <title>"
    axes = axes_of(filled(Sheet(2, 2)), pyplot)
    assert axes.shape == (4,)
    assert [(s.rowspan.start, s.colspan.start) for s in (a.get_subplotspec() for a in axes)] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip


def test_panels_span_rows_and_share_axes_and_a_blank_one_is_left_out():
    spans = filled(Sheet(2, 2, specs=[[{"rowspan": 2}, {}], [None, {}]]))
    first, *_ = axes_of(spans, pyplot)
    assert len(first.get_subplotspec().rowspan) == 2
    shared = filled(Sheet(2, 1, shared_xaxes=True))
    top, bottom = axes_of(shared, pyplot)
    assert top.get_shared_x_axes().joined(top, bottom)
    blank = Sheet(1, 3)
    blank.traces.append(((1, 2), {"type": "scatter", "mode": "lines", "line": LINE, "x": [1],
                                  "y": [1]}))  # fmt: skip
    assert not isinstance(axes_of(blank, pyplot), np.ndarray)


def test_an_axis_has_the_title_scale_range_and_ticks_of_the_sheet():
    sheet = filled(Sheet(1, 1))
    sheet.update_xaxes(type="log", range=[-1, 2], title={"text": "steps of <b>$t$</b>"})
    sheet.update_yaxes(type="category", categoryarray=["a", "b", "c"])
    sheet.traces.clear()
    ax = axes_of(sheet, pyplot)
    assert ax.get_xscale() == "log" and ax.get_xlim() == pytest.approx((0.1, 100.0))
    assert ax.get_xlabel() == r"steps of \$t\$", "no formula and no HTML"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.get_ylim() == (-0.5, 2.5)


def test_texts_are_titles_and_sentences():
    sheet = filled(Sheet(1, 1))
    sheet.texts += [
        ((1, 1), {"text": "<b>above</b>", "x": 0, "y": 1, "yshift": 24}),
        ((1, 1), {"text": "one<br>two", "x": 0.5, "y": 0.5, "font": {"color": "#767676"}}),
    ]
    ax = axes_of(sheet, pyplot)
    assert ax.get_title(loc="left") == "above"
    assert [t.get_text() for t in ax.texts] == ["one\ntwo"]


def test_the_legend_has_each_name_once_and_none_where_there_is_one_trace():
    several = axes_of(filled(Sheet(2, 2)), pyplot)[0].figure
    (legend,) = several.legends
    assert [t.get_text().strip() for t in legend.get_texts()] == ["series 1", "series 2"]
    hidden = filled(Sheet(2, 1))
    hidden.update_layout(showlegend=False)
    assert not axes_of(hidden, pyplot)[0].figure.legends
    assert not axes_of(filled(Sheet(1, 1)), pyplot).figure.legends
