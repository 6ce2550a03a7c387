"""Observing as a mode: what cannot be followed ends the tangents with one sentence."""

import contextlib
import warnings

import numpy as np
import oracles
import pytest
import torch
from exact import fixed_trial
from observed import quadratic, suggested
from torch import nn

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient import group_tangent
from optuna_glocal.hypergradient._torch import DispatchMode
from optuna_glocal.hypergradient.group_tangent import Group
from optuna_glocal.hypergradient.hvp.plan import Plan


def spoiled(optimizer):
    """In numpy, where no arithmetic of the loop's can be followed."""
    grad = optimizer.param_groups[0]["params"][0].grad.numpy()
    grad *= np.linspace(1, 2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, o, loss: loss.backward(), "call it in place of"),
        (lambda g, o, loss: (g.backward(loss), spoiled(o)), "neither clipping by norm"),
    ],
)
def test_what_cannot_be_followed_detaches_with_one_warning(change, words):
    x, optimizer, glocal = quadratic(suggested(lr=0.1), tangents=True)
    with warnings.catch_warnings(record=True) as caught, glocal:
        warnings.simplefilter("always")
        glocal.backward((x**2).sum())
        optimizer.step()
        for _ in range(9):
            optimizer.zero_grad()
            change(glocal, optimizer, (x**2).sum())
            optimizer.step()
    assert [words in str(w.message) for w in caught] == [True]
    assert glocal.trajectory.steps[-1] == 10


def test_lbfgs_is_refused_with_a_sentence():
    trial = suggested(lr=0.1)
    x = torch.ones(3, requires_grad=True)
    lbfgs = torch.optim.LBFGS([x], lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="LBFGS evaluates the model"),
        GlocalCallback(trial, lbfgs, lambda: (x**2).sum(), horizon=3),
    ):
        pass


def test_zero_for_false_carries_no_tangents():
    x, _, glocal = quadratic(suggested(lr=0.1), tangents=0)
    with glocal:
        glocal.backward((x**2).sum())
        assert glocal.status == "Tangents were switched off."


def test_names_that_reach_nothing_have_no_gradient():
    x, optimizer, glocal = quadratic(
        suggested(lr=0.1, dropout=0.5), estimator="global", every=1, tangents=True
    )
    with glocal:
        glocal["dropout"]
        for _ in range(10):
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert glocal.trajectory.names == ("lr",)


def test_the_status_tells_where_the_window_stands():
    x, optimizer, glocal = quadratic(suggested(lr=0.1), window=4, tangents=True)
    with glocal:
        for step in range(8):
            if step < 4:
                assert glocal.status == f"Carrying tangents: step {step} of 4."
            optimizer.zero_grad()
            glocal.backward((x**2).sum())
            optimizer.step()
    assert glocal.trajectory.steps.max() == 10 - 2
    assert np.isfinite(glocal.trajectory.hypergradients[1:5]).all()
    assert np.isnan(glocal.trajectory.hypergradients[5:]).all()


def penalized_from(start, h, make, accumulate, watch=False):
    """A run of 8 steps whose loss has a penalty from step ``start`` on; its validation losses."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer, values, glocal = make(model.parameters(), h["lr"]), [], None

    def validation():
        return nn.functional.cross_entropy(model(x), (y + 1) % 3)

    if watch:
        glocal = GlocalCallback(
            fixed_trial(h), optimizer, validation, horizon=8,
            observe=Observe(estimator="global", tangents=True, every=1),
        )  # fmt: skip
    with glocal or torch.enable_grad():
        for step in range(8):
            optimizer.zero_grad()
            for part in range(accumulate):
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
                if step >= start and part == accumulate - 1:
                    l2 = glocal["l2"] if glocal else h["l2"]
                    loss = loss + l2 * sum((p**2).sum() for p in model.parameters())
                glocal.backward(loss) if glocal else loss.backward()
            optimizer.step()
            values.append(validation().item())
    return values, glocal


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
        lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
        lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5),
    ],
)
@pytest.mark.parametrize("start", [1, 3])
def test_a_hyperparameter_that_the_loss_asks_for_late_has_its_hypergradient(
    start, make, accumulate
):
    """By central differences of the whole run, before it is asked for and after."""
    h = {"l2": 0.05, "lr": 0.1}
    values, glocal = penalized_from(start, h, make, accumulate, watch=True)
    assert values == penalized_from(start, h, make, accumulate)[0]
    trajectory = glocal.trajectory
    assert trajectory.names == ("l2", "lr")
    for step in (start, start + 1, 8):
        for j, name in enumerate(trajectory.names):
            expected, rounding = oracles.slope(
                lambda v, n=name, t=step: penalized_from(start, {**h, n: v}, make, accumulate)[0][
                    t - 1
                ],
                h[name],
            )
            got = trajectory.hypergradients[step, j]
            assert got == pytest.approx(expected, rel=1e-6, abs=rounding), (step, name)
    assert not trajectory.hypergradients[1 : start + 1, 0].any()


class Kernels(DispatchMode):
    """Counts torch's kernels, but for those of the tangents themselves."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, self._is_counting = 0, True
        tangents = (Plan, "up"), (Plan, "down"), (Group, "advance"), (group_tangent, "point_of")
        for owner, name in tangents:
            monkeypatch.setattr(owner, name, self._uncounted(getattr(owner, name)))

    def _uncounted(self, act):
        def run(*args, **options):
            is_counting, self._is_counting = self._is_counting, False
            try:
                return act(*args, **options)
            finally:
                self._is_counting = is_counting

        return run

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += self._is_counting
        return func(*args, **(kwargs or {}))


def kernels_of_a_step(monkeypatch, layers, observe):
    """Of the tenth step of a plain loop; ``None`` for ``observe`` watches nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)])
    optimizer, x = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), torch.randn(4, 2)
    with contextlib.ExitStack() as stack, monkeypatch.context() as patch:
        kernels, backward = Kernels(patch), torch.Tensor.backward
        if observe is not None:
            trial = suggested(lr=0.1, momentum=0.9)
            glocal = GlocalCallback(
                trial, optimizer, lambda: net(x).square().mean(), horizon=99, observe=observe
            )
            backward = stack.enter_context(glocal).backward
        for t in range(10):
            if t == 9:
                stack.enter_context(kernels)
            optimizer.zero_grad()
            backward(net(x).square().mean())
            optimizer.step()
        return kernels.count


@pytest.mark.parametrize(
    ("window", "tangents", "fixed", "per_parameter"),
    [(99, True, 9, 0), (99, "cheap", 4, 0), (5, True, 0, 0)],
    ids=["exact", "cheap", "after the window"],
)
def test_watching_a_plain_step_adds_few_kernels(
    monkeypatch, window, tangents, fixed, per_parameter
):
    observe = Observe(window=window, every=50, tangents=tangents)
    for layers in (1, 5):
        plain = kernels_of_a_step(monkeypatch, layers, None)
        added = kernels_of_a_step(monkeypatch, layers, observe) - plain
        assert 0 <= added <= fixed + per_parameter * 2 * layers
