"""Gradients from elsewhere: a formula's derivatives, recorded by hand, without torch.

Run ``python examples/given_gradients.py``: kernel ridge regression on digits in numpy. Its
weights are the solution of a linear system, which can be differentiated; so can be many
simulations (adjoints) and anything written in JAX. ``record_gradient`` takes the derivatives of
the objective by the names and in the units of the trial's parameters.
Needs ``pip install optuna_glocal[examples]``; under a minute on one CPU core.
"""

import argparse

import numpy as np
import optuna
from sklearn.datasets import load_digits

from optuna_glocal import GlocalSampler, record_gradient, summary


def load(n):
    """Scikit-learn's digits: n to fit and n to validate, classes as rows of the unit matrix."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: 2 * n]
    x, y = x[order] / 16, np.eye(10)[y[order]]
    return (x[:n], y[:n]), (x[n:], y[n:])


def squared_distances(a, b):
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


def value_and_gradient(gamma, ridge, fit, validation):
    """Squared error of kernel ridge regression, and its derivatives by gamma and ridge.

    K = exp(-gamma D), A = (K + ridge I)^-1 Y, loss = mean |K_v A - Y_v|^2.
    """
    (x, y), (xv, yv) = fit, validation
    D, Dv = squared_distances(x, x), squared_distances(xv, x)
    K, Kv = np.exp(-gamma * D), np.exp(-gamma * Dv)
    inverse = np.linalg.inv(K + ridge * np.eye(len(x)))
    A = inverse @ y
    residual = Kv @ A - yv
    by_ridge = Kv @ (-inverse @ A)
    by_gamma = -(Dv * Kv) @ A + Kv @ (inverse @ ((D * K) @ A))
    gradient = {
        "gamma": 2 * np.mean(residual * by_gamma),
        "ridge": 2 * np.mean(residual * by_ridge),
    }
    return np.mean(residual**2), gradient


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    trials, size = (6, 60) if args.quick else (args.trials, 600)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fit, validation = load(size)

    def objective(trial):
        gamma = trial.suggest_float("gamma", 1e-3, 10.0, log=True)
        ridge = trial.suggest_float("ridge", 1e-6, 10.0, log=True)
        value, gradient = value_and_gradient(gamma, ridge, fit, validation)
        record_gradient(trial, gradient)
        return value

    for name, sampler in (
        ("with gradients", GlocalSampler(seed=0)),
        ("values only", GlocalSampler(seed=0, use_gradients=False)),
        ("TPE", optuna.samplers.TPESampler(seed=0)),
    ):
        study = optuna.create_study(study_name=f"kernel ridge, {name}", sampler=sampler)
        study.optimize(objective, n_trials=trials)
        values = [trial.value for trial in study.trials]
        best = np.minimum.accumulate(values)
        said = ", ".join(f"{best[i]:.6f}" for i in range(4, trials, 5))
        print(f"{name:15} best after each five trials: {said}")
        if name == "with gradients":
            first = study
    print(f"\n{summary(first)}")


if __name__ == "__main__":
    main()
