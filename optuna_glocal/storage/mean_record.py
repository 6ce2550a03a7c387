"""One record of several: the mean over the folds or seeds of one trial.

The objective of such a trial is a mean, and so is its gradient. How far the parts differ tells how
well that mean is known: its standard error, s / √n, joins the parts' own standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from optuna_glocal.storage.record import Record, Source


def mean_record(records: Sequence[Record]) -> Record:
    """The mean over the callbacks of one trial, each of which weighs the same.

    A gradient is given for the hyperparameters of which every part has one, since the mean over
    some of the parts is that of another objective. Seconds are summed.

    Args:
        records: At least one, each of a single callback.

    Example:
        >>> one, two = (Record(0, 9, 9, "tangent", value=v, gradient={"a": v}) for v in (1.0, 3.0))
        >>> both = mean_record([one, two])
        >>> both.value, both.gradient, both.gradient_sd, both.callbacks
        (2.0, {'a': 2.0}, {'a': 1.0}, 2)
    """
    newest, n = records[-1], len(records)
    if n == 1:
        return newest
    least = min(records, key=lambda r: r.steps / max(r.horizon, 1))
    value, value_sd = _mean([r.value for r in records], [r.value_sd for r in records])
    loss = None
    if any(r.loss is not None for r in records):
        loss = _mean([r.validation_loss for r in records], [0.0] * n)[0]
    names = [name for name in records[0].gradient if all(name in r.gradient for r in records)]
    found = {
        name: _mean(
            [r.gradient[name] for r in records], [r.gradient_sd.get(name, 0.0) for r in records]
        )
        for name in names
    }
    tuned = tuple(dict.fromkeys(name for r in records for name in r.tuned))
    record = replace(
        newest,
        horizon=least.horizon,
        steps=least.steps,
        value=value,
        value_sd=value_sd,
        loss=loss,
        gradient={name: g for name, (g, _) in found.items() if g is not None},
        gradient_sd={name: sd for name, (_, sd) in found.items() if sd is not None},
        seconds=sum(r.seconds for r in records),
        overhead_seconds=sum(r.overhead_seconds for r in records),
        tuned=tuned,
        averaged=any(r.averaged for r in records),
        products_per_step=sum(r.products_per_step for r in records) / n,
        callbacks=n,
        ended=min(reversed(records), key=loss_of).ended,
    )
    return replace(record, source=_source(records, record), status=_status(records, record))


def loss_of(record: Record) -> float:
    """The validation loss, by which one of several parts is chosen; infinite if unknown."""
    loss = record.validation_loss
    return math.inf if loss is None or math.isnan(loss) else loss


def _mean(
    values: Sequence[float | None], sds: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """The mean and its standard deviation; nothing if a value is missing."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    n = len(known)
    if n < len(values):
        return None, None
    mean = sum(known) / n
    scatter = math.hypot(*(v - mean for v in known)) / math.sqrt(max(n - 1, 1) * n)
    own = math.hypot(*(sd or 0.0 for sd in sds)) / math.sqrt(n)
    return mean, float(f"{math.hypot(scatter, own):.4g}")


def _source(records: Sequence[Record], mean: Record) -> Source:
    sources = {r.source for r in records}
    if not mean.gradient:
        return "greedy" if mean.tuned else "none"
    return records[-1].source if len(sources) == 1 else "cheap"


def _status(records: Sequence[Record], mean: Record) -> str:
    """That of the first part that has nothing to give, where the mean has nothing either."""
    if mean.gradient or mean.tuned:
        return records[-1].status
    without = next((r for r in records if not r.gradient), None)
    if without is None:
        return "The callbacks of the trial have no hyperparameter in common."
    return f"One of {len(records)} callbacks of the trial has no gradient: {without.status}"
