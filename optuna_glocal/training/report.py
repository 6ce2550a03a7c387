"""What a trial leaves when it ends: its record in the storage, and one line in the log."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optuna.study import Study

from optuna_glocal.forecasting.forecast import Forecast, Status
from optuna_glocal.hypergradient.errors import words
from optuna_glocal.storage.final_values import read_final_values
from optuna_glocal.storage.record import Record, Source
from optuna_glocal.storage.trajectory import write_trajectory
from optuna_glocal.training.folds import Fold, Left
from optuna_glocal.training.held_gradient import joined
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.run import Run
from optuna_glocal.training.trial import is_first, title_of, written_alike

_logger = logging.getLogger("optuna_glocal")
_MOST_NAMES = 4
# What cheap tangents add to the standard deviation of a gradient, as a share of its size. On short
# and rough runs (10 to 50 steps, learning rates up to .5 under momentum .9) the exact gradient
# then lies within two standard deviations in 95 of 100 cases, without it in 87.
_CHEAP = 0.5


def record_of(
    estimate: Forecast,
    run: Run,
    mode: Mode,
    *,
    number: int,
    steps: int,
    is_averaged: bool,
    best: float | None = None,
) -> Record:
    """The record of one trial.

    Args:
        estimate: Value and gradient at the horizon.
        run: The trial's run.
        mode: How it was run; closed.
        number: The trial's number.
        steps: Optimizer steps made.
        is_averaged: Whether averaged weights were the better ones.
        best: What ``best_of`` returned after the last step, if it was called.
    """
    loss = estimate.value if math.isfinite(estimate.value) else None
    loss_sd = None if loss is None else _brief(estimate.value_sd)
    is_best = best is not None and math.isfinite(best)
    sentence, is_cheap = estimate.status.value, mode.products < 1
    halted, schedule = mode.status, mode.schedule
    source: Source
    if schedule is not None and schedule.tuned:
        source, sentence = "greedy", halted or sentence
    else:
        source = ("cheap" if is_cheap else "tangent") if estimate.gradient else "none"
        if halted is not None:
            sentence = f"{halted} {sentence}" if estimate.gradient else halted
    record = Record(
        number=number,
        horizon=run.horizon,
        steps=steps,
        source=source,
        status=sentence,
        value=best if is_best else loss,
        value_sd=0.0 if is_best else loss_sd,
        gradient=dict(estimate.gradient),
        gradient_sd={
            name: _brief(math.hypot(sd, _CHEAP * estimate.gradient[name] if is_cheap else 0.0))
            for name, sd in estimate.gradient_sd.items()
        },
        seconds=_brief(run.meter.seconds),
        overhead_seconds=_brief(run.meter.ours),
        tuned=() if schedule is None else tuple(schedule.tuned),
        averaged=is_averaged,
        products_per_step=mode.products,
        loss=loss if is_best and best != loss else None,
        ended={} if schedule is None else {n: run.bindings.values[n] for n in schedule.tuned},
    )
    return joined(record, mode, best if is_best else None)


def starts_only(study: Study) -> str | None:
    """A sentence on the best trial's parameters; ``None`` if that trial did not tune itself."""
    try:
        best = study.best_trial
    except (ValueError, RuntimeError):  # none is complete, or there are several objectives
        return None
    ended = ", ".join(f"{name} {value:.4g}" for name, value in read_final_values(best).items())
    if not ended:
        return None
    return (
        f"The parameters of the best trial, {best.number}, are where it started; it tuned itself "
        f"and ended at {ended}. optuna_glocal.best_hyperparameters(study) gives these, and "
        "Schedule.best(study) replays the way there."
    )


def _brief(estimate: float) -> float:
    """Four digits: more would be spurious, and 20 hyperparameters must fit into one text."""
    return float(f"{estimate:.4g}")


def write(
    trial: Any,
    make: Callable[[], Left],
    fold: Fold,
    run: Run,
) -> None:
    """Stores all of it; a storage that refuses must not end the user's training.

    Args:
        trial: Where to.
        make: Makes what this callback leaves.
        fold: The callback among those of its trial.
        run: Of this callback.
    """
    with written_alike(trial) as target:

        def store(left: Left) -> None:
            left.record.write(target)
            if left.schedule is not None:
                left.schedule.write(target)
                for name, vector in left.vectors.items():
                    vector.write(target, name)
            elif left.trajectory is not None:
                write_trajectory(target, left.trajectory)

        def write_and_tell() -> None:
            with fold.lock:
                left = fold.join(make())
                # A connection that the server closed while the training ran fails once, and is
                # then made anew.
                if not run.shield.run(lambda: store(left), _ignore):
                    store(left)
            if is_first(target) and run.agreement.is_first:
                _logger.info("%s: %s", title_of(trial), line(left.record))

        def not_written(error: Exception) -> None:
            text = f"{title_of(trial)}: its record was not written: {words(error)}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)

        run.shield.run(write_and_tell, not_written)


def _ignore(error: Exception) -> None:
    """It is tried once more."""


def line(record: Record) -> str:
    """What a trial learnt, in one line.

    Args:
        record: The trial's.

    Example:
        >>> line(Record(7, 1000, 200, "tangent", value=0.131, value_sd=0.012,
        ...             gradient={"lr": -0.3}, seconds=2.0, overhead_seconds=0.5))
        'gradient of lr; loss 0.131 ± 0.012 forecast for step 1000, seen 200; overhead 25% of 2 s'
    """
    why = "" if record.status == Status.OK.value else record.status.rstrip(".")
    if record.tuned:
        gist = why or _listed("tuned", record.tuned)
    else:
        word = f"{record.source} " if record.source in ("cheap", "implicit") else ""
        kind = f"{word}gradient of"
        gist = _listed(kind, list(record.gradient)) if record.gradient else "no gradient"
        gist += f" ({why})" if why else ""
    gist = f"mean over {record.callbacks} callbacks: {gist}" if record.callbacks > 1 else gist
    parts = [gist, _loss(record)]
    if record.seconds > 0:
        share = record.overhead_seconds / record.seconds
        parts.append(f"overhead {share:.0%} of {record.seconds:.3g} s")
    return "; ".join(parts)


def _listed(word: str, names: Sequence[str]) -> str:
    """Few names, or how many."""
    many = len(names) > _MOST_NAMES
    return f"{word} {len(names)} hyperparameters" if many else f"{word} {', '.join(names)}"


def _loss(record: Record) -> str:
    if record.value is None:
        return "no loss"
    sd = f" ± {record.value_sd:.2g}" if record.value_sd else ""
    word = "loss" if record.loss is None else "value"
    loss = f"{word} {record.value:.4g}{sd}" + (" at averaged weights" if record.averaged else "")
    if record.loss is not None:
        return f"{loss} (validation loss {record.loss:.4g}) at step {record.steps}"
    if record.steps >= record.horizon:
        return f"{loss} at step {record.steps}"
    return f"{loss} forecast for step {record.horizon}, seen {record.steps}"
