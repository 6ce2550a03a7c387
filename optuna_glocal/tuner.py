"""Moves hyperparameters during one trial (Hataya & Kawahara, arXiv 2402.02741, Algorithm 1).

Every k steps the greedy hypergradient (:mod:`optuna_glocal.greedy`) of the step just taken goes
through a meta-optimizer into coordinates u(λ) (:mod:`optuna_glocal.coordinates`). LR schedulers
compose: they own the factor, we the base. The path is a :class:`~optuna_glocal.schedule.Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from optuna_glocal.averaging import Average
from optuna_glocal.binding import Bindings
from optuna_glocal.coordinates import Coordinate
from optuna_glocal.entries import EntryWriter, Key
from optuna_glocal.greedy import Greedy
from optuna_glocal.guard import Guard
from optuna_glocal.meta import Meta
from optuna_glocal.updates import group_entries
from optuna_glocal.validation import Validation
from optuna_glocal.windowed import Windowed

# Size of one move in u, per step of training between moves: large enough to cross the box twice in
# the horizon (30 e-folds at k = 1), within what was measured as equally good (reference/
# self_tuning.md, section 6).
_REACH, _LEAST, _MOST = 30.0, 0.05, 0.1
# Whatever k: a move is at most a factor of 1.8, what was measured for windows of 20 steps.
_LARGEST = 0.6
# The training losses are looked at when λ moves, and at least so often: looking waits for a GPU.
_LOOK_EVERY = 5


class Tuner:
    """Greedy in-trial tuning of the bindings' hyperparameters.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        coordinates: Box and scale of each hyperparameter to move.
        every: k, steps between moves.
        horizon: T.
        method: ``adam``, ``sign`` or ``sgd``.
        step: Size of one move in u; default by k and T.
        note: Told every validation loss that is seen on the way: (steps done, loss).
        windowed: Where given, h comes from its windows instead of the last step.
        average: Where given, the validation gradient is taken at these weights (``at="average"``).
        turns: In every ``turns``-th gradient, that is; in the others at the raw ones.

    Raises:
        ValueError: If the optimizer has no closed-form rule, or a hyperparameter is bound through
            a tensor, which cannot be re-evaluated.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        validation: Validation,
        coordinates: Mapping[str, Coordinate],
        *,
        every: int,
        horizon: int,
        method: str = "adam",
        step: float | None = None,
        average: Average | None = None,
        turns: int = 1,
        note: Callable[[int, float], None] = lambda step, loss: None,
        windowed: Windowed | None = None,
    ) -> None:
        self._optimizer, self._bindings, self._validation = optimizer, bindings, validation
        self._coordinates, self._every, self._average = dict(coordinates), every, average
        self._turns, self._looks = turns, 0
        if stuck := bindings.fixed_expressions(coordinates):
            raise ValueError(
                f"bind({stuck[0]}=...): expected a function in a trial that tunes it, got a "
                f"tensor. Write bind({stuck[0]}=lambda: ...), so that it can be evaluated again."
            )
        self._moved_entries = [
            key for key, b in bindings.entries.items() if set(b.slopes) & set(coordinates)
        ]
        validation.lighten()
        self._greedy, self._windowed = Greedy(optimizer, bindings), windowed
        self._greedy.coupled = self._coupled_groups()
        self._guard = Guard(optimizer, self._greedy.params, self._tuned())
        size = min(every * min(max(_REACH / horizon, _LEAST), _MOST), _LARGEST)
        self._meta = Meta(method, size if step is None else step)
        self._in_loss = set(coordinates) - bindings.bound
        self._writer = EntryWriter(optimizer, self.bases())
        self._v: Sequence[Tensor | None] | None = None
        self._grads: Sequence[Tensor | None] | None = None
        self._h: dict[str, float] = {}
        self._steps, self._requested = 0, False
        self._note = note
        #: Whether λ stands still for good.
        self.is_stopped = False
        #: (steps done, λ, entries' bases) wherever λ changed, the start included.
        self.path: list[tuple[int, dict[str, float], dict[Key, float]]] = []
        self._remember()

    def _tuned(self) -> dict[str, float]:
        values = self._bindings.values
        return {name: values[name] for name in self._coordinates}

    def bases(self) -> dict[Key, float]:
        """What the moved hyperparameters make of the entries bound to them."""
        return {key: self._bindings.entries[key].value for key in self._moved_entries}

    def _coupled_groups(self) -> dict[int, str]:
        """Groups of undampened SGD, and the name of their learning rate.

        There momentum lengthens the step to lr / (1 - momentum). Moved one by one, the two chase
        each other over the edge; so momentum moves at fixed effective lr, and lr follows it.
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

    @property
    def names(self) -> list[str]:
        """Hyperparameters that move."""
        return list(self._coordinates)

    @property
    def params(self) -> list[Tensor]:
        """Trainable parameters."""
        return self._greedy.params

    @property
    def rollbacks(self) -> int:
        """Times that the guard took the trial back."""
        return self._guard.rollbacks

    # -- the loop --------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, with the graph of the gradients where that is needed.

        Raises:
            TangentError: If the graph cannot be had; the gradients are in place all the same.
        """
        if self.is_stopped:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        grads: Sequence[Tensor | None] | None = None
        if self._windowed is not None:
            self._windowed.backward(loss)
        elif self.wants_graph():
            grads = self._greedy.backward(loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        self._guard.see(loss)
        self._grads = grads

    @property
    def never_differs(self) -> bool:
        """Whether every backward of this trial is torch's own and no more."""
        return self._windowed is None and not self._in_loss

    @property
    def is_plain(self) -> bool:
        """Whether the next backward is torch's own and no more."""
        return self.is_stopped or (self._windowed is None and not self.wants_graph())

    def wants_graph(self) -> bool:
        """Whether this backward's gradients are needed with their graph."""
        return self._v is not None and bool(self._in_loss)

    @property
    def is_resting(self) -> bool:
        """Whether there is nothing to do before the next step."""
        return (
            self._v is None
            and self._windowed is None
            and (self.is_stopped or not self._is_due(self._steps + 1))
            and self._writer.holds(self.path[-1][2])
        )

    def before_step(self) -> None:
        """Writes λ into the param groups; finishes or begins a move."""
        if not self.is_stopped:
            self._finish_move()
        self._writer.write(self.path[-1][2])
        if self.is_stopped:
            return
        if self._windowed is not None:
            self._windowed.before_step()
        elif self._is_due(self._steps + 1):
            self._greedy.hold()

    def _finish_move(self) -> None:
        """With the hypergradients of the loss, if they had to wait for this backward."""
        v, grads = self._v, self._grads
        self._v = self._grads = None
        if v is not None:
            if grads is not None:
                self._h.update(self._greedy.by_loss(v, grads))
            self._move()

    def after_step(self) -> None:
        """Takes the validation gradient where a move is due, and watches the loss."""
        self._steps += 1
        self._writer.unwrite()
        if self.is_stopped:
            return
        is_due = self._windowed is not None or self._is_due(self._steps)
        if not is_due and self._steps % _LOOK_EVERY:
            return
        restored = self._guard.check(self._tuned)
        if restored is not None:
            self._return_to(restored)
        elif self._windowed is not None:
            self._end_window(self._windowed)
        elif is_due:
            self._begin_move()

    def _begin_move(self) -> None:
        v = self._validation_gradient()
        if v is not None:
            self._requested = False
            self._h = self._greedy.by_entries(v)
            if self._in_loss:
                self._v = v
            else:
                self._move()

    def stop(self) -> None:
        """No more moves: λ stays where it stands, beside whatever scheduler is there."""
        self.is_stopped, self._v, self._grads = True, None, None

    def _end_window(self, windowed: Windowed) -> None:
        found = windowed.after_step()
        if found is not None:
            loss, self._h = found
            self._note(self._steps, loss)
            for i, lr in self._greedy.coupled.items():
                self._couple(i, lr)
            self._move()

    def _couple(self, i: int, lr: str) -> None:
        """dL/dm at fixed effective lr = lr / (1 - m): dL/dm - dL/dlr lr / (1 - m)."""
        bases = self.bases()
        by_lr = self._h.get(lr, 0.0) * bases[i, "lr"] / (1 - bases[i, "momentum"])
        for name, slope in self._bindings.entries[i, "momentum"].slopes.items():
            if name in self._h:
                self._h[name] -= by_lr * slope

    def request(self) -> None:
        """Makes the next step one after which the hyperparameters move."""
        self._requested = True

    def _is_due(self, step: int) -> bool:
        return self._requested or step % self._every == 0

    def _validation_gradient(self) -> Sequence[Tensor | None] | None:
        self._looks += 1
        if self._average is not None and self._looks % self._turns == 0:
            with self._average.swapped():
                return self._validation.gradient(self.params)[1]
        loss, v = self._validation.gradient(self.params)
        self._note(self._steps, loss)
        return v

    # -- moves -----------------------------------------------------------------------------------

    def _move(self) -> None:
        values = self._tuned()
        gradients = {
            name: self._h[name] * self._coordinates[name].slope(values[name])
            for name in values
            if name in self._h
        }
        moved = {}
        for name, move in self._meta.moves(gradients).items():
            coordinate = self._coordinates[name]
            moved[name] = coordinate.to_value(coordinate.to_u(values[name]) + move)
        self._h = {}
        self._set(moved)

    def _return_to(self, restored: Mapping[str, float]) -> None:
        """Back to the snapshot, with a third of the learning rate that led away from it."""
        values = dict(restored)
        for (_, entry), binding in self._bindings.entries.items():
            for name in binding.slopes:
                if entry == "lr" and name in values:
                    u = self._coordinates[name].to_u(restored[name]) - math.log(3)
                    values[name] = self._coordinates[name].to_value(u)
        self._v, self._h = None, {}
        if self._windowed is not None:
            self._windowed.abandon()
        self._meta.forget()
        self._guard.returned_with(values)
        self._set(values)

    def _set(self, values: Mapping[str, float]) -> None:
        before, held = self.bases(), self._tuned()
        self._bindings.move(values)
        if unstable := self._unstable_betas(before):
            self._bindings.move({name: held[name] for name in unstable})
        after = self.bases()
        for i, name in self._greedy.coupled.items():
            factor = (1 - after[i, "momentum"]) / (1 - before[i, "momentum"])
            coordinate, value = self._coordinates[name], self._bindings.values[name]
            u = coordinate.to_u(value) + math.log(factor)
            self._bindings.move({name: coordinate.to_value(u)})
        self._remember()

    def _unstable_betas(self, before: Mapping[Key, float]) -> set[str]:
        """Names whose move took Adam's β2 under β1², or further under it.

        There the step |m| / sqrt(v) has no bound (it is a geometric series in β1² / β2), and the
        greedy gradient, which would like to forget the past, walks straight into it.
        """
        after, names = self.bases(), set()
        for i, entry in after:
            if entry not in ("beta1", "beta2"):
                continue
            was, now = (_beta_margin(self._optimizer, b, i) for b in (before, after))
            if now < min(was, 0.0):
                names |= set(self._bindings.entries[i, entry].slopes) & set(self._coordinates)
        return names

    def _remember(self) -> None:
        self.path.append((self._steps, self._tuned(), self.bases()))


def _beta_margin(optimizer: torch.optim.Optimizer, bases: Mapping[Key, float], i: int) -> float:
    """β2 - β1² of one group, moved or not; positive where the step is bounded."""
    if (i, "beta1") not in bases or (i, "beta2") not in bases:
        held = group_entries(optimizer.param_groups[i])
        bases = {(i, name): held.get(name, 1.0) for name in ("beta1", "beta2")} | dict(bases)
    return bases[i, "beta2"] - bases[i, "beta1"] ** 2
