"""Single traces as matplotlib draws them, beside what plotly is told."""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.colors import to_hex

from optuna_glocal.visualization.drawing.figure import GREY
from optuna_glocal.visualization.drawing.matplotlib_traces import (
    POINT,
    Colours,
    Trace,
    each,
    labels_of,
    line_style,
)

LINE = {"color": "#0072B2", "width": 2}


@pytest.fixture
def ax():
    yield pyplot.figure().add_subplot()
    pyplot.close("all")


def draw(ax, labels=(), colours=None, **trace):
    trace = {"type": "scatter", "mode": "lines", "line": LINE, **trace}
    Trace(ax, trace, list(labels), []).draw(colours or Colours(None, pyplot))


def test_a_line_has_its_points_colour_width_and_dashes(ax):
    draw(ax, x=[1, None, 3], y=[4, 5, 6], line={**LINE, "dash": "dot"})
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, np.nan, 3])
    assert (line.get_color(), line.get_linestyle()) == ("#0072B2", ":")
    assert line.get_linewidth() == 2 * POINT == line_style(LINE)["linewidth"]


def test_a_value_that_is_held_is_a_step(ax):
    draw(ax, x=[1, 2], y=[1, 2], line={**LINE, "shape": "hv"})
    assert ax.lines[0].get_drawstyle() == "steps-post"


def test_markers_are_hollow_sized_and_coloured_each_as_told(ax):
    marker = {"symbol": ["circle", "square-open", "circle"], "size": [6, 8, 0], "color": "#009E73"}
    draw(ax, mode="markers", x=[1, 2, 3], y=[1, 2, 3], marker=marker)
    full, hollow = ax.collections
    assert full.get_offsets().tolist() == [[1, 1]], "what has no size is not drawn"
    assert full.get_sizes().tolist() == [(6 * POINT) ** 2]
    assert to_hex(full.get_facecolor()[0]) == "#009e73"
    assert len(hollow.get_facecolor()) == 0 and to_hex(hollow.get_edgecolor()[0]) == "#009e73"


def test_markers_by_value_share_one_scale_and_an_unknown_value_is_grey(ax):
    about = {"cmin": 0.0, "cmax": 1.0, "colorscale": "Cividis", "reversescale": True}
    colours = Colours(about, pyplot)
    assert not colours.used
    draw(ax, colours=colours, mode="markers", x=[1, 2, 3], y=[1, 2, 3],
         marker={"coloraxis": "coloraxis", "color": [0.0, None, 1.0]})  # fmt: skip
    low, unknown, high = map(to_hex, ax.collections[0].get_facecolor())
    scale = pyplot.get_cmap("cividis_r")
    assert (low, unknown, high) == (to_hex(scale(0.0)), GREY.lower(), to_hex(scale(1.0)))
    assert colours.used and colours.bar().get_cmap().name == "cividis_r"


def test_error_bars_reach_up_and_down_as_told(ax):
    bars = {"array": [1.0], "arrayminus": [0.5], "color": GREY, "thickness": 2, "width": 5}
    draw(ax, mode="", x=[2], y=[10.0], error_y=bars)
    ((_, _, (segments,)),) = ax.containers
    assert segments.get_segments()[0][:, 1].tolist() == [9.5, 11.0]


def test_arrows_go_from_the_first_to_the_second_of_three_points(ax):
    marker = {"angleref": "previous", "size": [0, 9, 0]}
    draw(ax, x=[0, 1, None], y=[0, 2, None], marker=marker)
    (arrow,) = ax.texts
    assert tuple(arrow.xy) == (1, 2) and tuple(arrow.xyann) == (0, 0)
    assert type(arrow.arrow_patch.get_arrowstyle()).__name__ == "CurveFilledB"


def test_categories_are_places_and_one_value_stands_for_all(ax):
    draw(ax, labels=["b", "a"], x=["a", "b"], y=[1, 2])
    assert ax.lines[0].get_xdata().tolist() == [1, 0]
    assert labels_of({"type": "category", "categoryarray": ["b", "a"]}) == ["b", "a"]
    assert labels_of({"type": "log"}) == []
    assert each("x", 3) == ["x"] * 3 and each([1, 2], 2) == [1, 2]
