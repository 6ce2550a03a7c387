"""The first points: the centre, and a design that covers every dimension."""

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_glocal.sampler.initial_design import centre, fill
from optuna_glocal.sampler.space import Space

SPACE = Space.of(
    {
        "c": CategoricalDistribution(["a", "b", "d"]),
        "x": FloatDistribution(1e-4, 1.0, log=True),
        "y": FloatDistribution(0.0, 2.0),
    }
)


def test_the_centre_is_that_of_the_scaled_ranges():
    params = SPACE.decode(centre(SPACE))
    assert params == {"c": "a", "x": params["x"], "y": 1.0}
    np.testing.assert_allclose(params["x"], 1e-2)
    level = Space.of({"n": IntDistribution(0, 9)})
    np.testing.assert_array_equal(level.snap(centre(level)[None])[0], centre(level))


def test_startup_fills_what_is_empty():
    rng = np.random.default_rng(0)
    seen = np.empty((0, 3))
    for _ in range(6):
        seen = np.concatenate([seen, fill(seen, SPACE, 6, rng)[None]])
    # Order of dimensions: c, x, y. One point in each sixth, two of each choice.
    assert sorted(np.floor(seen[:, 1] * 6)) == sorted(np.floor(seen[:, 2] * 6)) == list(range(6))
    assert sorted(seen[:, 0]) == [0, 0, 1, 1, 2, 2]


def test_it_is_a_function_of_what_is_seen_and_of_the_seed():
    seen = SPACE.from_unit(np.random.default_rng(1).random((5, 3)))
    once, again, other = (fill(seen, SPACE, 4, np.random.default_rng(s)) for s in (2, 2, 3))
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
