"""A trial that is observed: tangents over the window, what they cost, and where they end.

Nothing here knows Optuna. The user's gradients come first; whatever fails afterwards halts the
tangents with a sentence, and training goes on (:mod:`~optuna_glocal.training.shield`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.distributed import Ranks, not_alone
from optuna_glocal.hypergradient.escapes import refuse_added, refuse_resumed
from optuna_glocal.hypergradient.invisible.torch_patches import TorchPatches
from optuna_glocal.hypergradient.loop_arithmetic.own_arithmetic import OwnArithmetic
from optuna_glocal.hypergradient.optimizers import refusal
from optuna_glocal.hypergradient.product_spacing import Spacing
from optuna_glocal.hypergradient.schedulers.learning_rates import Pace
from optuna_glocal.hypergradient.stateful import Stateful
from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.hypergradient.untraced.carried import Carried
from optuna_glocal.training.frameworks import is_skipped
from optuna_glocal.training.measurements import Cadence, Measurements
from optuna_glocal.training.options import Observe, window_steps
from optuna_glocal.training.prices import LONGEST_GAP, Prices
from optuna_glocal.training.revision import Revision
from optuna_glocal.training.run import Run
from optuna_glocal.training.shield import Shield
from optuna_glocal.training.step_hooks import WRITE_IT

Place = contextlib.AbstractContextManager[Any]
_RESUMED = (
    "The run was resumed at step {} of the window's {}, and tangents are not continued. Its "
    "hypergradients are those until then."
)


class Observing(Stateful):
    """The mode in which (t, L_t, h_t) are collected and nothing is changed.

    See :class:`~optuna_glocal.training.mode.Mode`.

    Args:
        run: The run to observe.
        options: How.
        refuse: Called at the first backward; halts a run whose weights are not new.

    Raises:
        TypeError, ValueError: If the validation closure does not return a differentiable scalar.
    """

    _state = ("_is_open", "_steps", "_reached", "_spacing", "pace", "_measurements")

    def __init__(self, run: Run, options: Observe, refuse: Callable[[Shield], None]) -> None:
        self._refuse = refuse
        self._run, self._shield, self._meter = run, run.shield, run.meter
        self._window = window_steps(options, run.horizon)
        is_global = options.estimator == "global"
        self._tangents = True if is_global and options.tangents == "auto" else options.tangents
        self._ranks: Ranks | None = run.ranks
        self._count_of_groups = len(run.optimizer.param_groups)
        self._patches = TorchPatches()
        self._tangent: Tangent | None = None
        self._spacing = Spacing(1)
        self._reached: set[str] = set()
        self._steps, self._is_open = 0, True
        #: Learning rates of the steps so far, and those to come.
        self.pace = Pace(run.optimizer)
        is_sparse = options.tangents == "cheap"
        self._carried = Carried(run.params, self._window, run.bindings, is_sparse=is_sparse)
        self._shield.on_halt = self._release
        try:
            self._measurements = Measurements(run)
        except BaseException:
            self._patches.remove()
            raise
        self._revision = Revision(self._measurements)
        self._cadence = Cadence(self._window, options.every, self._measurements.cost)
        wants = options.every is None or self._tangents == "auto"
        self._prices = Prices(self._window, run.horizon, wants)
        if options.tangents is False:
            self._shield.halt("Tangents were switched off.", warn=False)
        elif sentence := refusal(run.optimizer) or not_alone(run.ranks, run.is_shared):
            self._shield.halt(sentence)

    # -- backward ---------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, bit for bit, and in the window the tangents' share of it."""
        if not self._is_open:
            self._shield.users_backward(loss)
            return
        self._pause()
        try:
            self._shield.run(lambda: self._carried.look(loss))
            self._shield.backward(loss, self._carry)
            self._refuse_carried()
            if (ranks := self._ranks) is not None and self._run.is_shared:
                self._shield.run(lambda: self._meet(ranks))
            self._revision.after_backward(self._steps, self._tangent)
        finally:
            self._finish_if_over()
            self._resume()

    @property
    def _onlookers(self) -> list[Carried | OwnArithmetic]:
        """What looks at the user's calls of torch, and not at ours."""
        own = None if self._tangent is None else self._tangent.own
        return [self._carried] if own is None else [self._carried, own]

    def _pause(self) -> None:
        for onlooker in self._onlookers:
            onlooker.pause()

    def _resume(self) -> None:
        for onlooker in self._onlookers:
            onlooker.resume()

    def _refuse_carried(self) -> None:
        """Halts, and takes back what was said, if something escapes every graph."""
        if self._carried.sentence is not None:
            self._shield.halt(self._carried.sentence)
            self._reached = set()

    def _carry(self, loss: Tensor) -> None:
        tangent = self._tangent_if_carried()
        if tangent is None or self._spacing.skips or self._steps >= self._window:
            self._shield.users_backward(loss)
        else:
            with self._meter.in_place_of_backward():
                self._prices.run_products(lambda: tangent.backward(loss, self._users_backward))

    def _users_backward(self, loss: Tensor, retain_graph: bool) -> None:
        """The user's own backward, timed; the arithmetic of the first one is counted as well."""
        run = functools.partial(self._shield.users_backward, loss, retain_graph)
        if self._prices.wants_backward:
            self._cadence.settle(self._prices.first_backward(run))
            return
        with self._meter.plain_backward():
            self._prices.next_backward(run)

    def _meet(self, ranks: Ranks) -> None:
        """Averages the tangents of the gradients over all processes, or all of them halt."""
        carries = self._shield.halted is None and self._tangent is not None
        if ranks.all_agree(carries) and self._tangent is not None:
            if not self._spacing.skips:
                ranks.average(self._tangent.of_gradients)
            return
        self._ranks = None
        self._shield.halt("Another process of this training has stopped carrying tangents.")

    def _tangent_if_carried(self) -> Tangent | None:
        """Z; at the first backward the hyperparameters are fixed and it is made."""
        if self._shield.halted is None and self._tangent is None:
            self._refuse(self._shield)
            if self._shield.halted is None:
                self._start()
        elif self._tangent is not None and self._run.bindings.late:
            self._shield.run(self._join)
        return self._tangent

    def _join(self) -> None:
        """A loss has asked for another hyperparameter, which nothing has depended on until now."""
        before, self._run.bindings.late = self._tangent, []
        self._make_tangent()
        if before is not None and self._tangent is not None:
            self._tangent.continue_from(before)
            self._measurements.join(self._tangent.names)

    def _start(self) -> None:
        names = self._run.bindings.freeze(joins_late=True)
        self._measurements.begin(names)
        if not names:
            why = "No hyperparameter is bound to the optimizer or used in a loss."
            self._shield.halt(" ".join([why, *self._run.bindings.unbound()]))
            return
        self._spacing = Spacing(LONGEST_GAP if self._tangents == "cheap" else 1)
        self._shield.run(self._make_tangent)

    def _make_tangent(self) -> None:
        if self._tangent is None:
            refuse_resumed(self._run.optimizer)
        refuse_added(self._run.optimizer, self._count_of_groups)
        self._tangent = Tangent(
            self._run.optimizer,
            self._run.bindings,
            self._spacing,
            is_shared=self._ranks is not None,
            loop=self._carried.access,
        )

    # -- step -------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Notes the learning rate; in the window takes the tangents through the step."""
        self._pause()
        self.pace.mark()
        self._finish_if_over()
        if self._is_open and self._shield.halted is None:
            with self._meter.our_time():
                if self._tangent is None:
                    self._shield.halt(f"optimizer.step came before glocal.backward. {WRITE_IT}")
                elif not is_skipped(self._run.optimizer):
                    self._run.bindings.follow_schedulers()
                    self._prices.run_advance(self._tangent.advance)
                    self._revision.before_step(self._tangent)

    def after_step(self, steps: int) -> None:
        """Measures where a point is due, and closes at the end of the window."""
        self._steps = steps
        if not self._is_open:
            return
        self._revision.after_step()
        if self._tangent is not None:
            self._shield.run(self._tangent.after_step)
        self._carried.made_step(steps)
        if self._cadence.is_due(steps):
            self._measurements.measure(steps, self._tangent, None, self._carried)
            self._refuse_carried()
        if self._tangent is not None and self._tangents == "auto":
            self._prices.watch(self._tangent, self._spacing, self._run.optimizer, self._shield)
        # At the end of the run a loop may restore its best weights.
        is_open = self._window >= self._run.horizon or self._revision.is_habit
        if steps >= self._window and not (self._tangent and is_open):
            self.close()
        else:
            self._resume()

    def _finish_if_over(self) -> None:
        """Ends a window whose last step was made; what is written after it may have followed."""
        if self._is_open and self._steps >= self._window:
            if self._revision.is_habit:
                self._shield.run(lambda: self.measure(self._steps))
            self._shield.run(self.close)

    def request_move(self) -> None:
        """Raises ``ValueError``: nothing moves here."""
        raise ValueError(
            "update: expected a callback that tunes, got one that observes. Pass tune=True."
        )

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain numbers; the tangents themselves are not kept."""
        now = {"is_open": self._is_open and self._steps < self._window}
        return {**super().state_dict(), **now, "reached": sorted(self._reached_now)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned; within the window the tangents end.

        What a loop carries on outside of the weights (an averaged teacher, pseudo labels) is new
        tensors after loading, and could not be told from constants.
        """
        if not state["steps"]:
            return
        super().load_state_dict(state)
        self._release()
        if self._is_open:
            self._shield.halt(_RESUMED.format(self._steps, self._window))

    def measure(self, steps: int, place: Place | None = None) -> None:
        """One more point of the trajectory, unless this step has one."""
        self._pause()
        tangent = self._revision.at_end(steps, self._tangent, self._shield)
        self._measurements.measure(steps, tangent, place, self._carried)

    @property
    def is_innermost(self) -> bool:
        """Always: what the user's own step hooks change must be seen."""
        return True

    @property
    def is_idle(self) -> bool:
        """Whether the window is over."""
        return not self._is_open

    @property
    def status(self) -> str | None:
        """Why the tangents ended early, or how far they are; ``None`` after the window."""
        if self._shield.halted is None and self._is_open and self._steps < self._window:
            return f"Carrying tangents: step {self._steps} of {self._window}."
        return self._shield.halted

    @property
    def products(self) -> float:
        """Hessian products per step in which tangents were carried: 1 is exact."""
        return self._spacing.share

    @property
    def trajectory(self) -> Trajectory:
        """What was seen; a name that nothing was seen to depend on has no column."""
        return self._measurements.trajectory(self._reached_now)

    @property
    def _reached_now(self) -> set[str]:
        return self._reached if self._tangent is None else self._tangent.reached

    @property
    def schedule(self) -> None:
        """Nothing moves the hyperparameters."""
        return None

    def follows_rates(self) -> bool:
        """Whether a scheduler changes the learning rates; if none does, they are forgotten."""
        return self.pace.is_kept()

    def learning_rates(self) -> list[float] | None:
        """Rates of all steps to the horizon, where the schedulers tell them."""
        return self.pace.factors(self._run.horizon)

    def close(self) -> None:
        """The window is over: frees graph and tangents."""
        self._is_open = False
        self._release()
        self._refuse_carried()

    def _release(self) -> None:
        """Frees graph and tangents, and gives torch its own functions back."""
        self._run.bindings.close()
        self._pause()
        self._carried.close()
        self._patches.remove()
        if self._tangent is not None:
            self._revision.at_last(self._steps, self._tangent, is_early=bool(self._shield.halted))
            self._reached = set() if self._carried.sentence else self._tangent.reached
            self._tangent = None
