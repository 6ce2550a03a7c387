"""Moves hyperparameters during one run so that one run is enough: the default of self-tuning.

**The first quarter** (:mod:`~optuna_glocal.tuning.first_phase`) finds, from any start, a learning
rate that trains: first by the slopes of single steps, then by the distance from the first weights.
It costs no gradient. **Then** learning rates are held, and **at the end**
(:mod:`~optuna_glocal.tuning.annealing`) they decay to 0.

On the development tasks of ``examples/benchmarks/suite``, moving them on by hypergradients at the
raw and at the averaged weights gained nothing after such a quarter, and cost a tenth more.

Hyperparameters of the loss, and named entries, move all along, by validation gradients at the raw
and at the averaged weights by turns (:class:`~optuna_glocal.tuning.mixture.Mixture`). Memory:
three copies of the parameters, in the first quarter those at first, before the last step, and the
average of the whole run (that of the newest steps too where these hyperparameters move), then the
three averages (:mod:`~optuna_glocal.tuning.weight_averaging`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.hvp.products import RunBackward
from optuna_glocal.tuning.annealing import Annealing
from optuna_glocal.tuning.distance import Distance
from optuna_glocal.tuning.first_phase import FirstPhase
from optuna_glocal.tuning.loss_scale import LossScale
from optuna_glocal.tuning.mixture import Mixture, Place
from optuna_glocal.tuning.moving import Moving
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.snapshot import Snapshot
from optuna_glocal.tuning.step_change import StepChange
from optuna_glocal.tuning.transforms import Coordinate
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.weight_averaging import Averages

# Steps between two looks at the training loss where nothing moves.
_LOOK_EVERY = 5
# What a learning rate is divided by where a loss is no longer finite late in a run.
_CUT = 3.0


class Blend(Moving):
    """Moves the hyperparameters of one run.

    Args:
        optimizer: The user's optimizer.
        position: Where λ stands; moved.
        greedy: The one-step hypergradient, for all but learning rates.
        validation_gradient: What hypergradients are taken from: at the raw and at the averaged
            weights by turns, or, without averages, at the raw ones, where it counts half.
        averages: Averages of the weights, if they are kept.
        start: The run as it is now; ``None`` where no learning rate moves.
        every: Steps between two moves of all but learning rates.
        step: Size of one of these moves.
        annealing: The decay of the learning rates.
    """

    is_idle = False
    _state = (
        "_position", "_validation", "_writer", "_phase", "_distance", "_mixture", "_slopes",
        "_squares", "_losses", "_loss", "_v", "_pending", "_verdict", "_steps", "_rescues",
        "_requested", "_expects_h", "_expects_slopes", "_is_halted", "_start", "_change",
    )  # fmt: skip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        position: Position,
        greedy: Greedy,
        validation_gradient: ValidationGradient,
        averages: Averages | None,
        *,
        start: Snapshot | None,
        every: int,
        step: float,
        annealing: Annealing,
    ) -> None:
        self._optimizer, self._position, self._greedy = optimizer, position, greedy
        self._averages, self._every, self._annealing = averages, every, annealing
        self._validation, self._agreement = validation_gradient, validation_gradient.agreement
        #: Factor of a GradScaler in the losses.
        self.scale = LossScale()
        greedy.coupled = position.coupled
        self._in_loss = position.unbound
        self._others = set(position.values()) - set(position.rates)
        self._writer = EntryWriter(optimizer, position.bases())
        self._phase = FirstPhase(position.rates, annealing.horizon, trusts=annealing.is_scheduled)
        self._start = start
        if averages is not None:
            averages.wait(has_phase=bool(position.rates), defers=not self._others)
        if position.rates:
            position.shift(self._phase.beginning(), 0)
            position.begin_again()
        self._distance = Distance(optimizer, position.by_group())
        self._mixture = Mixture(step)
        self._change: StepChange | None = None
        self._slopes: list[Tensor] | None = None
        self._squares, self._losses = list[Tensor](), list[Tensor]()
        self._loss: Tensor | None = None
        self._grads: Sequence[Tensor | None] | None = None
        self._v: tuple[Place, Sequence[Tensor | None]] | None = None
        self._pending: tuple[dict[str, float], Place] | None = None
        self._verdict: Literal["", "broken", "lost"] = ""
        self._steps = self._rescues = 0
        self._requested = self._is_halted = False
        # Whether hypergradients of the last step, and slopes along it, are due in the next one.
        self._expects_h = self._expects_slopes = False

    @property
    def rollbacks(self) -> int:
        """Times that the run began again, or went back to its averaged weights."""
        return self._phase.returns + self._rescues

    @property
    def is_always_plain(self) -> bool:
        """Whether every backward of this run is torch's own and no more."""
        return not self._in_loss

    @property
    def is_plain(self) -> bool:
        """Whether the next backward is torch's own and no more."""
        return self._is_halted or self._v is None

    def backward(self, loss: Tensor, run: RunBackward) -> None:
        """As :meth:`~optuna_glocal.tuning.tuner.Tuner.backward`."""
        grads = self._greedy.backward(loss, run)
        self.see(loss)
        self._grads = grads

    def see(self, loss: Tensor) -> None:
        """A backward was made: one of several where gradients accumulate."""
        if self._is_halted:
            return
        seen, self._grads = self.scale.unscaled(loss.detach()), None
        self._loss = seen if self._loss is None or self.scale.is_renewed else self._loss + seen
        if self._change is not None:
            products = self._change.products([p.grad for p in self._greedy.params])
            self._slopes = [self.scale.unscaled(product) for product in products]

    def before_step(self) -> None:
        """Moves λ by what the last step did, and writes it into the param groups."""
        try:
            if not self._is_halted:
                self._decide()
            elif self._expects_h or self._is_look_due():
                self._agreement.part()
        finally:
            self._position.anneal(self._annealing.factor(self._steps, self._writer), self._steps)
            self._writer.write(self._position.path[-1][2])
        if self._is_halted:
            return
        self._expects_slopes = self._phase.is_due(self._steps) and not self._verdict
        if self._expects_slopes:
            self._change = self._new_change()
        if self._others - self._in_loss and self._is_other_due(self._steps):
            self._greedy.hold()

    def _new_change(self) -> StepChange:
        args = self._optimizer, self._position, self._agreement
        return StepChange(self._greedy.params, *args)

    def _is_other_due(self, step: int) -> bool:
        return bool(self._others) and (self._requested or (step + 1) % self._every == 0)

    def _decide(self) -> None:
        if self._loss is not None:
            self._losses.append(self._loss)
            self._loss = None
        self._take_loss_gradient()
        if self._start is not None and not self._phase.is_watching(self._steps):
            self._start = None
            if self._averages is not None:
                self._averages.begin()
        self._slopes = self.scale.of_made_step(self._optimizer, self._slopes)
        if self._is_look_due():
            self._look()

    def _take_loss_gradient(self) -> None:
        """h of the hyperparameters of the loss, from the gradients of the coming step."""
        if self._v is None or self._grads is None:
            return
        (place, v), grads = self._v, self._grads
        unscaled, by_loss = self.scale.all_unscaled, self._greedy.by_loss
        h = self._agreement.by_name(lambda: unscaled(by_loss(v, grads)), self._others)
        # In force from the next step on: this one's loss has been computed.
        self._pending = h, place
        self._v = self._grads = None
        self._expects_h = False

    def _is_look_due(self) -> bool:
        """Of several processes the same on all: it depends on the count of steps and on λ."""
        is_alone = self._agreement.is_alone
        is_seen = self._slopes is not None if is_alone else self._expects_slopes
        return is_seen or self._steps % _LOOK_EVERY == 0

    def _look(self) -> None:
        """At the losses since the last look, and what the last step did to the newest."""
        change, slopes = self._change, self._slopes or []
        found = self._agreement.numbers(lambda: self._losses, lambda: [*slopes, *self._squares])
        n = len(self._losses)
        losses, products = found[:n], found[n : n + len(slopes)]
        squares = found[n + len(slopes) :]
        h = change.by_name(products) if change is not None and slopes else None
        self._losses, self._slopes, self._squares = [], None, []
        self._expects_slopes = False
        if self._averages and all(map(math.isfinite, losses)):
            self._averages.confirm(losses)
        if self._is_broken(losses, h):
            self._change = None
        elif change is not None and h is not None:
            self._change = None
            self._move_rates(change, products, squares)

    def _move_rates(
        self, change: StepChange, products: Sequence[float], squares: Sequence[float]
    ) -> None:
        if squares:
            steps = self._phase.steps_between(self._steps - 1)
            for i, (moved, distance) in change.distances(squares).items():
                self._distance.take(i, moved, distance, change.rates[i], steps)
        moves = self._phase.moves(
            self._steps,
            change.by_name(products, at_full_rate=True),
            self._position.log_rates(),
            self._distance.ratios(self._position.bases()),
        )
        self._position.shift(moves, self._steps)

    def _is_broken(self, losses: Sequence[float], h: Mapping[str, float] | None) -> bool:
        if self._start is None:
            if not all(map(math.isfinite, losses)):
                self._verdict = "lost"
        else:
            for j, loss in enumerate(losses):
                newest = h if j == len(losses) - 1 else None
                if self._phase.is_broken(loss, newest):
                    self._verdict = "broken"
        return bool(self._verdict)

    def after_step(self) -> None:
        """Takes the validation gradients that are due; goes back where the run is broken."""
        step, self._steps = self._steps, self._steps + 1
        self._writer.unwrite()
        if self._is_halted:
            if self._is_other_due(step) and not self._verdict:
                self._agreement.part()
            return
        if self._verdict:
            return self._go_back()
        if self._pending is not None:
            self._move_others(*self._pending)
            self._pending = None
        if self._change is not None and self._phase.is_due(step):
            self._change.end()
            if self._start is not None:
                self._squares = self._change.squares(self._start.params)
        is_due = self._is_other_due(step)
        self._requested = False
        if is_due:
            self._take_gradient()

    def _take_gradient(self) -> None:
        """A validation gradient, at the raw and at the averaged weights by turns."""
        v = self._validation.take(self._steps)
        if v is None:
            return
        place, agreement = self._validation.place, self._agreement
        if self._others - self._in_loss:
            h = agreement.by_name(lambda: self._greedy.by_entries(v), self._others)
            self._move_others(h, place)
        if self._in_loss:
            self._v = place, agreement.averaged(v, self._greedy.params)
            self._expects_h = True

    def _move_others(self, h: Mapping[str, float], place: Place) -> None:
        slopes, names = self._position.slopes(), [name for name in h if name in self._others]
        for name in names:
            self._mixture.take(name, place, h[name] * slopes[name])
        self._position.shift(self._mixture.moves(names), self._steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._change = None if state["change"] is None else self._new_change()
        super().load_state_dict(state)

    def join(self, name: str, coordinate: Coordinate) -> None:
        """A hyperparameter that a loss has begun to use moves from here on."""
        super().join(name, coordinate)
        self._others = {*self._others, name}

    def halt(self) -> None:
        """No more moves: λ stays where it stands, but for the decay of the learning rates."""
        self._is_halted, self._start, self._change, self._v = True, None, None, None
        self._slopes = self._loss = self._grads = None
        self._losses, self._squares = [], []
        if self._averages is not None:
            self._averages.go_on()

    def _go_back(self) -> None:
        """Undoes what broke, this step included."""
        self._verdict, self._squares = "", []
        self._mixture.forget()
        self._distance.forget()
        self._change = self._v = self._slopes = self._pending = None
        self._expects_h = self._expects_slopes = False
        if self._start is None:
            self._rescue()
            return
        self._start.restore()
        if self._averages is not None:
            self._averages.restart()
        moves = self._phase.restart(self._steps, self._position.log_rates())
        self._position.shift(moves, self._steps)
        self._position.begin_again()

    def _rescue(self) -> None:
        """Late in a run only a slow average is left to go back to."""
        if self._averages is None or not self._averages.rescue():
            raise FloatingPointError("the training loss is no longer finite")
        self._rescues += 1
        for p in self._greedy.params:
            self._optimizer.state.pop(p, None)
        self._position.shift(dict.fromkeys(self._position.rates, -math.log(_CUT)), self._steps)
