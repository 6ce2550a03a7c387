"""Studies and trajectories for figures."""

import numpy as np
import optuna

from optuna_glocal import Record, Trajectory
from optuna_glocal.storage.trajectory import write_trajectory

HOSTILE = "<script>alert('x')</script><b>"
DISTRIBUTIONS = {
    "lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
    "momentum": optuna.distributions.FloatDistribution(0.0, 0.99),
    "layers": optuna.distributions.IntDistribution(1, 4),
    "act": optuna.distributions.CategoricalDistribution(["relu", HOSTILE, None]),
}


def trajectory(names=("lr", "momentum"), m=40):
    t = np.arange(1, m + 1)
    h = np.stack([-np.exp(-t / (10 + 5 * j)) - 0.1 for j in range(len(names))], axis=1)
    return Trajectory(t * 5, 0.2 + np.exp(-t / 15), h, names, [0.5] * len(names))


def objective(trial):
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.99)
    trial.suggest_int("layers", 1, 4)
    trial.suggest_categorical("act", ["relu", HOSTILE])
    value = (np.log10(lr) + 2) ** 2 + momentum + 0.1
    gradient = {"lr": 2 * (np.log10(lr) + 2) / lr / np.log(10), "momentum": 1.0}
    Record(trial.number, 1000, 200, "tangent", "Forecast.", value, 0.1, gradient, {}).write(trial)
    write_trajectory(trial, trajectory())
    trial.report(value, 200)
    if trial.number % 3 == 2:
        raise optuna.TrialPruned
    return value


def names(figure):
    return [trace.name for trace in figure.data]


def texts(figure):
    return [a.text for a in figure.layout.annotations]


def traces(figure, start):
    return [t for t in figure.data if (t.name or "").startswith(start)]
