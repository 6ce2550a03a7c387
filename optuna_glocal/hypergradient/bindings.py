"""Where each hyperparameter is used: in an entry of a param group, or in the training loss.

Symbols: λ hyperparameters (q of them), η entries of the optimizer's param groups (lr, ...).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from optuna_glocal.hypergradient.binding import Binding, Expression
from optuna_glocal.hypergradient.binding_state import ResumableBindings
from optuna_glocal.hypergradient.errors import ScheduleError
from optuna_glocal.hypergradient.optimizers import group_entries, group_entry
from optuna_glocal.hypergradient.optimizers.param_group import (
    OTHER_NAMES,
    SCALED,
    Key,
    entry_named,
)
from optuna_glocal.hypergradient.other_optimizers import OtherOptimizers
from optuna_glocal.hypergradient.schedulers.base import bases_left, entries_of, scaled_base
from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin
from optuna_glocal.hypergradient.unbound import (
    words_for,
    words_for_doubtful,
    words_for_scaled,
)

_logger = logging.getLogger("optuna_glocal")


class Bindings(ResumableBindings):
    """The hyperparameters of one trial as tensors, and the entries that they are bound to.

    Args:
        optimizer: The user's optimizer.
        values: The trial's float parameters by name.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, values: Mapping[str, float]) -> None:
        self._optimizer, self._values = optimizer, dict(values)
        #: λ at the start.
        self.start = dict(values)
        first = optimizer.param_groups[0]["params"][0]
        dtype = first.dtype if first.dtype in (torch.float32, torch.float64) else torch.float32
        # Tensors of the parameters' own dtype, so that torch.stack of several enters a loss
        # without promoting it.
        self._leaves = {
            name: torch.tensor(value, dtype=dtype, device=first.device, requires_grad=True)
            for name, value in values.items()
        }
        self._rounding = 8 * torch.finfo(dtype).eps
        self._asked: set[str] = set()
        self._is_binding = False
        #: Names asked for outside the expressions of :meth:`bind`: they may appear in a loss.
        self.asked_for_loss: set[str] = set()
        self._frozen: tuple[str, ...] | None = None
        self._joins_late = False
        #: Names that a loss has asked for after :meth:`freeze`, until they are taken.
        self.late: list[str] = []
        self._made_twin: SchedulerTwin | None = None
        self._others: OtherOptimizers | None = None
        self._has_moved = False
        #: What each bound entry is, by param group and name.
        self.entries: dict[Key, Binding] = {}
        self._starts = entries_of(optimizer)
        self._bind_by_name()

    def _bind_by_name(self) -> None:
        for i, group in enumerate(self._optimizer.param_groups):
            entries = group_entries(group)
            for name, value in self._values.items():
                entry = entry_named(name, entries)
                if entry is None:
                    continue
                held = (entries[entry], *bases_left(group, entry))
                # TorchDistributedTrial suggests in float32, but keeps its parameters in float64.
                if any(math.isclose(value, h, rel_tol=1e-7) for h in held):
                    self.entries[i, entry] = Binding(value, {name: 1.0})
                elif entry in SCALED and (
                    scaled := scaled_base(self._optimizer, entry, held, value)
                ):
                    self.entries[i, entry] = Binding(scaled, {name: scaled / value})

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._leaves:
            raise ValueError(
                f"glocal[{name!r}]: expected a float parameter that the trial has suggested, one "
                f"of {sorted(self._values)}. Suggest it before the callback is made."
            )
        if self._frozen is not None and name not in self._frozen:
            if not self._joins_late:
                return self._leaves[name].detach()
            self._frozen = tuple(n for n in self._values if n in {*self._frozen, name})
            self.late.append(name)
        self._asked.add(name)
        if not self._is_binding:
            self.asked_for_loss.add(name)
        return self._leaves[name]

    def bind(self, group: int | None, entries: Mapping[str, Expression]) -> None:
        """Binds entries to differentiable functions of ``self[name]``.

        Raises:
            ValueError: For an unknown entry or group, an expression that depends on no
                hyperparameter, a value that disagrees with the optimizer's, or too late a call.
            TypeError: If an expression is not a 0-dim tensor or a function that returns one.
        """
        if self._frozen is not None:
            raise ValueError("bind: expected before the first backward, got after. Move it up.")
        groups = range(len(self._optimizer.param_groups))
        if group is not None and group not in groups:
            raise ValueError(f"group: expected one of {list(groups)}, got {group!r}.")
        for entry, expression in entries.items():
            for i in groups if group is None else (group,):
                self.entries[i, entry] = self._checked(i, entry, expression)

    def _checked(self, i: int, entry: str, expression: Expression) -> Binding:
        known = group_entries(self._optimizer.param_groups[i])
        if entry not in known:
            raise ValueError(
                f"bind: expected an entry of param group {i}, one of {sorted(known)}, "
                f"got {entry!r}. A hyperparameter of the loss needs no binding."
            )
        tensor = self._evaluate(expression)
        if not isinstance(tensor, Tensor) or tensor.ndim != 0:
            raise TypeError(
                f"bind({entry}=...): expected a 0-dim tensor made from glocal[name], or a "
                f"function that returns one, got {tensor!r}. Write for example 1 - glocal['omm']."
            )
        slopes = self._slopes(tensor)
        if not slopes:
            raise ValueError(
                f"bind({entry}=...): expected an expression of glocal[name], got {tensor!r}, "
                "which depends on no hyperparameter. Do not detach it or convert it to a float."
            )
        held = (known[entry], *bases_left(self._optimizer.param_groups[i], entry))
        # 1 - glocal["omb1"] near 0 is right to the rounding of its terms only.
        terms = math.fsum(abs(slope * self._values[n]) for n, slope in slopes.items())
        off = max(1e-12, self._rounding * terms)
        if not any(math.isclose(tensor.item(), h, rel_tol=1e-5, abs_tol=off) for h in held):
            raise ValueError(
                f"bind({entry}=...): the expression is {tensor.item():.8g}, but param group {i} "
                f"of the optimizer holds {known[entry]:.8g}. Make them equal, or name the group "
                "it belongs to with group=."
            )
        return Binding(float(tensor.item()), slopes, expression)

    def _evaluate(self, expression: Expression) -> Tensor:
        if not callable(expression):
            return expression
        self._is_binding = True
        try:
            return expression()
        finally:
            self._is_binding = False

    def _slopes(self, tensor: Tensor) -> dict[str, float]:
        if not tensor.requires_grad:
            return {}
        leaves = list(self._leaves.values())
        grads = torch.autograd.grad(tensor, leaves, allow_unused=True, retain_graph=True)
        return {
            name: grad.item()
            for name, grad in zip(self._leaves, grads, strict=True)
            if grad is not None
        }

    def freeze(self, *, joins_late: bool = False) -> tuple[str, ...]:
        """The names that can have a gradient, fixed from here on.

        If ``joins_late``, a name that is asked for afterwards joins them, and :attr:`late`.
        """
        self._joins_late |= joins_late
        if self._frozen is None:
            self._frozen = tuple(n for n in self._values if n in self.bound | self._asked)
            bound = {(entry, binding.value) for (_, entry), binding in self.entries.items()}
            self._others = OtherOptimizers(self._optimizer, bound) if bound else None
            plain = {k: b.slopes for k, b in self.entries.items() if b.expression is None}
            if scaled := words_for_scaled(plain):
                _logger.info("Bound by their ratio to a hyperparameter: %s.", "; ".join(scaled))
        return self._frozen

    def unbound(self) -> list[str]:
        """A sentence for each hyperparameter that is neither bound nor asked for.

        Each names the parameter, the entry that comes nearest and the line to write.
        """
        names = [n for n in self._values if n not in self.bound | self._asked]
        return words_for(self._optimizer, self._values, names, OTHER_NAMES)

    @property
    def others(self) -> list[str]:
        """Other optimizers that have stepped since :meth:`freeze`, with the count of tensors."""
        return [] if self._others is None else self._others.seen

    def close(self) -> None:
        """Stops watching for other optimizers."""
        if self._others is not None:
            self._others.close()

    @property
    def in_loss(self) -> dict[str, Tensor]:
        """Tensors that the user has asked for: they may appear in a loss."""
        return {name: leaf for name, leaf in self._leaves.items() if name in self._asked}

    @property
    def bound(self) -> set[str]:
        """Names that reach the optimizer."""
        return {name for binding in self.entries.values() for name in binding.slopes}

    @property
    def _twin(self) -> SchedulerTwin:
        """Made when the first step is near, after the last ``bind``."""
        if self._made_twin is None:
            bases = {key: binding.value for key, binding in self.entries.items()}
            twin = SchedulerTwin(self._optimizer, bases, self._written, self._starts)
            self._made_twin = twin
        return self._made_twin

    def _written(self, tensor: Tensor, key: Key) -> float:
        """d(tensor)/d(base) of an entry, for an expression of ``self[name]``."""
        by_name, entry = self._slopes(tensor), self.entries.get(key)
        if not by_name:
            return 0.0
        if entry is None or len(entry.slopes) != 1 or by_name.keys() != entry.slopes.keys():
            raise ScheduleError(
                f"{key[1]} = {tensor.item():.6g} of param group {key[0]} is an expression of "
                f"{', '.join(by_name)}, which is not all that the entry is bound to."
            )
        ((name, slope),) = by_name.items()
        return slope / entry.slopes[name]

    def follow_schedulers(self) -> None:
        """Brings the copies of schedulers up to date, before each step of a run that observes.

        Raises:
            ScheduleError: If what a scheduler made of a bound entry is not known, another entry
                may follow a bound hyperparameter, or another optimizer of the loop holds a bound
                value.
        """
        if self._made_twin is None:
            doubt = words_for_doubtful(self._optimizer, self._values, self.entries)
            if doubt is not None:
                raise ScheduleError(doubt)
        if self._others is not None and self._others.sentence is not None:
            raise ScheduleError(self._others.sentence)
        self._twin.sync()

    @property
    def stand_still(self) -> bool:
        """Whether :meth:`slopes` stays the same as long as the param groups do."""
        return not self._has_moved and not self._twin.replays

    def slopes(self, i: int) -> dict[str, dict[str, float]]:
        """∂(entry)/∂λ of group ``i`` at this step, scheduler's factor included."""
        group, out = self._optimizer.param_groups[i], {}
        for (j, entry), binding in self.entries.items():
            if j == i:
                factor = self._twin.derivative((i, entry), group_entry(group, entry))
                out[entry] = {name: slope * factor for name, slope in binding.slopes.items()}
        return out

    def entry_tangents(self, i: int, like: Tensor) -> dict[str, Tensor]:
        """dη/dλ of group ``i`` at this step, each ``(q,)``."""
        names = self.freeze()
        return {
            entry: like.new_tensor([slopes.get(name, 0.0) for name in names])
            for entry, slopes in self.slopes(i).items()
        }

    # -- moving λ during the trial ----------------------------------------------------------------

    @property
    def values(self) -> dict[str, float]:
        """λ as it stands."""
        return dict(self._values)

    def move(self, values: Mapping[str, float]) -> None:
        """Sets λ: the tensors in place, and the value of every entry bound to them."""
        before = dict(self._values)
        self._has_moved = True
        self._values.update(values)
        moved = [k for k, b in self.entries.items() if not values.keys().isdisjoint(b.slopes)]
        results: dict[Key, float] = {}
        with torch.no_grad():
            for name in self._asked.intersection(values):
                self._leaves[name].fill_(values[name])
            for key in moved:
                if callable(expression := self.entries[key].expression):
                    results[key] = self._evaluate(expression).item()
        for key in moved:
            binding = self.entries[key]
            if binding.expression is None:
                ((name, share),) = binding.slopes.items()
                self.entries[key] = Binding(share * self._values[name], binding.slopes)
            elif key in results:
                self.entries[key] = self._evaluated(binding, results[key], before)
        if self._made_twin is not None:
            self._made_twin.rebase({key: self.entries[key].value for key in moved})

    def _evaluated(self, binding: Binding, value: float, before: Mapping[str, float]) -> Binding:
        """The binding at the new λ; its slopes stay where the expression is affine."""
        moves = [s * (self._values[n] - before[n]) for n, s in binding.slopes.items()]
        expected = binding.value + math.fsum(moves)
        size = abs(binding.value) + sum(map(abs, moves))
        slopes = binding.slopes
        if abs(value - expected) > self._rounding * size and callable(binding.expression):
            slopes = self._slopes(self._evaluate(binding.expression))
        return Binding(value, slopes, binding.expression)

    def fixed_expressions(self, names: Collection[str]) -> list[str]:
        """Entries that cannot follow ``names``, because they were bound to a tensor."""
        return [
            entry
            for (_, entry), b in self.entries.items()
            if isinstance(b.expression, Tensor) and set(b.slopes) & set(names)
        ]
