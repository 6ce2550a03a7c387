"""How each operation of torch passes tangents on: one family of rules per file.

A rule is a subclass of :class:`Operation` with two halves. ``forward`` takes the tangents of an
operation's inputs to that of its output; ``backward`` takes the tangent of the output's cotangent
to those of the inputs' cotangents (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
It stands beside the names of the nodes that it serves: ``@operation("MmBackward0")``. Elementwise
functions need their derivatives only: ``@curved`` where f'' matters, ``@straight`` where it is 0.

A graph with an operation that has no rule still gets exact products, by double backward, only
slower. To teach the walk one more operation of torch, read what its node has saved:

>>> import torch
>>> from optuna_glocal.hypergradient.hvp.rules import curved, saved
>>> @curved("SinhBackward0")
... def sinh(node):
...     x = saved("self")(node)
...     return x.cosh(), x.sinh()  # f' and f''

Or one of your own, with its second derivative:

>>> from optuna_glocal.hypergradient.hvp.rules import Nonlinear, operation
>>> class Cube(torch.autograd.Function):
...     @staticmethod
...     def forward(ctx, x):
...         ctx.save_for_backward(x)
...         return x**3
...
...     @staticmethod
...     def backward(ctx, g):
...         (x,) = ctx.saved_tensors
...         return 3 * x**2 * g
>>> @operation(Cube)
... class CubeRule(Nonlinear):
...     def forward(self, node, *dx):
...         (x,) = node.saved_tensors
...         self.kept = x, dx[0]
...         return 3 * x**2 * dx[0]
...
...     def backward(self, g, dg):
...         x, dx = self.kept
...         through_x = 6 * x * dx * g
...         return (through_x if dg is None else through_x + 3 * x**2 * dg,)

The product of the Hessian of Σ sinh(w)³ with one direction, against the closed form:

>>> from optuna_glocal.hypergradient.hvp.graph_walker import Walker
>>> w = torch.tensor([0.5, 1.0], requires_grad=True)
>>> z, product = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
>>> walker = Walker(tangents={w: z}, sinks={w: product})
>>> loss = Cube.apply(torch.sinh(w)).sum()
>>> walker.up(loss), loss.backward(), walker.down()
(None, None, None)
>>> s, c = torch.sinh(w), torch.cosh(w)
>>> torch.allclose(product, z * (6 * s * c**2 + 3 * s**3))
True

In training every plan is compared with double backward in its first two steps, so a mistaken rule
is noticed and not used. This package imports torch and
:mod:`optuna_glocal.hypergradient._torch` only.
"""

from __future__ import annotations

from optuna_glocal.hypergradient._torch import saved
from optuna_glocal.hypergradient.hvp.rules import (  # noqa: F401  (registers the rules)
    binary,
    convolution,
    derivatives,
    embedding_pooling,
    losses,
    matmul,
    normalization,
    reduction,
    shape,
    split_concat,
)
from optuna_glocal.hypergradient.hvp.rules.base import (
    Bilinear,
    LinearOperation,
    Nonlinear,
    Operation,
    UnsupportedError,
)
from optuna_glocal.hypergradient.hvp.rules.pointwise import curved, straight
from optuna_glocal.hypergradient.hvp.rules.registry import operation, rule_of

__all__ = [
    "Bilinear",
    "LinearOperation",
    "Nonlinear",
    "Operation",
    "UnsupportedError",
    "curved",
    "operation",
    "rule_of",
    "saved",
    "straight",
]
