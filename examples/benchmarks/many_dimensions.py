"""The sampler with exact gradients in 20 to 100 dimensions, beside L-BFGS-B and Adam.

Run ``python examples/benchmarks/many_dimensions.py``: regrets after so many evaluations, all from
the centre of the cube, on smooth functions whose least value lies elsewhere. Minutes on one core.

With ``--mixed`` four of the dimensions have eight levels, and two categories of three choices each
shift the optimum and the value: the best value after so many trials, as a share of the first.
"""

import argparse
import math
import time

import numpy as np
import optuna
from scipy.optimize import minimize

from optuna_glocal import GlocalSampler, record_gradient

RATES = (0.003, 0.01, 0.03, 0.1)  # of Adam: the best of them is shown


def target(D, seed):
    """Where a shifted function has its least value."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, D)


def separable(D, seed):
    at, weights = target(D, seed), 10 ** np.linspace(-1, 1, D) / D

    def function(u):
        d = u - at
        return float(weights @ (np.cosh(3 * d) - 1)), weights * 3 * np.sinh(3 * d)

    return function


def ellipsoid(D, seed):
    """Turned, of condition number 1000."""
    at, rng = target(D, seed), np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((D, D)))
    H = (axes * 10 ** np.linspace(-2, 1, D)) @ axes.T
    return lambda u: (float((u - at) @ H @ (u - at)) / 2, H @ (u - at))


def rosenbrock(D, seed):
    at = target(D, seed)

    def function(u):
        x = 4.096 * (u - at) + 1
        a, b, g = x[1:] - x[:-1] ** 2, 1 - x[:-1], np.zeros(D)
        g[1:] += 200 * a
        g[:-1] -= 400 * a * x[:-1] + 2 * b
        return float(np.sum(100 * a * a + b * b)), 4.096 * g

    return function


def logistic(D, seed):
    """Regularised logistic regression on 200 rows."""
    rng = np.random.default_rng(seed)
    A, w = rng.standard_normal((200, D)), 2 * rng.standard_normal(D) / np.sqrt(D)
    y = np.sign(A @ w + 0.5 * rng.standard_normal(200))

    def function(u):
        x = 4 * (u - 0.5)
        margin = y * (A @ x)
        value = np.mean(np.logaddexp(0, -margin)) + 0.005 * x @ x
        return float(value), 4 * (A.T @ (-y / (1 + np.exp(margin))) / 200 + 0.01 * x)

    return function


FUNCTIONS = {f.__name__: f for f in (separable, ellipsoid, rosenbrock, logistic)}


class _Enough(Exception):
    pass


def lbfgs(function, D, n):
    """The least of the first n values, at scipy's defaults."""
    values = []

    def evaluate(u):
        if len(values) == n:
            raise _Enough
        value, gradient = function(u)
        values.append(value)
        return value, gradient

    try:
        minimize(evaluate, np.full(D, 0.5), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * D)
    except _Enough:
        pass
    return min(values)


def adam(function, D, n, rate):
    u, m, v, values = np.full(D, 0.5), np.zeros(D), np.zeros(D), []
    for t in range(1, n + 1):
        value, g = function(u)
        values.append(value)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-12)
        u = np.clip(u - rate * step, 0, 1)
    return min(values)


def ours(function, D, n, seed, wrong=None):
    """Least value, CPU seconds per trial."""
    rng, names = np.random.default_rng(seed), [f"x{i}" for i in range(D)]

    def objective(trial):
        u = np.array([trial.suggest_float(name, 0, 1) for name in names])
        value, gradient = function(u)
        gradient = gradient if wrong is None else wrong(gradient, rng)
        record_gradient(trial, dict(zip(names, gradient.tolist(), strict=True)))
        return value

    study, began = optuna.create_study(sampler=GlocalSampler(seed=seed)), time.process_time()
    study.optimize(objective, n_trials=n)
    return study.best_value, (time.process_time() - began) / n


def flipped(gradient, rng):
    return -gradient


def noisy(gradient, rng):
    """Noise of the gradient's own length."""
    length = np.linalg.norm(gradient)
    return gradient + length * rng.standard_normal(len(gradient)) / np.sqrt(len(gradient))


LEVELS, CHOICES = 8, ("a", "b", "c")


def mixed(function, D, n, seed, sampler, levelled=4, categories=2):
    """Least value, over that of the first trial."""
    rng, names = np.random.default_rng(seed), [f"x{i:03d}" for i in range(D)]
    start = abs(function(np.full(D, 0.5))[0])
    worth = [rng.permutation(len(CHOICES)) * 0.2 * start for _ in range(categories)]
    shift = [rng.uniform(-0.1, 0.1, (len(CHOICES), D)) for _ in range(categories)]
    scale = np.where(np.arange(D) < levelled, LEVELS - 1, 1)

    def objective(trial):
        x = [trial.suggest_int(name, 0, LEVELS - 1) for name in names[:levelled]]
        x += [trial.suggest_float(name, 0, 1) for name in names[levelled:]]
        u, value = np.array(x) / scale, 0.0
        for j in range(categories):
            choice = CHOICES.index(trial.suggest_categorical(f"c{j}", CHOICES))
            u, value = u + shift[j][choice], value + worth[j][choice]
        found, gradient = function(u)
        record_gradient(trial, dict(zip(names, (gradient / scale).tolist(), strict=True)))
        return value + found

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n)
    return study.best_value / study.trials[0].value


def mixed_rows(names, dimensions, n, seeds):
    print(f"best value over the first, {n} trials, four levelled dimensions, two categories")
    print(f"{'function':18}{'ours':>10}{'TPE':>10}  ours by seed")
    for name in names:
        for D in dimensions:
            samplers = (GlocalSampler, optuna.samplers.TPESampler)
            found = [
                [mixed(FUNCTIONS[name](D, seed), D, n, seed, make(seed=seed)) for make in samplers]
                for seed in seeds
            ]
            ours, tpe = np.median(found, axis=0)
            each = " ".join(f"{one:.2g}" for one, _ in found)
            print(f"{f'{name}, {D}':18}{ours:10.2g}{tpe:10.2g}  {each}", flush=True)


def least(function, D):
    options = {"maxiter": 10**5, "maxfun": 10**6, "ftol": 0, "gtol": 1e-12}
    bounds = [(0, 1)] * D
    starts = np.full(D, 0.5), np.full(D, 0.4)
    found = (
        minimize(function, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for x in starts
    )
    return min(one.fun for one in found)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", choices=FUNCTIONS, nargs="+", default=list(FUNCTIONS))
    parser.add_argument("--dimensions", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5, help="shifted optima, from 100 on")
    parser.add_argument("--exact", action="store_true", help="no studies with wrong gradients")
    parser.add_argument("--mixed", action="store_true", help="levels and categories, too")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.dimensions, args.evaluations, args.seeds = [20], 6, 1
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.mixed:
        seeds = range(100, 100 + args.seeds)
        return mixed_rows(args.functions, args.dimensions, args.evaluations, seeds)
    print(f"median regret after {args.evaluations} evaluations, {args.seeds} shifted optima")
    columns = "start", "ours", "L-BFGS-B", "ratio", "Adam", "flipped", "noisy", "seconds"
    print(f"{'function':18}" + "".join(f"{column:>10}" for column in columns))
    for name in args.functions:
        make = FUNCTIONS[name]
        for D in args.dimensions:
            rows = []
            for seed in range(100, 100 + args.seeds):
                f, n = make(D, seed), args.evaluations
                low, (found, seconds) = least(f, D), ours(f, D, n, seed)
                theirs = lbfgs(f, D, n)
                best_adam = min(adam(f, D, n, rate) for rate in RATES)
                wrong = [
                    math.nan if args.exact else ours(f, D, n, seed, how)[0] - low
                    for how in (flipped, noisy)
                ]
                # Below a billionth of the start both are there.
                start = f(np.full(D, 0.5))[0] - low
                floor = 1e-9 * start
                ratio = max(found - low, floor) / max(theirs - low, floor)
                regrets = start, found - low, theirs - low, ratio, best_adam - low
                rows.append([*regrets, *wrong, seconds])
            median = np.median(rows, axis=0)
            print(f"{f'{name}, {D}':18}" + "".join(f"{v:10.2g}" for v in median), flush=True)


if __name__ == "__main__":
    main()
