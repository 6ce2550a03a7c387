"""How each optimizer's step depends on its hyperparameters: one optimizer family per file.

A rule is a subclass of :class:`Rule` that states the step (θ', s') = F(θ, g, s; η) and its
Jacobian at the point where it is taken. Both the tangents carried along training (Franceschi et
al. 2017, arXiv 1703.01785) and the greedy hypergradient of one step (Baydin et al. 2018, arXiv
1703.04782) follow from it. A rule is registered beside its equations: ``@rule(torch.optim.SGD)``.

Your own optimizer is added the same way. Its equations, written with :class:`Inputs`, are the
rule; the Jacobian follows from them:

>>> import torch
>>> from optuna_glocal.hypergradient.optimizers import PARAM, Inputs, Rule, linear, rule
>>> class HeavyBall(torch.optim.Optimizer):
...     def __init__(self, params, lr=0.1, friction=0.2):
...         super().__init__(params, {"lr": lr, "friction": friction})
...
...     @torch.no_grad()
...     def step(self):
...         for group in self.param_groups:
...             for p in group["params"]:
...                 velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
...                 velocity.mul_(1 - group["friction"]).sub_(p.grad, alpha=group["lr"])
...                 p.add_(velocity)
>>> @rule(HeavyBall)
... class HeavyBallRule(Rule):
...     state_names = ("velocity",)  # keys of optimizer.state[p]
...     entries = ("lr", "friction")  # keys of the param group
...
...     def linearize(self, point):
...         x = Inputs(point)
...         kept = 1.0 - x.entry("friction")
...         velocity = kept * x.state("velocity") - x.entry("lr") * x.grad
...         return linear({PARAM: x.param + velocity, "velocity": velocity}, self.entries)

Every run compares the rule with the real step once. The same check, by hand, after a first step:

>>> from optuna_glocal.hypergradient.optimizers import rule_of
>>> from optuna_glocal.hypergradient.optimizers.verification import disagreeing
>>> p = torch.nn.Parameter(torch.ones(3))
>>> optimizer = HeavyBall([p])
>>> p.grad = torch.tensor([1.0, 2.0, 3.0])
>>> optimizer.step()
>>> slopes = {"lr": {"lr": 1.0}, "friction": {"friction": 1.0}}
>>> disagreeing(optimizer, 0, [p], rule_of(optimizer), slopes)
[]

A step that mixes the entries of a tensor (Adafactor, Muon) is a :class:`MatrixStep`, which
autograd differentiates. An optimizer without any rule is differentiated by central differences of
its real step (:class:`GenericStep`), for observing only: tuning within a run needs a rule.

Other packages use :func:`rule_of`, :func:`point_of` and the functions that read and write param
groups. This package imports torch and :mod:`optuna_glocal.hypergradient._torch` only.
"""

from __future__ import annotations

from optuna_glocal.hypergradient.optimizers import (  # noqa: F401  (registers the rules)
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from optuna_glocal.hypergradient.optimizers.adam import Adam
from optuna_glocal.hypergradient.optimizers.base import Rule
from optuna_glocal.hypergradient.optimizers.equations import Inputs, linear
from optuna_glocal.hypergradient.optimizers.finite_difference import GenericStep
from optuna_glocal.hypergradient.optimizers.matrix_step import MatrixStep
from optuna_glocal.hypergradient.optimizers.param_group import (
    flattened,
    group_entries,
    group_entry,
    set_group_entry,
    steps_made,
)
from optuna_glocal.hypergradient.optimizers.point import point_of, view_of
from optuna_glocal.hypergradient.optimizers.registry import refusal, rule, rule_of
from optuna_glocal.hypergradient.optimizers.sgd import EFFECTIVE_MOMENTUM, SGD
from optuna_glocal.hypergradient.optimizers.step import (
    GRAD,
    PARAM,
    Linear,
    Point,
    Slopes,
    Tangents,
)

__all__ = [
    "EFFECTIVE_MOMENTUM",
    "GRAD",
    "PARAM",
    "SGD",
    "Adam",
    "GenericStep",
    "Inputs",
    "Linear",
    "MatrixStep",
    "Point",
    "Rule",
    "Slopes",
    "Tangents",
    "flattened",
    "group_entries",
    "group_entry",
    "linear",
    "point_of",
    "refusal",
    "rule",
    "rule_of",
    "set_group_entry",
    "steps_made",
    "view_of",
]
