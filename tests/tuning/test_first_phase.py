"""The first quarter of a self-tuning run: climbing, following the distance, beginning again."""

import math

import pytest
import torch

from optuna_glocal.tuning.first_phase import FirstPhase


def steps_of(phase, rate, r_of, loss_of=lambda t: 1.0, ratio_of=lambda rate, n: 0.0):
    """Runs the phase; ``r_of(rate)`` is d loss / d log lr of one step. Path of (rate, event)."""
    path, begun = [], 0
    for t in range(1000):
        if t >= phase.end:
            break
        h = None if t in (0, begun) else {"lr": r_of(rate)}
        if phase.is_broken(loss_of(t), h):
            moves = phase.restart(t + 1, {"lr": math.log(rate)})
            event, begun = "broken", t + 1
        else:
            ratios = {"lr": ratio_of(rate, t - begun)}
            moves = phase.moves(t, h, {"lr": math.log(rate)}, ratios) if h else {}
            event = ""
        rate *= math.exp(moves.get("lr", 0.0))
        path.append((rate, event))
    return path


def test_a_rate_climbs_until_a_step_consumes_one_percent():
    path = steps_of(FirstPhase(["lr"], 400), 1e-6, lambda rate: -0.1 * rate)[:16]
    # The mean of r lags behind the rate, so the climb ends a little above it.
    assert 0.1 < path[-1][0] < 0.15
    rates = [rate for rate, _ in path]
    assert rates == sorted(rates)
    climbs = [math.log(b / a) for a, b in zip(rates, rates[1:], strict=False)]
    assert max(climbs) == pytest.approx(1.2)
    assert all(climb < 0.41 for climb, rate in zip(climbs, rates, strict=False) if rate > 0.03)


def test_several_rates_share_what_a_step_may_consume():
    ends = []
    for names in (["lr"], ["lr", "body"]):
        phase = FirstPhase(names, 400)
        u = dict.fromkeys(names, math.log(1e-6))
        for t in range(16):
            h = {name: -0.1 * math.exp(value) for name, value in u.items()}
            phase.is_broken(1.0, h)
            moves = phase.moves(t, h, u, {})
            u = {name: value + moves[name] for name, value in u.items()}
        ends.append(math.exp(u["lr"]))
    assert ends[1] == pytest.approx(ends[0] / 2, rel=0.25)


def test_climbing_ends_once_the_loss_has_fallen():
    path = steps_of(FirstPhase(["lr"], 400), 1e-6, lambda r: -1e-5, lambda t: 1 - 0.1 * t)[:16]
    assert path[-1][0] == path[6][0] < path[-1][0] * 1.001


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_the_distance_decides_where_the_rate_ends(start):
    """The ratio is D / rate: the rate that has the ratio aimed at, from any start."""
    phase = FirstPhase(["lr"], 1200)
    path = steps_of(phase, start, lambda rate: 0.0, ratio_of=lambda rate, n: 0.5 / rate)
    aim = 0.107 * (phase.end - 1) ** (1 / 3)
    assert path[-1][0] == pytest.approx(0.5 / aim, rel=0.02)
    assert path[14][0] == start


def greedily_best(theta, c, sigma):
    return c * theta**2 / (c**2 * theta**2 + sigma**2)


def test_the_slope_of_one_step_changes_sign_at_the_rate_that_is_best_for_it():
    """The docstring's r of a noisy quadratic, against the mean of many steps."""
    theta, c, sigma, n = 1.5, 0.8, 2.0, 400_000
    g = torch.Generator().manual_seed(0)
    steps = c * theta + sigma * torch.randn(n, generator=g, dtype=torch.float64)
    best = greedily_best(theta, c, sigma)
    for rate in (0.3 * best, best, 2 * best):
        found = (c * (theta - rate * steps) * -rate * steps).mean().item()
        law = rate * c * (rate * (c**2 * theta**2 + sigma**2) - c * theta**2)
        assert found == pytest.approx(law, abs=0.01 * rate * c * theta**2)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_rate_rises_while_the_slopes_agree_though_the_distance_says_stay(noise):
    """r of the noisy quadratic, and noise that is larger than its mean near the best rate."""
    best, g = greedily_best(1.5, 0.8, 2.0), torch.Generator().manual_seed(0)
    law = lambda rate: 0.01 * rate * (rate - best)  # noqa: E731
    scatter = lambda rate: 0.01 * rate * best * noise * torch.randn(1, generator=g).item()  # noqa: E731
    path = steps_of(
        FirstPhase(["lr"], 160),
        best / 15,
        lambda rate: law(rate) + scatter(rate),
        lambda t: 0.5 if t else 1.0,  # so that climbing ends at once
    )
    assert path[15][0] < best / 3
    assert best / 1.5 < path[-1][0] < best * 1.3


def test_a_short_phase_reaches_as_far_as_one_of_many_steps():
    for horizon in (60, 100, 150):
        phase = FirstPhase(["lr"], horizon)
        path = steps_of(phase, 1e-3, lambda rate: 0.0, ratio_of=lambda rate, n: 1e6)
        assert math.log(path[-1][0] / 1e-3) == pytest.approx(3.0, rel=0.1)


def test_rates_that_move_together_aim_at_a_larger_ratio():
    one, four = FirstPhase(["a"], 1000), FirstPhase(["a", "b", "c", "d"], 1000)
    moves = []
    for phase in (one, four):
        h = dict.fromkeys(phase._rates, 0.0)
        phase.is_broken(1.0, h)
        ratio = 0.107 * 30 ** (1 / 3) * math.sqrt(len(h))
        moves.append(phase.moves(30, h, h, dict.fromkeys(h, ratio))["a"])
    assert moves == pytest.approx([0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("r", [0.2, math.nan, math.inf])
def test_a_step_that_breaks_the_model_takes_the_run_back(r):
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 3.0, lambda rate: r if rate > 0.5 else -0.1 * rate)
    cut = 30 if math.isfinite(r) else 1
    assert path[1] == (pytest.approx(3.0 / cut), "broken")
    assert phase.end >= 102
    assert 0.1 <= path[-1][0] < 0.2


def test_one_loss_that_is_not_finite_after_sound_steps_costs_the_rate_nothing():
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 0.05, lambda r: -0.1 * r, lambda t: math.nan if t in (9, 40) else 1.0)
    events = [t for t, (_, event) in enumerate(path) if event]
    assert events == [9, 40]
    assert path[9][0] == path[8][0]
    assert path[40][0] == pytest.approx(path[39][0] / 30)


def test_it_never_climbs_above_a_third_of_what_broke():
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 3.0, lambda rate: 0.2 if rate > 1.5 else -1e-4)
    assert path[-1][0] == pytest.approx(1.0)


def test_steps_that_add_to_a_loss_that_has_fallen_lower_and_cap_the_rate():
    phase = FirstPhase(["lr"], 400)
    path = steps_of(
        phase,
        1.0,
        lambda rate: 0.3 if rate > 0.9 else 0.0,
        lambda t: 0.1 if t else 1.0,
        ratio_of=lambda rate, n: 100.0,
    )
    assert phase.returns == 0
    assert path[-1][0] == max(rate for rate, _ in path[20:]) == pytest.approx(math.exp(-0.5))


def test_a_loss_that_rises_though_the_steps_lower_it_is_no_reason_to_return():
    for sign, returns in ((-1, 0), (1, 1)):
        phase = FirstPhase(["lr"], 400)
        for t in range(24):
            h = {"lr": sign * 0.01} if t else None
            if phase.is_broken(1 + 0.1 * t, h):
                assert phase.restart(t + 1, {"lr": 0.0})["lr"] == -math.log(30)
                break
        assert phase.returns == returns


def test_every_step_is_looked_at_first_and_every_fourth_later():
    phase = FirstPhase(["lr"], 1000)
    due = [t for t in range(1000) if phase.is_due(t)]
    assert due == [*range(64), *range(67, 249, 4)]
    assert [phase.steps_between(t) for t in (0, 63, 67)] == [1, 1, 4]
    phase.restart(100, {"lr": 0.0})
    assert all(phase.is_due(t) for t in range(100, 164))


@pytest.mark.parametrize(
    ("horizon", "length"), [(1, 0), (20, 8), (150, 60), (240, 75), (400, 100)]
)
def test_its_length(horizon, length):
    assert FirstPhase(["lr"], horizon).end == length
    assert FirstPhase([], horizon).end == 0


def test_it_begins_at_a_three_hundredth_where_there_is_time_to_climb():
    found = {T: FirstPhase(["lr"], T).beginning().get("lr") for T in (2, 32, 64, 1000)}
    shares = {2: 0.0, 32: 0.75, 64: 1.0, 1000: 1.0}
    assert found == {T: pytest.approx(-s * math.log(300)) for T, s in shares.items()}
    assert FirstPhase([], 100).beginning() == {}


def test_it_gives_up_after_some_returns():
    phase = FirstPhase(["lr"], 10_000)
    for t in range(6):
        assert phase.is_watching(t)
        phase.restart(t, {"lr": 0.0})
    assert not phase.is_watching(7)


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (1.8, 1.8), (0.6, 0.6), (9, 2), (0.1, 0.5)]
)
def test_a_rate_that_is_trusted_stays_unless_it_is_clearly_wrong(start, end):
    """The ratio is the aim over the rate, so 1 is right: kept within a factor of two."""
    assert FirstPhase(["lr"], 1200, trusts=True).beginning() == {}
    aim = lambda n: 0.107 * max(n, 1) ** (1 / 3)  # noqa: E731
    phase = FirstPhase(["lr"], 1200, trusts=True)
    path = steps_of(
        phase, start, lambda rate: -0.005 * rate, ratio_of=lambda rate, n: aim(n) / rate
    )
    assert path[-1][0] == pytest.approx(end, rel=0.02)


def test_after_a_return_nothing_is_trusted():
    phase = FirstPhase(["lr"], 400, trusts=True)
    path = steps_of(phase, 3.0, lambda rate: 0.2 if rate > 0.5 else -0.1 * rate)
    assert path[1] == (pytest.approx(0.1), "broken")
    assert 0.09 < path[-1][0] < 0.2
