"""What the processes of test_parallel.py run; without torch, which would take seconds in each."""

import warnings

import numpy as np
import optuna

from optuna_glocal import GlocalSampler, record_gradient

CENTRE, RIPPLE, HEIGHT = np.array([0.31, 0.72, 0.55]), 6 * np.pi, 0.1


def slope(x):
    """The gradient of a bowl with ripples, whose second best minima are at .11."""
    return 2 * (x - CENTRE) + HEIGHT * RIPPLE * np.sin(RIPPLE * (x - CENTRE))


def ripples(trial):
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(3)])
    d = x - CENTRE
    value = float((d**2 + HEIGHT * (1 - np.cos(RIPPLE * d))).sum())
    record_gradient(trial, {f"x{i}": float(g) for i, g in enumerate(slope(x))}, value=value)
    return value


def opened(place):
    """The storage at ``place``, in a process that has not seen it yet."""
    kind, where = place
    if kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend(where)
        return optuna.storages.JournalStorage(backend)
    if kind == "grpc":
        return optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=where)
    return where


def work(place, name, trials):
    """One worker: a process of its own, with a sampler of its own and the same seed."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = opened(place)
    sampler = GlocalSampler(seed=0)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    while len(study.get_trials(deepcopy=False)) < trials:
        study.optimize(ripples, n_trials=1)
