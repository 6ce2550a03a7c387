"""The averaged weights as a user compares them: a swap, and the best by the study's direction."""

import optuna
import pytest
import torch
from runs import fixed
from tuned import BAD, run

from optuna_glocal import GlocalCallback


@pytest.mark.parametrize(
    ("direction", "mode", "expected"),
    [("minimize", None, 0.970), ("maximize", None, 0.978), ("maximize", "min", 0.970)],
)
@pytest.mark.parametrize(
    "accuracies", [(0.978, 0.975, 0.972, 0.970), (0.975, 0.970, 0.973, 0.978)]
)
def test_best_of_follows_the_direction_of_the_study(direction, mode, expected, accuracies):
    study = optuna.create_study(direction=direction)

    def objective(trial):
        x = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 1e-3, 0.1))
        values = iter(accuracies)
        with GlocalCallback(
            trial, optimizer, lambda: (x**2).sum(), horizon=4, tune=True
        ) as glocal:
            for _ in range(4):
                optimizer.zero_grad()
                glocal.backward((x**2).sum())
                optimizer.step()
            found = glocal.best_of(lambda: next(values), mode=mode)
            glocal.load_best()
        return found

    study.optimize(objective, n_trials=1)
    assert study.best_value == expected
    with pytest.raises(ValueError, match="^mode: expected one of"):
        GlocalCallback(
            fixed(lr=0.1), torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1),
            lambda: None, horizon=4,
        ).best_of(float, mode="larger")  # fmt: skip


def test_averaged_is_a_swap():
    model, _, glocal, _ = run(BAD, average=True)
    raw = [p.clone() for p in model.parameters()]
    with glocal.averaged():
        inside = [p.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(raw, model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(raw, inside, strict=True))
    *_, plain, _ = run(BAD)
    with pytest.raises(ValueError, match="averaged: expected a callback that keeps averages"), \
            plain.averaged():  # fmt: skip
        pass


def test_observing_is_still_bit_identical_with_averages():
    with_average, *_ = run(BAD, average=True)
    without, *_ = run(BAD)
    torch.testing.assert_close(with_average.state_dict(), without.state_dict(), rtol=0, atol=0)
