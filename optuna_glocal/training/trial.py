"""The trial, as the callback needs it: its float parameters, processes and warnings."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.distributed import DEEPSPEED, all_ranks, ranks_of
from optuna_glocal.hypergradient.validation import Validation
from optuna_glocal.training.cost import Meter
from optuna_glocal.training.run import Run
from optuna_glocal.training.shield import Shield
from optuna_glocal.tuning.transforms import Coordinate

_ITSELF = "Pass the optimizer itself, not a scheduler or a class."
_logger = logging.getLogger("optuna_glocal")


def float_params(trial: Any) -> dict[str, float]:
    """The trial's float parameters, the ones that can have a hypergradient."""
    return {
        name: float(value)
        for name, value in trial.params.items()
        # By name, so that this file needs no Optuna; FixedTrial may hold an int for a float.
        if type(trial.distributions.get(name)).__name__ == "FloatDistribution"
    }


def scales(trial: Any) -> dict[str, float]:
    """dλ/du by hyperparameter, with u in the unit interval that the sampler works in."""
    out = {}
    for name, value in float_params(trial).items():
        d = trial.distributions[name]
        width = value * math.log(d.high / d.low) if d.log else d.high - d.low
        out[name] = width or 1.0
    return out


def coordinates(trial: Any) -> dict[str, Coordinate]:
    """The scale on which each float parameter moves in a trial that tunes itself."""
    held = {name: trial.distributions[name] for name in float_params(trial)}
    return {name: Coordinate.of(d.low, d.high, d.log) for name, d in held.items()}


def is_shared(trial: Any) -> bool:
    """Whether every process of a distributed training holds this trial.

    Told by the class's name, since ``TorchDistributedTrial`` is not in Optuna itself.
    """
    return any(cls.__name__ == "TorchDistributedTrial" for cls in type(trial).__mro__)


def is_on_every_rank(trial: Any) -> bool:
    """Whether every process of a distributed training has a callback.

    With a trial that they share, and in a run without a study, which is the same script on all and
    whose boxes may stand for its trial.
    """
    return is_shared(trial) or getattr(trial, "is_one_run", isinstance(trial, Mapping))


def is_maximised(trial: Any) -> bool:
    """Whether the study's (first) objective is maximised; not so for a trial without a study.

    Where several processes hold the trial, only rank 0 knows the study, and tells the others.
    """
    study = getattr(getattr(trial, "_delegate", None) or trial, "study", None)
    known = study is not None and study.directions[0].name == "MAXIMIZE"
    if not is_shared(trial):
        return known
    told = [known]
    dist.broadcast_object_list(told, src=0)
    return told[0]


class _Collected:
    def __init__(self, number: int) -> None:
        self.number = number
        self.attrs: list[tuple[str, Any]] = []

    def set_user_attr(self, key: str, value: Any) -> None:
        self.attrs.append((key, value))


@contextlib.contextmanager
def written_alike(trial: Any) -> Iterator[Any]:
    """A stand-in for a shared trial; on leaving, all ranks set the attributes that rank 0 set.

    ``TorchDistributedTrial.set_user_attr`` is a collective, and the ranks' own records, which
    differ in their seconds, may be split into different numbers of attributes. Any other trial is
    given as it is.
    """
    if not is_shared(trial):
        yield trial
        return
    collected = _Collected(trial.number)
    yield collected
    told = [collected.attrs]
    dist.broadcast_object_list(told, src=0)
    for key, value in told[0]:
        trial.set_user_attr(key, value)


def is_first(trial: Any) -> bool:
    """Whether this process logs for the trial: where the ranks share it, rank 0 does."""
    return not isinstance(trial, _Collected) or dist.get_rank() == 0


def trial_like(trial: Any) -> Any:
    """An Optuna trial of any kind.

    Raises:
        TypeError: If it lacks what a trial has.
    """
    for attribute in ("number", "params", "distributions", "set_user_attr"):
        if not hasattr(trial, attribute):
            raise TypeError(
                f"trial: expected an Optuna trial, got {type(trial).__name__}, which has no "
                f"{attribute}. Pass the objective's own trial."
            )
    return trial


def torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """A ``torch.optim`` optimizer.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer)
        is_deepspeed = kind.__module__.split(".")[0] == "deepspeed"
        cure = DEEPSPEED if is_deepspeed else _ITSELF
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {kind.__name__}. {cure}"
        )
    return optimizer


def say(trial: Any, sentence: str, warn: bool) -> None:
    """Says while the trial runs what became of its hypergradients.

    Args:
        trial: The trial.
        sentence: What to say.
        warn: As a warning, that there are no more of them; else in the log, at DEBUG.
    """
    if warn:
        text = f"{title_of(trial)} goes on without hypergradients: {sentence}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    else:
        _logger.debug("%s: %s", title_of(trial), sentence)


def run_of(
    trial: Any,
    optimizer: torch.optim.Optimizer,
    bindings: Bindings,
    validation: Validation,
    horizon: int,
) -> Run:
    """A new run of the trial; its clock starts here."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    ranks = ranks_of(params)
    shared = is_on_every_rank(trial)
    agree = ranks is not None and not ranks.refusal and (shared or ranks.size == 1)
    agreeing = ranks if agree else None
    if ranks is None and is_shared(trial):  # who average their gradients themselves
        agreeing = all_ranks(params, getattr(trial, "_group", None))
    return Run(
        optimizer=optimizer,
        bindings=bindings,
        validation=validation,
        meter=Meter(),
        shield=Shield(functools.partial(say, trial)),
        horizon=horizon,
        coordinates=coordinates(trial),
        scales=scales(trial),
        ranks=ranks,
        is_shared=shared,
        agreement=Agreement(agreeing),
    )


def title_of(trial: Any) -> str:
    """What a trial is called in the log; a run without a study has no number."""
    title: str = getattr(trial, "title", f"Trial {trial.number}")
    return title
