"""Vectors of hyperparameters in the training loop: one run, a study, an observed trial."""

import numpy as np
import optuna
import pytest
import torch

from optuna_glocal import (
    GlocalCallback,
    Observe,
    Record,
    Schedule,
    SelfTuning,
    Tune,
    Vector,
    best_hyperparameters,
    suggest_vector,
    summary,
)
from optuna_glocal.storage.learnt_vector import learnt_vectors

STEPS = 60


class Regression:
    """Two useful columns and two of noise, few rows."""

    def __init__(self, columns=4, optimizer=torch.optim.SGD):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(40, columns, generator=g)
        y = x[:, :2].sum(1) + 0.5 * torch.randn(40, generator=g)
        self.train, self.valid = (x[:12], y[:12]), (x[12:], y[12:])
        self.w = torch.zeros(columns, requires_grad=True)
        self.optimizer = optimizer([self.w], lr=0.05)

    def loss(self, part):
        x, y = part
        return ((x @ self.w - y) ** 2).mean()

    def fit(self, glocal, steps=STEPS, strength=None):
        for _ in range(steps):
            self.optimizer.zero_grad()
            strengths = glocal["l2"] if strength is None else strength
            glocal.backward(self.loss(self.train) + (strengths * self.w**2).sum())
            self.optimizer.step()
        return self.loss(self.valid).item()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_useless_columns_end_with_the_greater_strengths(optimizer):
    task = Regression(optimizer=optimizer)
    with SelfTuning(
        task.optimizer, lambda: task.loss(task.valid), horizon=200, l2=Vector(4, 1e-4, 5.0)
    ) as run:
        task.fit(run, 200)
    strengths = run.vectors["l2"]
    assert strengths.shape == (4,) and strengths[2:].min() > strengths[:2].max()
    assert run.hyperparameters == {
        f"l2[{i}]": pytest.approx(s) for i, s in enumerate(strengths.tolist())
    }
    assert run.learnt["l2"].steps[-1] == 200


def test_a_held_learning_rate_is_that_of_the_optimizer_and_a_box_moves_beside_a_vector():
    task = Regression()
    boxes = {"l2": Vector((2, 2), 1e-4, 5.0), "lr": (1e-4, 1.0), "shift": (0.1, 10.0)}
    with SelfTuning(task.optimizer, lambda: task.loss(task.valid), horizon=STEPS, **boxes) as run:
        for _ in range(STEPS):
            task.optimizer.zero_grad()
            penalty = (run["l2"].flatten() * task.w**2).sum() + run["shift"] * task.w.sum() ** 2
            run.backward(task.loss(task.train) + penalty)
            task.optimizer.step()
    moved = {n for n, x in run.hyperparameters.items() if x != run.schedule.values[0][0]}
    assert set(run.schedule.tuned) == {"lr", "shift", *Vector((2, 2), 0, 1).names("l2")} == moved
    assert (run.vectors["l2"] != run.vectors["l2"].flatten()[0]).any()
    assert run.status.startswith("Tuning itself")


def study_of(size, **options):
    def objective(trial):
        task = Regression(max(4, size))
        start = suggest_vector(trial, "l2", size, 1e-4, 1.0, log=True)
        with GlocalCallback(
            trial, task.optimizer, lambda: task.loss(task.valid), horizon=STEPS, **options
        ) as glocal:
            assert glocal["l2"].shape == start.shape
            return task.fit(glocal)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    return study


def test_a_study_of_self_tuned_trials_keeps_what_was_learnt():
    study = study_of(60, tune=True)
    trial = study.best_trial
    record = Record.read(trial)
    assert list(trial.params) == ["l2"] and record.tuned == ("l2",) and record.source == "greedy"
    learnt = learnt_vectors(trial.user_attrs)["l2"]
    assert learnt.values.std() > 0
    np.testing.assert_allclose(best_hyperparameters(study)["l2"], learnt.values)
    mean = np.exp(np.log(learnt.values).mean())
    assert record.ended["l2"] == pytest.approx(mean, rel=0.2)  # of a row of the path
    assert Schedule.from_trial(trial).exact is False
    assert "learnt      l2: 60 entries from" in str(summary(study))


def test_a_small_vector_is_replayed_from_its_schedule():
    study = study_of(4, tune=True)
    schedule = Schedule.best(study)
    assert schedule.exact and schedule.tuned == tuple(Vector(4, 0, 1).names("l2"))
    last = best_hyperparameters(study)
    at = schedule.at(STEPS)
    assert [at[n] for n in schedule.tuned] == [last[n] for n in schedule.tuned]
    task = Regression()
    for step in range(STEPS):
        task.optimizer.zero_grad()
        at = schedule.at(step)
        strengths = torch.tensor([at[f"l2[{i}]"] for i in range(4)])
        (task.loss(task.train) + (strengths * task.w**2).sum()).backward()
        task.optimizer.step()
    assert task.loss(task.valid).item() == pytest.approx(
        Record.read(study.best_trial).validation_loss, rel=1e-6
    )


@pytest.mark.parametrize("size", [4, 60])
def test_an_observed_vector_gives_the_studys_parameters_a_gradient(size):
    study = study_of(size, observe=Observe(estimator="global"))
    trial = study.trials[0]
    gradient = Record.read(trial).gradient
    assert set(gradient) == set(trial.params)

    def value(params):
        task = Regression(max(4, size))
        values = torch.tensor([params[n] for n in Vector(size, 0, 1).names("l2")])
        strengths = values.expand(size)
        for _ in range(STEPS):
            task.optimizer.zero_grad()
            (task.loss(task.train) + (strengths * task.w**2).sum()).backward()
            task.optimizer.step()
        return task.loss(task.valid).item()

    name = next(iter(gradient))
    eps = 1e-2 * trial.params[name]
    up, down = (value({**trial.params, name: trial.params[name] + s}) for s in (eps, -eps))
    assert gradient[name] == pytest.approx((up - down) / (2 * eps), rel=2e-2, abs=1e-5)


def test_what_is_not_named_is_held():
    task = Regression()
    trial = optuna.trial.FixedTrial({f"l2[{i}]": 0.1 for i in range(4)} | {"lr": 0.05})
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    suggest_vector(trial, "l2", 4, 1e-4, 1.0, log=True)
    with GlocalCallback(
        trial, task.optimizer, lambda: task.loss(task.valid), horizon=STEPS, tune="lr"
    ) as glocal:
        task.fit(glocal)
    assert glocal.vectors["l2"].tolist() == pytest.approx([0.1] * 4)
    assert glocal.hyperparameters["lr"] != 0.05


def test_a_vector_alone_leaves_the_training_as_it_is_while_it_cannot_move():
    plain, tuned = Regression(), Regression()
    for _ in range(STEPS):
        plain.optimizer.zero_grad()
        (plain.loss(plain.train) + (torch.full((4,), 0.1) * plain.w**2).sum()).backward()
        plain.optimizer.step()
    with SelfTuning(
        tuned.optimizer,
        lambda: tuned.loss(tuned.valid),
        horizon=STEPS,
        options=Tune(meta_step=0.0),
        l2=Vector(4, 1e-3, 10.0, start=0.1, smoothing=0.0),
    ) as run:
        tuned.fit(run)
    torch.testing.assert_close(tuned.w, plain.w)


@pytest.mark.parametrize("wrong", [{"l2": Vector(4, 1, 2), "lr": Vector(2, 1e-3, 1.0)}])
def test_an_entry_of_the_optimizer_is_no_vector(wrong):
    task = Regression()
    with pytest.raises(ValueError, match="lr: expected a hyperparameter of the training loss"):
        SelfTuning(task.optimizer, lambda: task.loss(task.valid), horizon=5, **wrong)
