"""How much of a step in the window goes into telling whether the tangents are right.

Detectors look for whatever would make tangents wrong: weights that are written between steps,
gradients that are not those of their loss, values that leave the graph and come back. Their price
is the difference between steps with all of them and steps of the same run without, in turns of a
few steps, so that both have the same memory and the same load of the machine.
"""

import contextlib
from statistics import median
from time import process_time
from unittest import mock

import optuna
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Observe
from optuna_glocal.hypergradient import tangent
from optuna_glocal.hypergradient.escapes import Escapes
from optuna_glocal.hypergradient.gradient_check import GradientCheck
from optuna_glocal.hypergradient.gradient_tangent import Gradients
from optuna_glocal.hypergradient.hvp.inspection import Inspection
from optuna_glocal.hypergradient.loop_arithmetic.gradient_changes import GradientChanges
from optuna_glocal.hypergradient.untraced.carried import Carried
from optuna_glocal.training.revision import Revision

ENTRIES = {
    "sgd": {"lr": 1e-3, "weight_decay": 1e-4, "momentum": 0.9},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-4},
}
# Hidden widths of multilayer perceptrons, by the number of parameters; and steps in one turn.
WIDTHS = {"10k": (72, 64), "100k": (288, 272), "1M": (960, 960)}
TURN = {"10k": 16, "100k": 6, "1M": 2, "cnn": 4}
# Until here everything is computed twice or followed more closely.
WARM = 24


def problem(name):
    """A model and a minibatch: an MLP of so many parameters, or convolutions with batch norm."""
    torch.manual_seed(0)
    if name == "cnn":
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 64, 10),
        )  # fmt: skip
        return model, torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
    a, b = WIDTHS[name]
    model = nn.Sequential(
        nn.Linear(64, a), nn.Tanh(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, 10)
    )
    return model, torch.randn(64, 64), torch.randint(0, 10, (64,))


@contextlib.contextmanager
def training(name, kind, *, is_observed=True):
    """A function that makes one step, inside the window if it is observed."""
    model, x, y = problem(name)
    h = ENTRIES[kind]
    make = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    optimizer, backward = make(model.parameters(), **h), torch.Tensor.backward
    with contextlib.ExitStack() as stack:
        if is_observed:
            trial = optuna.trial.FixedTrial(h)
            for parameter in h:
                trial.suggest_float(parameter, 1e-7, 1.0)
            glocal = GlocalCallback(
                trial, optimizer, lambda: cross_entropy(model(x), y), horizon=10**6,
                observe=Observe(window=10**6, every=10**6, tangents=True), store_trajectory=False,
            )  # fmt: skip
            backward = stack.enter_context(glocal).backward

        def step():
            optimizer.zero_grad()
            backward(cross_entropy(model(x), y))
            optimizer.step()

        yield step


@contextlib.contextmanager
def blind():
    """Inside, steps are made without detectors; they go on afterwards as if nothing had been."""
    met = {}
    after_step, resume = Escapes.after_step, Carried.resume

    def nothing(self, *args, **options):
        met[type(self)] = self

    def reset(self, root):
        for gradients in self._gradients:
            gradients.raw = gradients.dg[0]
            gradients.dg.zero_()

    methods = {
        Carried: ("look", "resume", "made_step"),
        Escapes: ("before_backward", "before_step", "after_step"),
        GradientChanges: ("before_step", "end_step"),
        Gradients: ("note",),
        GradientCheck: ("compare", "wait", "settle"),
        Inspection: ("look_at_others",),
        Revision: ("after_backward", "before_step", "after_step"),
    }
    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        for cls, names in methods.items():
            for name in names:
                stack.enter_context(patch(cls, name, nothing))
        stack.enter_context(patch(GradientChanges, "before_backward", reset))
        stack.enter_context(patch(GradientCheck, "along", lambda self, row: 0.0))
        nobody = contextlib.nullcontext({})
        stack.enter_context(patch(tangent, "accumulated", lambda params: nobody))
        yield
    with torch.no_grad():
        after_step(met[Escapes])
    resume(met[Carried])


def seconds(step, count):
    began = process_time()
    for _ in range(count):
        step()
    return (process_time() - began) / count


def share_of_detectors(name, kind, repeats, turns):
    """Their share of a step, and the observed step over the plain one; medians over all turns."""
    shares, ratios, turn = [], [], TURN[name]
    for _ in range(repeats):
        with contextlib.ExitStack() as stack:
            plain_step = stack.enter_context(training(name, kind, is_observed=False))
            seconds(plain_step, WARM)
            plain = median(seconds(plain_step, turn) for _ in range(turns))
            step = stack.enter_context(training(name, kind))
            seconds(step, WARM)
            seen = []
            for _ in range(turns):
                before = seconds(step, turn)
                with blind():
                    step()
                    without = seconds(step, turn)
                step()
                seen.append((before + seconds(step, turn)) / 2)
                shares.append(1 - without / seen[-1])
            ratios.append(median(seen) / plain)
    return {"share": median(shares), "over plain": median(ratios)}
