"""What one trial tells of its own objective, and all that a sampler learns of its training run.

A record is written once, at the end of the trial. A reader does not trust what it finds: for an
unknown version or source, an incomplete text or values of another type there is no record.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from optuna.trial import FrozenTrial

from optuna_glocal.storage import _optuna
from optuna_glocal.storage.attributes import BROKEN, CHUNK, MOST_CHUNKS, TrialLike, get, put
from optuna_glocal.storage.json_values import finite, integer, number, numbers
from optuna_glocal.storage.keys import FINAL, FORECAST, RECORD, VERSION

#: Where a gradient comes from; the sampler fits noise and gain of each source apart.
Source = Literal["tangent", "cheap", "greedy", "given", "none", "implicit"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class Record:
    """What a trial knows of its own objective at the horizon.

    Attributes:
        number: Number of the trial that wrote it. A trial that is retried after its worker died
            begins with the attributes of the first attempt, and a record of another number is
            then ignored. ``None``: valid for whichever trial carries it.
        horizon: Optimizer steps of a full trial.
        steps: Optimizer steps seen.
        source: Where the gradient comes from: ``tangent`` (dθ/dλ was carried through the steps),
            ``cheap`` (the same with fewer Hessian products than steps, an approximation),
            ``greedy`` (effect of the last step only), ``given`` (:func:`record_gradient`),
            ``implicit`` (of what was held, by the implicit function theorem at the end of the
            run) or ``none``.
        status: One sentence: how the estimate was made, or why there is none.
        value: What ``best_of`` returned, if it was called at the end of the run; else the
            validation loss at the horizon, measured or forecast.
        value_sd: Its standard deviation; 0 where measured.
        gradient: d value / d hyperparameter by name, in the units of ``trial.suggest_*``.
        gradient_sd: Standard deviations of ``gradient``.
        seconds: Wall seconds inside the callback's ``with`` block.
        overhead_seconds: Of these, seconds that the training alone would not have taken.
        tuned: Hyperparameters that the trial changed during its run.
        averaged: Whether ``value`` belongs to averaged weights.
        products_per_step: Hessian products per step in which tangents were carried: 1 is exact,
            fewer are approximate tangents.
        loss: Validation loss at the horizon, which ``gradient`` belongs to, where ``value`` is
            another number; ``None``: ``value`` is the loss.
        callbacks: Number of callbacks of the trial (folds, seeds) that this is the mean over. All
            standard deviations then contain the standard error of that mean.
        ended: Where the hyperparameters in ``tuned`` ended, a learning rate without the decay at
            the end of the run; of several callbacks, those of the one with the least loss.

    Example:
        >>> import optuna, optuna_glocal
        >>> trial = optuna.create_study().ask()
        >>> record = optuna_glocal.Record(trial.number, 100, 20, "tangent", gradient={"lr": -0.3})
        >>> optuna_glocal.Record.from_json(record.to_json()) == record
        True
    """

    number: int | None
    horizon: int
    steps: int
    source: Source = "none"
    status: str = ""
    value: float | None = None
    value_sd: float | None = None
    gradient: dict[str, float] = field(default_factory=dict)
    gradient_sd: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    tuned: tuple[str, ...] = ()
    averaged: bool = False
    products_per_step: float = 1.0
    loss: float | None = None
    callbacks: int = 1
    ended: dict[str, float] = field(default_factory=dict)

    @property
    def validation_loss(self) -> float | None:
        """The validation loss at the horizon; ``None`` if it is unknown."""
        return self.value if self.loss is None else self.loss

    def to_json(self) -> str:
        """Compact JSON; floats round-trip exactly, non-finite ones become null."""
        return json.dumps({"v": VERSION, **finite(asdict(self))}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: object) -> Record | None:
        """The record in ``text``; ``None`` if there is none. Never raises.

        Args:
            text: What :meth:`to_json` returned; anything else counts as no record.
        """
        if not isinstance(text, str) or len(text) > CHUNK * MOST_CHUNKS:
            return None
        try:
            data = json.loads(text)
            return cls._from_dict(data) if isinstance(data, dict) else None
        except BROKEN:
            return None

    @classmethod
    def _from_dict(cls, data: dict[str, Any]) -> Record | None:
        if data.get("v") is True or data.get("v") != VERSION:
            return None
        # Before version 0.2 `products_per_step` was called `products`.
        products = data.get("products_per_step", data.get("products", 1.0))
        return cls(
            number=None if data.get("number") is None else integer(data["number"]),
            horizon=integer(data["horizon"]),
            steps=integer(data["steps"]),
            source=SOURCES[SOURCES.index(data["source"])],
            status=str(data.get("status", ""))[:CHUNK],
            value=number(data.get("value")),
            value_sd=number(data.get("value_sd")),
            gradient=numbers(data.get("gradient", {})),
            gradient_sd=numbers(data.get("gradient_sd", {})),
            seconds=number(data.get("seconds")) or 0.0,
            overhead_seconds=number(data.get("overhead_seconds")) or 0.0,
            tuned=tuple(str(name) for name in data.get("tuned", ())),
            averaged=data.get("averaged") is True,
            products_per_step=number(products) or 0.0,
            loss=number(data.get("loss")),
            callbacks=integer(data.get("callbacks", 1)),
            ended=numbers(data.get("ended", {})),
        )

    def write(self, trial: TrialLike) -> None:
        """Stores the record in the user attributes of ``trial``, which must not be finished."""
        put(trial, RECORD, self.to_json())
        if self.value is not None and math.isfinite(self.value):
            trial.set_user_attr(FORECAST, float(self.value))
        for name, ended in self.ended.items():
            if math.isfinite(ended):
                trial.set_user_attr(FINAL + name, float(ended))

    @classmethod
    def read(cls, trial: FrozenTrial) -> Record | None:
        """The record of a trial; ``None`` without one that is complete and the trial's own.

        Args:
            trial: Of any study, in any state.
        """
        record = _parse(get(trial.user_attrs, RECORD))
        return None if record is None or _is_stale(record, trial) else record


@functools.lru_cache(maxsize=4096)
def _parse(text: str | None) -> Record | None:
    """Cached, since a sampler reads all records of a study at every suggestion."""
    return Record.from_json(text)


def _is_stale(record: Record, trial: FrozenTrial) -> bool:
    """Whether the record was left by the first attempt of a retried trial."""
    if record.number is None or record.number == trial.number:
        return False
    return _optuna.is_retried(trial)
