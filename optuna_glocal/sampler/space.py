"""Optuna's distributions as a unit cube, and the chain rule between the two.

A float or int parameter x becomes u = (t(x) - low) / width, with t = log where the distribution is
logarithmic. Where it has steps, half a step of margin is added on both sides, so that every level
owns an equal share of [0, 1]. A categorical parameter becomes the index of its choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_glocal._arrays import FloatArray, Indices

# Up to this number of values all values of a discrete dimension are tried in a search.
_ENUMERATE = 32


@dataclass(frozen=True)
class Space:
    """A fixed set of parameters as dimensions, in the order of their names.

    Attributes:
        distributions: By name.
        low: Lower edge of t(x), margins included, shape (D,).
        width: Its range, shape (D,); 1 for a single value.
        log: Whether t = log, shape (D,).
        step: Distance between levels in x; 0 for continuous dimensions, shape (D,).
        counts: Number of levels or choices; 0 for continuous dimensions, shape (D,).
        categorical: Whether the dimension is categorical, shape (D,).
    """

    distributions: dict[str, BaseDistribution]
    low: FloatArray
    width: FloatArray
    log: npt.NDArray[np.bool_]
    step: FloatArray
    counts: FloatArray
    categorical: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, distributions: Mapping[str, BaseDistribution]) -> Space:
        """The space of ``distributions``.

        Raises:
            TypeError: For a distribution that is not float, int or categorical.
        """
        ordered = dict(sorted(distributions.items()))
        rows = [_edges(name, distribution) for name, distribution in ordered.items()]
        low, width, log, step, counts, categorical = zip(*rows, strict=True) if rows else ((),) * 6
        return cls(
            ordered,
            np.array(low, dtype=float),
            np.array(width, dtype=float),
            np.array(log, dtype=bool),
            np.array(step, dtype=float),
            np.array(counts, dtype=float),
            np.array(categorical, dtype=bool),
        )

    @property
    def discrete(self) -> Indices:
        """Dimensions with finitely many values."""
        return np.flatnonzero(self.counts > 0)

    @property
    def continuous(self) -> Indices:
        """All other dimensions."""
        return np.flatnonzero(self.counts == 0)

    @property
    def gaps(self) -> FloatArray:
        """The largest distance between two neighbouring levels, shape (D,); 0 without levels."""
        gaps = np.zeros(len(self.counts))
        for i in np.flatnonzero((self.counts > 1) & ~self.categorical):
            gaps[i] = np.diff(self._levels(int(i), np.array([0.0, 1.0])))[0]
        return gaps

    def raw(self, params: Mapping[str, Any]) -> list[float]:
        """Values in the user's units; for categorical parameters the index of the choice.

        Raises:
            KeyError: If a parameter is missing.
            ValueError: If a choice is not one of its distribution's, or a value on a log scale is
                not positive.
        """
        return [d.to_internal_repr(params[name]) for name, d in self.distributions.items()]

    def to_unit(self, R: FloatArray) -> FloatArray:
        """Points of the raw values ``R`` (n, D), clipped into the cube, shape (n, D)."""
        inside = np.clip(R, self._bottom, self._top)
        u = (self._t(inside) - self.low) / self.width
        return np.asarray(np.where(self.categorical, R, np.clip(u, 0.0, 1.0)))

    def encode(self, params: Mapping[str, Any]) -> FloatArray:
        """The point of ``params``, shape (D,); raises what :meth:`raw` raises."""
        return np.asarray(self.to_unit(np.array([self.raw(params)], dtype=float))[0])

    def decode(self, x: FloatArray) -> dict[str, Any]:
        """The parameters of the point ``x`` (D,), rounded to levels, as plain Python values."""
        params: dict[str, Any] = {}
        for i, (name, distribution) in enumerate(self.distributions.items()):
            if isinstance(distribution, CategoricalDistribution):
                index = min(max(int(x[i]), 0), len(distribution.choices) - 1)
                params[name] = distribution.to_external_repr(index)
            elif isinstance(distribution, IntDistribution):
                level = round((self._value(i, x[i]) - distribution.low) / distribution.step)
                level = min(max(level, 0), int(self.counts[i]) - 1)
                params[name] = int(distribution.low + level * distribution.step)
            elif isinstance(distribution, FloatDistribution):
                value = self._value(i, x[i])
                if distribution.step is not None:
                    level = round((value - distribution.low) / distribution.step)
                    value = distribution.low + level * distribution.step
                params[name] = float(min(max(value, distribution.low), distribution.high))
        return params

    def gradient(
        self, R: FloatArray, partials: FloatArray, sds: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Partials and their variances in the unit cube, shapes (n, D); NaN where absent.

        dL/du = dL/dx · width, times x on a log scale. An int is treated as continuous. Categories
        and values outside their range have no partials.

        Args:
            R: Raw values, shape (n, D).
            partials: dL/dx, shape (n, D); NaN where absent.
            sds: Standard deviations of ``partials``, shape (n, D).
        """
        with np.errstate(over="ignore", invalid="ignore"):
            scale = self.width * np.where(self.log, R, 1.0)
            G, variance = scale * partials, (scale * sds) ** 2
            inside = (R >= self._bottom) & (R <= self._top) & ~self.categorical
        absent = ~(np.isfinite(G) & np.isfinite(variance) & inside)
        return np.where(absent, np.nan, G), np.where(absent, np.nan, variance)

    @property
    def _bottom(self) -> FloatArray:
        return self._edge("low", -np.inf)

    @property
    def _top(self) -> FloatArray:
        return self._edge("high", np.inf)

    def _edge(self, name: str, otherwise: float) -> FloatArray:
        edges = [getattr(d, name, otherwise) for d in self.distributions.values()]
        return np.array(edges, dtype=float)

    def snap(self, X: FloatArray) -> FloatArray:
        """The nearest points of the space, shape (m, D)."""
        X = np.array(X, dtype=float)
        for i in self.discrete:
            if self.categorical[i]:
                X[:, i] = np.clip(np.round(X[:, i]), 0, self.counts[i] - 1)
            else:
                X[:, i] = self._levels(int(i), self._index(int(i), X[:, i]))
        c = self.continuous
        X[:, c] = np.clip(X[:, c], 0.0, 1.0)
        return X

    def from_unit(self, U: FloatArray) -> FloatArray:
        """Points of the space from uniform numbers in [0, 1), shape (m, D)."""
        scaled = np.where(self.categorical, np.floor(U * self.counts), U)
        return self.snap(scaled)

    def neighbours(self, i: int, x: float) -> FloatArray:
        """Values of discrete dimension ``i`` worth trying from ``x``.

        All values if they are few, else those at distances 1, 2, 4, 8, ... levels from ``x``.
        """
        count = int(self.counts[i])
        if self.categorical[i]:
            return np.arange(count, dtype=float)
        if count <= _ENUMERATE:
            return self._levels(i, np.arange(count, dtype=float))
        reach = 2.0 ** np.arange(np.ceil(np.log2(count)))
        here = self._index(i, np.array([x]))[0]
        around = np.concatenate([here - reach, [here], here + reach])
        return self._levels(i, np.unique(np.clip(around, 0, count - 1)))

    def _t(self, R: FloatArray) -> FloatArray:
        return np.where(self.log, np.log(np.where(self.log, R, 1.0)), R)

    def _value(self, i: int, u: float) -> float:
        t = self.low[i] + float(u) * self.width[i]
        return float(np.exp(t)) if self.log[i] else float(t)

    def _first(self, i: int) -> float:
        """The value of the lowest level."""
        low = float(np.exp(self.low[i])) if self.log[i] else float(self.low[i])
        return low + 0.5 * float(self.step[i])

    def _index(self, i: int, u: FloatArray) -> FloatArray:
        t = self.low[i] + np.clip(u, 0.0, 1.0) * self.width[i]
        value = np.exp(t) if self.log[i] else t
        index = np.round((value - self._first(i)) / self.step[i])
        return np.asarray(np.clip(index, 0, self.counts[i] - 1))

    def _levels(self, i: int, index: FloatArray) -> FloatArray:
        value = self._first(i) + index * self.step[i]
        t = np.log(value) if self.log[i] else value
        return np.asarray((t - self.low[i]) / self.width[i])


def _edges(
    name: str, distribution: BaseDistribution
) -> tuple[float, float, bool, float, float, bool]:
    """low, width, log, step, count, categorical of one dimension."""
    if isinstance(distribution, CategoricalDistribution):
        return 0.0, 1.0, False, 1.0, float(len(distribution.choices)), True
    if not isinstance(distribution, (FloatDistribution, IntDistribution)):
        raise TypeError(
            f"search_space: expected float, int or categorical distributions, got "
            f"{distribution!r} for {name!r}. Suggest it with one of Optuna's suggest_* methods."
        )
    step = float(distribution.step or 0.0)
    low, high = distribution.low - 0.5 * step, distribution.high + 0.5 * step
    count = round((distribution.high - distribution.low) / step) + 1.0 if step else 0.0
    if distribution.log:
        low, high = float(np.log(low)), float(np.log(high))
    width = float(high) - float(low)
    if not width > 0.0:  # a single value sits in the middle
        return float(low) - 0.5, 1.0, distribution.log, step, count, False
    return float(low), width, distribution.log, step, count, False
