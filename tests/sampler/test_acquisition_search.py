"""The maximum of an acquisition against a grid, in every kind of space; another acquisition."""

from dataclasses import dataclass

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_glocal.sampler.acquisition import LogEI
from optuna_glocal.sampler.acquisition_search import maximise, maximise_along
from optuna_glocal.sampler.gp.process import fit
from optuna_glocal.sampler.space import Space


def model(space, n=12):
    X = space.from_unit(np.random.default_rng(0).random((n, len(space.distributions))))
    scaled = X / np.maximum(space.counts, 1) if space.categorical.any() else X
    y = ((scaled - 0.37) ** 2).sum(1)
    return fit(X, (y - y.mean()) / y.std(), categorical=space.categorical), X, y


def test_maximum_is_not_below_a_fine_grid():
    space = Space.of({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
    gp, X, y = model(space)
    acquisition = LogEI(gp, float(gp.observations.target.min()))
    order = np.argsort(y)[:3]
    x, _ = maximise(acquisition, space, X[order], np.random.default_rng(0), n_sobol=64)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 101)] * 2), -1).reshape(-1, 2)

    assert acquisition.value(x[None])[0] >= acquisition.value(grid).max() - 1e-6
    again, _ = maximise(acquisition, space, X[order], np.random.default_rng(0), n_sobol=64)
    np.testing.assert_array_equal(x, again)


def test_mixed_space_finds_the_best_level_of_all():
    space = Space.of(
        {
            "c": CategoricalDistribution(["a", "b", "c"]),
            "n": IntDistribution(0, 9),
            "wide": IntDistribution(1, 100_000, log=True),
            "x": FloatDistribution(0, 1),
        }
    )
    gp, X, y = model(space, n=20)
    acquisition = LogEI(gp, float(gp.observations.target.min()))
    x, _ = maximise(acquisition, space, X[np.argsort(y)[:3]], np.random.default_rng(0))
    np.testing.assert_allclose(space.snap(x[None])[0], x, atol=1e-12)
    others = space.from_unit(np.random.default_rng(1).random((4000, 4)))

    assert acquisition.value(x[None])[0] >= acquisition.value(others).max() - 1e-6


def test_purely_discrete_space():
    space = Space.of({"n": IntDistribution(0, 5), "c": CategoricalDistribution([None, True])})
    gp, X, y = model(space, n=5)
    x, _ = maximise(LogEI(gp, float(y.min())), space, X[:1], np.random.default_rng(0), n_sobol=8)
    params = space.decode(x)
    assert type(params["n"]) is int and params["c"] in (None, True)


@dataclass(frozen=True)
class Peak:
    """A toy acquisition, without a model: greatest at ``at``."""

    at: np.ndarray

    @property
    def scales(self):
        return np.full(len(self.at), 0.3)

    def value(self, X):
        return self.value_and_gradient(X)[0]

    def value_and_gradient(self, X):
        d = X - self.at
        return -np.sum(d * d, axis=1), -2.0 * d


def test_any_acquisition_can_be_searched():
    space = Space.of({"n": IntDistribution(0, 9), "x": FloatDistribution(0, 1)})
    middle, rng = np.full((1, 2), 0.5), np.random.default_rng(0)
    x, value = maximise(Peak(np.array([0.33, 0.123])), space, middle, rng, n_sobol=8, n_starts=2)
    np.testing.assert_allclose(x, [0.35, 0.123], atol=1e-4)  # levels lie at .05, .15, ...
    np.testing.assert_allclose(value, -(0.02**2), atol=1e-6)
    outside, _ = maximise(Peak(np.array([2.0, -1.0])), space, middle, rng, n_sobol=8, n_starts=2)
    np.testing.assert_allclose(outside, [0.95, 0.0])


def test_along_one_dimension_the_others_are_held():
    space = Space.of({"n": IntDistribution(0, 9), "x": FloatDistribution(0, 1)})
    peak, x = Peak(np.array([0.33, 0.123])), np.array([0.75, 0.9])
    np.testing.assert_allclose(maximise_along(peak, space, 0, x), [0.35, 0.9])
    np.testing.assert_allclose(maximise_along(peak, space, 1, x), [0.75, 0.123], atol=1 / 1024)
