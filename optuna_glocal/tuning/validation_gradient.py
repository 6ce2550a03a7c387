"""v = ∇L_val, what one-step hypergradients are taken from, and at which weights.

At the raw weights, or at the raw and at the averaged ones in turn: the average does not see the
noise of minibatches but reacts late (:mod:`optuna_glocal.tuning.weight_averaging`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.tuning.average import Average
from optuna_glocal.tuning.mixture import Place


class ValidationGradient(Stateful):
    """Takes v when it is asked to.

    Args:
        validation: The validation closure.
        params: Differentiate with respect to these.
        average: Where given, every second gradient is taken at these weights.
        note: Told every loss at the raw weights that is seen on the way: (steps done, loss).
    """

    _state = ("_count", "place")

    def __init__(
        self,
        validation: Validation,
        params: Sequence[Tensor],
        average: Average | None,
        note: Callable[[int, float], None],
    ) -> None:
        self._validation, self._params = validation, params
        self._average, self._note = average, note
        self._count = 0
        #: Between the processes of the training.
        self.agreement = validation.agreement
        #: Which weights the newest v was taken at.
        self.place: Place = "raw"

    def take(self, steps: int) -> Sequence[Tensor | None] | None:
        """v after so many steps; ``None`` where the loss is not finite."""
        self._count += 1
        self.place = "raw"
        average = self._average
        if average is not None and not average.is_deferred and self._count % 2 == 0:
            self.place = "average"
            with average.swapped():
                return self._validation.gradient(self._params)[1]
        loss, v = self._validation.gradient(self._params)
        self._note(steps, loss)
        return v
