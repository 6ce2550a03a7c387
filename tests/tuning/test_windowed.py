"""Hypergradients over windows, beside the greedy one."""

import numpy as np
import pytest
import torch
from tuned import BAD, run

from optuna_glocal.forecasting.forecast import forecast
from optuna_glocal.forecasting.koopman.dmd import POLICIES


def test_a_window_of_one_step_is_the_greedy_gradient():
    """Z after one step from 0 is ∂θ'/∂λ at fixed θ, g, s: local with τ = 1 is greedy."""
    start = {**BAD, "lr": 0.05}
    arguments = {"tune": ["lr", "weight_decay"], "every": 1, "dtype": torch.float64}
    *_, greedy, _ = run(start, average=False, **arguments)
    *_, local, _ = run(start, by="local", **arguments)
    np.testing.assert_allclose(local.schedule.values, greedy.schedule.values, rtol=1e-9)


@pytest.mark.parametrize("by", ["local", "glocal"])
@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_windows_mend_a_bad_start(by, discount):
    *_, fixed = run(BAD)
    *_, glocal, tuned = run(BAD, tune=True, by=by, discount=discount, every=10)
    assert tuned < 0.6 * fixed
    assert glocal.schedule.steps.tolist() == list(range(0, 201, 10))


def test_the_first_move_goes_down_the_named_policys_forecast(monkeypatch):
    paths = []
    for policy in POLICIES:
        made = []

        def spy(*args, made=made, **options):
            made.append((options, forecast(*args, **options)))
            return made[-1][1]

        monkeypatch.setattr("optuna_glocal.tuning.windowed.forecast", spy)
        options = {"estimator": "koopman", "policy": policy}
        *_, glocal, _ = run(BAD, tune=["lr"], by="glocal", every=20, **options)
        assert [asked for asked, _ in made] == [options] * 10
        before, after, *_ = glocal.schedule.values[:, 0]
        assert np.sign(np.log(before / after)) == np.sign(made[0][1].gradient["lr"])
        paths.append(tuple(glocal.schedule.values[:, 0]))
    assert len(set(paths)) > 1
    with pytest.raises(ValueError, match="policy: expected one of"):
        run(BAD, tune=True, policy="nearest")
