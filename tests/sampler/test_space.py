"""Round trips through the unit cube, and the chain rule against finite differences."""

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_glocal.sampler.space import Space

DISTRIBUTIONS = {
    "linear": FloatDistribution(-2.0, 5.0),
    "log": FloatDistribution(1e-5, 1e2, log=True),
    "step": FloatDistribution(-1.0, 2.0, step=0.1),
    "int": IntDistribution(-3, 12),
    "intstep": IntDistribution(0, 30, step=3),
    "intlog": IntDistribution(1, 4096, log=True),
    "choice": CategoricalDistribution(["a", None, 3, 2.5, True]),
    "one": FloatDistribution(0.5, 0.5),
    "oneint": IntDistribution(7, 7),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_round_trip_to_plain_python(name):
    distribution = DISTRIBUTIONS[name]
    space = Space.of({name: distribution})
    U = np.linspace(0, 1, 57, endpoint=False)[:, None]
    for x in space.from_unit(U):
        value = space.decode(x)[name]
        assert type(value) in (int, float, str, bool, type(None))
        assert distribution._contains(distribution.to_internal_repr(value))
        if isinstance(distribution, IntDistribution):
            assert type(value) is int
        if isinstance(distribution, FloatDistribution):
            assert type(value) is float
        again = space.decode(space.encode({name: value}))[name]
        assert again == pytest.approx(value, rel=1e-12) if type(value) is float else again == value


@pytest.mark.parametrize("name", ["step", "int", "intstep", "choice"])
def test_every_level_owns_an_equal_share(name):
    space = Space.of({name: DISTRIBUTIONS[name]})
    count = int(space.counts[0])
    U = (np.arange(count * 20) + 0.5)[:, None] / (count * 20)
    values = [repr(space.decode(x)[name]) for x in space.from_unit(U)]
    assert sorted({values.count(v) for v in values}) == [20]
    assert len(set(values)) == count


def test_gaps_are_the_largest_between_neighbouring_levels():
    space = Space.of({**DISTRIBUTIONS, "few": IntDistribution(2, 9, log=True)})
    for i, name in enumerate(space.distributions):
        if name in ("linear", "log", "choice", "one", "oneint"):
            assert space.gaps[i] == 0
        elif name == "intlog":
            low, high = (Space.of({name: DISTRIBUTIONS[name]}).encode({name: n}) for n in (1, 2))
            assert space.gaps[i] == pytest.approx((high - low)[0])
        else:
            assert space.gaps[i] == pytest.approx(np.diff(space.neighbours(i, 0.5)).max())


def test_edges_are_reached_and_never_crossed():
    space = Space.of(DISTRIBUTIONS)
    low = np.where(space.categorical, 0, 0.0)
    high = np.where(space.categorical, space.counts - 1, 1.0)
    for x, edge in ((low, "low"), (high, "high")):
        params = space.decode(x)
        for name, distribution in DISTRIBUTIONS.items():
            if name != "choice":
                assert params[name] == pytest.approx(getattr(distribution, edge))


def test_out_of_range_is_clipped():
    space = Space.of({n: DISTRIBUTIONS[n] for n in ("linear", "log", "int")})
    x = space.encode({"linear": 99.0, "log": 1e-9, "int": 10**9})
    assert np.all((x >= 0) & (x <= 1))
    assert space.decode(x)["linear"] == 5.0
    R = np.array([space.raw({"linear": 99.0, "log": 1e-9, "int": 3})])
    g, variance = space.gradient(R, np.ones((1, 3)), np.zeros((1, 3)))
    # A gradient out there says nothing of the edge; order is int, linear, log.
    assert np.isnan(g[0, 1:]).all() and np.isfinite(g[0, 0])
    assert np.isnan(variance[0, 1:]).all()


@pytest.mark.parametrize("name", ["linear", "log", "step", "int", "intstep", "intlog"])
def test_chain_rule_against_finite_differences(name):
    distribution = DISTRIBUTIONS[name]
    space = Space.of({name: distribution})
    value = space.decode(np.array([0.4]))[name]
    u, step = space.encode({name: value})[0], 1e-6

    def loss_of_u(u):
        # the relaxation: through the bare transform, without rounding to a level
        t = space.low[0] + u * space.width[0]
        return math.sin(0.3 * (math.exp(t) if space.log[0] else t))

    slow = (loss_of_u(u + step) - loss_of_u(u - step)) / (2 * step)
    partial = 0.3 * math.cos(0.3 * value)
    R = np.array([[float(value)]])
    g, variance = space.gradient(R, np.array([[partial]]), np.array([[2 * abs(partial)]]))
    assert g[0, 0] == pytest.approx(slow, rel=1e-5)
    assert math.sqrt(variance[0, 0]) == pytest.approx(2 * abs(slow), rel=1e-5)


def test_gradients_that_are_absent_unknown_or_broken():
    space = Space.of(DISTRIBUTIONS)
    params = space.decode(np.full(len(DISTRIBUTIONS), 0.4))
    partials = {"linear": 1.0, "choice": 1.0, "log": math.inf, "int": 1e308}
    names = list(space.distributions)
    given = np.array([[partials.get(name, math.nan) for name in names]])
    sds = np.array([[1e200 if name == "linear" else 0.0 for name in names]])
    g, variance = space.gradient(np.array([space.raw(params)]), given, sds)
    assert np.isnan(g).all()
    np.testing.assert_array_equal(np.isnan(g), np.isnan(variance))


def test_neighbours_hold_the_levels():
    space = Space.of(DISTRIBUTIONS)
    for i in space.discrete:
        options = space.neighbours(int(i), 0.5)
        points = np.tile(space.from_unit(np.full((1, len(DISTRIBUTIONS)), 0.5)), (len(options), 1))
        points[:, i] = options
        np.testing.assert_allclose(space.snap(points), points, atol=1e-12)
        if space.counts[i] <= 32:
            assert len(options) == space.counts[i]


def test_huge_ranges_stay_small():
    space = Space.of({"n": IntDistribution(0, 2**40), "m": IntDistribution(1, 2**40, log=True)})
    assert all(len(space.neighbours(i, 0.3)) < 100 for i in range(2))
    assert space.decode(space.encode({"n": 12345678, "m": 999})) == {"n": 12345678, "m": 999}


def test_order_is_that_of_names():
    a = Space.of(DISTRIBUTIONS)
    b = Space.of(dict(reversed(DISTRIBUTIONS.items())))
    assert list(a.distributions) == list(b.distributions) == sorted(DISTRIBUTIONS)


def test_empty_space():
    assert Space.of({}).decode(np.empty(0)) == {}
