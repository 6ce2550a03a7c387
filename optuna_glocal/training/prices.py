"""Whether tangents are worth what they cost, in plain trials, by counted arithmetic.

A step that carries tangents is counted once, after the first steps, which compute everything
twice. What it costs beyond the plain step consists of its Hessian products, which cheap tangents
compute in some steps only, and of taking the tangents through the optimizer, which every step
does.

Symbols: τ window, T horizon, q hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from optuna_glocal.hypergradient.product_spacing import Spacing
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training.cost import STEP_PER_BACKWARD, Counter, step_cost
from optuna_glocal.training.shield import Shield

# Cost of a whole trial, in plain trials, up to which a study with exact gradients was at least as
# good at equal compute: 2.2 for q = 3 and 4, 4.6 (uncertain) for q = 8 (reference/
# equal_compute.md, section 6).
_BREAK_EVEN, _BREAK_EVEN_PER_Q, _BREAK_EVEN_MOST = 2.2, 0.2, 3.0
# Steps between two Hessian products of cheap tangents, at most.
LONGEST_GAP = 16
# Steps after which cheap tangents are judged: by then the gaps have widened as far as they will.
_STEPS_OF_CHEAP = 32


class Prices:
    """Counts one backward of the user's and one step of ours, and decides by them.

    Args:
        window: τ, the steps in which tangents are carried.
        horizon: T, the steps of a whole trial.
        counts: Whether the user's first backward is to be counted.
    """

    def __init__(self, window: int, horizon: int, counts: bool) -> None:
        self._share = window / horizon
        #: Whether the user's first backward is still to be counted.
        self.wants_backward = counts
        # Cost of one backward of the user's; None until it is counted.
        self._backward: float | None = None
        # Costs of one step: products, and taking the tangents through the optimizer.
        self._products: float | None = None
        self._advance = self._plain = 0.0
        # While a step is counted: both, and its backwards.
        self._counters: tuple[Counter, Counter] | None = None
        self._backwards = 0
        # Steps until cheap tangents are judged; None while tangents are exact.
        self._trial: int | None = None
        self._is_decided = False

    def first_backward(self, run: Callable[[], None]) -> float:
        """Counts the user's own first backward.

        Args:
            run: His backward.

        Returns:
            Its cost.
        """
        self.wants_backward = False
        counter = Counter()
        with counter:
            run()
        self._backward = counter.cost
        return self._backward

    def next_backward(self, run: Callable[[], None]) -> None:
        """Runs any other backward of his, which is never counted among ours.

        Args:
            run: His backward.
        """
        if self._counters is None:
            run()
            return
        self._backwards += 1
        with self._counters[0].paused():
            run()

    def run_products(self, run: Callable[[], None]) -> None:
        """Runs our products, with the user's backward inside, and counts them where wanted.

        Args:
            run: Computes them.
        """
        self._run(run, 0)

    def run_advance(self, run: Callable[[], None]) -> None:
        """Takes the tangents through a step, and counts that where wanted.

        Args:
            run: Does it.
        """
        self._run(run, 1)

    def _run(self, run: Callable[[], None], which: int) -> None:
        if self._counters is None:
            run()
            return
        with self._counters[which]:
            run()

    def end_step(self, is_settled: bool, optimizer: torch.optim.Optimizer) -> None:
        """A step is over: the next one is counted, or this one was.

        Args:
            is_settled: Whether no step computes everything twice any more.
            optimizer: The user's, whose own step is estimated.
        """
        if self._products is not None or self._backward is None:
            return
        counters, self._counters = self._counters, None
        if not is_settled:
            return
        if counters is None or not self._backwards:
            self._counters, self._backwards = (Counter(), Counter()), 0
            return
        self._products, self._advance = counters[0].cost, counters[1].cost
        plain = self._backwards * STEP_PER_BACKWARD * self._backward
        self._plain = plain + step_cost(optimizer)

    def watch(
        self,
        tangent: Tangent,
        spacing: Spacing,
        optimizer: torch.optim.Optimizer,
        shield: Shield,
    ) -> None:
        """After each step: counts it, and says or ends what :meth:`judge` finds."""
        self.end_step(tangent.is_settled, optimizer)
        said = self.judge(spacing, len(tangent.names))
        if said is not None and said[1]:
            shield.halt(said[0], warn=False)
        elif said is not None:
            shield.say(*said)

    def judge(self, spacing: Spacing, q: int) -> tuple[str, bool] | None:
        """After each step: exact where that is worth its price, else cheap, else none.

        Args:
            spacing: Of the products; made cheap where exact ones are too expensive.
            q: Number of hyperparameters.

        Returns:
            What to say, once it is decided otherwise than before, and whether tangents end.
        """
        if self._products is None or self._is_decided:
            return None
        if self._trial is None:
            exact = self._of_trial(1.0)
            self._is_decided = exact <= break_even(q)
            if self._is_decided:
                return None
            if self._of_trial(1 / LONGEST_GAP) > break_even(q):
                return self._too_expensive(1 / LONGEST_GAP, q), True
            spacing.allow(LONGEST_GAP)
            self._trial = _STEPS_OF_CHEAP
            sentence = f"Exact tangents would cost {exact:.1f} trials; cheap ones are carried on."
            return sentence, False
        self._trial -= 1
        if self._trial > 0:
            return None
        self._is_decided = True
        share = 1 / spacing.gap
        if self._of_trial(share) <= break_even(q):
            return None
        return self._too_expensive(share, q), True

    def _of_trial(self, share: float) -> float:
        """Cost of the whole trial in plain trials, if a ``share`` of the steps has products."""
        ours = share * (self._products or 0.0) + self._advance
        return 1 + ours / max(self._plain, 1e-12) * self._share

    def _too_expensive(self, share: float, q: int) -> str:
        self._is_decided = True
        return (
            f"Even cheap tangents of {q} hyperparameters would make the trial "
            f"{self._of_trial(share):.1f} times as expensive, over the break-even of "
            f"{break_even(q):.1f}; pass Observe(tangents='cheap') to carry them all the same."
        )


def break_even(q: int) -> float:
    """Cost of a trial, in plain trials, above which its gradient is not worth carrying."""
    return min(_BREAK_EVEN + _BREAK_EVEN_PER_Q * max(0, q - 4), _BREAK_EVEN_MOST)
