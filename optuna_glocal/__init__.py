"""Optuna studies that learn from the hypergradients of torch training runs.

Inside one trial (torch)::

    training loop -> callback -> tangent Z = dθ/dλ
        -> trajectory t, L_t, h_t -> forecast -> record

Across trials (numpy, scipy)::

    record -> space [0, 1]^D -> Gaussian process on f and ∇f -> acquisition -> proposal

:class:`GlocalCallback` in the training loop, :class:`GlocalSampler` in the study; all that passes
from one to the other is the :class:`Record` that a trial leaves in Optuna's storage. The callback
either observes (it forecasts the loss and its hypergradient at the end of the run) or tunes (it
changes hyperparameters during the run). :class:`SelfTuning` is the callback of one run that tunes
itself, without a study.

The packages, each with a page of the manual as its docstring:

- ``training``: the callback, its options and its two modes;
- ``tuning``: how hyperparameters change during a run; schedules and their replay;
- ``hypergradient``: derivatives of weights and loss with respect to hyperparameters;
- ``forecasting``: what the first steps tell about the last one; Koopman operators;
- ``storage``: what a trial leaves in Optuna's storage;
- ``sampler``: the sampler, its Gaussian process and its acquisition function;
- ``analysis``: what a study says of its hyperparameters;
- ``visualization``: figures; ``integrations``: Lightning, Hugging Face.

Symbols throughout: λ hyperparameters (q of them), θ params, t step, T horizon, τ window, L
validation loss, h_t local, h_T global and ĥ_T glocal hypergradient (Hataya & Kawahara,
arXiv 2402.02741).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna_glocal._log import join_optuna
from optuna_glocal.analysis.best_hyperparameters import best_hyperparameters
from optuna_glocal.analysis.summary import Summary, summary
from optuna_glocal.forecasting.forecast import Forecast, Status, forecast
from optuna_glocal.forecasting.free_gradient import free_gradient
from optuna_glocal.forecasting.trajectory import Trajectory
from optuna_glocal.sampler.sampler import GlocalSampler
from optuna_glocal.storage.given_gradient import record_gradient
from optuna_glocal.storage.record import Record
from optuna_glocal.storage.vector import Vector, suggest_vector
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.tuning.schedule import Schedule

if TYPE_CHECKING:
    from optuna_glocal.training.callback import GlocalCallback
    from optuna_glocal.training.one_run import SelfTuning

__version__ = "0.2.0"

join_optuna()

__all__ = [
    # in the training loop, and in the study
    "GlocalCallback",
    "GlocalSampler",
    # one training run, without a study
    "SelfTuning",
    # a vector of hyperparameters, in a study and in one run
    "suggest_vector",
    "Vector",
    # how a trial is observed, or tunes itself
    "Observe",
    "Tune",
    # what passes from one to the other
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
    "best_hyperparameters",
    # what a self-tuning trial leaves
    "Schedule",
]

# Imported at first use: torch costs a worker that only samples seconds and hundreds of MB.
_NEEDS_TORCH = {"GlocalCallback": "training.callback", "SelfTuning": "training.one_run"}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        from importlib import import_module

        found = getattr(import_module(f"optuna_glocal.{_NEEDS_TORCH[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
