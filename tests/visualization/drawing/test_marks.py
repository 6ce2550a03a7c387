"""Markers and axes as plotly takes them."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from optuna_glocal.visualization.drawing.figure import GREY
from optuna_glocal.visualization.drawing.marks import axis_of, dots, kind, plain

NAN = float("nan")


def test_unknown_values_have_no_colour_and_all_unknown_are_grey():
    assert dots([1.0, NAN], "x")["color"] == [1.0, None]
    assert dots([NAN, NAN], "x")["color"] == GREY


@pytest.mark.parametrize("state", TrialState)
def test_states_that_are_not_distinguished_share_a_mark(state):
    values = [0.0] if state == TrialState.COMPLETE else None
    trial = create_trial(state=state, values=values)
    distinguished = state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert kind(trial) == (state if distinguished else None)


def test_an_axis_holds_the_whole_search_space():
    linear = axis_of("x", FloatDistribution(-1.0, 3.0))
    assert linear["type"] == "linear" and linear["range"][0] < -1 < 3 < linear["range"][1]
    log = axis_of("x", FloatDistribution(1e-6, 1.0, log=True))
    assert log["type"] == "log" and log["range"][0] < -6 < 0 < log["range"][1]
    assert log["dtick"] == 2  # at most some five labels


def test_texts_are_escaped_and_numbers_are_not():
    choices = CategoricalDistribution(("<b>", "a"))
    assert plain("<b>", choices) == "&lt;b&gt;"
    assert axis_of("x", choices)["categoryarray"] == ["&lt;b&gt;", "a"]
    assert plain(2.0, FloatDistribution(0, 3)) == 2.0
