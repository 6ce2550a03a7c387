"""What hyperparameters are bound to, as a resumed run takes it over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.binding import Binding
from optuna_glocal.hypergradient.optimizers import group_entries
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.schedulers.twin import SchedulerTwin


class ResumableBindings:
    """The part of :class:`~optuna_glocal.hypergradient.bindings.Bindings` that keeps its state."""

    entries: dict[Key, Binding]
    asked_for_loss: set[str]
    late: list[str]
    start: dict[str, float]
    _optimizer: torch.optim.Optimizer
    _values: dict[str, float]
    _leaves: dict[str, Tensor]
    _starts: dict[Key, float]
    _asked: set[str]
    _frozen: tuple[str, ...] | None
    _joins_late: bool
    _has_moved: bool
    _made_twin: SchedulerTwin | None

    def freeze(self, *, joins_late: bool = False) -> tuple[str, ...]:
        """See :class:`~optuna_glocal.hypergradient.bindings.Bindings`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """λ, and what each bound entry is, as plain numbers."""
        return {
            "values": dict(self._values),
            "start": dict(self.start),
            "leaves": {name: leaf.item() for name, leaf in self._leaves.items()},
            "entries": [
                (i, entry, b.value, dict(b.slopes), b.expression is not None)
                for (i, entry), b in self.entries.items()
            ],
            "starts": dict(self._starts),
            "asked": sorted(self._asked),
            "asked_for_loss": sorted(self.asked_for_loss),
            "frozen": self._frozen,
            "joins_late": self._joins_late,
            "late": list(self.late),
            "has_moved": self._has_moved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned.

        Raises:
            ValueError: If other entries were bound by expressions, or the optimizer lacks one.
        """
        own = {k: b.expression for k, b in self.entries.items() if b.expression is not None}
        theirs = [(i, entry) for i, entry, *_, is_given in state["entries"] if is_given]
        if set(own) != set(theirs):
            raise ValueError(
                f"bind: expected the entries {_listed(theirs)} to be bound by expressions, as in "
                f"the run that the state is of, got {_listed(own)}. Call bind before "
                "load_state_dict, as in that run."
            )
        groups = self._optimizer.param_groups
        for i, entry, *_ in state["entries"]:
            if i >= len(groups) or entry not in group_entries(groups[i]):
                raise ValueError(
                    f"optimizer: expected {entry} in param group {i}, which the state is of, got "
                    "none. Make it as in the run that the state is of."
                )
        self._values.update(state["values"])
        self.start = dict(state["start"])
        self.entries = {
            (i, entry): Binding(value, dict(slopes), own.get((i, entry)))
            for i, entry, value, slopes, _ in state["entries"]
        }
        self._starts = dict(state["starts"])
        self._asked |= set(state["asked"])
        self.asked_for_loss |= set(state["asked_for_loss"])
        self._has_moved, self._made_twin, self._frozen = state["has_moved"], None, None
        with torch.no_grad():
            for name, value in state["leaves"].items():
                self._leaves[name].fill_(value)
        if state["frozen"] is not None:
            self.freeze(joins_late=state["joins_late"])
            self._frozen, self.late = tuple(state["frozen"]), list(state["late"])


def _listed(keys: Collection[Key]) -> list[str]:
    return [f"{entry} of param group {i}" for i, entry in sorted(keys)]
