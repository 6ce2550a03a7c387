"""The first steps of a self-tuning run: climbing, descending, and beginning again."""

import math

import pytest

from optuna_glocal.tuning.first_phase import FirstPhase


def steps_of(phase, rate, r_of, loss_of=lambda t: 1.0, horizon=400):
    """Runs the phase; ``r_of(rate)`` is d loss / d log lr of one step. Path of (rate, event)."""
    path = []
    for t in range(horizon):
        if t >= phase.end:
            break
        h = None if t == 0 else {"lr": r_of(rate)}
        if phase.is_broken(t, loss_of(t), h):
            moves = phase.restart(t + 1, {"lr": math.log(rate)}, is_broken=True)
            event = "broken"
        else:
            moves = phase.moves(h, {"lr": math.log(rate)}) if h else {}
            event = ""
        rate *= math.exp(moves.get("lr", 0.0))
        path.append((rate, event))
    return path


def test_a_rate_that_is_too_low_climbs_until_a_step_consumes_two_percent():
    path = steps_of(FirstPhase(["lr"], 400), 1e-4, lambda rate: -0.1 * rate)
    # The mean of r lags behind the rate, so the climb ends a little above it.
    assert 0.2 < path[-1][0] < 0.3
    rates = [rate for rate, _ in path]
    assert rates == sorted(rates)
    assert max(b / a for a, b in zip(rates, rates[1:], strict=False)) <= math.exp(0.4) * 1.001


def test_a_late_return_divides_by_three():
    phase = FirstPhase(["lr"], 400)
    assert phase.restart(47, {"lr": 0.0}, is_broken=True)["lr"] == -math.log(30)
    phase = FirstPhase(["lr"], 400)
    assert phase.restart(48, {"lr": 0.0}, is_broken=True)["lr"] == -math.log(3)


def test_climbing_ends_once_the_loss_has_fallen():
    path = steps_of(FirstPhase(["lr"], 400), 1e-3, lambda r: -0.1 * r, lambda t: 1 - 0.1 * t)
    assert path[-1][0] == path[6][0] < 0.02


def test_a_rate_whose_steps_add_to_the_loss_falls():
    path = steps_of(FirstPhase(["lr"], 400), 0.1, lambda rate: 0.05)
    assert path[-1][0] < 0.1 / 10
    assert not any(event for _, event in path)


@pytest.mark.parametrize("r", [0.2, math.nan, math.inf])
def test_a_step_that_breaks_the_model_takes_the_run_back(r):
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 3.0, lambda rate: r if rate > 1 else -0.1 * rate)
    assert path[1] == (pytest.approx(0.1), "broken")
    assert phase.returns == 1
    assert 0.2 < path[-1][0] < 0.3


def test_it_never_climbs_above_a_third_of_what_broke():
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 3.0, lambda rate: 0.2 if rate > 1.5 else -1e-4)
    assert path[-1][0] == pytest.approx(1.0)


def test_a_loss_that_rises_though_the_steps_lower_it_is_no_reason_to_return():
    for sign, returns in ((-1, 0), (1, 1)):
        phase = FirstPhase(["lr"], 400)
        for t in range(24):
            h = {"lr": sign * 0.01} if t else None
            if phase.is_broken(t, 1 + 0.1 * t, h):
                phase.restart(t + 1, {"lr": 0.0}, is_broken=True)
                break
        assert phase.returns == returns


def test_a_rate_that_fell_far_asks_for_a_new_beginning_at_the_end_of_the_phase():
    phase = FirstPhase(["lr"], 400)
    rate, asked = 0.1, []
    for t in range(phase.end):
        phase.is_broken(t, 1.0, {"lr": 0.05})
        rate *= math.exp(phase.moves({"lr": 0.05}, {"lr": math.log(rate)})["lr"])
        asked.append(phase.has_fallen(t, {"lr": math.log(rate)}))
    assert asked == [False] * (phase.end - 1) + [True]


@pytest.mark.parametrize(
    ("horizon", "length"), [(1, 0), (20, 5), (64, 16), (500, 30), (2000, 64), (10_000, 64)]
)
def test_its_length(horizon, length):
    assert FirstPhase(["lr"], horizon).end == length
    assert FirstPhase([], horizon).end == 0


def test_it_gives_up_after_some_returns():
    phase = FirstPhase(["lr"], 10_000)
    for t in range(6):
        assert phase.is_watching(t)
        phase.restart(t, {"lr": 0.0}, is_broken=True)
    assert not phase.is_watching(7)
