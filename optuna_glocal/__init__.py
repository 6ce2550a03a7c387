"""Optuna studies that learn from the hypergradients of torch training runs.

Inside one trial (torch)::

    training loop -> callback -> tangent Z = dθ/dλ -> trajectory (t, L_t, h_t) -> koopman -> record

Across trials (numpy, scipy)::

    record -> space [0, 1]^D -> gp on f and ∇f -> acquisition -> sampler -> proposal

Two doors, :class:`GlocalCallback` in the training loop and :class:`GlocalSampler` in the study,
and one seam between them: the :class:`Record` that a trial leaves in Optuna's storage. Symbols
throughout: λ hyperparameters (q of them), θ params, t step, T horizon, τ window, L validation
loss, h_t local, h_T global and ĥ_T glocal hypergradient (Hataya & Kawahara, arXiv 2402.02741).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna_glocal._log import join_optuna
from optuna_glocal.analysis.summary import Summary, summary
from optuna_glocal.forecasting.forecast import Forecast, Status, forecast
from optuna_glocal.forecasting.free_gradient import free_gradient
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.sampler.sampler import GlocalSampler
from optuna_glocal.storage.record import Record, record_gradient
from optuna_glocal.training.options import Observe, Tune

if TYPE_CHECKING:
    from optuna_glocal.training.callback import GlocalCallback
    from optuna_glocal.tuning.schedule import Schedule

__version__ = "0.1.0"

join_optuna()

__all__ = [
    # the two doors
    "GlocalCallback",
    "GlocalSampler",
    # how a trial is observed, or tunes itself
    "Observe",
    "Tune",
    # the seam
    "Record",
    "record_gradient",
    # the estimate
    "Trajectory",
    "Forecast",
    "Status",
    "forecast",
    "free_gradient",
    # a finished study
    "Summary",
    "summary",
    # what a self-tuning trial leaves
    "Schedule",
]

_NEEDS_TORCH = {"GlocalCallback": "training.callback", "Schedule": "tuning.schedule"}


def __getattr__(name: str) -> Any:
    # The sampler alone must not load torch: it costs seconds and hundreds of MB per worker.
    if name in _NEEDS_TORCH:
        from importlib import import_module

        return getattr(import_module(f"optuna_glocal.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
