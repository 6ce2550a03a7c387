"""Watches one training run: tangents over the window, what they cost, and where they end.

Nothing here knows Optuna. The user's gradients come first; then, whatever happens, only ours can
be lost: a failure halts the tangents with a sentence, and training goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.distributed import NOT_SHARED, Ranks, ranks_of
from optuna_glocal.hypergradient.errors import TangentError, words
from optuna_glocal.hypergradient.hvp.fused_kernels import Installed
from optuna_glocal.hypergradient.optimizers import refusal
from optuna_glocal.hypergradient.product_spacing import Spacing
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Flops, Meter, break_even
from optuna_glocal.training.frameworks import _is_skipped
from optuna_glocal.training.measurements import Points

# Steps between two Hessian products of cheap tangents, at most.
_LONGEST_GAP = 16


class Observer:
    """Collects (t, L_t, h_t) without changing the run.

    Args:
        optimizer: The user's optimizer.
        bindings: What λ is bound to.
        validation: The validation closure.
        meter: Where time is booked.
        window: τ, steps in which tangents are carried.
        horizon: T.
        every: Steps between points; ``None``: 40 per window, fewer where validation is dear.
        tangents: ``True``, ``"cheap"``, ``False`` or ``"auto"``.
        scales: dλ/du by hyperparameter.
        say: Called with a sentence, and whether it is worth a warning, when tangents halt.
        is_shared: Whether every process of a distributed training has an observer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        bindings: Bindings,
        validation: Validation,
        meter: Meter,
        *,
        window: int,
        horizon: int,
        every: int | None,
        tangents: bool | str,
        scales: dict[str, float],
        say: Callable[[str, bool], None],
        is_shared: bool = False,
    ) -> None:
        self._optimizer, self._bindings = optimizer, bindings
        self._meter, self._window, self._horizon = meter, window, horizon
        self._tangents, self._say = tangents, say
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._is_shared, self._ranks = is_shared, ranks_of(params)
        self._twice: Installed | None = None
        self._tangent: Tangent | None = None
        self._spacing = Spacing(1)
        self._reached: set[str] = set()
        self._steps = 0
        #: Whether tangents are, or could still be, carried.
        self.is_open = True
        #: Whether torch's own backward of the user's loss is running, or has failed.
        self.is_users_turn = False
        #: Why the tangents ended before the window did.
        self.halted: str | None = None
        self._points = Points(
            params,
            validation,
            meter,
            window=window,
            every=every,
            scales=scales,
            halt=self.halt,
        )
        if tangents is False:
            self.halt("Tangents were switched off.", warn=False)
        elif (sentence := refusal(optimizer)) is not None:
            self.halt(sentence)
        elif self._ranks is not None and not is_shared:
            self.halt(NOT_SHARED)
        if self.halted is None:
            self._twice = Installed()

    # -- backward ---------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, bit for bit, and the tangents' share of it."""
        is_carrying = self.is_open and self.halted is None and self._started()
        if is_carrying and not self._spacing.skips:
            with self._meter.in_place_of_backward():
                self._backward(loss)
        else:
            self._users_backward(loss)
        if self.is_open and self._ranks is not None and self._is_shared:
            self._meet(self._ranks)

    def _users_backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """An error inside is the user's own."""
        self.is_users_turn = True
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        self.is_users_turn = False

    def _meet(self, ranks: Ranks) -> None:
        """Averages the tangents of the gradients over all processes, or all of them halt."""
        carries = self.halted is None and self._tangent is not None
        if ranks.all_agree(carries) and self._tangent is not None:
            if not self._spacing.skips:
                ranks.average(self._tangent.of_gradients)
            return
        self._ranks = None
        self.halt("Another process of this training has stopped carrying tangents.")

    def _started(self) -> bool:
        """At the first backward: fixes the hyperparameters and makes the tangents."""
        if self._tangent is not None:
            return True
        names = self._bindings.freeze()
        self._points.begin(names)
        if not names:
            why = ["No hyperparameter is bound to the optimizer or used in a loss."]
            self.halt(" ".join(why + self._bindings.unbound()))
            return False
        try:
            self._spacing = Spacing(_LONGEST_GAP if self._tangents == "cheap" else 1)
            self._tangent = Tangent(
                self._optimizer,
                self._bindings,
                self._spacing,
                is_shared=self._ranks is not None,
            )
        except TangentError as error:
            self.halt(str(error))
            return False
        return True

    def _backward(self, loss: Tensor) -> None:
        tangent = self._tangent
        if tangent is None:
            return
        try:
            tangent.backward(loss, self._run_backward)
        except TangentError as error:
            self.halt(words(error))

    def _run_backward(self, loss: Tensor, retain_graph: bool) -> None:
        """The user's own backward, timed; the first is counted as well."""
        if self._points.wants_flops:
            with Flops() as counter:
                self._users_backward(loss, retain_graph)
            self._points.space(counter.total)
            return
        with self._meter.plain_backward():
            self._users_backward(loss, retain_graph)

    # -- step -------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Called when the optimizer is about to step."""
        if not self.is_open or self.halted is not None:
            return
        with self._meter.our_time():
            if self._tangent is None:
                self.halt("optimizer.step came before glocal.backward in the window.")
            else:
                try:
                    if _is_skipped(self._optimizer):
                        return
                    self._bindings.follow_schedulers()
                    self._tangent.advance()
                except Exception as error:
                    self.halt(words(error))

    def passed(self, steps: int) -> None:
        """Another step, in which there is nothing to watch."""
        self._steps = steps

    def after_step(self, steps: int) -> None:
        """Called after the optimizer's step number ``steps``."""
        self._steps = steps
        if not self.is_open:
            return
        if self._points.are_due(steps):
            self.measure()
        if self._tangent is not None and self._tangent.is_settled:
            self._meter.mark_step()
            self._watch_costs()
        if steps >= self._window:
            self.close()

    def _watch_costs(self) -> None:
        """After the first steps: exact where that is worth its price, else cheap, else none."""
        if self._tangents != "auto" or self._tangent is None:
            return
        ratio = self._meter.trial_ratio(self._window, self._horizon)
        q = len(self._tangent.names)
        if ratio is None or ratio <= break_even(q):
            return
        if self._spacing.is_exact:
            self._spacing.allow(_LONGEST_GAP)
            self._meter.judge_again()
            self._say(f"Exact tangents would cost {ratio:.1f} trials; cheap ones go on.", False)
        else:
            self.halt(
                f"Even cheap tangents of {q} hyperparameters would make the trial {ratio:.1f} "
                f"times as expensive, over the break-even of {break_even(q):.1f}; pass "
                "tangents='cheap' to carry them all the same.",
                warn=False,
            )

    # -- points -----------------------------------------------------------------------------------

    def measure(self, place: contextlib.AbstractContextManager[Any] | None = None) -> None:
        """Another point of the trajectory, unless this step has one.

        Args:
            place: Entered around the evaluation (averaged weights).
        """
        tangent = None if self.halted is not None else self._tangent
        self._points.measure(self._steps, tangent, place)

    def note(self, steps: int, loss: float) -> None:
        """A validation loss that another part of us has seen anyway."""
        self._points.note(steps, loss)

    @property
    def products(self) -> float:
        """Hessian products per step in which tangents were carried: 1 is exact."""
        return self._spacing.share

    @property
    def trajectory(self) -> Trajectory:
        """What was seen; a name that nothing was seen to depend on has no column."""
        return self._points.trajectory(
            self._reached if self._tangent is None else self._tangent.reached
        )

    # -- ends -------------------------------------------------------------------------------------

    def close(self) -> None:
        """The window is over: frees graph and tangents."""
        self.is_open = False
        self.release()

    def halt(self, sentence: str, *, warn: bool = True) -> None:
        """Stops carrying tangents; what was collected stays, and training goes on."""
        if self.halted is None:
            self.halted = sentence
            self.release()
            self._say(sentence, warn)

    def release(self) -> None:
        """Frees graph and tangents, and gives torch its own functions back."""
        self._bindings.close()
        if self._twice is not None:
            self._twice.remove()
        if self._tangent is not None:
            self._reached = self._tangent.reached
            self._tangent = None
