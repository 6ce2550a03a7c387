"""Several callbacks on one trial: folds of a cross-validation, seeds, parts of a resumed run.

The first two are runs of their own, and the trial's record is their mean. A part that goes on with
weights of an earlier one is no run of its own: these weights depend on the hyperparameters
already, in a way that no tangent of the new callback knows.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient._torch import norm_each
from optuna_glocal.storage.attributes import get
from optuna_glocal.storage.keys import RECORD
from optuna_glocal.storage.learnt_vector import LearntVector
from optuna_glocal.storage.mean_record import loss_of, mean_record
from optuna_glocal.storage.record import Record
from optuna_glocal.training.shield import Shield
from optuna_glocal.training.trial import is_shared
from optuna_glocal.tuning.schedule import Schedule

_CONTINUED = (
    "The weights are those that an earlier callback of this trial has trained, so they depend on "
    "the hyperparameters already, and nobody knows how. Keep one callback around the whole run."
)
_EARLIER_LIFE = (
    "The trial has a record of another process, such as that of an interrupted run, so its "
    "weights may depend on the hyperparameters already. Resumed runs have no hypergradients."
)

# By the identity of the trial object, which need not be hashable, for as long as that lives.
_of_trial: dict[int, tuple[weakref.ref[Any], Folds]] = {}


@dataclass(frozen=True)
class Left:
    """What one callback, or all of a trial, leave in the trial.

    Attributes:
        record: The trial's record.
        trajectory: Stored unless there is a ``schedule``.
        schedule: The path of the hyperparameters of a self-tuned trial.
        vectors: What became of its vectors of hyperparameters, by name.
    """

    record: Record
    trajectory: Trajectory | None = None
    schedule: Schedule | None = None
    vectors: Mapping[str, LearntVector] = field(default_factory=dict)


class Folds:
    """The callbacks of one trial that have ended in this process."""

    def __init__(self) -> None:
        #: Held while one of them is joined to the others and written.
        self.lock = threading.Lock()
        self.ended: list[Left] = []
        # The names of their runs.
        self.runs: list[str] = []
        # By callback, the norms of parameters that it has trained.
        self.trained: list[set[float]] = []


class Fold:
    """One callback among those of its trial.

    Args:
        trial: The trial.
        params: What is trained, before its first step.
    """

    def __init__(self, trial: Any, params: Sequence[Tensor]) -> None:
        self._folds = folds = _folds_of(trial)
        #: By which the parts of a resumed run are known.
        self.run = uuid.uuid4().hex
        self._params, self._is_resumed = params, False
        self._look()
        self._has_earlier_life = not folds.ended and _is_recorded(trial)
        self.lock = folds.lock

    def _look(self) -> None:
        self._before = _norms(self._params)
        # Position of the callback whose weights these are; None for a run of its own.
        self._continued = next(
            (i for i, n in enumerate(self._folds.trained) if n.intersection(self._before)), None
        )

    def resume(self, run: str) -> None:
        """The state of that run was loaded, so nothing of it is unknown."""
        self.run, self._is_resumed = run, True

    def refuse(self, shield: Shield) -> None:
        """Halts hypergradients where the weights may depend on the hyperparameters already.

        Called at the first backward, by which weights may have been loaded.
        """
        if self._is_resumed:
            return
        self._look()
        if self._continued is not None:
            shield.halt(_CONTINUED)
        elif self._has_earlier_life:
            shield.halt(_EARLIER_LIFE)

    def join(self, own: Left) -> Left:
        """What the trial leaves now that this callback has ended.

        Args:
            own: What this callback alone would leave.

        Returns:
            The mean record; trajectory and schedule of the callback with the least loss.
        """
        folds, i = self._folds, self._continued
        trained = {a for a, b in zip(_norms(self._params), self._before, strict=False) if a != b}
        if self.run in folds.runs:  # its state was loaded, so it has all of the run
            i = folds.runs.index(self.run)
            folds.ended[i] = own
            folds.trained[i] |= trained
        elif i is None:
            folds.ended.append(own)
            folds.runs.append(self.run)
            folds.trained.append(trained)
        else:
            folds.ended[i] = replace(own, record=_continuing(folds.ended[i], own))
            folds.trained[i] |= trained
        record = mean_record([left.record for left in folds.ended])
        best = min(reversed(folds.ended), key=lambda left: loss_of(left.record))
        return replace(best, record=record)


def _continuing(first: Left, then: Left) -> Record:
    """The record of a run in two parts: the loss of its end, the forecast of its beginning."""
    a, b = first.record, then.record
    steps = a.steps + b.steps
    if a.horizon != b.horizon:  # the parts were runs for themselves, with another end each
        return replace(b, gradient={}, gradient_sd={})
    record = replace(
        b,
        steps=steps,
        seconds=a.seconds + b.seconds,
        overhead_seconds=a.overhead_seconds + b.overhead_seconds,
        averaged=a.averaged or b.averaged,
    )
    if a.gradient:
        status = f"The gradient was forecast after {a.steps} steps, where the run was interrupted."
        record = replace(
            record,
            source=a.source,
            status=status,
            gradient=a.gradient,
            gradient_sd=a.gradient_sd,
            products_per_step=a.products_per_step,
        )
    measured = then.trajectory
    if steps >= b.horizon and measured is not None and len(measured) and b.loss is None:
        record = replace(record, value=float(measured.losses[-1]), value_sd=0.0)
    return record


def _folds_of(trial: Any) -> Folds:
    known = _of_trial.get(id(trial))
    if known is None or known[0]() is not trial:
        key = id(trial)
        known = weakref.ref(trial, lambda _: _of_trial.pop(key, None)), Folds()
        _of_trial[key] = known
    return known[1]


def _is_recorded(trial: Any) -> bool:
    """Whether a callback has written a record into this very trial.

    Not one that a retried trial has inherited, which has another number. Where several processes
    share the trial, its attributes can be read by all of them together only, so they are not.
    """
    if is_shared(trial):
        return False
    with contextlib.suppress(Exception):  # a storage that cannot be reached now
        record = Record.from_json(get(trial.user_attrs, RECORD))
        return record is not None and record.number == trial.number and record.source != "given"
    return False


def _norms(params: Sequence[Tensor]) -> list[float]:
    """A fingerprint of each trained parameter; empty if there is none (sharded, lazy)."""
    with contextlib.suppress(Exception):
        held = [p.detach() for p in params if p.requires_grad]
        return [n.item() for n in norm_each(held)] if held else []
    return []
