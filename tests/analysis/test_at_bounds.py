"""Ranges that should be wider."""

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution

from optuna_glocal import record_gradient, summary
from optuna_glocal.storage.keys import RECORD
from optuna_glocal.storage.record import Record

LR = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}


def study_of(slope, points=(1e-1, 1e-1, 1e-2, 1e-3, 1e-4), direction="minimize"):
    """A study of the plane ``value = slope log lr``."""
    study = optuna.create_study(direction=direction)

    def objective(trial):
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        record_gradient(trial, {"lr": slope / lr})
        return slope * math.log(lr)

    for lr in points:
        study.enqueue_trial({"lr": lr})
    study.optimize(objective, n_trials=len(points))
    return study


def test_best_trials_at_a_bound_with_gradients_that_point_outwards():
    said = "lr at its upper bound, and larger is better: widen"
    assert summary(study_of(-1.0)).bounds == (said,)
    assert said in str(summary(study_of(-1.0)))
    assert summary(study_of(1.0, (1e-4, 1e-4, 1e-3, 1e-2, 1e-1))).bounds == (
        "lr at its lower bound, and smaller is better: widen",
    )
    assert summary(study_of(1.0, direction="maximize")).bounds == (said,)


def test_not_inside_nor_where_the_gradient_points_inwards():
    assert summary(study_of(-1.0, (5e-2, 4e-2, 1e-2, 1e-3, 1e-4))).bounds == ()
    study = study_of(-1.0)
    turned = optuna.create_study()
    for t in study.trials:
        record = Record.read(t)
        other = Record(**{**vars(record), "gradient": {"lr": 1.0}}).to_json()
        turned.add_trial(
            optuna.trial.create_trial(
                params=t.params, distributions=LR, value=t.value, user_attrs={RECORD: other}
            )
        )
    assert summary(turned).bounds == ()


@pytest.mark.parametrize(("start", "said"), [(1e-3, 1), (1e-1, 0)])
def test_self_tuned_trials_that_have_moved_to_a_bound(start, said):
    study = optuna.create_study()
    for number, value in enumerate((1.0, 1.1, 2.0, 3.0)):
        ended = {"lr": 1e-1 if number < 2 else 1e-2}
        record = Record(None, 9, 9, "greedy", tuned=("lr",), ended=ended)
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": start}, distributions=LR, value=value,
                user_attrs={RECORD: record.to_json()},
            )
        )  # fmt: skip
    assert len(summary(study).bounds) == said
