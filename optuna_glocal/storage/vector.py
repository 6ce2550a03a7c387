"""Vectors of hyperparameters: what is suggested of one, and how a trial remembers its shape."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution

from optuna_glocal import _checks
from optuna_glocal._arrays import FloatArray
from optuna_glocal.storage.attributes import BROKEN, TrialLike
from optuna_glocal.storage.keys import VECTOR, VERSION

#: Up to this size, every entry is a parameter of the study; beyond it, all share one start.
MOST_SEPARATE = 48
# Measured; see `smoothing`.
_SMOOTHING = 0.3


class _Suggesting(TrialLike, Protocol):
    """A running trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Vector:
    """The size and the range of a vector of hyperparameters, for :class:`SelfTuning`.

    Attributes:
        size: The number of entries, or the shape of the tensor.
        low: The lowest value of an entry.
        high: The highest value of an entry.
        log: Whether entries move on a logarithmic scale; otherwise on a logistic one between
            ``low`` and ``high``. Default: logarithmic if ``low`` is above 0.
        start: Where all entries start. Default: the middle of the range, the geometric one if
            ``log``.
        fixed_mean: Whether the mean of all entries stays what it is at the start. The entries then
            move on the scale of a softmax, so ``low`` must be above 0.
        smoothing: The share of its distance from the mean of all entries that each entry loses
            in one e-fold's worth of moves, in [0, 1]. It keeps many entries from fitting a small
            validation set; 0 finds the least validation loss. Default: .3 on a logarithmic scale,
            and 0 on a logistic one, where entries (such as weights of examples) are to part.

    Raises:
        TypeError: If ``size`` is not an int or a tuple of ints, or a number is none.
        ValueError: If ``size`` is not positive, the range is empty or not finite, or ``start`` or
            ``smoothing`` is outside its range.

    Example:
        >>> Vector((8, 8), 1e-6, 1e2).middle
        0.01
    """

    size: int | tuple[int, ...]
    low: float
    high: float
    log: bool | None = None
    start: float | None = None
    fixed_mean: bool = False
    smoothing: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(self.size))
        for end in ("low", "high"):
            object.__setattr__(self, end, _checks.number(end, getattr(self, end), -math.inf))
        if not self.low < self.high:
            raise ValueError(
                f"high: expected a value above low = {self.low:g}, got {self.high:g}. Exchange "
                "them, or leave the hyperparameter out."
            )
        if self.log is None:
            object.__setattr__(self, "log", self.low > 0)
        if (_checks.flag("log", self.log) or self.fixed_mean) and self.low <= 0:
            raise ValueError(
                f"low: expected a value above 0 on a logarithmic scale and with a fixed mean, got "
                f"{self.low:g}. Pass for example low=1e-6."
            )
        if self.start is not None:
            _checks.number("start", self.start, self.low, self.high)
        _checks.flag("fixed_mean", self.fixed_mean)
        if self.smoothing is None:
            object.__setattr__(self, "smoothing", _SMOOTHING if self.log else 0.0)
        _checks.number("smoothing", self.smoothing, 0.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (self.size,) if isinstance(self.size, int) else self.size

    @property
    def count(self) -> int:
        """q, the number of entries."""
        return math.prod(self.shape)

    @property
    def middle(self) -> float:
        """Where entries start by default."""
        if self.start is not None:
            return self.start
        if self.log:
            return math.sqrt(self.low) * math.sqrt(self.high)
        return (self.low + self.high) / 2

    @property
    def is_separate(self) -> bool:
        """Whether every entry is a parameter of the study of its own."""
        return self.count <= MOST_SEPARATE

    def names(self, name: str) -> list[str]:
        """The study's parameters of the vector ``name``: one per entry, or one for all.

        Args:
            name: Name of the vector.
        """
        if not self.is_separate:
            return [name]
        if isinstance(self.size, int):
            return [f"{name}[{i}]" for i in range(self.size)]
        return [f"{name}[{','.join(map(str, at))}]" for at in np.ndindex(*self.size)]

    def suggest(self, trial: _Suggesting, name: str) -> FloatArray:
        """Suggests it, as :func:`suggest_vector` does, and returns where the entries start.

        Args:
            trial: The running trial.
            name: Name of the vector.
        """
        low, high, log = self.low, self.high, bool(self.log)
        starts = [trial.suggest_float(each, low, high, log=log) for each in self.names(name)]
        trial.set_user_attr(VECTOR + name, self.to_json())
        values: FloatArray = np.empty(self.count)
        values[:] = starts
        return values.reshape(self.shape)

    def to_json(self) -> str:
        """What :meth:`from_json` reads."""
        shape = self.size if isinstance(self.size, int) else list(self.size)
        about = {"v": VERSION, "size": shape, "low": self.low, "high": self.high, "log": self.log}
        about |= {"fixed_mean": self.fixed_mean, "smoothing": self.smoothing}
        return json.dumps(about, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: Any) -> Vector | None:
        """The vector in ``text``; ``None`` if there is none. Never raises."""
        try:
            about = json.loads(text)
            if about.pop("v") != VERSION:
                return None
            size = about.pop("size")
            return cls(tuple(size) if isinstance(size, list) else size, **about)
        except BROKEN:
            return None


def suggest_vector(
    trial: _Suggesting,
    name: str,
    size: int | tuple[int, ...],
    low: float,
    high: float,
    *,
    log: bool = False,
    fixed_mean: bool = False,
    smoothing: float | None = None,
) -> FloatArray:
    """Suggests a vector of hyperparameters, such as one regularisation strength per feature.

    In the training loop, ``glocal[name]`` is a tensor of this shape. In a trial that tunes itself
    all entries move, whatever their number: one mixed product gives the hypergradients of all of
    them. Where they ended stands in the trial
    (:func:`~optuna_glocal.best_hyperparameters`, :func:`~optuna_glocal.summary`,
    ``visualization.plot_vector``).

    Up to 48 entries, each one is a float parameter of the study (``l2[0]``, ``l2[1]``, ...), which
    the sampler suggests. A larger vector is one parameter, the start of all entries, so that
    storages and dashboards have to bear no more.

    Args:
        trial: The running trial.
        name: Name of the vector.
        size: The number of entries, or the shape of the tensor.
        low: The lowest value of an entry.
        high: The highest value of an entry.
        log: Whether entries are suggested and moved on a logarithmic scale; otherwise suggested
            on a linear and moved on a logistic one.
        fixed_mean: Whether the mean of all entries stays at its start while they move.
        smoothing: See :class:`~optuna_glocal.Vector`.

    Returns:
        Where the entries start, of the shape ``size``.

    Raises:
        TypeError: If ``size`` is not an int or a tuple of ints, or a number is none.
        ValueError: If ``size`` is not positive, or the range is empty.

    Example:
        >>> import optuna
        >>> trial = optuna.create_study().ask()
        >>> suggest_vector(trial, "l2", 1000, 1e-6, 1e2, log=True).shape, list(trial.params)
        ((1000,), ['l2'])
    """
    vector = Vector(size, low, high, log, fixed_mean=fixed_mean, smoothing=smoothing)
    return vector.suggest(trial, name)


class SuggestedVectors(Protocol):
    """A trial that may have suggested vectors."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]: ...  # noqa: D102

    @property
    def user_attrs(self) -> Mapping[str, Any]: ...  # noqa: D102


def vectors_of(trial: SuggestedVectors) -> dict[str, Vector]:
    """The vectors that a trial has suggested, by name; none where that cannot be read."""
    attrs: Mapping[str, Any] = {}
    with contextlib.suppress(Exception):  # a storage that cannot be reached now
        attrs = trial.user_attrs
    found = {}
    for key, text in attrs.items():
        if key.startswith(VECTOR) and (vector := Vector.from_json(text)) is not None:
            name = key[len(VECTOR) :]
            if all(each in trial.distributions for each in vector.names(name)):
                found[name] = vector
    return found


def _size(size: Any) -> int | tuple[int, ...]:
    """``size`` as a positive int or a tuple of them.

    Raises:
        TypeError, ValueError: If it is neither.
    """
    sides = size if isinstance(size, tuple) else (size,)
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)):
            raise TypeError(
                f"size: expected an int or a tuple of ints, got {size!r}. Pass for example 64 or "
                "(8, 8)."
            )
        if side <= 0:
            raise ValueError(f"size: expected at least 1 entry, got {size!r}. Pass a larger one.")
    if not sides:
        raise ValueError(
            "size: expected at least one side, got (). Suggest a single hyperparameter with "
            "trial.suggest_float."
        )
    whole = tuple(int(side) for side in sides)
    return whole if isinstance(size, tuple) else whole[0]
