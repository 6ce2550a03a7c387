"""The model of a study: a fit with gradients and one without, and which of them is trusted.

The gradients are judged by leave-one-out over trials: do they help to predict a trial's value
from all *other* trials? Wrong gradients (a wrong sign, a biased forecast) do not; merely noisy
ones do, since their noise is fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from optuna_glocal._arrays import FloatArray
from optuna_glocal.sampler.dataset import Data
from optuna_glocal.sampler.gp.observations import Observations
from optuna_glocal.sampler.gp.process import GP, condition, fit

# Most values and partials, to bound the time of a suggestion. Hyperparameters are fitted on few,
# from scratch while trials are few and later from where the last fit ended; the model that is
# searched is conditioned on more.
_FIT_FEW, _FIT_MANY = (100, 130), (64, 96)
_MODEL = (500, 240)
_FEWEST_TO_JUDGE = 6
# Warm starts save half the time; every fourth fit starts from the prior's medians, since a warm
# start may lie at a poor local optimum.
_FEWEST_TO_START_WARM, _AFRESH, _MANY = 8, 4, 30
# Beyond so many trials one more hardly moves a fit: only every third is fitted.
_SETTLED, _EVERY = 64, 3
# In standard errors of the gain in log density. At 0 exact gradients of wiggly functions (Levy)
# are distrusted for longer, at 1 random directions (on Hartmann) are trusted for longer.
_BENEFIT_OF_DOUBT = 0.5
# Lower bound of a trial's log density, so that one trial cannot decide alone.
_WORST_DENSITY = -6.0
# Fitted noise of the partials, in units of their size, up to which they tell where the least value
# is. On ripples (Ackley) it is near one.
_CLEAR = 0.5


@dataclass(frozen=True)
class Surrogate:
    """A model that can be searched.

    Attributes:
        gp: Conditioned on warped data.
        best: Least value measured so far, in the model's units.
        incumbents: Best points first, shape (m, D).
        margin: Gain in log density per trial that gradients bring in leave-one-out, plus a part
            of its standard error; 0 if gradients were not judged.
        uses_gradients: Whether the model was shown gradients.
        starts: Hyperparameter vectors of the fits with and without gradients, from which the next
            trial's fits may start.
    """

    gp: GP
    best: float
    incumbents: FloatArray
    margin: float
    uses_gradients: bool
    starts: tuple[list[float], list[float]]

    @property
    def trusted(self) -> bool:
        """Whether the gradients help to predict, or there are none."""
        return self.margin >= 0.0

    @property
    def sees_slopes(self) -> bool:
        """Whether most of its partials are more signal than noise."""
        if not self.uses_gradients:
            return False
        seen = np.unique(self.gp.observations.sets)
        return bool(np.median(self.gp.hyper.ratios[seen]) < _CLEAR)

    def expecting(self, X: FloatArray) -> Surrogate:
        """The model while other workers evaluate the points ``X`` (m, D).

        Their expected values count as reached: else the next proposal would be one of them.
        """
        if not len(X):
            return self
        best = min(self.best, float(np.min(self.gp.posterior(X)[0])))
        return replace(self, gp=self.gp.with_fantasies(X), best=best)


def build(
    data: Data,
    categorical: npt.NDArray[np.bool_],
    starts: tuple[list[float], list[float]] = ([], []),
) -> Surrogate:
    """Fits the model of ``data`` (n >= 1 trials), and judges its gradients if it has any.

    Args:
        data: Values and gradients.
        categorical: Shape (D,).
        starts: Those of an earlier trial's surrogate. Ignored while trials are few.

    Raises:
        numpy.linalg.LinAlgError: If no covariance matrix can be factored.
    """
    if len(data.sources) > 1:
        one_by_one = [data.trusting(each) for each in data.sources[:, None]]
        trusted = [build(each, categorical).trusted for each in one_by_one]
        if any(trusted):
            data = data.trusting(data.sources[trusted])
    few = data.bounded(*(_FIT_MANY if len(data) > _MANY else _FIT_FEW)).warped()
    afresh = len(data) <= _FEWEST_TO_START_WARM or len(data) <= _MANY and len(data) % _AFRESH == 0
    warm = ([], []) if afresh else starts
    refit = len(data) <= _SETTLED or len(data) % _EVERY == 0
    fitted = _fit(few, categorical, warm[0], refit)
    margin, plain = 0.0, fitted
    if few.has_gradients and len(few) >= _FEWEST_TO_JUDGE:
        plain = _fit(few.without_gradients(), categorical, warm[1], refit)
        margin = _margin(fitted, plain)
    many = data.bounded(*_MODEL).warped()
    seen = Observations.of(
        many.X, many.y, many.G, many.y_var, many.G_var, categorical, many.source
    )
    gp = condition(seen, fitted.hyper)
    order = np.argsort(many.y, kind="stable")[:3]
    measured = many.y[many.y_var == 0.0]
    best = float(np.min(measured)) if len(measured) else float(np.min(gp.posterior(many.X)[0]))
    found = fitted.hyper.to_vector().tolist(), plain.hyper.to_vector().tolist()
    return Surrogate(gp, best, many.X[order], margin, few.has_gradients, found)


def _fit(data: Data, categorical: npt.NDArray[np.bool_], start: list[float], refit: bool) -> GP:
    return fit(
        data.X,
        data.y,
        data.G,
        y_var=data.y_var,
        G_var=data.G_var,
        categorical=categorical,
        source=data.source,
        start=np.array(start) if start else None,
        refit=refit,
    )


def _margin(with_gradients: GP, without: GP) -> float:
    shown, plain = (
        np.maximum(gp.log_densities(), _WORST_DENSITY) for gp in (with_gradients, without)
    )
    gain = shown - plain
    doubt = float(np.std(gain, ddof=1)) / math.sqrt(len(gain))
    return float(np.mean(gain)) + _BENEFIT_OF_DOUBT * doubt
