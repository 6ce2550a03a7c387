"""What the processes of test_parallel.py run; without torch, which would take seconds in each."""

import warnings

import numpy as np
import optuna

from optuna_glocal import GlocalSampler, record_gradient

CENTRE = np.array([0.31, 0.72, 0.55])


def bowl(trial):
    x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(3)])
    value = float(((x - CENTRE) ** 2).sum())
    gradient = 2 * (x - CENTRE)
    record_gradient(trial, {f"x{i}": float(g) for i, g in enumerate(gradient)}, value=value)
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
        study.optimize(bowl, n_trials=1)
