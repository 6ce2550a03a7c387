"""Moves vectors of hyperparameters of the training loss, beside whatever moves the others.

Every k steps a validation gradient is taken, and the next backward keeps its graph: one mixed
product (:mod:`~optuna_glocal.hypergradient.mixed_product`) gives the hypergradient of all entries
of all vectors, and each entry moves by its own gated mean
(:mod:`~optuna_glocal.tuning.gated_means`). The cost of a step hardly depends on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from optuna_glocal.hypergradient.hvp.products import RunBackward
from optuna_glocal.hypergradient.mixed_product import MixedProduct
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.loss_scale import LossScale
from optuna_glocal.tuning.moving_vector import MovingVector
from optuna_glocal.tuning.position import Stand
from optuna_glocal.tuning.transforms import Coordinate
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.validation_gradient import ValidationGradient
from optuna_glocal.tuning.vector_guard import VectorGuard

# The part of the run over whose end moves become smaller. Without it, ridge regression with 54
# strengths ended at 1.014 instead of 1.006 times the optimum's validation loss.
_DECAY = 0.5


class VectorTuner(Stateful):
    """Moves vectors, and lets another tuner move single hyperparameters.

    Args:
        inner: What moves single hyperparameters; ``None`` where none moves.
        vectors: What to move.
        product: Their hypergradients.
        validation_gradient: What these are taken from; it tells the guard its losses.
        guard: Takes the run back.
        every: k, optimizer steps between two moves.
        step: Size of one move in u, which decays linearly to 0 in the second half of the run.
        horizon: T, optimizer steps of the run.
        told: Told the study's parameters of the vectors after each move.
    """

    is_idle = False
    is_always_plain = False
    _state = (
        "inner", "_vectors", "_product", "_validation_gradient", "_guard", "_steps", "_v", "_h",
        "_returns", "_requested", "_is_halted", "_expects_h",
    )  # fmt: skip

    def __init__(
        self,
        inner: Tuner | Blend | None,
        vectors: Sequence[MovingVector],
        product: MixedProduct,
        validation_gradient: ValidationGradient,
        *,
        guard: VectorGuard,
        every: int,
        step: float,
        horizon: int,
        told: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.inner, self._vectors, self._product = inner, list(vectors), product
        self._validation_gradient, self._told = validation_gradient, told
        #: Factor of a GradScaler in the losses.
        self.scale = LossScale() if inner is None else inner.scale
        self._every, self._step, self._horizon = every, step, horizon
        self._steps = 0
        self._v: Sequence[Tensor | None] | None = None
        self._grads: Sequence[Tensor | None] | None = None
        self._h: dict[str, Tensor] = {}
        self._guard = guard
        self._returns = self.rollbacks
        self._agreement = validation_gradient.agreement
        # Whether hypergradients of the loss are due before the next step.
        self._requested = self._is_halted = self._expects_h = False

    @property
    def rollbacks(self) -> int:
        """Times that the run went back to earlier weights."""
        return self._guard.returns + (0 if self.inner is None else self.inner.rollbacks)

    def close(self) -> None:
        """The param groups hold the user's own values again."""
        if self.inner is not None:
            self.inner.close()

    # -- the loop ---------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether the next backward is torch's own and no more."""
        return self._v is None and (self.inner is None or self.inner.is_plain)

    def backward(self, loss: Tensor, run: RunBackward) -> None:
        """As :meth:`~optuna_glocal.tuning.tuner.Tuner.backward`."""
        inner = self.inner
        if self._v is None:
            if inner is not None:
                inner.backward(loss, run)
        elif inner is None or inner.is_plain:
            grads = self._product.backward(loss, run)
            if inner is not None:
                inner.see(loss)
            self._grads = grads
        else:
            self._grads = None

            def both(loss: Tensor, retain: bool) -> None:
                self._grads = self._product.backward(loss, lambda x, r: run(x, retain or r))

            inner.backward(loss, both)

    def see(self, loss: Tensor) -> None:
        """A backward was made: one of several where gradients accumulate."""
        self._grads = None
        if self.inner is not None:
            self.inner.see(loss)

    def before_step(self) -> None:
        """Takes the hypergradient of the vectors, while the weights are those of the loss."""
        if self.inner is not None and not self.inner.is_idle:
            self.inner.before_step()
        if self._is_halted:
            if self._expects_h:
                self._agreement.part()
        elif self._v is not None and self._grads is not None:
            self._h = self._product.take(self._v, self._grads)
            self._v, self._grads, self._expects_h = None, None, False

    def after_step(self) -> None:
        """Moves by it, and takes the next validation gradient where one is due."""
        if self.inner is not None:
            self.inner.after_step()
        self._steps += 1
        self._product.clear_grads()
        if self._is_halted:
            if self._is_look_due():
                self._agreement.part()
            return
        if self.rollbacks != self._returns:
            self._returns, self._v, self._h = self.rollbacks, None, {}
            self._expects_h = False
            self._product.forget()
            for vector in self._vectors:
                vector.forget()
        if self._h:
            self._move()
        if self._v is None and self._is_look_due():
            self._requested = False
            self._look()

    def _is_look_due(self) -> bool:
        return self._requested or self._steps % self._every == 0

    def _look(self) -> None:
        v = self._validation_gradient.take(self._steps)
        if v is not None:
            self._v = self._agreement.averaged(v, self._product.params)
            self._expects_h = True
        else:
            self._guard.go_back(self._steps)
            self._returns = self.rollbacks
            self._product.forget()

    def _move(self) -> None:
        left = 1 - self._steps / self._horizon
        step = self._step * min(1.0, max(0.0, left) / _DECAY)
        for vector in self._vectors:
            if vector.name in self._h:
                vector.move(self._h[vector.name], step, self._steps)
                self._told(vector.path[-1][1])
        self._h = {}

    def begin_at(self, steps: int) -> None:
        """So many optimizer steps were made before there was anything to move."""
        self._steps = steps
        if self.inner is not None:
            self.inner.begin_at(steps)

    def join(self, name: str, coordinate: Coordinate) -> None:
        """A hyperparameter that a loss has begun to use moves from here on."""
        if self.inner is not None:
            self.inner.join(name, coordinate)

    def request(self) -> None:
        """Makes the next step one after which the hyperparameters move."""
        self._requested = True
        if self.inner is not None:
            self.inner.request()

    def halt(self) -> None:
        """No more moves."""
        self._is_halted, self._v, self._grads, self._h = True, None, None, {}
        if self.inner is not None:
            self.inner.halt()

    # -- the path ---------------------------------------------------------------------------------

    @property
    def path(self) -> list[Stand]:
        """Where all hyperparameters have stood: of a large vector, its mean."""
        rows: list[Stand] = [(0, {}, {})] if self.inner is None else self.inner.path
        moves = sorted(
            (move for vector in self._vectors for move in vector.path[1:]), key=lambda row: row[0]
        )
        held = {n: x for vector in self._vectors for n, x in vector.path[0][1].items()}
        out: list[Stand] = []
        for i, (steps, values, bases) in enumerate(rows):
            out.append((steps, {**values, **held}, bases))
            end = rows[i + 1][0] if i + 1 < len(rows) else self._steps + 1
            while moves and moves[0][0] < max(end, 1):
                at, moved = moves.pop(0)
                held = {**held, **moved}
                out.append((max(at, steps), {**values, **held}, bases))
        return out
