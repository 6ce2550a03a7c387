"""What door 1 leaves in the trial when it closes, and one line in the log."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optuna_glocal.forecasting.forecast import Forecast, Status
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.hypergradient.errors import words
from optuna_glocal.storage.record import Record, Source
from optuna_glocal.storage.trajectory import write_trajectory
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.trial import is_first
from optuna_glocal.tuning.schedule import Schedule

_logger = logging.getLogger("optuna_glocal")
_MOST_NAMES = 4


def record_of(
    estimate: Forecast,
    *,
    number: int,
    horizon: int,
    steps: int,
    meter: Meter,
    halted: str | None,
    tuned: Sequence[str],
    averaged: bool,
    products: float,
) -> Record:
    """The record of one trial.

    Args:
        estimate: Value and gradient at the horizon.
        number, horizon, steps, averaged, products: See
            :class:`~optuna_glocal.storage.record.Record` (``products_per_step``).
        meter: The trial's clock.
        halted: Why tangents or tuning ended early, or how a self-tuning trial stands.
        tuned: Hyperparameters that the trial moved.
    """
    finite, sentence = math.isfinite(estimate.value), estimate.status.value
    source: Source
    if tuned:
        source, sentence = "greedy", halted or sentence
    else:
        source = "tangent" if estimate.gradient else "none"
        if halted is not None:
            sentence = f"{halted} {sentence}" if estimate.gradient else halted
    return Record(
        number=number,
        horizon=horizon,
        steps=steps,
        source=source,
        status=sentence,
        value=estimate.value if finite else None,
        value_sd=_brief(estimate.value_sd) if finite else None,
        gradient=dict(estimate.gradient),
        gradient_sd={name: _brief(sd) for name, sd in estimate.gradient_sd.items()},
        seconds=_brief(meter.seconds),
        overhead_seconds=_brief(meter.ours),
        tuned=tuple(tuned),
        averaged=averaged,
        products_per_step=products,
    )


def say(trial: Any, sentence: str, warn: bool) -> None:
    """Why there are no more hypergradients, or what became of them, while the trial runs."""
    if warn:
        text = f"Trial {trial.number} goes on without hypergradients: {sentence}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    else:
        _logger.debug("Trial %d: %s", trial.number, sentence)


def _brief(estimate: float) -> float:
    """Four digits: what is known no better must not push 20 hyperparameters out of one text."""
    return float(f"{estimate:.4g}")


def write(
    trial: Any,
    make: Callable[[], Record],
    *,
    trajectory: Trajectory | None,
    schedule: Schedule | None,
) -> None:
    """Stores all of it; a storage that refuses must not end the user's training."""

    def store() -> None:
        record.write(trial)
        if schedule is not None:
            schedule.write(trial)
        elif trajectory is not None:
            write_trajectory(trial, trajectory)

    try:
        record = make()
        try:
            store()
        except Exception:
            # A connection that the server has closed while the training ran fails once, and is
            # then made anew.
            store()
    except Exception as error:
        text = f"Trial {trial.number}: its record was not written: {words(error)}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return
    if is_first(trial):
        _logger.info("Trial %d: %s", trial.number, line(record))


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
        gist = _listed("gradient of", list(record.gradient)) if record.gradient else "no gradient"
        gist += f" ({why})" if why else ""
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
    loss = f"loss {record.value:.4g}{sd}" + (" at averaged weights" if record.averaged else "")
    if record.steps >= record.horizon:
        return f"{loss} at step {record.steps}"
    return f"{loss} forecast for step {record.horizon}, seen {record.steps}"
