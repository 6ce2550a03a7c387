"""The average keeps its law whatever it leaves out."""

import math

import pytest
import torch

from optuna_glocal.tuning.weight_averaging import WHOLE, Averages


def test_averages_that_wait_never_take_in_weights_that_were_not_confirmed():
    x = torch.zeros(3, requires_grad=True)
    averages = Averages([x], "blend")
    averages.wait(defers=False)
    for t in range(1, 11):
        x.data.fill_(float(t))
        averages.update()
        if t % 5 == 0:
            averages.confirm()
    x.data.fill_(math.nan)
    averages.update()
    assert math.isfinite(averages.best_of(lambda: x.sum().item()))
    assert averages.rescue()
    # Of θ_t = t, taken in at t = 5 and 10: k t / (k + 1), as of every step.
    assert x.tolist() == pytest.approx([WHOLE * 10 / (WHOLE + 1)] * 3)
    averages.go_on()
    averages.update()
    with averages.recent.swapped():
        assert torch.equal(x, torch.full_like(x, x[0].item()))


def rising_run(steps=100):
    """θ_t = t: the newest steps' average is near 6/7 of the last, the whole run's near 3/7."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    averages = Averages([x], "raw")
    for t in range(1, steps + 1):
        x.data.fill_(float(t))
        averages.update()
    return x, averages


@pytest.mark.parametrize("goal, expected", [(100.0, 100.0), (80.0, 600 / 7), (50.0, 300 / 7)])
def test_the_best_of_three_is_kept(goal, expected):
    x, averages = rising_run()
    with averages.swapped():
        assert x.item() == pytest.approx(600 / 7)  # the recent one, before any is known to be best
    found = averages.best_of(lambda: abs(x.item() - goal))
    assert found == pytest.approx(abs(expected - goal))
    assert averages.is_better is (goal < 100)
    with averages.swapped():
        assert x.item() == pytest.approx(expected if goal < 100 else 600 / 7)
    assert x.item() == 100.0


def phased_run(losses=(), steps=400, first=100):
    """θ_t = t, with a first phase: means of t until ``first``, and of max(t, first) in all."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    averages = Averages([x], "blend")
    averages.wait(defers=True, has_phase=True)
    for t in range(1, steps + 1):
        x.data.fill_(float(t))
        averages.update()
        averages.confirm(losses)
        if t == first:
            averages.begin()
    return x, averages


RECENT, LATE, EARLY = 320.25, 212.5, 50.0
NEAR = 0.65 * LATE + 0.35 * EARLY


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (400, 400),
        (320, RECENT),
        (220, LATE),
        (160, NEAR),
        (110, 0.3 * LATE + 0.7 * EARLY),
        (40, EARLY),
    ],
)
def test_a_run_with_a_first_phase_is_compared_at_six_points(goal, expected):
    x, averages = phased_run()
    found = averages.best_of(lambda: abs(x.item() - goal))
    assert found == pytest.approx(abs(expected - goal), abs=2.0)
    with averages.swapped():
        assert x.item() == pytest.approx(expected if goal < 400 else RECENT, abs=2.0)
    assert x.item() == 400
    averages.load_best()
    assert x.item() == pytest.approx(expected, abs=2.0)


@pytest.mark.parametrize(
    ("goal", "training_loss", "looks"),
    [
        (400, 200.0, 2),  # nothing says that the run over-fits
        (400, 50.0, 3),  # it may, but the late average is much worse
        (230, 50.0, 4),  # the way to the early average leads uphill
        (160, 50.0, 5),
        (40, 50.0, 6),
        (230, 900.0, 4),  # the recent average is so much better
        (400, None, 6),
    ],
)
def test_slow_averages_are_looked_at_where_they_may_be_better(goal, training_loss, looks):
    x, averages = phased_run([] if training_loss is None else [training_loss])
    seen = []

    def validate():
        seen.append(abs(x.item() - goal) + 100)
        return seen[-1]

    assert averages.best_of(validate) == min(seen)
    assert len(seen) == looks


def test_all_are_looked_at_where_larger_is_better():
    x = torch.zeros(1, requires_grad=True)
    averages, seen = Averages([x], "blend"), []
    averages.begin()
    averages.confirm([100.0])
    averages.best_of(lambda: seen.append(0) or 0.5, maximise=True)
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("goals", "expected"),
    [((40, 40), EARLY), ((40, 160), NEAR), ((160, 40), NEAR), ((40, 400), LATE), ((220, 0), LATE)],
)
def test_a_noisy_loss_has_to_say_twice_that_the_run_over_fits(goals, expected):
    x, averages = phased_run()
    seen = []

    def validate():
        """By the first goal until all six points are looked at, by the second one after it."""
        seen.append(0)
        return abs(x.item() - goals[len(seen) > 6])

    averages.best_of_noisy(validate)
    assert len(seen) == (6 if goals[0] == 220 else 12)
    averages.load_best()
    assert x.item() == pytest.approx(expected, abs=2.0)


def test_after_the_first_phase_the_late_average_is_gone_back_to():
    x, averages = phased_run()
    x.data.fill_(math.nan)
    assert averages.rescue()
    assert x.item() == pytest.approx(LATE, abs=2.0)


def test_the_early_average_stays_whatever_follows():
    x, averages = phased_run(first=100, steps=100)
    ends = []
    for t in (100, 150, 400):
        x.data.fill_(float(t))
        averages.update()
        averages.confirm()
        with averages.whole.swapped():
            ends.append(x.item())
    assert ends == [ends[0]] * 3 == [pytest.approx(EARLY)] * 3


def test_the_state_is_the_same_while_a_point_between_is_shown():
    x, averages = phased_run()
    averages.best_of(lambda: abs(x.item() - 110))
    before = averages.state_dict()
    averages.show()
    assert averages.is_shown and x.item() == pytest.approx(0.3 * LATE + 0.7 * EARLY, abs=2.0)
    assert averages.raw()[0].item() == 400
    torch.testing.assert_close(averages.state_dict(), before, rtol=0, atol=0)
    assert averages.is_shown
    averages.hide()
    assert x.item() == 400
    other, resumed = phased_run(steps=1)
    resumed.load_state_dict(before)
    other.data.fill_(400.0)
    resumed.show()
    averages.show()
    assert torch.equal(other, x)


def test_an_average_without_a_finite_loss_is_not_the_best():
    x, averages = rising_run()
    losses = iter([3.0, math.nan, 2.0])
    assert averages.best_of(lambda: next(losses)) == 2.0 and averages.is_better
    losses = iter([3.0, math.inf, math.nan])
    assert averages.best_of(lambda: next(losses)) == 3.0 and not averages.is_better


def test_the_largest_of_three_is_kept_where_larger_is_better():
    x, averages = rising_run()
    accuracies = iter([0.978, 0.975, 0.970])
    assert averages.best_of(lambda: next(accuracies), maximise=True) == 0.978
    assert averages.is_better is False
    accuracies = iter([0.970, math.nan, 0.978])
    assert averages.best_of(lambda: next(accuracies), maximise=True) == 0.978
    with averages.swapped():
        assert x.item() == pytest.approx(300 / 7)


@pytest.mark.parametrize("maximise", [False, True])
def test_raw_weights_without_a_finite_value_are_not_the_best(maximise):
    _, averages = rising_run()
    values = iter([math.nan, 2.0, 2.0])
    assert averages.best_of(lambda: next(values), maximise=maximise) == 2.0 and averages.is_better


def test_the_best_weights_can_be_left_in_the_model():
    x, averages = rising_run()
    with pytest.raises(ValueError, match="^load_best: expected weights that have been compared"):
        averages.load_best()
    averages.best_of(lambda: abs(x.item() - 50))
    assert x.item() == 100
    averages.load_best()
    assert x.item() == pytest.approx(300 / 7)


def normalised_run(steps=40):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    stranger = torch.nn.BatchNorm1d(2)
    params = list(model.parameters())
    averages = Averages(params, "raw", [stranger, model[1], model])
    x = torch.randn(steps, 16, 3, dtype=torch.float64)
    history = [[t.clone() for t in (*params, model[1].running_mean)]]
    for batch in x:
        loss = (model(batch + 2) ** 2).sum()
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.data -= 1e-3 * g
        averages.update()
        history.append([t.clone() for t in (*params, model[1].running_mean)])
    return model, averages, x, history


def test_batch_norm_statistics_are_averaged_with_the_weights():
    model, averages, _, history = normalised_run()
    expected = history[0]
    for t, now in enumerate(history[1:], 1):
        expected = [a + 6 / (t + 6) * (b - a) for a, b in zip(expected, now, strict=True)]
    with averages.recent.swapped():
        here = [*model.parameters(), model[1].running_mean]
        torch.testing.assert_close(
            [h.detach() for h in here], [e.detach() for e in expected], rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(model[1].running_mean, history[-1][-1], rtol=0, atol=0)
    assert model.mask[1] == -math.inf


def test_statistics_computed_anew_are_those_of_the_averaged_weights():
    model, averages, x, _ = normalised_run()
    before = model[1].running_mean.clone()
    seen = []

    def validate():
        seen.append(model[1].running_mean.clone())
        return float(len(seen) == 1)

    averages.best_of(validate, update_bn=x + 2)
    torch.testing.assert_close(model[1].running_mean, before, rtol=0, atol=0)
    averages.load_best()
    hidden = model[0](x.reshape(-1, 3) + 2).detach()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))


def test_the_model_is_left_as_it_was_when_the_best_is_found():
    """State, training flags of every module, and the random numbers of the training to come."""
    model, averages, x, _ = normalised_run()
    model.append(torch.nn.Dropout(0.5))
    model[1].eval()  # a frozen layer
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()

    def validate():
        model.eval()
        return model[0].weight.sum().item()

    averages.best_of(validate, update_bn=x + 2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
