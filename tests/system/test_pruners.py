"""Every pruner of Optuna decides the same with the callback as without, and leaves us a record."""

import functools
import math

import optuna
import pytest
import torch
from optuna import pruners
from optuna.trial import TrialState

from optuna_glocal import GlocalCallback, Observe, Record

datasets = pytest.importorskip("sklearn.datasets")
TRIALS, STEPS, EVERY = 18, 24, 2

PRUNERS = {
    "median": lambda: pruners.MedianPruner(n_startup_trials=3),
    "percentile": lambda: pruners.PercentilePruner(25.0, n_startup_trials=3),
    "successive halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=2),
    "hyperband": lambda: pruners.HyperbandPruner(1, STEPS // EVERY, 2),
    "threshold": lambda: pruners.ThresholdPruner(upper=2.3, n_warmup_steps=4),
    "patient": lambda: pruners.PatientPruner(pruners.MedianPruner(n_startup_trials=3), 1),
    "wilcoxon": lambda: pruners.WilcoxonPruner(p_threshold=0.2),
    "nop": pruners.NopPruner,
}


@functools.cache
def digits():
    x, y = (torch.as_tensor(a[:500]) for a in datasets.load_digits(return_X_y=True))
    return x.float() / 16, y


def objective(trial, attach):
    (x, y), loss_of = digits(), torch.nn.functional.cross_entropy
    torch.manual_seed(trial.number)
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
    lr = trial.suggest_float("lr", 1e-3, 10.0, log=True)
    momentum = trial.suggest_float("momentum", 0.0, 0.99)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)

    def validation_loss():
        return loss_of(model(x[300:]), y[300:])

    def loop(backward):
        for step in range(1, STEPS + 1):
            rows = torch.randint(300, (32,))
            optimizer.zero_grad()
            backward(loss_of(model(x[rows]), y[rows]))
            optimizer.step()
            if step % EVERY == 0:
                with torch.no_grad():
                    last = validation_loss().item()
                trial.report(last, step // EVERY)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return last

    if not attach:
        return loop(torch.Tensor.backward)
    with GlocalCallback(
        trial,
        optimizer,
        validation_loss,
        horizon=STEPS,
        observe=Observe(window=0.25, tangents=True),
    ) as glocal:
        return loop(glocal.backward)


def run(pruner, attach):
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(sampler=sampler, pruner=PRUNERS[pruner](), study_name="s")
    study.optimize(lambda trial: objective(trial, attach), n_trials=TRIALS)
    return study.trials


def seen(trial):
    """All that Optuna knows of a trial but times; NaN compares as itself."""
    reports = {step: repr(value) for step, value in trial.intermediate_values.items()}
    return trial.state, trial.params, reports, repr(trial.value)


@pytest.mark.filterwarnings("ignore:.*(no longer finite|pruner).*")
@pytest.mark.parametrize("pruner", PRUNERS)
def test_the_same_trials_are_pruned_at_the_same_steps(pruner):
    trials, plain = run(pruner, attach=True), run(pruner, attach=False)
    assert list(map(seen, trials)) == list(map(seen, plain))
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    assert (len(pruned) == 0) == (pruner == "nop")
    records = [Record.read(t) for t in trials]
    assert all(
        r is not None and r.number == t.number for r, t in zip(records, trials, strict=True)
    )
    for trial in pruned:
        record = records[trial.number]
        assert record.steps == EVERY * trial.last_step
        assert record.value is not None or not math.isfinite(trial.value)
