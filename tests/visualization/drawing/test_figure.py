"""A sheet of panels, and what plotly makes of it."""

import pytest

from optuna_glocal.visualization.drawing.figure import Sheet, drawn, imported

TRACE = {"type": "scatter", "x": [1, 2], "y": [3, 4], "name": "a"}


def test_panels_are_counted_from_the_upper_left_and_span_rows():
    assert Sheet(2, 2).panels() == {(1, 1): 1, (1, 2): 1, (2, 1): 1, (2, 2): 1}
    spans = Sheet(2, 2, specs=[[{"rowspan": 2}, {}], [None, {}]])
    assert spans.panels() == {(1, 1): 2, (1, 2): 1, (2, 2): 1}


def test_a_panel_is_used_once_it_has_a_trace_a_text_or_an_axis():
    sheet = Sheet(2, 2)
    sheet.traces.append(((1, 1), TRACE))
    sheet.texts.append(((1, 2), {"text": "words", "x": 0, "y": 1}))
    sheet.update_yaxes(row=2, col=1, title="loss")
    assert set(sheet.used()) == {(1, 1), (1, 2), (2, 1)}


def test_axes_are_set_in_one_panel_one_row_or_all():
    sheet = Sheet(2, 2)
    sheet.update_xaxes(type="log")
    sheet.update_xaxes(row=1, title="first row")
    sheet.update_yaxes(row=2, col=1, title="one")
    assert {p for p, axis in sheet.x.items() if axis["type"] == "log"} == set(sheet.panels())
    assert {p for p, axis in sheet.x.items() if "title" in axis} == {(1, 1), (1, 2)}
    assert {p for p, axis in sheet.y.items() if axis} == {(2, 1)}


def test_plotly_draws_what_the_sheet_says_and_the_plot_gives_the_sheet_unwrapped():
    pytest.importorskip("plotly")

    @drawn
    def plot(title):
        sheet = Sheet(1, 2)
        sheet.update_layout(title=title)
        sheet.traces.append(((1, 2), TRACE))
        sheet.texts.append(((1, 1), {"text": "words", "x": 0.5, "y": 0.5}))
        sheet.update_xaxes(row=1, col=2, type="log")
        return sheet

    figure, sheet = plot("A title"), plot.__wrapped__("A title")
    assert isinstance(sheet, Sheet) and figure.layout.title.text == "A title"
    (trace,) = [t for t in figure.data if t.name == "a"]
    assert (list(trace.x), list(trace.y), trace.xaxis) == ([1, 2], [3, 4], "x2")
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == (None, "log")
    assert [a.text for a in figure.layout.annotations] == ["words"]
    # Plotly aligns no text in a panel without a trace.
    assert {t.xaxis for t in figure.data} == {"x", "x2"}


def test_what_is_not_installed_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"needs no_such_module, .*optuna_glocal\[dashboard\]"):
        imported("no_such_module")


def test_a_panel_without_traces_has_no_numbers_but_its_categories_and_a_shared_range():
    sheet = Sheet(3, 1)
    sheet.traces.append(((1, 1), TRACE))
    for row in (2, 3):
        sheet.texts.append(((row, 1), {"text": "No trial yet.", "x": 0.5, "y": 0.5}))
    sheet.update_xaxes(row=2, range=[0, 1])
    sheet.update_yaxes(row=3, type="category", categoryarray=["a"])
    assert sheet.empty_scales("x") == [(3, 1)] and sheet.empty_scales("y") == [(2, 1)]
    pytest.importorskip("plotly")
    figure = drawn(lambda: sheet)()
    assert [axis.showticklabels for axis in figure.select_yaxes()] == [None, False, None]
