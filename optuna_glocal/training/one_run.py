"""One run that tunes itself, without a study: :class:`SelfTuning`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from optuna.trial import FixedTrial
from torch import Tensor

from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.schedulers.base import base_by_name
from optuna_glocal.storage.vector import Vector
from optuna_glocal.training.callback import GlocalCallback
from optuna_glocal.training.options import Tune
from optuna_glocal.training.trial import torch_optimizer

Box = tuple[float, float] | Vector


class SelfTuning(GlocalCallback):
    """One training run that tunes itself. It needs no study and no storage.

    .. note::
        Experimental, as Optuna uses the word: it may change in the next minor version.

    It is a :class:`~optuna_glocal.GlocalCallback` in every other respect: a context manager around
    the loop, with :meth:`~optuna_glocal.GlocalCallback.backward` in place of ``loss.backward()``,
    and afterwards :meth:`~optuna_glocal.GlocalCallback.best_of`,
    :meth:`~optuna_glocal.GlocalCallback.load_best`,
    :attr:`~optuna_glocal.GlocalCallback.schedule` and
    :attr:`~optuna_glocal.GlocalCallback.hyperparameters`.

    Args:
        optimizer: The run's optimizer: any dense one but LBFGS, or a wrapper around one (a
            framework's, SAM, lookahead). Of one without a closed-form rule (Muon, Adafactor, your
            own) only learning rates move.
        validation_loss: Returns the mean loss over the validation data, or a batch of it, as a
            scalar tensor that is differentiable in the model's parameters.
        horizon: T, optimizer steps of the run.
        options: How to tune: a :class:`~optuna_glocal.Tune`, whose ``hyperparameters`` are
            replaced by those that have a box. Default: ``Tune()``.
        **boxes: For each hyperparameter that moves, the lowest and the highest value that it may
            take. One that is named like an entry of the optimizer (``lr``, ``weight_decay``,
            ``beta1``, ...) starts at the optimizer's value. Any other is one of the loss, or of
            :meth:`~optuna_glocal.GlocalCallback.bind`, is had as ``run["name"]``, and starts in
            the middle of its box. A box above 0 is a logarithmic one. A
            :class:`~optuna_glocal.Vector` in place of a box is a vector of the training loss:
            ``run["name"]`` is then a tensor of its shape, all of whose entries move.

    Raises:
        TypeError: For arguments of the wrong type.
        ValueError: For arguments of a wrong value, no box, an empty box, or a start outside it.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.SGD([x], lr=1e-5)
        >>> with SelfTuning(optimizer, lambda: (x**2).sum(), horizon=200, lr=(1e-6, 1.0)) as run:
        ...     for _ in range(200):
        ...         optimizer.zero_grad()
        ...         run.backward((x**2).sum())
        ...         optimizer.step()
        >>> bool(run.hyperparameters["lr"] > 1e-3)
        True
    """

    _starts_anywhere = True

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        validation_loss: Callable[[], Tensor],
        *,
        horizon: int,
        options: Tune | None = None,
        **boxes: Box,
    ) -> None:
        inner = torch_optimizer(unwrapped(optimizer))
        if not boxes:
            raise ValueError(
                "SelfTuning: expected a box for each hyperparameter that moves, got none. Write "
                "for example lr=(1e-5, 0.1)."
            )
        if options is not None and not isinstance(options, Tune):
            raise TypeError(
                f"options: expected a Tune(...) or None, got {options!r}. Write for example "
                "options=Tune(anneal=0.2)."
            )
        checked = {name: _checked(name, box) for name, box in boxes.items()}
        starts: dict[str, float] = {}
        for name, box in checked.items():
            starts |= _starts(inner, name, box)
        named = dataclasses.replace(options or Tune(), hyperparameters=tuple(checked))
        super().__init__(
            _trial(starts, checked), optimizer, validation_loss, horizon=horizon, tune=named
        )


def callback_of(
    trial: Any,
    optimizer: torch.optim.Optimizer,
    validation_loss: Callable[[], Tensor],
    *,
    horizon: int,
    **arguments: Any,
) -> GlocalCallback:
    """The callback of a trial, or of one run without a study, where ``trial`` is its boxes.

    Raises:
        TypeError: For arguments that a run without a study does not have.
    """
    if not isinstance(trial, Mapping):
        return GlocalCallback(trial, optimizer, validation_loss, horizon=horizon, **arguments)
    tune = arguments.pop("tune", True)
    if arguments or not (tune is True or isinstance(tune, Tune)):
        given = ", ".join(arguments) or f"tune={tune!r}"
        raise TypeError(
            f"trial: expected no argument but tune=Tune(...) beside boxes, got {given}. A run "
            "without a study always tunes itself; give a trial to observe one."
        )
    options = tune if isinstance(tune, Tune) else None
    return SelfTuning(optimizer, validation_loss, horizon=horizon, options=options, **trial)


def _checked(name: str, box: Any) -> Box:
    """``box`` as two finite floats, or the vector that it is.

    Raises:
        TypeError: If it is neither a pair of numbers nor a vector.
        ValueError: If it is empty.
    """
    if isinstance(box, Vector):
        return box
    try:
        low, high = (float(end) for end in box)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected the lowest and the highest value, got {box!r}. Write for example "
            f"{name}=(1e-5, 0.1)."
        ) from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name}: expected a lowest value below the highest, both finite, got {box!r}. Write "
            f"for example {name}=(1e-5, 0.1)."
        )
    return low, high


def _starts(optimizer: torch.optim.Optimizer, name: str, box: Box) -> dict[str, float]:
    """Where a hyperparameter starts, by the trial's parameters.

    Raises:
        ValueError: If an optimizer that has made no steps holds a value outside the box, or one of
            a vector's name.
    """
    held = base_by_name(optimizer, name)
    if isinstance(box, Vector):
        if held is not None:
            raise ValueError(
                f"{name}: expected a hyperparameter of the training loss, got a Vector for an "
                f"entry of the optimizer. Give the entry a box ({name}=(low, high)), or rename "
                "the vector."
            )
        return dict.fromkeys(box.names(name), box.middle)
    low, high = box
    if held is None:
        return {name: math.sqrt(low * high) if low > 0 else (low + high) / 2}
    if optimizer.state:  # of an interrupted run, whose state will say where it stood
        return {name: min(max(held, low), high)}
    if not low <= held <= high:
        raise ValueError(
            f"{name}: expected the optimizer's value inside the box [{low:g}, {high:g}], got "
            f"{held:g}. Widen the box, or give the optimizer another start."
        )
    return {name: held}


class _OneRun(FixedTrial):
    """A trial without a study."""

    #: Where several processes train the model, each of them makes one.
    is_one_run = True
    #: In the log.
    title = "This run"


def _trial(starts: Mapping[str, float], boxes: Mapping[str, Box]) -> FixedTrial:
    """A trial without a study, which has suggested the starts within their boxes."""
    trial = _OneRun(dict(starts))
    for name, box in boxes.items():
        if isinstance(box, Vector):
            box.suggest(trial, name)
        else:
            low, high = box
            trial.suggest_float(name, low, high, log=low > 0)
    return trial
