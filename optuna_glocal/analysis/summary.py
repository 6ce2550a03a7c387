"""A study in one table: what its trials recorded, how long that took, what the gradients say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_glocal.analysis.at_bounds import at_bounds
from optuna_glocal.analysis.sensitivity import Sensitivity, sensitivities, slopes_of
from optuna_glocal.storage import _optuna
from optuna_glocal.storage.keys import REASON
from optuna_glocal.storage.learnt_vector import LearntVector, learnt_vectors
from optuna_glocal.storage.record import Record

# Most reasons that are listed, and characters of each.
_MOST_REASONS = 5
_WIDEST = 88
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Summary:
    """What the trials of a study recorded; ``print`` it for a table.

    Attributes:
        name: Name of the study.
        directions: Direction of each objective: ``minimize`` or ``maximize``.
        states: Number of trials by state: ``complete``, ``pruned``, ``fail``, ``running``,
            ``waiting``.
        best: Number of the best trial; ``None`` without one, or with several objectives.
        value: Its objective value.
        params: Its parameters.
        given: Number of trials with a gradient.
        given_by_pruned: Number of pruned trials among them.
        given_cheaply: Number among them whose tangents were cheap, so that the gradient is an
            approximation.
        withheld: Why other trials with a record have no gradient: number of trials by reason, the
            most frequent reason first, without self-tuned trials.
        unrecorded: Number of complete and pruned trials without a record.
        tuned: Number of self-tuned trials.
        seconds: Wall seconds of training in all trials with a record.
        overhead_seconds: Of these, seconds spent on gradients.
        proposals: How :class:`~optuna_glocal.GlocalSampler` came to its proposals: number of
            trials by reason.
        vectors: What the best trial has learnt of each vector of hyperparameters, in words.
        hyperparameters: Slopes of each hyperparameter, the most important one first.
        bounds: A sentence for each hyperparameter whose best values lie at a bound beyond which
            they would be better.
    """

    name: str
    directions: tuple[str, ...]
    states: Mapping[str, int]
    best: int | None
    value: float | None
    params: Mapping[str, Any]
    given: int
    given_by_pruned: int
    given_cheaply: int
    withheld: Mapping[str, int]
    unrecorded: int
    tuned: int
    seconds: float
    overhead_seconds: float
    proposals: Mapping[str, int]
    hyperparameters: tuple[Sensitivity, ...]
    vectors: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(self.states.values())

    @property
    def overhead(self) -> float:
        """Share of the trials' time that was spent on gradients; NaN if no time is known."""
        return self.overhead_seconds / self.seconds if self.seconds > 0 else math.nan

    def __str__(self) -> str:
        lines = [f"study {self.name} ({', '.join(self.directions)})"]
        lines += [f"  {head:<11} {words}".rstrip() for head, words in self._rows()]
        return "\n".join([*lines, *_table(self.hyperparameters, self.best)])

    def _rows(self) -> list[tuple[str, str]]:
        states = ", ".join(f"{n} {state}" for state, n in self.states.items())
        rows = [("trials", f"{self.trials}: {states}" if states else "none")]
        if self.best is not None:
            rows.append(("best", f"{self.value:.6g} (trial {self.best}): {_params(self.params)}"))
        rows += [("learnt", f"{_cut(name, 28)}: {words}") for name, words in self.vectors.items()]
        if self.tuned:
            rows.append(("", "tuned trials only start there: keep Schedule.best(study)"))
            rows.append(("", "so Optuna's importances and slice plots are of starts; our figures"))
            rows.append(("", "and glocal:final:<name> are of where they ended"))
        rows += [("bounds" if i == 0 else "", words) for i, words in enumerate(self.bounds)]
        rows.append(("gradients", ", ".join(self._gradients())))
        rows += [("", f"{n} withheld: {_cut(why)}") for why, n in _most(self.withheld)]
        if self.seconds > 0:
            rows.append(("overhead", f"{self.overhead:.0%} of {self.seconds:.3g} s of training"))
        if self.proposals:
            rows.append(("proposals", "; ".join(f"{n} {why}" for why, n in _most(self.proposals))))
        return rows

    def _gradients(self) -> list[str]:
        words = [f"{self.given} given"]
        ways = ((self.given_by_pruned, "by pruned trials"), (self.given_cheaply, "cheap"))
        if known := ", ".join(f"{n} {way}" for n, way in ways if n):
            words[0] += f" ({known})"
        words.append(f"{sum(self.withheld.values())} withheld")
        if self.tuned:
            words.append(f"{self.tuned} self-tuned")
        if self.unrecorded:
            words.append(f"{self.unrecorded} without a record")
        return words


def summary(study: Study) -> Summary:
    """What the trials of a study recorded, from its storage alone.

    Args:
        study: Any study, finished or running, with records or without.

    Returns:
        The numbers. Printed, they are a table: trials; gradients, and why trials have none; the
        share of time spent on gradients; and for each hyperparameter how much the loss changes
        along its range (median and middle half over the trials), in how many trials a larger value
        would be better, and the slope at the best trial with its standard deviation.

    Example:
        >>> import optuna, optuna_glocal
        >>> def objective(trial):
        ...     x, y = trial.suggest_float("x", 0, 4), trial.suggest_float("y", 0, 1)
        ...     optuna_glocal.record_gradient(trial, {"x": 3.0, "y": -1.0})
        ...     return 3 * x - y
        >>> study = optuna.create_study(study_name="plane")
        >>> study.enqueue_trial({"x": 1.0, "y": 0.5})
        >>> study.optimize(objective, n_trials=1)
        >>> print(optuna_glocal.summary(study))
        study plane (minimize)
          trials      1: 1 complete
          best        2.5 (trial 0): x 1, y 0.5
          gradients   1 given, 0 withheld
        <BLANKLINE>
          Change of the loss along the whole range of a hyperparameter:
          slope  median  middle half  better if larger  at the best
          x          12  [12, 12]     in 0 of 1         12 ± 0
          y           1  [1, 1]       in 1 of 1         -1 ± 0
    """
    trials = study.get_trials(deepcopy=False)
    records = [Record.read(trial) for trial in trials]
    known = [(t, r) for t, r in zip(trials, records, strict=True) if r is not None]
    given = [t for t, r in known if r.gradient]
    best = _best(study)
    maximise = study.directions[0] == StudyDirection.MAXIMIZE
    slopes = [(t.number, slopes_of(r, t.params, t.distributions, maximise)) for t, r in known]
    return Summary(
        name=study.study_name,
        directions=tuple(direction.name.lower() for direction in study.directions),
        states=dict(Counter(t.state.name.lower() for t in sorted(trials, key=_state))),
        best=None if best is None else best.number,
        value=None if best is None else best.value,
        params={} if best is None else dict(best.params),
        given=len(given),
        given_by_pruned=sum(t.state == TrialState.PRUNED for t in given),
        given_cheaply=sum(bool(r.gradient) and r.source == "cheap" for _, r in known),
        withheld=_counted(r.status for _, r in known if not r.gradient and not r.tuned),
        unrecorded=sum(
            r is None and t.state in _DONE for t, r in zip(trials, records, strict=True)
        ),
        tuned=sum(bool(r.tuned) for _, r in known),
        seconds=sum(r.seconds for _, r in known),
        overhead_seconds=sum(r.overhead_seconds for _, r in known),
        proposals=_counted(t.user_attrs[REASON] for t in trials if REASON in t.user_attrs),
        hyperparameters=tuple(sensitivities(slopes)),
        vectors={} if best is None else {n: v.words() for n, v in _learnt(best)},
        bounds=() if _optuna.is_multi_objective(study) else tuple(at_bounds(trials, maximise)),
    )


def _learnt(trial: FrozenTrial) -> list[tuple[str, LearntVector]]:
    return list(learnt_vectors(trial.user_attrs).items())


def _best(study: Study) -> FrozenTrial | None:
    if _optuna.is_multi_objective(study):
        return None
    try:
        return study.best_trial
    except ValueError:  # no trial is complete, or none is feasible
        return None


def _state(trial: FrozenTrial) -> int:
    order = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    return order.index(trial.state) if trial.state in order else len(order)


def _counted(reasons: Iterable[Any]) -> dict[str, int]:
    return dict(Counter(" ".join(str(reason).split()) for reason in reasons).most_common())


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent reasons, and the number of trials with any other."""
    shown = list(reasons.items())[:_MOST_REASONS]
    rest = sum(reasons.values()) - sum(n for _, n in shown)
    return [*shown, ("other reasons", rest)] if rest else shown


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
    )


def _cut(words: str, most: int = _WIDEST) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."


def _table(hyperparameters: Sequence[Sensitivity], best: int | None) -> list[str]:
    """One row per hyperparameter; none without slopes."""
    if not hyperparameters:
        return []
    rows = [("slope", "median", "middle half", "better if larger", "at the best")]
    for each in hyperparameters:
        low, high = each.quartiles
        here = None if best is None else each.at(best)
        rows.append(
            (
                _cut(each.name, 28),
                f"{each.importance:.2g}",
                f"[{low:.2g}, {high:.2g}]",
                f"in {each.up} of {len(each.trials)}",
                "" if here is None else f"{here[0]:.2g} ± {here[1]:.1g}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  "
        f"{row[3]:<{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    return ["", "  Change of the loss along the whole range of a hyperparameter:", *lines]
