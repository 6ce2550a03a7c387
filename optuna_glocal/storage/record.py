"""The seam: what one trial leaves in Optuna's storage, and all that the sampler ever sees of it.

User attributes only (public API), plain JSON, every key prefixed ``glocal:``. A reader never
trusts what it reads: an unknown version, a torn chunk or a value edited by hand gives ``None``.

``glocal:record``
    One :class:`Record` as JSON.
``glocal:forecast``
    The record's value as a number, which the dashboard can sort and plot.
``glocal:trajectory``
    Optional :class:`~optuna_glocal.forecasting.trajectory.Trajectory`, float32.
``glocal:schedule``
    In its place, where a trial tunes itself: its :class:`~optuna_glocal.tuning.schedule.Schedule`.

Each is one write, at the trial's end; what is longer than a chunk goes on in ``{key}:{i}``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from optuna_glocal.storage import _optuna
from optuna_glocal.storage.attributes import (
    BROKEN,
    CHUNK,
    MOST_CHUNKS,
    TrialLike,
    get,
    put,
)
from optuna_glocal.storage.keys import FORECAST, RECORD, VERSION

SOURCES = ("tangent", "greedy", "free", "given", "none")


@dataclass(frozen=True)
class Record:
    """What a trial knows of its own objective at the horizon.

    Attributes:
        number: Number of the trial that wrote it; a heartbeat-retried trial copies attributes, and
            this tells the stale record. ``None``: valid for whichever trial carries it.
        horizon: Optimizer steps of a full trial.
        steps: Optimizer steps seen.
        source: ``tangent`` (carried dθ/dλ), ``greedy`` (last step only), ``free`` (validation
            curve), ``given`` (:func:`record_gradient`) or ``none``.
        status: One sentence: how the estimate was made, or why there is none.
        value: Validation loss at the horizon, measured or forecast.
        value_sd: Its standard deviation; 0 where measured.
        gradient: d value / d hyperparameter by name, in the units of ``trial.suggest_*``.
        gradient_sd: Standard deviations of ``gradient``.
        seconds: Wall seconds inside the callback's ``with`` block.
        overhead_seconds: Of these, seconds that the training would not have spent without us.
        tuned: Hyperparameters that the trial moved itself.
        averaged: Whether ``value`` belongs to averaged weights.
        products: Hessian products per step of the window: 1 is exact, less are cheap tangents.
    """

    number: int | None
    horizon: int
    steps: int
    source: str = "none"
    status: str = ""
    value: float | None = None
    value_sd: float | None = None
    gradient: dict[str, float] = field(default_factory=dict)
    gradient_sd: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    tuned: tuple[str, ...] = ()
    averaged: bool = False
    products: float = 1.0

    def to_json(self) -> str:
        """Compact JSON; floats round-trip exactly, non-finite ones become null."""
        return json.dumps({"v": VERSION, **_finite(asdict(self))}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: object) -> Record | None:
        """The record that ``text`` holds; ``None`` if it is anything else. Never raises."""
        if not isinstance(text, str) or len(text) > CHUNK * MOST_CHUNKS:
            return None
        try:
            data = json.loads(text)
        except BROKEN:
            return None
        if not isinstance(data, dict) or data.get("v") is True or data.get("v") != VERSION:
            return None
        try:
            return cls(
                number=None if data.get("number") is None else _integer(data["number"]),
                horizon=_integer(data["horizon"]),
                steps=_integer(data["steps"]),
                source=_one_of(data["source"], SOURCES),
                status=str(data.get("status", ""))[:CHUNK],
                value=_number(data.get("value")),
                value_sd=_number(data.get("value_sd")),
                gradient=_numbers(data.get("gradient", {})),
                gradient_sd=_numbers(data.get("gradient_sd", {})),
                seconds=_number(data.get("seconds")) or 0.0,
                overhead_seconds=_number(data.get("overhead_seconds")) or 0.0,
                tuned=tuple(str(name) for name in data.get("tuned", ())),
                averaged=data.get("averaged") is True,
                products=_number(data.get("products", 1.0)) or 0.0,
            )
        except BROKEN:
            return None

    def write(self, trial: TrialLike) -> None:
        """Stores the record in the user attributes of ``trial``, which is not finished."""
        put(trial, RECORD, self.to_json())
        if self.value is not None and math.isfinite(self.value):
            trial.set_user_attr(FORECAST, float(self.value))

    @classmethod
    def read(cls, trial: FrozenTrial) -> Record | None:
        """The trial's own record; ``None`` if there is none, or it is broken or stale."""
        record = _parse(get(trial.user_attrs, RECORD))
        return None if record is None or _stale(record, trial) else record


@functools.lru_cache(maxsize=4096)
def _parse(text: str | None) -> Record | None:
    """A sampler reads all records of a study at every suggestion."""
    return Record.from_json(text)


def _stale(record: Record, trial: FrozenTrial) -> bool:
    """A retried trial starts with the attributes of the one that died."""
    if record.number is None or record.number == trial.number:
        return False
    return _optuna.is_retried(trial)


def record_gradient(
    trial: TrialLike,
    gradient: Mapping[str, float],
    value: float | None = None,
    gradient_sd: Mapping[str, float] | None = None,
    horizon_fraction: float = 1.0,
) -> None:
    """Stores a gradient of the objective that did not come from :class:`GlocalCallback`.

    For any differentiable objective: JAX, an adjoint solver, a formula.

    Args:
        trial: The running trial.
        gradient: d objective / d parameter by parameter name, in the units of ``suggest_*``.
        value: The objective (or the loss that ``gradient`` belongs to, if the objective is another
            quantity). Default: the objective value that the trial returns.
        gradient_sd: Standard deviations by name. Default: taken as exact, up to the noise that the
            sampler fits.
        horizon_fraction: Share of a full evaluation that was seen, in (0, 1].

    Raises:
        TypeError: If ``gradient`` or ``gradient_sd`` is not a mapping of names to numbers.
        ValueError: If ``horizon_fraction`` is outside (0, 1] or ``gradient_sd`` names a parameter
            that ``gradient`` does not.

    Example:
        >>> import optuna, optuna_glocal
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -1, 1)
        ...     optuna_glocal.record_gradient(trial, {"x": 2 * x})
        ...     return x * x
        >>> study = optuna.create_study(sampler=optuna_glocal.GlocalSampler(seed=0))
        >>> study.optimize(objective, n_trials=2)
        >>> optuna_glocal.Record.read(study.trials[0]).source
        'given'
    """
    if not 0 < horizon_fraction <= 1:
        raise ValueError(
            f"horizon_fraction: expected a number in (0, 1], got {horizon_fraction!r}. "
            "Give 1.0 if the objective was evaluated in full."
        )
    gradient = _mapping("gradient", gradient)
    sd = _mapping("gradient_sd", gradient_sd or {})
    if unknown := sorted(set(sd) - set(gradient)):
        raise ValueError(
            f"gradient_sd: expected names of gradient ({sorted(gradient)}), got {unknown}. "
            "Leave out what has no gradient."
        )
    horizon = 1_000_000
    finite = {name: g for name, g in gradient.items() if math.isfinite(g)}
    dropped = sorted(set(gradient) - set(finite))
    status = "Given by the objective." + (f" Not finite: {dropped}." if dropped else "")
    Record(
        number=trial.number if trial.number >= 0 else None,
        horizon=horizon,
        steps=round(horizon * horizon_fraction),
        source="given",
        status=status,
        value=None if value is None else float(value),
        value_sd=None if value is None else 0.0,
        gradient=finite,
        gradient_sd={name: sd[name] for name in finite if name in sd},
    ).write(trial)


def _finite(value: Any) -> Any:
    """JSON has no NaN: non-finite numbers become null, numpy scalars plain ones."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    number = int(value) if isinstance(value, (int, np.integer)) else float(value)
    return number if math.isfinite(number) else None


def _mapping(argument: str, given: Any) -> dict[str, float]:
    try:
        return {_name(name): float(number) for name, number in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            f"{argument}: expected a mapping of parameter names to numbers, got {given!r}. "
            'Give for example {"lr": -0.3}.'
        ) from None


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value) if math.isfinite(value) else None


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError
    numbers = {str(name): _number(item) for name, item in value.items()}
    return {name: item for name, item in numbers.items() if item is not None}


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _one_of(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError
    return str(value)
