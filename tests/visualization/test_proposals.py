"""The path of proposals and its arrows."""

import optuna
from studies import DISTRIBUTIONS, names

from optuna_glocal import record_gradient
from optuna_glocal import visualization as v


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


def test_one_trial_has_a_whole_number_and_its_value_no_scale():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(_climb, n_trials=1)
    for plot in (v.plot_proposals, v.plot_trust):
        axis = plot(study).layout.xaxis
        assert axis.dtick == 1 and tuple(axis.range) == (-0.5, 0.5)
    colours = v.plot_proposals(study).layout.coloraxis
    assert not colours.showscale and colours.cmin < colours.cmax
    study.optimize(_climb, n_trials=60)
    figure = v.plot_proposals(study)
    assert figure.layout.coloraxis.showscale and figure.layout.xaxis.dtick == 10
