"""Figures say what was stored: a trace per hyperparameter, the right scales, escaped names."""

import sys
import types

import numpy as np
import optuna
import pytest
from studies import DISTRIBUTIONS, HOSTILE, objective, trajectory

from optuna_glocal import GlocalSampler, Record, Trajectory, record_gradient, summary
from optuna_glocal import visualization as v
from optuna_glocal.storage.trajectory import write_trajectory


@pytest.fixture
def study():
    study = optuna.create_study(study_name=HOSTILE, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=9)
    return study


def names(figure):
    return [trace.name for trace in figure.data]


def texts(figure):
    return [a.text for a in figure.layout.annotations]


def every_figure(study):
    trial = study.trials[0]
    return [
        v.plot_proposals(study),
        v.plot_overview(study),
        v.plot_trajectory(trial),
        v.plot_eigenvalues(trial),
        v.plot_slice(study),
        v.plot_contour(study),
        v.plot_importances(study),
        v.plot_trust(study),
    ]


def test_a_trajectory_shows_the_loss_and_every_hypergradient_with_its_forecast(study):
    figure = v.plot_trajectory(study.trials[0])
    assert {"lr", "momentum", "lr: forecast", "momentum: forecast"} <= set(names(figure))
    lr = next(t for t in figure.data if t.name == "lr")
    np.testing.assert_allclose(lr.y, 0.5 * trajectory().hypergradients[:, 0], rtol=1e-6)
    forecast = next(t for t in figure.data if t.name == "lr: forecast")
    assert forecast.x[0] == 1000
    assert forecast.y[0] == pytest.approx(0.5 * Record.read(study.trials[0]).gradient["lr"])
    value = next(t for t in figure.data if "at the horizon" in (t.name or ""))
    assert value.error_y.array[0] == pytest.approx(1.96 * 0.1)


def test_a_bare_trajectory_is_forecast_only_to_a_given_horizon():
    assert not any("horizon" in (n or "") for n in names(v.plot_trajectory(trajectory())))
    assert any("horizon" in n for n in names(v.plot_trajectory(trajectory(), 1000)))


def test_reports_of_another_quantity_are_not_drawn_as_losses(study):
    trial = study.trials[0]
    trial.intermediate_values = {5 * i: 0.2 + np.exp(-i / 15) for i in range(1, 60)}
    assert "reported to the pruner" in names(v.plot_trajectory(trial))
    trial.intermediate_values = {5 * i: 95.0 for i in range(1, 60)}
    assert "reported to the pruner" not in names(v.plot_trajectory(trial))


def test_eigenvalues_are_those_of_the_fit_and_the_policy_splits_them():
    t = np.arange(60)
    h = np.stack([0.9**t, 0.7**t], axis=1)
    figure = v.plot_eigenvalues(Trajectory(t + 1, 1 + 0.9**t, h, ["a", "b"]), 1000, "unit")
    kept, discarded = (next(x for x in figure.data if x.name.startswith(w)) for w in ("kept", "d"))
    found = np.sort([*kept.x, *discarded.x])
    # By block means the grid may be coarser than a step: a whole power of the rates.
    powers = (np.array([0.9, 0.7])[:, None] ** np.arange(1, 5)).ravel()
    assert np.isclose(found[:, None], powers, atol=1e-6).any()
    assert all(abs(x - 1) <= 0.02 for x in kept.x) and all(abs(x - 1) > 0.02 for x in discarded.x)
    with pytest.raises(ValueError, match="policy"):
        v.plot_eigenvalues(trajectory(), policy="none of these")


def test_the_path_has_a_panel_per_hyperparameter_on_its_own_scale(study):
    figure = v.plot_proposals(study)
    axes = {a.title.text: a for a in figure.select_yaxes()}
    assert set(axes) == set(DISTRIBUTIONS)
    assert axes["lr"].type == "log" and axes["momentum"].type == "linear"
    assert axes["act"].type == "category"
    assert names(figure).count("complete") == names(figure).count("best") == 4
    pruned = [t for t in figure.data if (t.name or "").startswith("pruned")]
    assert [list(t.x) for t in pruned] == [[2, 5, 8]] * 4
    assert {t.marker.symbol for t in pruned} == {"x"}


def test_arrows_point_down_the_gradient(study):
    figure = v.plot_proposals(study)
    arrows = [t for t in figure.data if (t.name or "").startswith("towards better")]
    assert len(arrows) == 2  # ints and categories were given none
    lr, momentum = arrows
    for trial, start, end in zip(study.trials, lr.y[::3], lr.y[1::3], strict=True):
        assert start == trial.params["lr"]
        assert (end > start) == (trial.params["lr"] < 1e-2)
    assert all(e < s for s, e in zip(momentum.y[::3], momentum.y[1::3], strict=True))


def test_a_given_gradient_of_a_maximised_objective_is_climbed():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda t: _climb(t), n_trials=3)
    arrow = next(t for t in v.plot_proposals(study).data if t.legendgroup == "arrows")
    assert all(e > s for s, e in zip(arrow.y[::3], arrow.y[1::3], strict=True))


def _climb(trial):
    x = trial.suggest_float("x", 0, 1)
    record_gradient(trial, {"x": 1.0})
    return x


def traces(figure, start):
    return [t for t in figure.data if (t.name or "").startswith(start)]


def test_a_slices_strokes_are_tangents_of_the_recorded_loss(study):
    figure = v.plot_slice(study)
    lr, momentum = traces(figure, "slope")  # ints and categories were given no gradient
    recorded = [Record.read(t) for t in study.trials]
    for trace, name in ((lr, "lr"), (momentum, "momentum")):
        left, right = np.array([trace.x[::3], trace.x[1::3]], float)
        low, high = np.array([trace.y[::3], trace.y[1::3]], float)
        for trial, record, x0, x1, y0, y1 in zip(
            study.trials, recorded, left, right, low, high, strict=True
        ):
            x = trial.params[name]
            per_unit = 1 / x if name == "lr" else 1.0  # the axis is that of log lr
            run = np.log(x1 / x0) if name == "lr" else x1 - x0
            slope = record.gradient[name] / per_unit / record.value  # and that of log loss
            assert np.log(y1 / y0) / run == pytest.approx(slope, rel=1e-6)
            assert np.sqrt(y0 * y1) == pytest.approx(record.value)  # through the trial's dot
            middle = np.sqrt(x0 * x1) if name == "lr" else (x0 + x1) / 2
            assert middle == pytest.approx(x)
    pruned = traces(figure, "pruned")
    assert [list(t.y) for t in pruned] == [[recorded[i].value for i in (2, 5, 8)]] * 4


def test_a_slice_shows_the_loss_that_the_gradient_belongs_to():
    def accuracy(trial):
        x = trial.suggest_float("x", 0.0, 1.0)
        Record(trial.number, 10, 10, "tangent", value=1 + x, gradient={"x": 1.0}).write(trial)
        return 0.9 - x / 10

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(accuracy, n_trials=3)
    complete = traces(v.plot_slice(study), "complete")[0]
    assert list(complete.y) == [1 + t.params["x"] for t in study.trials]


def test_a_contours_arrows_follow_the_gradient_of_the_two_that_matter_most(study):
    figure = v.plot_contour(study)
    axes = figure.layout.xaxis.title.text, figure.layout.yaxis.title.text
    importances = {s.name: s.importance for s in summary(study).hyperparameters}
    assert list(axes) == sorted(importances, key=importances.get, reverse=True)[:2]
    arrows = traces(figure, "towards better")[-1]
    by_name = dict(zip(axes, (arrows.x, arrows.y), strict=True))
    for i, trial in enumerate(study.trials):
        ends = {n: column[3 * i : 3 * i + 2] for n, column in by_name.items()}
        assert {n: e[0] for n, e in ends.items()} == {n: trial.params[n] for n in axes}
        g = Record.read(trial).gradient
        down = -g["lr"] * trial.params["lr"] * np.log(1e4), -g["momentum"] * 0.99
        moved = np.log(ends["lr"][1] / ends["lr"][0]) / np.log(1e4), ends["momentum"][1]
        moved = moved[0], (moved[1] - ends["momentum"][0]) / 0.99
        inside = 0.0 < trial.params["momentum"] + 0.99 * moved[1] < 0.99
        if inside and abs(moved[0]) > 1e-9:  # else cut off at the margin
            cosine = np.dot(moved, down) / np.linalg.norm(moved) / np.linalg.norm(down)
            assert cosine == pytest.approx(1.0, abs=1e-6)
    surface = next(t for t in figure.data if t.type == "contour")
    known = [z for row in surface.z for z in row if z is not None]
    values = [t.value for t in study.trials]
    assert known and min(values) - 1e-9 <= min(known) and max(known) <= max(values) + 1e-9


def test_the_axes_of_a_contour_can_be_chosen(study):
    figure = v.plot_contour(study, ["layers", "lr"])
    assert figure.layout.xaxis.title.text == "layers"
    for wrong in (["lr"], ["lr", "lr"], ["lr", "act"], ["lr", "nothing"]):
        with pytest.raises(ValueError, match="params: expected two of"):
            v.plot_contour(study, wrong)


def test_importances_are_the_sizes_of_the_slopes_sorted(study):
    figure = v.plot_importances(study)
    found = summary(study).hyperparameters
    ticks = figure.layout.yaxis.ticktext
    assert [tick.split("<br>")[0] for tick in ticks] == [s.name for s in found[::-1]]
    median = traces(figure, "median")[0]
    np.testing.assert_allclose(median.x, [s.importance for s in found[::-1]])
    ends = np.array([s.quartiles for s in found[::-1]])
    np.testing.assert_allclose(np.add(median.x, median.error_x.array), ends[:, 1])
    np.testing.assert_allclose(np.subtract(median.x, median.error_x.arrayminus), ends[:, 0])
    for label, symbol, sign in (("larger", "right", -1), ("smaller", "left", 1)):
        (dots,) = (t for t in figure.data if t.name.endswith(label))
        assert dots.marker.symbol == f"triangle-{symbol}"
        wanted = [abs(s) for each in found[::-1] for s in each.slopes if s * sign > 0]
        np.testing.assert_allclose(dots.x, wanted)


def test_trust_is_what_records_and_proposals_say():
    def objective(trial):
        x, y = trial.suggest_float("x", -1, 2), trial.suggest_float("y", -1, 3)
        if trial.number == 1:
            Record(1, 10, 2, status="Too rough.", value=1.0).write(trial)
            return 1.0
        sd = {"x": 3 * abs(2 * x), "y": 0.0}
        gradient = {"x": 2 * x, "y": 2 * y}
        Record(trial.number, 10, 10, "tangent", "", x * x + y * y, 0.0, gradient, sd).write(trial)
        return x * x + y * y

    study = optuna.create_study(sampler=GlocalSampler(seed=0, n_startup_trials=3))
    study.optimize(objective, n_trials=7)
    figure = v.plot_trust(study)
    x, y = traces(figure, "x")[0], traces(figure, "y")[0]
    given = [0, 2, 3, 4, 5, 6]
    assert list(x.x) == list(y.x) == given
    np.testing.assert_allclose(x.y, [1 / (1 + 9)] * 6)
    assert list(y.y) == [1.0] * 6
    withheld = traces(figure, "gradient withheld")[0]
    assert list(withheld.x) == [1] and list(withheld.customdata) == ["Too rough."]
    # The gains of the model behind each proposal: all partials exact and right, so near 1.
    gains = traces(figure, "y")[1]
    assert list(gains.x)[0] == 3 and 0.5 < gains.y[-1] < 1.5
    reasons = traces(figure, "proposal")[0]
    assert list(reasons.y) == [t.user_attrs["glocal:reason"] for t in study.trials]


def test_trust_does_not_trust_what_it_reads(study):
    for text in ("{torn", "[]", '{"x": {"a": 1}, "starts": [["no"], []]}', '{"x": 3}'):
        trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
        study._storage.set_trial_system_attr(trial._trial_id, "glocal:proposal", text)
        study.tell(trial, 1.0)
    assert any("No proposal was made" in t for t in texts(v.plot_trust(study)))


def test_names_from_storage_are_escaped_everywhere(study):
    hostile = {HOSTILE: DISTRIBUTIONS["lr"]}
    trial = study.ask(hostile)
    gradient = {HOSTILE: 1.0}
    Record(trial.number, 1000, 200, "tangent", HOSTILE, 0.5, 0.1, gradient, {}).write(trial)
    write_trajectory(trial, trajectory([HOSTILE]))
    study.tell(trial, 1.0)
    figures = [*every_figure(study), v.plot_trajectory(study.trials[-1])]
    for figure in figures:
        assert "<script" not in figure.to_json() and "\\u003cscript" not in figure.to_json()


@pytest.mark.parametrize("trials", [0, 5])
def test_a_study_without_records_says_so(trials):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda t: t.suggest_float("x", -1, 1) ** 2, n_trials=trials)
    said = texts(v.plot_overview(study))
    assert any("record" in t or "hyperparameter" in t for t in said)
    assert any("no trajectory" in t for t in said)
    if trials:
        assert any("No Koopman" in t for t in texts(v.plot_eigenvalues(study.trials[0])))


def test_odd_studies_are_drawn():
    two = optuna.create_study(directions=["minimize", "maximize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=3)
    failed = optuna.create_study()
    failed.optimize(lambda t: 1 / (t.suggest_float("x", 0, 1) * 0), n_trials=2, catch=(Exception,))
    infinite = optuna.create_study()
    infinite.optimize(lambda t: t.suggest_float("x", 2, 2) * float("inf"), n_trials=2)
    for study in (two, failed, infinite):
        for figure in every_figure(study):
            assert figure.data or texts(figure)  # something is seen, or said
            figure.to_json()


def test_a_schedule_has_a_panel_per_column_log_where_it_spans_decades():
    values = np.array([[0.1, 0.9], [0.01, 0.8]])
    moved = types.SimpleNamespace(steps=np.array([0, 100]), columns=("lr", "m"), values=values)
    figure = v.plot_schedule(moved)
    assert [a.type for a in figure.select_yaxes()] == ["log", "linear"]
    assert list(figure.data[0].y) == [0.1, 0.01]


def test_a_panel_without_traces_is_still_drawn_and_an_unused_place_is_not(study):
    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    plain.optimize(lambda t: t.suggest_float("x", -1, 1) ** 2, n_trials=3)
    trust = v.plot_trust(plain)
    # Plotly leaves out axes of which no trace is, and heaps up what was to be said there.
    assert {t.yaxis for t in trust.data} == {"y", "y2", "y3"}
    assert {t.yaxis for t in v.plot_slice(study).data} == {"y", "y2", "y3", "y4"}  # of 2 rows of 3


def test_a_trial_that_tuned_itself_shows_its_value_and_where_its_path_is():
    study = optuna.create_study()
    trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
    Record(trial.number, 1000, 1000, "greedy", "Tuned.", 0.18, 0.1, tuned=("lr",)).write(trial)
    study.tell(trial, 0.13)
    assert list(traces(v.plot_slice(study), "complete")[0].y) == [0.13]
    assert any("plot_schedule" in t for t in texts(v.plot_trajectory(study.trials[0])))


def test_spikes_are_cut_off_and_intervals_are_not(study):
    t = np.arange(1, 41)
    h = np.where(t < 3, 50.0, 0.1 * np.cos(t))[:, None]
    trial = study.ask({"lr": DISTRIBUTIONS["lr"]})
    gradient, sd = {"lr": 0.2}, {"lr": 0.1}
    Record(trial.number, 1000, 200, "tangent", "", 0.5, 0.1, gradient, sd).write(trial)
    write_trajectory(trial, Trajectory(t, 0.2 + np.exp(-t / 15), h, ["lr"], [1.0]))
    study.tell(trial, 1.0)
    low, high = v.plot_trajectory(study.trials[-1]).layout.yaxis2.range
    assert 0.2 + 1.96 * 0.1 < high < 1 and -1 < low < -0.1


def test_missing_plotly_names_the_extra(study, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install optuna_glocal\[dashboard\]"):
        v.plot_proposals(study)


def test_upload_keeps_the_users_note_and_can_be_repeated(study, tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    dashboard.save_note(study, "My own words.")
    ids = v.upload(study)
    assert ids == v.upload(study)
    assert all(i.startswith("glocal-") for i in ids)
    note = dashboard.get_note(study)
    assert note.startswith("My own words.") and note.count("## optuna_glocal") == 1
    dashboard.save_note(study, note + "More of mine.")
    v.upload(study)
    assert dashboard.get_note(study).rstrip().endswith("More of mine.")
