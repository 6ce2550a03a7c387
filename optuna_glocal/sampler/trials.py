"""Optuna's trials as the policy sees them: outcomes, running points, who asks at this moment."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.dataset import gather
from optuna_glocal.sampler.loss_link import Outcome
from optuna_glocal.sampler.policy import Situation
from optuna_glocal.sampler.proposal import latest_starts, running_points
from optuna_glocal.sampler.space import Space
from optuna_glocal.storage.record import Record

# Most workers that ask at the same moment whose proposals are worked out together.
_MOST_ASKING = 16


def situation(
    study: Study, trials: Sequence[FrozenTrial], trial: FrozenTrial, space: Space
) -> Situation:
    """All that the policy is told."""
    known = learnable(trials)
    complete = sum(t.state == TrialState.COMPLETE for t in known)
    return Situation(
        asking=[*_asking(trials, trial, space), trial.number],
        space=space,
        data=gather([outcome_of(t) for t in known], space, sign_of(study)),
        running=running(trials, trial, space),
        failed=points_of([t for t in trials if t.state == TrialState.FAIL], space),
        starts=latest_starts([t.system_attrs for t in trials if t.number < trial.number], space),
        complete=complete,
        pruned=len(known) - complete,
    )


def learnable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, and pruned ones that recorded something."""
    return [
        t
        for t in trials
        if t.state == TrialState.COMPLETE
        or (t.state == TrialState.PRUNED and Record.read(t) is not None)
    ]


def sign_of(study: Study) -> float:
    """Factor with which a smaller objective is better: -1 if it is maximised, else 1."""
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def running(trials: Sequence[FrozenTrial], trial: FrozenTrial, space: Space) -> FloatArray:
    """Points on which other workers are busy, shape (m, D)."""
    busy = [t for t in trials if t.state == TrialState.RUNNING and t.number != trial.number]
    return points_of(busy, space)


def _asking(trials: Sequence[FrozenTrial], trial: FrozenTrial, space: Space) -> list[int]:
    """Numbers of earlier running trials whose proposal is not stored yet."""
    earlier = [t for t in trials if t.state == TrialState.RUNNING and t.number < trial.number]
    return [t.number for t in earlier if not len(points_of([t], space))][-_MOST_ASKING:]


def points_of(trials: Sequence[FrozenTrial], space: Space) -> FloatArray:
    """Points that running trials were given, as far as it is known, shape (m, D)."""
    return running_points([(t.system_attrs, t.params) for t in trials], space)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What a finished trial tells."""
    value = trial.value
    return Outcome(trial.params, value, trial.state == TrialState.COMPLETE, Record.read(trial))
