"""Where λ stands during one run, and where a hypergradient moves it.

Moves are made in coordinates u(λ) (:mod:`optuna_glocal.tuning.transforms`). Two pairs do not move
independently: momentum moves at fixed effective learning rate, and β2 stays above β1².

Weight decay can be held as a timescale. A step shrinks the weights by the factor 1 - lr w, whether
the decay is decoupled or joins the gradient (of SGD: 1 - lr w / (1 - momentum)), so 1 / (lr w) is
the number of steps that the weights are an average over. Where it is held, w follows as lr moves.
The decay of the learning rate at the end of a run does not count: w would grow without bound.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping

import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.optimizers import group_entries
from optuna_glocal.hypergradient.optimizers.param_group import Key
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.transforms import Coordinate

#: (steps done, λ, the bases of the entries bound to it).
Stand = tuple[int, dict[str, float], dict[Key, float]]


class Position(Stateful):
    """Where the hyperparameters stand, what moves them, and the path that they have taken.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to; moved.
        coordinates: Search interval and scale of each hyperparameter to move.
        meta: Makes moves of hypergradients.
        holds_timescale: Whether lr w keeps its value in each group whose lr moves and whose weight
            decay w does not.

    Raises:
        ValueError: If a hyperparameter is bound through a tensor, which cannot be re-evaluated.
    """

    _state = ("_meta", "_factor", "_shrinkage", "path")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        coordinates: Mapping[str, Coordinate],
        meta: MetaOptimizer,
        *,
        holds_timescale: bool = False,
    ) -> None:
        self._optimizer, self._bindings, self._meta = optimizer, bindings, meta
        self._coordinates = dict(coordinates)
        check_expressions(bindings, coordinates)
        self._entries = [
            key for key, b in bindings.entries.items() if set(b.slopes) & set(coordinates)
        ]
        # lr w by param group, where it is held.
        self._shrinkage = self._shrinkages() if holds_timescale else {}
        #: Param groups in which momentum moves at fixed effective lr, and the name of that lr.
        self.coupled = self._coupled_groups()
        # What learning rates are multiplied with, while λ stands where it stands.
        self._factor = 1.0
        #: Where λ has stood, the start included, and the bases of its entries; of both what was in
        #: force, so learning rates times the decay.
        self.path: list[Stand] = [self._stand(0)]

    def values(self) -> dict[str, float]:
        """λ as it stands."""
        values = self._bindings.values
        return {name: values[name] for name in self._coordinates}

    @property
    def unbound(self) -> set[str]:
        """Names that move and reach no param group: they appear in the loss."""
        return set(self._coordinates) - self._bindings.bound

    def log_rates(self) -> dict[str, float]:
        """The logarithms of the learning rates among them."""
        values = self.values()
        return {name: math.log(values[name]) for name in self.rates}

    def bases(self) -> dict[Key, float]:
        """The values of the entries that follow λ, without a scheduler's factor."""
        bases = {key: self._bindings.entries[key].value for key in self._entries}
        for i, shrinkage in self._shrinkage.items():
            bases[i, "weight_decay"] = shrinkage / bases[i, "lr"]
        return bases

    def _shrinkages(self) -> dict[int, float]:
        """lr w of each group that has both, where only lr moves."""
        found = {}
        for i, entry in self._entries:
            base = self._bindings.entries[i, entry].value
            held = group_entries(self._optimizer.param_groups[i]).get("weight_decay", 0.0)
            if entry == "lr" and base > 0 and (i, "weight_decay") not in self._entries and held:
                found[i] = base * held
        return found

    @property
    def rates(self) -> list[str]:
        """Names that move a learning rate and are positive."""
        entries = self._bindings.entries.items()
        bound = {name for (_, entry), b in entries if entry == "lr" for name in b.slopes}
        return [name for name, value in self.values().items() if name in bound and value > 0]

    def by_group(self) -> dict[int, dict[str, float]]:
        """d log lr / d log λ of the rates, by param group and name."""
        names, found = set(self.rates), {}
        for (i, entry), b in self._bindings.entries.items():
            shares = {n: s * self._bindings.values[n] for n, s in b.slopes.items() if n in names}
            if entry == "lr" and shares and b.value > 0:
                found[i] = {n: share / b.value for n, share in shares.items()}
        return found

    def _stand(self, steps: int) -> Stand:
        bases, values = self.bases(), self.values()
        if self._factor != 1.0:
            bases |= {k: b * self._factor for k, b in bases.items() if k[1] == "lr"}
            alone = set(self.rates) - self._bindings.asked_for_loss
            values |= {name: values[name] * self._factor for name in alone}
        return steps, values, bases

    def join(self, name: str, coordinate: Coordinate) -> None:
        """One more hyperparameter moves from here on; its path until now is its value."""
        self._coordinates[name] = coordinate
        for _, values, _ in self.path:
            values[name] = self._bindings.values[name]

    def anneal(self, factor: float, steps: int) -> None:
        """From here on, what is in force of the learning rates is ``factor`` times λ's."""
        if factor != self._factor:
            self._factor = factor
            self.path.append(self._stand(steps))

    def begin_again(self) -> None:
        """The run went back to its first step, which λ as it stands is in force from.

        The start stays in the path, since the optimizer and its schedulers were made for it.
        """
        self.path = [self.path[0], self._stand(0)]

    def _coupled_groups(self) -> dict[int, str]:
        """Groups of undampened SGD, and the name of their learning rate.

        There the effective step is lr / (1 - momentum). Moved independently, both grow it until
        training diverges; so momentum moves at fixed effective lr, and lr follows it.
        """
        out: dict[int, str] = {}
        for (i, entry), binding in self._bindings.entries.items():
            group = self._optimizer.param_groups[i]
            lr = self._bindings.entries.get((i, "lr"))
            if entry != "momentum" or lr is None or group.get("dampening") != 0:
                continue
            names = set(lr.slopes) & set(self._coordinates)
            moved = set(binding.slopes) & set(self._coordinates)
            if len(names) == 1 and moved and not names & moved and lr.expression is None:
                (name,) = names
                if self._coordinates[name].kind == "log":
                    out[i] = name
        return out

    def couple(self, h: dict[str, float]) -> None:
        """dL/dm at fixed effective lr = lr / (1 - m) in ``h``: dL/dm - dL/dlr lr / (1 - m).

        Groups that share the learning rate share its derivative alike.
        """
        bases, count = self.bases(), Counter(self.coupled.values())
        for i, lr in self.coupled.items():
            by_lr = h.get(lr, 0.0) / count[lr] * self._bindings.values[lr]
            by_lr /= 1 - bases[i, "momentum"]
            for name, slope in self._bindings.entries[i, "momentum"].slopes.items():
                if name in h:
                    h[name] -= by_lr * slope

    def move(self, h: Mapping[str, float], steps: int, *, is_late: bool = False) -> None:
        """One move by the hypergradients ``h``, after so many steps.

        Args:
            h: dL/dλ by name.
            steps: Optimizer steps done.
            is_late: Whether the next step's loss has been computed: a hyperparameter of the loss
                then comes into force one step later than one of the optimizer.
        """
        values = self.values()
        gradients = {
            name: h[name] * self._coordinates[name].slope(value)
            for name, value in values.items()
            if name in h
        }
        moved = {}
        for name, move in self._meta.moves(gradients).items():
            coordinate = self._coordinates[name]
            moved[name] = coordinate.to_value(coordinate.to_u(values[name]) + move)
        before = self.values() if is_late else {}
        self._set(moved, steps)
        used = {n: v for n, v in before.items() if n in self._bindings.asked_for_loss}
        if used:
            _, values, bases = self.path.pop()
            self.path += [(steps, {**values, **used}, bases), (steps + 1, values, bases)]

    def shift(self, moves: Mapping[str, float], steps: int) -> None:
        """Moves λ by Δ log λ where it is a learning rate, else by Δu, after so many steps."""
        values, rates, moved = self.values(), set(self.rates), {}
        for name, move in moves.items():
            coordinate, value = self._coordinates[name], values[name]
            if name in rates:
                moved[name] = min(max(value * math.exp(move), coordinate.low), coordinate.high)
            else:
                moved[name] = coordinate.to_value(coordinate.to_u(value) + move)
        if any(moved[name] != values[name] for name in moved):
            self._set(moved, steps)

    def slopes(self) -> dict[str, float]:
        """dλ/du by name, as in :meth:`shift`."""
        rates = set(self.rates)
        return {
            name: value if name in rates else self._coordinates[name].slope(value)
            for name, value in self.values().items()
        }

    def return_to(self, restored: Mapping[str, float], steps: int) -> dict[str, float]:
        """Back to a snapshot, with a third of the learning rate that led away from it."""
        values = dict(restored)
        for (_, entry), binding in self._bindings.entries.items():
            for name in binding.slopes:
                if entry == "lr" and name in values:
                    u = self._coordinates[name].to_u(restored[name]) - math.log(3)
                    values[name] = self._coordinates[name].to_value(u)
        self._meta.forget()
        self._set(values, steps)
        return values

    def _set(self, values: Mapping[str, float], steps: int) -> None:
        before, held = self.bases(), self.values()
        self._bindings.move(values)
        if unstable := self._unstable_betas(before):
            self._bindings.move({name: held[name] for name in unstable})
        after = self.bases()
        shifts: dict[str, list[float]] = {}
        for i, name in self.coupled.items():
            factor = (1 - after[i, "momentum"]) / (1 - before[i, "momentum"])
            shifts.setdefault(name, []).append(math.log(factor))
        for name, logs in shifts.items():
            coordinate, value = self._coordinates[name], self._bindings.values[name]
            u = coordinate.to_u(value) + statistics.fmean(logs)
            self._bindings.move({name: coordinate.to_value(u)})
        self.path.append(self._stand(steps))

    def _unstable_betas(self, before: Mapping[Key, float]) -> set[str]:
        """Names whose move took Adam's β2 under β1², or further under it.

        There the step |m| / sqrt(v) has no bound (it is a geometric series in β1² / β2), and the
        greedy gradient, which favours forgetting the past, leads there.
        """
        after, names = self.bases(), set()
        for i, entry in after:
            if entry not in ("beta1", "beta2"):
                continue
            was, now = (_beta_margin(self._optimizer, b, i) for b in (before, after))
            if now < min(was, 0.0):
                names |= set(self._bindings.entries[i, entry].slopes) & set(self._coordinates)
        return names


def check_expressions(bindings: Bindings, names: Collection[str]) -> None:
    """Whether all that is bound to ``names`` can follow them.

    Raises:
        ValueError: If one of them is bound through a tensor, which cannot be evaluated again.
    """
    if stuck := bindings.fixed_expressions(names):
        raise ValueError(
            f"bind({stuck[0]}=...): expected a function in a trial that tunes it, got a "
            f"tensor. Write bind({stuck[0]}=lambda: ...), so that it can be evaluated again."
        )


def _beta_margin(optimizer: torch.optim.Optimizer, bases: Mapping[Key, float], i: int) -> float:
    """β2 - β1² of one group, moved or not; positive where the step is bounded."""
    if (i, "beta1") not in bases or (i, "beta2") not in bases:
        held = group_entries(optimizer.param_groups[i])
        bases = {(i, name): held.get(name, 1.0) for name in ("beta1", "beta2")} | dict(bases)
    return bases[i, "beta2"] - bases[i, "beta1"] ** 2
