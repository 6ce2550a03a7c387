"""Door 1: never in the way, a record whatever happens, errors that say what to do."""

import gc
import json

import numpy as np
import optuna
import oracles
import pytest
import torch
from observed import quadratic, suggested
from runs import OPTIMIZERS, fixed, run

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.storage.record import Record


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_bit_identical(optimizer, evaluate):
    with_us, glocal, _ = run(fixed(), OPTIMIZERS[optimizer], evaluate=evaluate)
    without, _, _ = run(fixed(), OPTIMIZERS[optimizer], attach=False)
    torch.testing.assert_close(with_us, without, rtol=0, atol=0)
    trajectory = glocal.trajectory
    assert np.isfinite(trajectory.hypergradients[1:-1]).all(), "and it did carry tangents"
    assert list(trajectory.names) == ["lr"]


def tensors_alive():
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]


def test_nothing_remains_attached():
    counts = []
    for _ in range(4):
        state, glocal, optimizer = run(fixed(), OPTIMIZERS["adam"])
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        del state, glocal, optimizer
        counts.append(len(tensors_alive()))
    assert counts[1:] == [counts[0]] * 3


@pytest.mark.parametrize("tangents", [True, "cheap"])
def test_memory_of_the_tangents_does_not_grow_with_steps(tangents):
    sizes = {}
    for steps in (50, 250):
        carried = []

        def spoil(step, loss, steps=steps, carried=carried):
            if step == steps - 1:
                carried.append(sum(t.numel() for t in tensors_alive()))
            return loss

        run(
            fixed(), OPTIMIZERS["adam"], steps=steps, window=steps, spoil=spoil, every=50,
            tangents=tangents,
        )  # fmt: skip
        sizes[steps] = carried[0]
    assert sizes[250] <= sizes[50] * 1.01


def study_of(objective, trials=1, **arguments):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials, **arguments)
    return study


def test_nan_in_the_loss_is_data():
    def spoil(step, loss):
        return loss * (float("nan") if step >= 6 else 1.0)

    def objective(trial):
        with pytest.warns(RuntimeWarning, match="no longer finite"):
            _, glocal, _ = run(trial, OPTIMIZERS["sgd"], spoil=spoil)
        assert "no longer finite" in glocal.status
        return 1.0

    study = study_of(objective)
    record = Record.read(study.trials[0])
    assert record.gradient == {} and "no longer finite" in record.status
    assert json.loads(study.trials[0].user_attrs["glocal:record"])["steps"] == 24


def test_a_validation_closure_that_raises_later_ends_nothing():
    calls = []

    def attach():
        x = torch.ones(2, requires_grad=True)
        trial = fixed(lr=0.1)
        optimizer = torch.optim.SGD([x], lr=trial.suggest_float("lr", 0.01, 1))

        def validation_loss():
            calls.append(1)
            if len(calls) > 2:
                raise OSError("the file is gone")
            return (x**2).sum()

        with GlocalCallback(
            trial,
            optimizer,
            validation_loss,
            horizon=20,
            observe=Observe(window=10, every=1, tangents=True),
        ) as glocal:
            for _ in range(20):
                optimizer.zero_grad()
                glocal.backward((x**2).sum())
                optimizer.step()
        return glocal

    with pytest.warns(RuntimeWarning, match="the file is gone"):
        glocal = attach()
    assert "the file is gone" in glocal.status


def test_other_spellings_of_an_entry_are_bound_by_name():
    x = torch.ones(3, requires_grad=True)
    trial = suggested(learning_rate=0.1, adam_beta1=0.8, adam_epsilon=1e-4)
    optimizer = torch.optim.Adam([x], lr=0.1, betas=(0.8, 0.999), eps=1e-4)
    with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=3) as glocal:
        glocal.backward((x**2).sum())
        optimizer.step()
    assert glocal.trajectory.names == ("learning_rate", "adam_beta1", "adam_epsilon")


@pytest.mark.parametrize(
    ("closure", "kind", "words"),
    [
        (lambda x: 0.5, TypeError, "scalar tensor, got float"),
        (lambda x: (x**2).sum().detach(), ValueError, "detached"),
        (lambda x: x**2, ValueError, r"shape \(3,\)"),
        (lambda x: None, TypeError, "NoneType"),
    ],
)
def test_a_wrong_validation_loss_is_refused_before_training(closure, kind, words):
    trial = suggested(lr=0.1)
    x = torch.ones(3, requires_grad=True)
    glocal = GlocalCallback(trial, torch.optim.SGD([x], lr=0.1), lambda: closure(x), horizon=10)
    with pytest.raises(kind, match=f"validation_loss: expected .*{words}"):
        glocal.__enter__()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"horizon": 0}, ValueError, "horizon: expected at least 1 step, got 0"),
        ({"horizon": -3}, ValueError, "horizon"),
        ({"horizon": 2.5}, TypeError, "horizon: expected a whole number"),
        ({"horizon": True}, TypeError, "horizon"),
        ({"window": 11}, ValueError, "window: expected at most the horizon of 10 steps, got 11"),
        ({"window": 0}, ValueError, "window"),
        ({"window": 1.5}, ValueError, "window: .*fraction"),
        ({"window": "all"}, TypeError, "window"),
        ({"every": 0}, ValueError, "every"),
        ({"estimator": "dmd"}, ValueError, "estimator: expected one of"),
        ({"tangents": "yes"}, ValueError, "tangents: expected one of"),
        ({"tune": "auto"}, ValueError, r"tune: expected float .*\['lr'\], got \['auto'"),
    ],
)
def test_wrong_arguments_are_named(arguments, kind, words):
    with pytest.raises(kind, match=words):
        quadratic(suggested(lr=0.1), **arguments)


def test_wrong_objects_are_named():
    x = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    with pytest.raises(TypeError, match="trial: expected an Optuna trial, got dict"):
        GlocalCallback({"lr": 0.1}, optimizer, lambda: x.sum(), horizon=3)
    with pytest.raises(TypeError, match="optimizer: expected a torch.optim.Optimizer"):
        GlocalCallback(fixed(), torch.optim.SGD, lambda: x.sum(), horizon=3)
    with pytest.raises(TypeError, match="validation_loss: expected a function"):
        GlocalCallback(fixed(), optimizer, x.sum(), horizon=3)


def test_backward_outside_the_context():
    x, _, glocal = quadratic(suggested(lr=0.1))
    with pytest.raises(ValueError, match="backward: expected inside the callback's with block"):
        glocal.backward((x**2).sum())
    with glocal, pytest.raises(TypeError, match="loss: expected a scalar tensor, got float"):
        glocal.backward(1.0)


def test_a_second_callback_on_the_same_optimizer():
    trial = suggested(lr=0.1)
    x, optimizer, glocal = quadratic(trial)
    second = GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=10)
    with glocal, pytest.raises(ValueError, match="watched already"):
        second.__enter__()
    with second:
        pass
    with pytest.raises(ValueError, match="entered once"):
        glocal.__enter__()


def test_binding_errors_say_both_numbers():
    _, _, glocal = quadratic(suggested(lr=0.1, omm=0.3))
    with pytest.raises(ValueError, match=r"glocal\['nothing'\]: expected .*\['lr', 'omm'\]"):
        glocal["nothing"]
    with pytest.raises(ValueError, match="expected an entry of param group 0.*got 'momemtum'"):
        glocal.bind(momemtum=1 - glocal["omm"])
    with pytest.raises(ValueError, match="expression is 0.7, but param group 0 .* holds 0"):
        glocal.bind(momentum=1 - glocal["omm"])
    with pytest.raises(TypeError, match="0-dim tensor"):
        glocal.bind(lr=0.1)
    with pytest.raises(ValueError, match="depends on no hyperparameter"):
        glocal.bind(lr=torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"group: expected one of \[0\], got 3"):
        glocal.bind(group=3, lr=glocal["lr"])


@pytest.mark.parametrize("omm", [0.9984283754, 0.99999999, 1e-3])
def test_a_binding_may_cancel_down_to_the_rounding_of_its_terms(omm):
    trial = suggested(lr=0.1, omm=omm)
    x = torch.ones(2, requires_grad=True)  # float32, and so is glocal["omm"]
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=1 - omm)
    with GlocalCallback(trial, optimizer, lambda: (x**2).sum(), horizon=4) as glocal:
        glocal.bind(momentum=lambda: 1 - glocal["omm"])
        optimizer.param_groups[0]["momentum"] = 1.01 * (1 - omm) + 1e-5
        with pytest.raises(ValueError, match="Make them equal"):
            glocal.bind(momentum=lambda: 1 - glocal["omm"])


def test_bindings_reach_groups_and_expressions():
    trial = suggested(lr_a=0.1, lr_b=0.05, omm=0.2)
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, momentum=0.8)

    def value():
        return (a**2).sum() + 3 * (b**2).sum()

    with GlocalCallback(
        trial,
        optimizer,
        value,
        horizon=2,
        observe=Observe(estimator="global", every=1, tangents=True),
    ) as glocal:
        glocal.bind(group=0, lr=glocal["lr_a"])
        glocal.bind(group=1, lr=glocal["lr_b"])
        glocal.bind(momentum=1 - glocal["omm"])
        for _ in range(2):
            optimizer.zero_grad()
            glocal.backward(value())
            optimizer.step()
    # By hand: x1 = x0 (1 - c l), x2 = x1 - l (m c x0 + c x1), curvature c = 2 and 6.
    h = glocal.trajectory.hypergradients[-1]
    trial_leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.05)]
    omm = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    total = 0.0
    for weight, curvature, lr in ((1.0, 2.0, trial_leaves[0]), (3.0, 6.0, trial_leaves[1])):
        x1 = 1 - lr * curvature
        x2 = x1 - lr * ((1 - omm) * curvature + curvature * x1)
        total = total + 2 * weight * x2**2
    expected = torch.autograd.grad(total, [*trial_leaves, omm])
    limit = oracles.rounding(*expected)
    np.testing.assert_allclose(h, [e.item() for e in expected], rtol=0, atol=limit)


def test_the_direct_term_of_a_hyperparameter_in_the_validation_loss():
    trial = suggested(lr=0.1, l2=0.3)
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    glocal = GlocalCallback(
        trial, optimizer, lambda: glocal["l2"] * (x**2).sum(), horizon=1,
        observe=Observe(estimator="global", tangents=True),
    )  # fmt: skip
    with glocal:
        glocal.backward(glocal["l2"] * (x**2).sum())
        optimizer.step()
    # x1 = 1 - .1 * 2 l2, L = 2 l2 x1²: dL/dl2 = 2 x1² - 2 l2 * 2 x1 * .2
    x1 = 1 - 0.2 * 0.3
    j = glocal.trajectory.names.index("l2")
    terms = 2 * x1**2, -2 * 0.3 * 2 * x1 * 0.2
    expected = pytest.approx(sum(terms), rel=0, abs=oracles.rounding(*terms))
    assert glocal.trajectory.hypergradients[-1, j] == expected


def test_attached_trial_kinds_and_other_samplers():
    def objective(trial):
        return run(trial, OPTIMIZERS["adamw"])[1].forecast().value

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=2)
    asked = study.ask()
    study.tell(asked, objective(asked))
    assert all(Record.read(trial) for trial in study.trials)
    frozen = optuna.trial.create_trial(
        params={"lr": 0.1},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)},
        value=0.0,
    )
    run(frozen, OPTIMIZERS["sgd"])
    assert Record.read(frozen) is not None
