"""Observations of a Gaussian process, and its hyperparameters.

Symbols as in :mod:`optuna_glocal.sampler.gp.marginal_likelihood`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.gp.kernel import Metric, Points


@dataclass(frozen=True)
class Hyperparameters:
    """What a fit determines.

    Attributes:
        lengthscales: ℓ, shape (D,).
        signal: s², variance of the signal.
        noise: σ², variance of the values' noise.
        ratios: ν, noise of each set of partials in units of their size, shape (M,).
        gains: γ, factor of each set of partials, shape (M,).
    """

    lengthscales: FloatArray
    signal: float
    noise: float
    ratios: FloatArray
    gains: FloatArray

    def to_vector(self) -> FloatArray:
        """log ℓ, log s², log σ², log ν and γ, shape (D + 2 + 2M,)."""
        scalars = np.array([self.signal, self.noise])
        logs = np.log(np.concatenate([self.lengthscales, scalars, self.ratios]))
        return np.concatenate([logs, self.gains])

    @classmethod
    def from_vector(cls, theta: FloatArray, D: int) -> Hyperparameters:
        """Inverse of :meth:`to_vector`."""
        M = (len(theta) - D - 2) // 2
        with np.errstate(over="ignore"):
            v = np.exp(theta[: D + 2 + M])
        return cls(v[:D], float(v[D]), float(v[D + 1]), v[D + 2 :], theta[D + 2 + M :])


@dataclass(frozen=True)
class Observations:
    """Values and partials of one study as one vector: first all values, then all partials.

    Attributes:
        points: Where they were observed.
        target: The observations, shape (N,).
        known: Known variances of their noise, shape (N,).
        sets: The set (source and dimension) that each partial belongs to, shape (P,).
        scale: Root mean square of the partials of each set, shape (M,); 1 where there is none.
        categorical: Whether a dimension is categorical, shape (D,).
    """

    points: Points
    target: FloatArray
    known: FloatArray
    sets: Indices
    scale: FloatArray
    categorical: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        X: FloatArray,
        y: FloatArray,
        G: FloatArray | None,
        y_var: FloatArray | None,
        G_var: FloatArray | None,
        categorical: npt.NDArray[np.bool_] | None,
        source: Indices | None = None,
    ) -> Observations:
        """The observations of n trials, without categorical dimensions and non-finite partials.

        Args:
            X: Points, shape (n, D).
            y: Values, shape (n,).
            G: Partials, shape (n, D); NaN where there is none.
            y_var: Known variances of ``y``, shape (n,).
            G_var: Known variances of ``G``, shape (n, D).
            categorical: Whether a dimension is categorical, shape (D,).
            source: Where each trial's partials come from, any integers, shape (n,).
        """
        n, D = X.shape
        kinds = np.zeros(D, dtype=bool) if categorical is None else categorical
        G = np.full((n, D), np.nan) if G is None else G
        known_y = np.zeros(n) if y_var is None else y_var
        known_G = np.zeros((n, D)) if G_var is None else G_var
        row, dim = np.nonzero(np.isfinite(G) & np.isfinite(known_G) & ~kinds)
        g = G[row, dim]
        present, index = np.unique(np.zeros(n) if source is None else source, return_inverse=True)
        sets, M = index[row] * D + dim, len(present) * D
        count = np.maximum(np.bincount(sets, minlength=M), 1)
        rms = np.sqrt(np.bincount(sets, g * g, M) / count)
        return cls(
            points=Points(X, row, dim),
            target=np.concatenate([y, g]),
            known=np.concatenate([known_y, known_G[row, dim]]),
            sets=sets,
            scale=np.where(rms > 1e-12, rms, 1.0),
            categorical=kinds,
        )

    def noise(self, hyper: Hyperparameters) -> FloatArray:
        """Variance of the noise of every observation, known plus fitted, shape (N,)."""
        fitted = (hyper.ratios * self.scale) ** 2
        n = len(self.points.X)
        fitted_all = np.concatenate([np.full(n, hyper.noise), fitted[self.sets]])
        return np.asarray(self.known + fitted_all)

    def multipliers(self, hyper: Hyperparameters) -> FloatArray:
        """Factor of each observation before its noise, shape (N,): 1 for values, else γ."""
        return np.concatenate([np.ones(len(self.points.X)), hyper.gains[self.sets]])

    def metric(self, hyper: Hyperparameters) -> Metric:
        """The distance under the fitted lengthscales."""
        return Metric(hyper.lengthscales, self.categorical)
