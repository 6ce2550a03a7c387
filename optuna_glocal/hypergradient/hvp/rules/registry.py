"""Which rule belongs to which node of autograd's graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from optuna_glocal.hypergradient._torch import node_name
from optuna_glocal.hypergradient.hvp.rules.base import Operation

#: Makes the rule of one node from its active inputs and whether its output's tangent is read.
Maker = Callable[..., Operation]
_Rule = TypeVar("_Rule", bound=type[Operation])

_RULES: dict[str, Maker] = {}


def operation(
    *nodes: str | type[torch.autograd.Function], **options: Any
) -> Callable[[_Rule], _Rule]:
    """Registers a rule for the nodes of one or several operations of torch, or of your own.

    A later registration replaces an earlier one.

    Args:
        nodes: Names of autograd's nodes, as ``type(y.grad_fn).__name__`` shows them
            (``"TanhBackward0"``), or your own :class:`torch.autograd.Function`.
        options: Keyword arguments that the rule is made with for these nodes.

    Returns:
        A decorator of a subclass of :class:`~.base.Operation`, which it returns unchanged.

    Raises:
        TypeError: If a node is neither a name nor a ``Function``, or the rule is no ``Operation``.
    """
    names = [_name_of(node) for node in nodes]

    def register(rule: _Rule) -> _Rule:
        if not (isinstance(rule, type) and issubclass(rule, Operation)):
            raise TypeError(
                f"operation: expected a subclass of Operation below the decorator, got {rule!r}. "
                "Derive it from LinearOperation, Bilinear or Nonlinear."
            )
        for name in names:
            _RULES[name] = functools.partial(rule, **options) if options else rule
        return rule

    return register


def _name_of(node: str | type[torch.autograd.Function]) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, type) and issubclass(node, torch.autograd.Function):
        return f"{node.__name__}Backward"
    raise TypeError(
        f"operation: expected the name of a node or a torch.autograd.Function, got {node!r}. "
        "type(y.grad_fn).__name__ shows the name."
    )


def rule_of(kind: type) -> Maker | None:
    """Makes the rule of nodes of this type; ``None`` if none is registered."""
    return _RULES.get(node_name(kind))
