"""Measures the newest point again where the loop writes weights after a step.

A loop may clamp, project or average its weights after each step. A point that was measured at the
end of the step is then not where the loop leaves them. It is measured again after the next
backward, when the graph of that is gone, or where the run ends. Weights that are moved for a
backward only, and put back before the step, are left where the step has left them.

A point may also be taken while it is in doubt whether the gradients were those of the loss. The
next backward tells. Where the tangents end before it, such points are taken back.
"""

from __future__ import annotations

from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training.measurements import Measurements
from optuna_glocal.training.shield import Shield


class Revision:
    """Looks at each step whether the newest point is where the loop leaves its weights.

    Args:
        measurements: The points.
    """

    def __init__(self, measurements: Measurements) -> None:
        self._measurements = measurements
        # Whether no backward has followed the last step, and whether one has found weights moved.
        self._is_first, self._has_moved = False, False
        # Whether the newest point was measured again since that step.
        self._is_revised = False
        # The first step at which the tangents may be wrong; None where nothing is in doubt.
        self._doubted: int | None = None
        #: Whether the loop has written weights after a step, and left them so.
        self.is_habit = False

    def after_step(self) -> None:
        """A step was made."""
        self._is_first, self._has_moved, self._is_revised = True, False, False

    def after_backward(self, steps: int, tangent: Tangent | None) -> None:
        """A backward was made.

        Args:
            steps: Steps made so far.
            tangent: Z; ``None`` where it is not carried.
        """
        if tangent is not None:
            self._note_doubt(steps, tangent)
        if self._is_first and tangent is not None and tangent.has_moved:
            self._has_moved, self._is_revised = True, steps == self._measurements.last
            self._measurements.measure_again(steps, tangent)
        self._is_first = False

    def _note_doubt(self, steps: int, tangent: Tangent) -> None:
        if not tangent.is_in_doubt:
            self._doubted = None
        elif self._doubted is None:
            # One hyperparameter is compared in each step, so others may have been wrong before.
            self._doubted = max(1, steps + 2 - len(tangent.names))

    def before_step(self, tangent: Tangent) -> None:
        """The next step is about to be made."""
        if not self._has_moved or tangent.own is None:
            return
        if not tangent.own.are_put_back():
            self.is_habit = True
        elif self._is_revised:
            self._measurements.put_back()

    def at_last(self, steps: int, tangent: Tangent, *, is_early: bool) -> None:
        """The tangents end, and no backward will tell any more what is not known yet.

        What is in doubt is taken back, and so is, where they end early, the hypergradient of
        weights that the loop did not leave as they were.

        Args:
            steps: Steps made so far.
            tangent: Z.
            is_early: Whether they end before the window does.
        """
        own = tangent.own
        if is_early and self._is_first and own is not None and not own.are_put_back():
            self._measurements.take_back(max(1, steps))
        if self._doubted is None:  # before the newest step, after its backward
            self._note_doubt(steps - 1, tangent)
        if self._doubted is not None:
            self._measurements.take_back(self._doubted)

    def at_end(self, steps: int, tangent: Tangent | None, shield: Shield) -> Tangent | None:
        """No step follows: what the loop has done since the last one is the last it does.

        Args:
            steps: Steps made.
            tangent: Z; ``None`` where it is not carried.
            shield: Halted where Z cannot be taken through that.

        Returns:
            Z; ``None`` if there is none any more.
        """
        if tangent is None or steps == 0:
            return tangent
        if not shield.run(tangent.catch_up):
            self._measurements.measure_again(steps, None)
            return None
        if tangent.has_moved:
            self._measurements.measure_again(steps, tangent)
        return tangent
