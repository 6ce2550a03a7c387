"""Traces, error bars, titles and ticks of one panel."""

import math

import numpy as np
import pytest

from optuna_glocal.visualization.drawing.figure import Sheet
from optuna_glocal.visualization.drawing.panel import (
    INTERVAL,
    add,
    escaped,
    head,
    log_ticks,
    mark,
    say,
    whisker,
)


def test_36_series_look_different():
    assert len({mark(i) for i in range(36)}) == 36 and mark(36) == mark(0)


def test_traces_are_plain_lists_without_numbers_that_are_not_finite():
    sheet = Sheet(1, 1)
    add(sheet, (1, 1), np.arange(3), (math.nan, 1.0, -math.inf), name="a")
    ((panel, trace),) = sheet.traces
    assert panel == (1, 1) and trace["name"] == "a"
    assert trace["x"] == [0, 1, 2] and trace["y"] == [None, 1.0, None]


def test_a_whisker_is_an_interval_of_95_percent_and_later_ones_stand_apart():
    sheet = Sheet(1, 1)
    for shift in (0, 1, 2, 3):
        whisker(sheet, (1, 1), 1000, 0.5, 0.1, "#000000", "circle", "forecast", shift)
    whisker(sheet, (1, 1), None, 0.5, 0.1, "#000000", "circle", "no horizon")
    traces = [trace for _, trace in sheet.traces]
    at = [trace["x"][0] for trace in traces]
    assert len(traces) == 4 and at[0] == at[1] == 1000 < at[2] < at[3]
    assert [trace["showlegend"] for trace in traces] == [True, False, False, False]
    assert traces[0]["error_y"]["array"] == [INTERVAL * 0.1] and INTERVAL == 1.96


def test_sentences_stand_in_the_middle_or_a_corner_and_titles_above():
    sheet = Sheet(1, 1)
    say(sheet, "middle"), say(sheet, "corner", corner=True), head(sheet, (1, 1), "title")
    middle, corner, title = (text for _, text in sheet.texts)
    assert (middle["x"], middle["y"]) == (0.5, 0.5)
    assert corner["x"] < 0.1 and corner["y"] > 0.9
    assert title["yshift"] > 0 and title["text"] == "<b>title</b>"


@pytest.mark.parametrize("values", [[0.2, 0.9], [1e-3, 0.5], [3.0, 4.0]])
def test_log_ticks_are_full_numbers_about_the_values(values):
    axis = log_ticks([*values, math.inf, math.nan, 0.0, -1.0])
    assert axis["type"] == "log"
    assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])
    inside = [v for v in axis["tickvals"] if min(values) / 3 <= v <= max(values) * 3]
    assert len(inside) >= 2 and axis["tickvals"][0] <= min(values)


def test_many_decades_have_powers():
    assert log_ticks([1e-9, 1.0])["dtick"] == 1


def test_texts_are_escaped_and_short():
    assert escaped("<b>&") == "&lt;b&gt;&amp;"
    assert escaped("x" * 60) == "x" * 60
    assert escaped("x" * 61) == "x" * 57 + "..."


@pytest.mark.parametrize(("low", "high"), [(0.5182, 0.5187), (0.9, 1.3), (120.0, 121.0)])
def test_a_narrow_log_axis_has_a_few_round_labels(low, high):
    about = log_ticks([high, low])
    inside = [tick for tick in about["tickvals"] if low <= tick <= high]
    assert 2 <= len(inside) <= 7
    assert [float(text) for text in about["ticktext"]] == about["tickvals"]
