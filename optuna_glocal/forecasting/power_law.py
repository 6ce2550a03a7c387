"""Local hypergradients continued to the horizon: the diagonal operator of dilation, with a bend.

Koopman's idea is to follow observables by a linear operator. Here it is the operator of dilation,
which takes a run at time t to time e^δ t (t: effective time), and the observables are the h_i
themselves: each is taken for an eigenfunction with the eigenvalue e^(p_i δ). Such an operator is
diagonal, and what it says of the horizon is that each coordinate continues as the power of time
that it follows now. The exponent changes in proportion to the predicted change of log L:

    ĥ_i = h_i (T/τ)^(p_i + β log(L̂_T / L_τ))

where h_i is the mean over the newest tenth of the time, p_i = dlog|h_i| / dlog t over the newest
60 %, and L̂_T the loss that the autoregression predicts from the same window
(:func:`~optuna_glocal.forecasting.learning_curve.log_drop`). Putting the true L_T in its place is
worse: what matters is how the dynamics seen so far would continue.

A whole operator of dilation, shrunk towards this diagonal, forecasts no better, and its spectrum
tells why: ``examples/benchmarks/dilation.py``, and "Koopman in logarithmic time" in
``examples/benchmarks/README.md``. The ``source`` of this estimate is ``local``; ``koopman`` is
that of an operator fitted to delayed states in t.

There is no estimate where the hypergradients are too rough about a straight line in log t. β, that
threshold and the standard deviations were chosen on the development runs of
``examples/benchmarks/trajectories.py``; ``examples/benchmarks/README.md`` has the errors on its
report runs. A later change of sign cannot be predicted: the direction stays close to that of the
smoothed local hypergradient.
"""

from __future__ import annotations

import numpy as np

from optuna_glocal._arrays import FloatArray
from optuna_glocal.forecasting.estimate import FEWEST, Estimate, Status

_BEND = 1.2  # β
_STEEPEST = 2.0  # |p_i| at most: steeper slopes of a short window are noise
_EXPONENTS = (-4.0, 1.0)  # range of the exponent of T/τ
_FLIPPED = -1.0  # p_i where h_i has just changed its sign: it is not trusted to grow
# Roughness is the rms residual about a straight line in log t, over the size of h. Of the single
# statistics tried (drift, noise of the newest tenth, noise of the loss, disagreement with
# dL/dlog t, ...) it separated wrong directions from right ones best.
_ROUGHEST, _BLOCKS = 0.15, 5
# sd_i = log(T/τ)^¾ (ρ |ĥ_i| + κ |ĥ|/√q) + half the sd of the newest tenth; the 80 % intervals
# covered 74 to 84 %.
_RHO, _KAPPA, _POWER = 0.33, 0.012, 0.75
_TINY = 1e-290


def continued(times: FloatArray, h: FloatArray, drop: float, end: float) -> Estimate:
    """ĥ at ``end``, or why there is none.

    Args:
        times: Increasing, shape ``(m,)``, at least three.
        h: Local hypergradients, shape ``(m, q)``, finite.
        drop: log(L̂_T / L_τ).
        end: T.
    """
    largest = float(np.abs(h).max())
    x = h / largest  # squares of huge ones overflow
    rows = newest(times, x, 0.1)
    level, noise = rows.mean(axis=0), rows.std(axis=0)
    roughness = _roughness(times, x, level)
    ahead = max(0.0, float(np.log(end / times[-1]))) if times[-1] > 0 else 0.0
    slopes = _slopes(times, x)
    diagnostics = {
        "roughness": roughness,
        "slopes": slopes.tolist(),
        "log_drop": drop,
        "smoothed": (largest * level).tolist(),
    }
    if not roughness < _ROUGHEST:
        return Estimate.none(Status.UNRELIABLE, diagnostics)
    y = level * np.exp(ahead * np.clip(slopes + _BEND * drop, *_EXPONENTS))
    size = _norm(y) / np.sqrt(len(y))
    sd = ahead**_POWER * (_RHO * np.abs(y) + _KAPPA * size) + 0.5 * noise
    return Estimate(largest * y, largest * sd, Status.OK, "local", diagnostics)


def newest(times: FloatArray, x: FloatArray, share: float) -> FloatArray:
    """Rows of the last ``share`` of the time, at least three."""
    return x[-max(FEWEST, int((times > (1 - share) * times[-1]).sum())) :]


def _slopes(times: FloatArray, x: FloatArray) -> FloatArray:
    """dlog|x| / dlog t between the means of (.4, .7] and (.7, 1] of the time; 0 if unknown."""
    late, early = times > 0.7 * times[-1], times > 0.4 * times[-1]
    early &= ~late
    if not early.any() or times[early][0] <= 0:
        return np.zeros(x.shape[1])
    before, now = x[early].mean(axis=0), x[late].mean(axis=0)
    apart = np.log(times[late].mean() / times[early].mean())
    same = (before * now > 0) & (np.abs(before) > _TINY)
    slopes = np.log(np.where(same, now, 1.0) / np.where(same, before, 1.0)) / apart
    return np.clip(np.where(same, slopes, _FLIPPED), -_STEEPEST, _STEEPEST)


def _roughness(times: FloatArray, x: FloatArray, level: FloatArray) -> float:
    """Residual about straight lines in log t over the newest 60 %, as a share of ``level``.

    Taken of the means of five blocks, in which noise averages out and turns do not.
    """
    rows = newest(times, x, 0.6)
    blocks = np.array_split(np.arange(len(times) - len(rows), len(times)), min(_BLOCKS, len(rows)))
    y = np.array([x[block].mean(axis=0) for block in blocks])
    t = np.array([times[block].mean() for block in blocks])
    t = np.log(t) if t[0] > 0 else t
    t = t - t.mean()
    centred = y - y.mean(axis=0)
    left = centred - t[:, None] * (t @ centred / max(float(t @ t), _TINY))
    residual = np.sqrt((left**2).sum() / max(1, len(blocks) - 2))
    return float(residual / max(_norm(level), _TINY))


def _norm(v: FloatArray) -> float:
    return float(np.sqrt((v**2).sum()))
