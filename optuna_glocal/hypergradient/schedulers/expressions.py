"""Numbers given to a scheduler as expressions of a hyperparameter's tensor.

``CosineAnnealingLR(optimizer, 100, eta_min=glocal["lr"] / 10)`` says how ``eta_min`` follows the
learning rate. The tensor is replaced by its value, so that the optimizer steps with plain numbers,
and its derivative is kept for the scheduler's copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.discovery import nested
from optuna_glocal.hypergradient.schedulers.dual import Dual

#: d(tensor)/d(base) of an entry, for an expression of ``glocal[name]``.
Written = Callable[[Tensor, Key], float]


@dataclass(frozen=True)
class Expression:
    """One number that was an expression.

    Attributes:
        place: Which scheduler, counting nested ones; ``None``: a param group.
        name: The number's name there.
        i: Which param group; ``None``: a number for all of them.
        slope: Its derivative with respect to the base.
    """

    place: int | None
    name: str
    i: int | None
    slope: float


def take(
    schedulers: Sequence[LRScheduler], optimizer: torch.optim.Optimizer, written: Written
) -> list[Expression]:
    """Replaces tensors that require gradients by their values, in schedulers and param groups."""
    out = []
    for place, scheduler in enumerate(_all(schedulers)):
        for name, held in list(vars(scheduler).items()):
            if _is_expression(held):
                out.append(Expression(place, name, None, written(held, (0, "lr"))))
                setattr(scheduler, name, held.item())
            elif type(held) is list and any(map(_is_expression, held)):
                entry = "momentum" if name.endswith("momentums") else "lr"
                for i, one in enumerate(held):
                    if _is_expression(one):
                        out.append(Expression(place, name, i, written(one, (i, entry))))
                setattr(scheduler, name, [_plain(one) for one in held])
    for i, group in enumerate(optimizer.param_groups):
        for name, held in group.items():
            if name != "params" and _is_expression(held):
                entry = "momentum" if "momentum" in name else "lr"
                out.append(Expression(None, name, i, written(held, (i, entry))))
                group[name] = held.item()
    return out


def give(
    found: Sequence[Expression], copies: Sequence[LRScheduler], groups: Sequence[dict[str, Any]]
) -> None:
    """Puts dual numbers where the copies and their param groups hold the values."""
    inner = _all(copies)
    for one in found:
        if one.place is None and one.i is not None:
            groups[one.i][one.name] = Dual(groups[one.i][one.name], one.slope)
        elif one.place is not None:
            held = getattr(inner[one.place], one.name)
            if one.i is None:
                setattr(inner[one.place], one.name, Dual(held, one.slope))
            else:
                dual = Dual(held[one.i], one.slope)
                new = [*held[: one.i], dual, *held[one.i + 1 :]]
                setattr(inner[one.place], one.name, new)


def dual_outputs(copies: Sequence[LRScheduler], written: Written) -> None:
    """Lets functions of the step that return expressions return dual numbers, in the copies."""
    for scheduler in _all(copies):
        functions = getattr(scheduler, "lr_lambdas", None)
        if functions is not None:
            made = [_dual_output(f, (i, "lr"), written) for i, f in enumerate(functions)]
            vars(scheduler)["lr_lambdas"] = made


def _dual_output(function: Callable[[int], Any], key: Key, written: Written) -> Any:
    def dual(step: int) -> Any:
        out = function(step)
        return Dual(out.item(), written(out, key)) if _is_expression(out) else out

    return dual


def _all(schedulers: Sequence[LRScheduler]) -> list[LRScheduler]:
    return [inner for scheduler in schedulers for inner in nested(scheduler)]


def _is_expression(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _plain(x: Any) -> Any:
    return x.item() if _is_expression(x) else x
