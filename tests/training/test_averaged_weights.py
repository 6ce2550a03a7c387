"""The averaged weights as a user compares them: a swap, and the best by the study's direction."""

import optuna
import pytest
import torch
from runs import fixed
from tuned import BAD, run, trial_at

from optuna_glocal import GlocalCallback, Tune


@pytest.mark.parametrize(
    ("direction", "mode", "expected"),
    [("minimize", None, 97.0), ("maximize", None, 97.8), ("maximize", "min", 97.0)],
)
# In percent, so well above the training loss: averages are looked at until one is worse.
@pytest.mark.parametrize(
    "accuracies", [(97.8, 97.5, 97.2, 97.0, 97.1), (97.5, 97.0, 97.3, 97.8, 97.6)]
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


def looked(losses, **arguments):
    """A run whose validation losses at raw, recent and whole weights are ``losses`` by step."""
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    queue = []

    def validation_loss():
        return (x**2).sum() if not queue else (x * 0).sum() + queue.pop(0)

    options = {"tune": Tune(by="greedy"), **arguments}
    glocal = GlocalCallback(trial_at(lr=0.1), optimizer, validation_loss, horizon=40, **options)
    seen = []
    with glocal:
        for figures in losses:
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
            raw = x.detach().clone()
            queue[:] = figures
            with glocal.best_weights() as is_averaged, glocal.best_weights() as inner:
                assert inner == is_averaged
                seen.append((is_averaged, torch.equal(x, raw)))
                assert not queue  # compared once
            assert torch.equal(x, raw)
            queue.clear()
    return seen, glocal


def test_best_weights_are_those_of_the_smaller_validation_loss_and_only_inside():
    losses = [(3.0, 2.0, 4.0), (1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (3.0, float("nan"), 4.0)]
    seen, glocal = looked(losses)
    assert seen == [(True, False), (False, True), (True, False), (False, True)]


def test_best_weights_fall_back_to_the_raw_ones():
    assert looked([()], tune=False)[0] == [(False, True)]  # no averages are kept
    seen, glocal = looked([("not a number",)])
    assert seen == [(False, True)] and glocal.status.startswith("Nothing has moved")


def test_what_best_of_has_told_after_the_same_step_counts():
    model, optimizer, glocal, _ = run(BAD, average=True)
    raw = [p.clone() for p in model.parameters()]
    values = iter([1.0, 3.0, 2.0])
    assert glocal.best_of(lambda: next(values), mode="max") == 3.0
    with glocal.best_weights() as is_averaged:
        assert is_averaged and not torch.equal(raw[0], model[0].weight)
    # The run is over, and the user looks once more after the better ones were left in the model.
    glocal.keep_best()
    values = iter([3.0, 1.0, 2.0])
    assert glocal.best_of(lambda: next(values), mode="max") == 3.0
    assert all(map(torch.equal, raw, model.parameters()))
