"""A trial that tunes itself: its hyperparameters move while it trains.

:class:`~optuna_glocal.SelfTuning` is such a trial without a study.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.errors import words
from optuna_glocal.hypergradient.hand_averaging import HandAveraging
from optuna_glocal.hypergradient.invisible.torch_patches import TorchPatches
from optuna_glocal.hypergradient.stateful import plain
from optuna_glocal.training.measurements import Measurements
from optuna_glocal.training.options import Tune
from optuna_glocal.training.run import Run
from optuna_glocal.training.step_hooks import WRITE_IT
from optuna_glocal.training.tuner_choice import (
    movable,
    parted,
    tuner_of,
    unshardable,
    untunable,
    why_nothing,
    why_without_rule,
    without_rule,
)
from optuna_glocal.training.vectors import (
    moves_vectors_only,
    names_of,
    unshared,
    with_vectors,
)
from optuna_glocal.tuning.blend import Blend
from optuna_glocal.tuning.schedule import Schedule
from optuna_glocal.tuning.tuner import Tuner
from optuna_glocal.tuning.vector_tuner import VectorTuner
from optuna_glocal.tuning.weight_averaging import Averages

_FORGOTTEN = f"glocal.backward has not been called. {WRITE_IT}"
_LATE = (
    "A learning rate of ASGD acts one step later, so its hypergradient of one step is 0; "
    'Tune(by="blend") moves it.'
)
# Steps without glocal.backward after which a user is told to write it.
_PATIENCE = 5
# Hyperparameters that the status lists.
_MOST = 8


class Tuning:
    """The mode in which the hyperparameters move.

    See :class:`~optuna_glocal.training.mode.Mode`.

    What moves them, a :class:`~optuna_glocal.tuning.tuner.Tuner`, is made at the first backward,
    when all that is bound is known. What turns out then to be impossible halts the tuning.

    Args:
        run: The run that tunes itself.
        options: How.
        averages: Averages of the weights, if they are kept.

    Raises:
        TypeError, ValueError: If the validation closure does not return a differentiable scalar.
    """

    def __init__(self, run: Run, options: Tune, averages: Averages | None) -> None:
        self._run, self._options, self._averages = run, options, averages
        self._shield, self._meter = run.shield, run.meter
        self._has_started = False
        self._steps, self._nothing = 0, ""
        #: What moves λ; ``None`` before the first backward, or if there is nothing to move.
        self.tuner: Tuner | Blend | VectorTuner | None = None
        self._shield.wording = lambda error: f"Tuning stopped: {words(error)}"
        self._shield.on_halt = self._hold
        self._patches = TorchPatches()
        # Without a wrapper, only a run that every process makes may be one of several.
        seeks = run.ranks is None and run.is_shared and run.agreement.is_alone
        self._averaging = HandAveraging(run.params if seeks else [])
        run.validation.agreement = run.agreement
        try:
            self._measurements = Measurements(run)
        except BaseException:
            self._patches.remove()
            raise
        if (sentence := untunable(run, options)) is not None:
            self._shield.halt(sentence)

    # -- the tuner --------------------------------------------------------------------------------

    def _start(self) -> None:
        """At the first backward, when all that is bound is known."""
        self._has_started = True
        self._run.bindings.freeze(joins_late=self._options.by in ("blend", "greedy"))
        if (sentence := parted(self._run)) is not None:
            self._shield.halt(sentence)
        if self._shield.halted is not None:
            return
        self._choose()
        if self.tuner is None and self._shield.halted is None:
            self._nothing = " ".join(self._run.held) or why_nothing(self._run)
            if not self._run.held:
                self._shield.say(self._nothing, True)

    def _choose(self) -> None:
        """Makes what moves λ, of all names known by now."""
        bindings, options = self._run.bindings, self._options
        wanted: Collection[str] = options.hyperparameters or movable(
            options, self._run.optimizer, bindings
        )
        chosen = self._movable([name for name in bindings.freeze() if name in wanted])
        sentence = unshardable(self._run, chosen) or unshared(self._run, options)
        if sentence is not None:
            self._shield.halt(sentence)
            return
        self.tuner = self._tuner_of(chosen)
        if self.tuner is not None:
            self.tuner.begin_at(self._steps)

    def _tuner_of(self, chosen: Collection[str]) -> Tuner | Blend | VectorTuner | None:
        run, options, averages = self._run, self._options, self._averages
        note = self._measurements.note
        inner = tuner_of(run, options, averages, list(chosen), note) if chosen else None
        return with_vectors(run, options, averages, inner)

    def _movable(self, names: Collection[str]) -> list[str]:
        """Names that the optimizer lets move; the others are told of once."""
        if stuck := without_rule(self._run, names):
            self._run.hold(stuck, why_without_rule(self._run.optimizer))
        return [name for name in names if name not in stuck]

    def _join(self) -> None:
        """A loss has asked for a hyperparameter after the first backward."""
        bindings, wanted = self._run.bindings, self._options.hyperparameters
        names, bindings.late = bindings.late, []
        for name in self._movable([n for n in names if not wanted or n in wanted]):
            is_sharded = self._run.agreement.is_sharded
            if self.tuner is None or is_sharded or moves_vectors_only(self.tuner):
                self._choose()
            else:
                self.tuner.join(name, self._run.coordinates[name])

    def request_move(self) -> None:
        """Makes the next step one after which the hyperparameters move.

        Raises:
            ValueError: Before the first backward, and where there is nothing to move.
        """
        if self.tuner is None:
            raise ValueError(
                "update: expected a callback after its first backward, got one "
                f"{'that has nothing to move' if self._has_started else 'before it'}. Call it "
                "inside the loop."
            )
        self.tuner.request()

    # -- the loop ---------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, and what the coming move needs of it."""
        if not self._has_started:
            self._shield.run(self._start)
        elif self._run.bindings.late and self._shield.halted is None:
            self._shield.run(self._join)
        tuner = self.tuner
        if tuner is not None and tuner.scale.is_possible:
            scale = tuner.scale
            self._shield.run(lambda: scale.look(loss))
        if tuner is None:
            self._shield.users_backward(loss)
        elif tuner.is_always_plain:
            self._shield.users_backward(loss)
            with self._meter.our_time():
                self._shield.run(lambda: tuner.see(loss))
        elif tuner.is_plain:
            with self._meter.plain_backward():
                self._shield.users_backward(loss)
            self._shield.run(lambda: tuner.see(loss))
        else:
            with self._meter.in_place_of_backward():
                self._shield.backward(
                    loss,
                    lambda loss: tuner.backward(loss, self._shield.users_backward),
                )
        if self._averaging.is_possible:
            self._shield.run(self._averaging.note)

    def _join_others(self) -> None:
        """Agrees with the processes with which the loop averages its gradients itself."""
        ranks = self._averaging.ranks()
        if ranks is not None:
            self._run.agreement.join(ranks)
            if (sentence := parted(self._run)) is not None:
                self._shield.halt(sentence)
        elif self._averaging.sentence:
            self._shield.say(self._averaging.sentence, True)

    def before_step(self) -> None:
        """Writes λ into the param groups."""
        if self._averaging.is_possible:
            self._shield.run(self._join_others)
        if self.tuner is not None and not self.tuner.is_idle:
            with self._meter.our_time():
                self.tuner.before_step()

    def after_step(self, steps: int) -> None:
        """Takes the validation gradient where a move is due, and watches the training loss."""
        self._steps = steps
        if self.tuner is not None:
            with self._meter.our_time():
                self.tuner.after_step()
        elif not self._has_started and steps == _PATIENCE:
            self._shield.say(f"{steps} steps were made without it: {_FORGOTTEN}", True)

    # -- a resumed run ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the run depends on, as plain tensors and numbers."""
        return {
            "has_started": self._has_started,
            "steps": self._steps,
            "nothing": self._nothing,
            "moved": names_of(self.tuner),
            "tuner": plain(self.tuner),
            "measurements": self._measurements.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned."""
        self._measurements.load_state_dict(state["measurements"])
        self._has_started, self._steps = state["has_started"], state["steps"]
        self._nothing = state["nothing"]
        if state["tuner"] is not None:
            self.tuner = self._tuner_of(state["moved"])
            if self.tuner is not None:
                self.tuner.load_state_dict(state["tuner"])

    # -- what came of it --------------------------------------------------------------------------

    def measure(self, steps: int, place: contextlib.AbstractContextManager[Any] | None) -> None:
        """One more point of the trajectory, unless this step has one."""
        self._measurements.measure(steps, place=place)

    @property
    def is_innermost(self) -> bool:
        """Never: the user's own step hooks are to read the λ in force."""
        return False

    @property
    def is_idle(self) -> bool:
        """Never: λ is written before every step."""
        return False

    @property
    def status(self) -> str:
        """Where λ stands, or why it no longer moves."""
        if self._shield.halted is not None:
            return self._shield.halted
        if self.tuner is None:
            return self._nothing or f"Nothing has moved yet: {_FORGOTTEN}"
        return " ".join([self._what_moved(self.tuner), *self._what_did_not()])

    def _what_moved(self, tuner: Tuner | Blend | VectorTuner) -> str:
        values, start = self._run.bindings.values, tuner.path[0][1]
        moved = [n for n in start if not math.isclose(values[n], start[n], rel_tol=1e-9)]
        told = ", ".join(f"{name} {values[name]:.3g}" for name in (moved or [*start])[:_MOST])
        told += f" and {len(moved or start) - _MOST} more" * (len(moved or start) > _MOST)
        if moved or self._steps == 0:
            return f"Tuning itself: {told}; rollbacks to earlier weights: {tuner.rollbacks}."
        still = f"Nothing has moved: {told}; rollbacks to earlier weights: {tuner.rollbacks}."
        if type(self._run.optimizer) is torch.optim.ASGD and self._options.by == "greedy":
            return f"{still} {_LATE}"
        return still

    def _what_did_not(self) -> list[str]:
        validation, others = self._run.validation, self._run.bindings.others
        told = [f"{other}, which steps in the loop as well, is not tuned." for other in others]
        if bad := validation.not_finite:
            told.append(f"{bad} of {validation.count} validation losses were not finite.")
        return [*self._run.held, *told]

    @property
    def products(self) -> float:
        """No tangents are carried for the record: 1, as where they are exact."""
        return 1.0

    @property
    def trajectory(self) -> Trajectory:
        """The validation losses seen; no hypergradients."""
        return self._measurements.trajectory()

    @property
    def schedule(self) -> Schedule | None:
        """The path of the hyperparameters so far; ``None`` where nothing moves."""
        if self.tuner is None:
            return None
        # A run that went back to its first step has the schedule of what came after, which a
        # replay follows from the first step.
        vectors = self._run.vectors.values()
        is_exact = self.tuner.rollbacks == 0 and all(v.vector.is_separate for v in vectors)
        return Schedule.from_path(self.tuner.path, exact=is_exact)

    def follows_rates(self) -> bool:
        """Never asked, since this mode is never idle."""
        return False

    def learning_rates(self) -> None:
        """Unknown: they are still to be moved."""
        return None

    # -- ends -------------------------------------------------------------------------------------

    def _hold(self) -> None:
        if self.tuner is not None:
            self.tuner.halt()

    def close(self) -> None:
        """Gives torch its own functions back."""
        if self.tuner is not None:
            self.tuner.close()
        self._run.bindings.close()
        self._patches.remove()
