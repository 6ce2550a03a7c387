"""Entries that the training loop itself sets, and what is known of their derivative.

``group["lr"] = max(lr * 0.9**t, 1e-3)`` is a number once it is in the param group. Whether it
follows the base value, and how, is known in these cases only: it was written as a tensor
expression of ``glocal[name]``; it is a literal of the program; or the base is a suggested value of
many digits, and the number is a round multiple of it, or a round number itself. All else is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.derivative import equal
from optuna_glocal.hypergradient.schedulers.expressions import Written
from optuna_glocal.hypergradient.schedulers.literals import is_literal
from optuna_glocal.hypergradient.schedulers.ratio import is_typed, relation

# Of an expression of glocal[name], which is float32 as a rule.
_ROUNDING = {"rel_tol": 1e-4, "abs_tol": 1e-6}


class LoopChanges:
    """Explains the values of entries that no copy of a scheduler reproduces.

    Args:
        optimizer: The user's optimizer.
        bases: The value that each entry has without any factor.
        written: Differentiates expressions of ``glocal[name]``.
        starts: The value that each entry had when it was bound; it may differ from the base by
            rounding.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bases: Mapping[Key, float],
        written: Written,
        starts: Mapping[Key, float],
    ) -> None:
        self._optimizer, self._bases, self._written = optimizer, bases, written
        self._starts = starts
        # Value and derivative of entries that the loop has set.
        self._known: dict[Key, tuple[float, float]] = {}
        self._by_expression: set[Key] = set()

    def take_tensors(self) -> bool:
        """Replaces expressions of ``glocal[name]`` in the param groups by their values.

        Returns:
            Whether there were any.
        """
        found = False
        for i, entry in self._bases:
            group = self._optimizer.param_groups[i]
            held = group.get(entry)
            if isinstance(held, Tensor) and held.requires_grad:
                group[entry] = held.item()
                self._known[i, entry] = group[entry], self._written(held, (i, entry))
                self._by_expression.add((i, entry))
                found = True
        return found

    @property
    def are_known(self) -> bool:
        """Whether the loop has set an entry to a value whose derivative is known."""
        return bool(self._known)

    def slope(self, key: Key, now: float) -> float | None:
        """dη/d(base) of an entry that the loop has set to ``now``; ``None`` if it has not."""
        value, slope = self._known.get(key, (None, 0.0))
        return slope if value == now else None

    def explain(self, key: Key, schedulers: Sequence[LRScheduler]) -> None:
        """Finds out where the value of an entry comes from.

        Args:
            key: Param group and entry.
            schedulers: Those of the optimizer, all of which multiply.

        Raises:
            ScheduleError: If it cannot be known how the value follows the base.
        """
        (i, entry), base = key, self._bases[key]
        group = self._optimizer.param_groups[i]
        now = group_entry(group, entry)
        is_start = now == self._starts.get(key) and math.isclose(now, base, **_ROUNDING)
        if equal(now, base) or is_start or self.slope(key, now) is not None:
            return
        if entry == "lr" and any(equal(now, rates[i]) for rates in _last(schedulers)):
            return
        is_suggested = not is_typed(base)
        if is_suggested and relation(now, base) == "multiple":
            self._known[key] = now, now / base
            return
        is_constant = is_suggested or key in self._by_expression
        if is_typed(now) and (is_constant or is_literal(group.get(entry, now))):
            self._known[key] = now, 0.0  # max(glocal["lr"] * factor, 1e-3) has come to 1e-3
            return
        raise ScheduleError(
            f"{entry} of param group {i} was {base:.6g} and is {now:.6g}, which no LR scheduler "
            "has made of it: how a number that the loop sets follows the hyperparameter is not "
            f"known. Write it with the tensor of the hyperparameter, for example "
            f"group[{entry!r}] = glocal[{entry!r}] * {now / base if base else now:.4g}."
        )


def _last(schedulers: Sequence[LRScheduler]) -> list[list[float]]:
    return [list(map(float, s._last_lr)) for s in schedulers if hasattr(s, "_last_lr")]
