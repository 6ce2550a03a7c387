"""The first quarter of a self-tuning run: climbing, following the distance, beginning again."""

import math

import pytest

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


@pytest.mark.parametrize(
    ("horizon", "share"), [(200, 0.04), (400, 0.02), (800, 0.01), (8000, 0.01)]
)
def test_a_rate_climbs_until_a_step_consumes_its_share(horizon, share):
    """One percent of the loss, and 8 / T of it in short runs."""
    slope = 10 * share
    path = steps_of(FirstPhase(["lr"], horizon), 1e-4, lambda rate: -slope * rate)
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
        phase = FirstPhase(names, 800)
        u = dict.fromkeys(names, math.log(1e-6))
        for t in range(phase.end):
            h = {name: -0.1 * math.exp(value) for name, value in u.items()}
            phase.is_broken(1.0, h)
            moves = phase.moves(t, h, u, {})
            u = {name: value + moves[name] for name, value in u.items()}
        ends.append(math.exp(u["lr"]))
    assert ends[1] == pytest.approx(ends[0] / 2, rel=0.25)


def test_climbing_ends_once_the_loss_has_fallen():
    path = steps_of(FirstPhase(["lr"], 60), 1e-6, lambda r: -1e-5, lambda t: 1 - 0.1 * t)
    assert path[-1][0] == path[6][0] < path[-1][0] * 1.001


@pytest.mark.parametrize("start", [1e-3, 1.0, 50.0])
def test_the_distance_decides_where_the_rate_ends(start):
    """The ratio is D / rate: the rate that has the ratio aimed at, from any start."""
    phase = FirstPhase(["lr"], 1200)
    path = steps_of(phase, start, lambda rate: 0.0, ratio_of=lambda rate, n: 0.5 / rate)
    aim = 0.107 * (phase.end - 1) ** (1 / 3)
    assert path[-1][0] == pytest.approx(0.5 / aim, rel=0.02)
    assert path[14][0] == start


@pytest.mark.parametrize(("horizon", "rise"), [(40, 0.225), (100, 0.09), (8000, 0.03)])
def test_a_rate_may_rise_tenfold_in_a_short_phase(horizon, rise):
    """By 2.25 in log lr over the phase of T / 4 steps, and 3 % per step in long ones."""
    phase = FirstPhase(["lr"], horizon)
    rates = [r for r, _ in steps_of(phase, 1e-4, lambda r: 0.0, ratio_of=lambda rate, n: 1e9)]
    rises = [math.log(b / a) for a, b in zip(rates, rates[1:], strict=False)]
    assert max(rises[:60]) == pytest.approx(rise)
    first = next(i for i, x in enumerate(rises) if x > 0)
    assert first + 1 == min(16, math.ceil(horizon / 16))


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
    path = steps_of(phase, 3.0, lambda rate: r if rate > 0.5 else -0.2 * rate)
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


def test_a_first_batch_that_is_not_finite_costs_one_step():
    """It is stepped with, and the next loss tells."""
    plain, phase = FirstPhase(["lr"], 400), FirstPhase(["lr"], 400)
    losses = dict.fromkeys((0, 1), math.nan)
    path = steps_of(phase, 0.05, lambda r: -0.1 * r, lambda t: losses.get(t, 1.0))
    assert [t for t, (_, event) in enumerate(path) if event] == [1]
    expected = steps_of(plain, 0.05, lambda r: -0.1 * r)
    assert path[2:42] == expected[:40]


def test_it_never_climbs_above_a_third_of_what_broke():
    phase = FirstPhase(["lr"], 400)
    path = steps_of(phase, 3.0, lambda rate: 0.2 if rate > 1.5 else -1e-4)
    assert path[-1][0] == pytest.approx(1.0)


@pytest.mark.parametrize(("rises", "end"), [(True, math.exp(-0.25)), (False, 1.0)])
def test_steps_that_add_to_a_loss_that_rises_again_lower_and_cap_the_rate(rises, end):
    """Where they end uphill and the loss does not rise, the rate is left as it is."""
    phase = FirstPhase(["lr"], 400)
    path = steps_of(
        phase,
        1.0,
        lambda rate: 0.3 if rate > 0.9 else 0.0,
        lambda t: (0.1 if t % 10 < 6 or not rises else 0.6) if t else 1.0,
        ratio_of=lambda rate, n: 100.0,
    )
    assert phase.returns == 0
    assert path[-1][0] == max(rate for rate, _ in path[20:]) == pytest.approx(end)


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


@pytest.mark.parametrize(("horizon", "length"), [(1, 0), (20, 5), (64, 16), (10_000, 2500)])
def test_its_length(horizon, length):
    assert FirstPhase(["lr"], horizon).end == length
    assert FirstPhase([], horizon).end == 0


def test_it_begins_at_a_three_hundredth_where_there_is_time_to_climb():
    found = {T: FirstPhase(["lr"], T).beginning().get("lr") for T in (2, 32, 64, 1000)}
    shares = {2: 0.0, 32: 0.5, 64: 1.0, 1000: 1.0}
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


@pytest.mark.parametrize(("horizon", "share"), [(2000, 0.001), (400, 0.002), (100, 0.008)])
def test_a_trusted_rate_climbs_while_a_step_consumes_less_than_a_tenth_of_the_share(
    horizon, share
):
    slope = 10 * share
    path = steps_of(FirstPhase(["lr"], horizon, trusts=True), 1e-4, lambda rate: -slope * rate)
    # The mean of r lags behind the rate, so the climb ends a little above it.
    assert 0.09 < path[-1][0] < 0.2


def test_after_a_return_nothing_is_trusted():
    phase = FirstPhase(["lr"], 400, trusts=True)
    path = steps_of(phase, 3.0, lambda rate: 0.2 if rate > 0.5 else -0.2 * rate)
    assert path[1] == (pytest.approx(0.1), "broken")
    assert 0.09 < path[-1][0] < 0.2


def test_what_joins_the_loss_does_not_hide_that_steps_have_lowered_it():
    """The loss stays at 1 while steps take away .05 each: climbing ends once they took .4."""
    phase = FirstPhase(["lr"], 100)
    path = steps_of(phase, 1e-6, lambda rate: -0.05)
    rates = [rate for rate, _ in path]
    assert rates[7] < rates[8] and rates[9:] == [rates[9]] * len(rates[9:])


@pytest.mark.parametrize(("added", "rises"), [(0.04, True), (0.06, False)])
def test_the_rate_does_not_rise_while_steps_add_to_the_loss(added, rises):
    path = steps_of(FirstPhase(["lr"], 400), 1e-3, lambda r: added, ratio_of=lambda rate, n: 1e3)
    assert (path[40][0] > path[20][0]) is rises


def falling(changes, noise):
    """Where a rate stands after steps that change the loss of 1 so, the distance being short.

    Every other batch adds ``noise`` to its loss.
    """
    phase, loss, rate, rates = FirstPhase(["lr"], 1000), 1.0, 1.0, []
    for t, change in enumerate(changes):
        loss += change
        h = {"lr": change} if t else None
        assert not phase.is_broken(loss + noise * (t % 2), h)
        moves = phase.moves(t, h, {"lr": math.log(rate)}, {"lr": 1e-3}) if h else {}
        rate *= math.exp(moves.get("lr", 0.0))
        rates.append(rate)
    return rates


def test_without_noise_a_rate_rises_while_steps_lower_the_loss():
    """From the end of the climb on, at a loss down by a fifth, by 3 % a step."""
    rates = falling([-0.005] * 90, noise=0.0)
    assert rates[-1] / rates[60] == pytest.approx(1.03**29, rel=0.05)


def test_with_noise_the_distance_decides():
    rates = falling([-0.005] * 90, noise=0.3)
    assert rates[-1] < rates[60]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_without_noise_a_rate_falls_by_the_share_by_which_the_loss_rises(share):
    changes = [-0.005] * 80
    level = 1 + sum(changes)
    # The level is the mean of three losses.
    rates = falling([*changes, 3 * share * (level + 0.005)], noise=0.0)
    assert math.log(rates[-2] / rates[-1]) == pytest.approx(share, abs=0.015)


def test_a_first_batch_of_unusual_loss_does_not_end_the_climb():
    """It ends once the steps themselves say that they have lowered the loss."""
    ends = []
    for first in (1.0, 2.0):
        phase = FirstPhase(["lr"], 800)
        path = steps_of(phase, 1e-5, lambda r: -0.1 * r, lambda t, x=first: 1.0 if t else x)
        ends.append(path[-1][0])
    assert ends[0] > 0.05  # .1 consumes 1 % of the loss
    assert ends[1] == pytest.approx(2 * ends[0], rel=0.3)
