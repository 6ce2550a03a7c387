"""Whether the losses of a run tell what its steps do: there is no noise between batches."""

from __future__ import annotations

from optuna_glocal.hypergradient.stateful import Stateful

# Steps that decide, how many of them have to agree, and how closely.
_STEPS, _AGREE, _CLOSE = 12, 9, 0.5


class SteadyDescent(Stateful):
    """Tells full-batch training from training on minibatches, and where its steps overshoot.

    With the slope r = ⟨∇L_{t+1}(θ_{t+1}), θ_{t+1} - θ_t⟩ of a step, the loss of which changed by
    L_{t+1}(θ_{t+1}) - L_t(θ_t): on the same rows the two agree to first order in the step, so
    closely in the first steps of a run, made at a rate that is far too low. On other rows, or
    under dropout, the change is the difference of two batches' losses, many times r. The run is
    noise-free where three quarters of its first twelve steps agree within r / 2.

    Without noise there is nothing that a smaller rate would average out, and the distance from the
    first weights says nothing about it. What bounds the rate is the curvature: gradient descent
    with momentum m is stable up to lr = 2 (1 + m) / λ, with λ the largest eigenvalue of the
    Hessian; beyond it steps overshoot, r > 0, and the loss rises. By how much it rises says how
    far beyond: Adam's runs gain from rates at which it does so mildly, of gradient descent one
    such rate would end the run within a few steps.
    """

    _state = ("_steps", "_agreeing")

    def __init__(self) -> None:
        self._steps = self._agreeing = 0

    def take(self, change: float, slope: float) -> None:
        """Takes in one step: the change of the loss, and r."""
        if self._steps < _STEPS:
            self._steps += 1
            self._agreeing += abs(change - slope) < _CLOSE * abs(slope)

    @property
    def is_noise_free(self) -> bool:
        """Whether the run has no noise; ``False`` until that is known."""
        return self._steps == _STEPS and self._agreeing >= _AGREE

    def overshoot(self, slope: float, before: float, after: float) -> float:
        """By what share the loss has risen where the newest steps went up; otherwise 0.

        Args:
            slope: Mean r of the newest steps.
            before: Mean of the newest losses before the last step.
            after: The same after it.
        """
        if not (self.is_noise_free and slope > 0 and after > before):
            return 0.0
        return (after - before) / max(abs(before), 1e-12)
