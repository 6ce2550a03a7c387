"""Descent along gradients, for spaces of so many dimensions that no model of the whole can be had.

Thirty values and gradients say little about a box of fifty dimensions, but a quasi-Newton method
needs no more than that to find a minimum of a smooth function in it. So L-BFGS-B (Byrd et al.
1995) makes the proposals: it is run anew each time, from the first trial on, and every evaluation
that it asks for is answered by the trial that was made there. The first one without an answer is
the next proposal. Nothing is kept between trials, and with exact gradients the study *is* a run of
L-BFGS-B.

A trial that is better than all before it but was not asked for (another worker's, an enqueued one,
the model's) becomes the start of a new run. Where the gradients mislead, several evaluations in a
row bring nothing: then the run is given up, and the model proposes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from optuna_glocal._arrays import FloatArray, Indices
from optuna_glocal.sampler.dataset import Data

# With fewer continuous dimensions the model of the whole space is better: it leaves local minima.
FEWEST_DIMENSIONS = 16
# Two points as near as this along every dimension are one: storages keep parameters, not points.
_SAME = 1e-7
# Evaluations in a row that bring nothing before a run is given up. A line search that works needs
# one or two; with wrong gradients all fail.
_PATIENCE = 5
# Length of the first step, in units of the cube's diagonal. Regret after 30 evaluations over that
# of scipy's own first step, geometric mean on four functions of 20, 50 and 100 dimensions (ten
# optima each): .70, .68, .64, .72, .79 at .001, .01, .02, .03, .1; worse beyond.
_FIRST_STEP = 0.02
# Each dimension is measured in a unit of its own, |g|^(-a/2) by the first gradient, so that
# the first step is |g|^(1-a) along each: where some are steep and others flat, neither waits for
# the other. Regret over scipy's for a = 0, .25, .5, .75, geometric mean: Rosenbrock of 20
# dimensions 18, 2.2, 1.7, 3.0, of 100 6.0, .15, .28, 2.3; turned ones 20 .04, .28, .73, 2.0; a
# turned ellipsoid of 100 .81, .92, 1.7, 3.7; logistic regression of 100 .41, .41, 20, 2458.
_EVENNESS = 0.25
# The least first partial derivative that counts, as a share of the largest.
_FLATTEST = 1e-3
# A gradient whose standard deviation is beyond this share of its length is too noisy for a line
# search.
_CLEAR = 0.3


class _Asked(Exception):
    """L-BFGS-B asks for a point that no trial has."""

    def __init__(self, x: FloatArray) -> None:
        super().__init__()
        self.x = x


class _Begins(Exception):
    """A trial that was not asked for is better than all before."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row


class _GivenUp(Exception):
    """Several evaluations in a row have brought nothing."""


def can_descend(data: Data, continuous: Indices) -> bool:
    """Whether there are enough dimensions, and a trial with a clear gradient along all of them."""
    return len(continuous) >= FEWEST_DIMENSIONS and bool(_usable(data, continuous).any())


def descend(data: Data, continuous: Indices, taken: FloatArray) -> FloatArray | None:
    """The next evaluation of L-BFGS-B, shape (D,); ``None`` if there is none worth making.

    Args:
        data: Finished trials in the order of their numbers.
        continuous: The dimensions that move, at least one; the others stay as they are in the
            trial at which a run begins.
        taken: Points that are of no use: of trials that run or failed, shape (m, D).
    """
    usable = _usable(data, continuous)
    seen = data.rows(np.flatnonzero(usable))
    taken = np.concatenate([taken, data.X[~usable]])
    begin: int | None = 0 if len(seen) else None
    while begin is not None:
        run = _Run(seen, continuous, begin)
        try:
            run.minimise()
        except _Asked as asked:
            return None if len(_at(taken, asked.x)) else asked.x
        except _Begins as better:
            begin = better.row
            continue
        except _GivenUp:
            pass
        begin = run.better_after(len(seen))
    return None


def _at(X: FloatArray, x: FloatArray) -> Indices:
    """Rows of ``X`` that are the point ``x``."""
    return np.flatnonzero(np.abs(X - x).max(axis=1) <= _SAME)


def _usable(data: Data, continuous: Indices) -> npt.NDArray[np.bool_]:
    """Trials that were measured and have a clear gradient, shape (n,)."""
    G, G_var = data.G[:, continuous], data.G_var[:, continuous]
    length = np.sum(G**2, axis=1)
    noise = np.sum(np.nan_to_num(G_var, nan=np.inf), axis=1)
    with np.errstate(invalid="ignore"):
        clear = noise <= _CLEAR**2 * length
    return np.asarray((data.y_var == 0.0) & np.isfinite(length) & clear)


@dataclass
class _Run:
    """L-BFGS-B from one trial on, answered by later ones.

    Attributes:
        data: Usable trials, in the order of their numbers.
        dims: The dimensions that move.
        begin: Row of the trial at which the run begins.
    """

    data: Data
    dims: Indices
    begin: int
    _newest: int = field(init=False)
    _best: float = field(init=False)
    _in_vain: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._newest = self.begin
        self._best = float(np.min(self.data.y[: self.begin + 1]))

    def minimise(self) -> None:
        """Runs until something is missing, or the minimum is reached."""
        start, G = self.data.X[self.begin, self.dims], self.data.G[self.begin, self.dims]
        if not np.any(G):
            return
        # L-BFGS-B's first step in a box is the negative gradient in its own units.
        steepness = np.maximum(np.abs(G) / np.max(np.abs(G)), _FLATTEST)
        unit = steepness ** (-_EVENNESS / 2)
        scale = _FIRST_STEP * np.sqrt(len(self.dims)) / float(np.linalg.norm(unit**2 * G))

        def evaluate(z: FloatArray) -> tuple[float, FloatArray]:
            value, gradient = self._answer(np.clip(z * unit, 0.0, 1.0))
            return value * scale, gradient * unit * scale

        minimize(
            evaluate,
            start / unit,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0 / each) for each in unit],
            options={"maxcor": 20, "maxiter": 10_000, "ftol": 0.0, "gtol": 1e-12},
        )

    def better_after(self, end: int) -> int | None:
        """The first row since the newest answer that is better than all before it."""
        best = self._best
        for row in range(self._newest + 1, end):
            if self.data.y[row] < best:
                return row
        return None

    def _answer(self, part: FloatArray) -> tuple[float, FloatArray]:
        x = self.data.X[self.begin].copy()
        x[self.dims] = part
        row = self._row_of(x)
        end = len(self.data) if row is None else row
        if (better := self.better_after(end)) is not None:
            raise _Begins(better)
        if row is None:
            raise _Asked(x)
        self._note(row)
        return float(self.data.y[row]), self.data.G[row, self.dims]

    def _row_of(self, x: FloatArray) -> int | None:
        """The first row from the newest answer on that is at ``x``."""
        found = _at(self.data.X[self._newest :], x)
        return self._newest + int(found[0]) if len(found) else None

    def _note(self, row: int) -> None:
        value = float(self.data.y[row])
        is_first = row == self.begin
        self._newest = row  # no earlier one is looked for
        self._in_vain = 0 if value < self._best or is_first else self._in_vain + 1
        self._best = min(self._best, value)
        if self._in_vain >= _PATIENCE:
            raise _GivenUp
