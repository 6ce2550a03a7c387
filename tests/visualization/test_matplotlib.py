"""In matplotlib every figure shows what it shows in plotly: the same points on the same axes."""

import html
import inspect
import re
import sys
import warnings

import numpy as np
import optuna
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot
from studies import DISTRIBUTIONS, objective, trajectory

from optuna_glocal import GlocalSampler, Record, Schedule, Vector
from optuna_glocal import visualization as v
from optuna_glocal.storage.learnt_vector import LearntVector
from optuna_glocal.storage.trajectory import write_trajectory
from optuna_glocal.visualization import matplotlib as m

PLOTS = sorted(m.__all__)


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def study():
    study = optuna.create_study(sampler=GlocalSampler(seed=0, n_startup_trials=4))
    study.optimize(objective, n_trials=9)
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    return study


def subject(plot, study):
    """What a plot of this name is of."""
    if plot in ("plot_trajectory", "plot_eigenvalues"):
        return study.trials[0]
    if plot == "plot_schedule":
        return Schedule([0, 100], [[0.1, 0.9], [0.01, 0.8]], ("lr", "$m_0$"))
    if plot == "plot_vector":
        steps, path = np.array([0, 100]), np.ones((2, 5)) * np.arange(1, 6)
        return LearntVector(Vector(3, 1e-3, 10.0), np.array([1.0, 0.1, 5.0]), steps, path)
    return study


def drawn(plot, of):
    axes = np.atleast_1d(getattr(m, plot)(of))
    axes[0].figure.canvas.draw()
    return axes


def numbers(column, axis):
    order = list(axis.categoryarray or ()) if axis.type == "category" else []
    return [np.nan if c is None else order.index(c) if order else float(c) for c in column]


def points_of(ax):
    lines = [np.column_stack([line.get_xdata(), line.get_ydata()]) for line in ax.lines]
    arrows = [p for a in ax.texts if hasattr(a, "xyann") for p in (a.xy, a.xyann)]
    dots = [c.get_offsets() for c in ax.collections if hasattr(c, "get_sizes")]
    return np.concatenate([np.empty((0, 2)), *lines, *dots, np.reshape(arrows, (-1, 2))])


@pytest.mark.parametrize("plot", PLOTS)
def test_points_axes_and_words_are_those_of_plotly(plot, study):
    of = subject(plot, study)
    figure, axes = getattr(v, plot)(of), drawn(plot, of)
    panels = [(figure.layout[f"xaxis{i or ''}"], figure.layout[f"yaxis{i or ''}"]) for i in
              (("" if k == 0 else k + 1) for k in range(len(axes)))]  # fmt: skip
    for (x, y), ax in zip(panels, axes, strict=True):
        for axis, ours, scale in ((x, ax.xaxis, ax.get_xscale()), (y, ax.yaxis, ax.get_yscale())):
            title = re.sub(r"<[^>]*>", " ", axis.title.text or "")
            assert ours.get_label_text().replace("\\$", "$").split() == title.split()
            assert scale == ("log" if axis.type == "log" else "linear")
            if axis.range is not None and axis.type != "category":
                limits = np.array(axis.range, float)
                limits = 10.0**limits if axis.type == "log" else limits
                np.testing.assert_allclose(ours.get_view_interval(), limits)
        seen = points_of(ax)
        for trace in figure.data:
            mine = (trace.xaxis or "x", trace.yaxis or "y")
            if trace.type != "scatter" or mine != (y.anchor, x.anchor):
                continue
            wanted = np.column_stack([numbers(trace.x, x), numbers(trace.y, y)])
            for point in wanted[np.isfinite(wanted).all(axis=1)]:
                assert np.isclose(seen, point, rtol=1e-6, atol=1e-12).all(axis=1).any(), trace.name
    said = " ".join(t.get_text() for ax in axes for t in [*ax.texts, ax.title, ax._left_title])
    for text in figure.layout.annotations:
        assert html.unescape(re.sub(r"<[^>]*>", "", text.text)) in said
    assert axes[0].figure.get_suptitle() == html.unescape(figure.layout.title.text)


def test_better_values_are_yellow_and_intervals_are_as_wide(study):
    axes = drawn("plot_contour", study)
    (mesh,) = (c for c in axes[0].collections if hasattr(c, "get_coordinates"))
    assert mesh.cmap.name == "cividis_r"  # its low end is yellow
    loss = drawn("plot_trajectory", study.trials[0])[0]
    (bar,) = loss.containers
    low, high = bar.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1)


def test_names_are_neither_formulas_nor_hidden():
    name = "_$x^<b>\\frac$"
    study = optuna.create_study(study_name=name)
    trial = study.ask({name: DISTRIBUTIONS["lr"], "momentum": DISTRIBUTIONS["momentum"]})
    Record(0, 1000, 200, "tangent", name, 0.5, 0.1, {name: 1.0}, {}).write(trial)
    write_trajectory(trial, trajectory([name]))
    study.tell(trial, 1.0)
    for plot in (p for p in PLOTS if p != "plot_schedule"):
        drawn(plot, study.trials[0] if "tr" in plot[5:7] and "trust" not in plot else
              subject(plot, study))  # fmt: skip
    axes = drawn("plot_trajectory", study.trials[0])
    entries = [t.get_text().strip() for t in axes[0].figure.legends[0].get_texts()]
    assert name.replace("$", "\\$") in entries


@pytest.mark.parametrize("trials", [0, 3])
def test_a_study_without_records_says_so(trials):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda t: t.suggest_float("x", -1, 1) ** 2, n_trials=trials)
    for plot in (p for p in PLOTS if p not in ("plot_schedule", "plot_trajectory")):
        if plot != "plot_eigenvalues":
            axes = drawn(plot, study)
            said = [t for ax in axes for t in ax.texts]
            assert said or any(len(points_of(ax)) for ax in axes)


def test_plotly_is_not_needed_and_missing_matplotlib_names_the_extra(study, monkeypatch):
    for module in [k for k in sys.modules if k.split(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert len(m.plot_slice(study)) == 4
    with warnings.catch_warnings():  # of half a matplotlib
        warnings.simplefilter("ignore")
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(ImportError, match=r"pip install optuna_glocal\[matplotlib\]"):
            m.plot_slice(study)


@pytest.mark.parametrize("name", m.__all__)
def test_signatures_and_docstrings_say_what_is_returned(name):
    for module, returned in ((v, "plotly.graph_objects.Figure"), (m, "matplotlib.axes.Axes")):
        plot = getattr(module, name)
        assert returned in inspect.signature(plot).return_annotation
        assert returned in plot.__doc__ and "Raises:" in plot.__doc__
