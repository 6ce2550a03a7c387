"""A run that is interrupted and resumed: everything that its rest depends on, as plain data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from optuna_glocal.hypergradient.optimizers import group_entries, group_entry, set_group_entry
from optuna_glocal.hypergradient.optimizers.param_group import unwrapped
from optuna_glocal.hypergradient.stateful import plain
from optuna_glocal.training.folds import Fold
from optuna_glocal.training.mode import Mode
from optuna_glocal.training.options import Observe, Tune
from optuna_glocal.training.run import Run
from optuna_glocal.training.step_hooks import StepHooks
from optuna_glocal.tuning.weight_averaging import Averages

VERSION = 1


class Resumable:
    """The part of the callback that lets a run be resumed, in this process or in another."""

    horizon: int
    _trial: Any
    _optimizer: torch.optim.Optimizer
    _options: Observe | Tune
    _averages: Averages | None
    _mode: Mode | None
    _run: Run
    _hooks: StepHooks
    _fold: Fold
    _is_open: bool
    _best: tuple[float, int]
    _compared_at: int
    # Whether the state tells where the hyperparameters start, not the trial.
    _starts_anywhere = False

    def state_dict(self) -> dict[str, Any]:
        """Everything of the callback's that the rest of the run depends on.

        To be saved between two steps, beside the states of model, optimizer, schedulers and random
        numbers. Plain tensors and numbers, which ``torch.load(..., weights_only=True)`` reads. It
        holds copies: in a trial that tunes itself up to three of the model's parameters (the
        averages), in the first quarter of the run up to two more and the optimizer's state.

        Raises:
            ValueError: Before the ``with`` block.
        """
        if self._mode is None:
            raise ValueError("state_dict: expected inside the with block, got before it.")
        run = self._run
        return {
            "version": VERSION,
            "run": self._fold.run,
            **self._described(),
            "steps": self._hooks.count,
            "best": self._best,
            "compared_at": self._compared_at,
            "shield": run.shield.state_dict(),
            "meter": run.meter.state_dict(),
            "validation": run.validation.state_dict(),
            "bindings": run.bindings.state_dict(),
            "averages": plain(self._averages),
            "mode": self._mode.state_dict(),
        }

    def _described(self) -> dict[str, Any]:
        """What must be the same in the run that goes on."""
        groups = self._optimizer.param_groups
        boxes = {n: (c.kind, c.low, c.high) for n, c in self._run.coordinates.items()}
        return {
            "horizon": self.horizon,
            "tuner": self._options.by if isinstance(self._options, Tune) else "none, it observes",
            "hyperparameters": sorted(boxes),
            "start": self._run.bindings.start,
            "boxes": boxes if isinstance(self._options, Tune) else {},
            "options": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self._options).items()
            },
            "optimizer": type(self._optimizer).__name__,
            "model": [[list(p.shape) for p in group["params"]] for group in groups],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` has returned, bit for bit.

        Inside the ``with`` block and before the first backward, after model, optimizer and
        schedulers have been loaded::

            with GlocalCallback(trial, optimizer, validation_loss, horizon=1000) as glocal:
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
                glocal.load_state_dict(saved["glocal"])

        Call :meth:`bind` as in the first part, before the optimizer is loaded. An observed run
        that was interrupted in its window has hypergradients of the steps until then; its tangents
        are not continued, which its status says. The trial may be another one with the same
        parameters (one that retries a trial whose worker died).

        Args:
            state: Of a run with the same model, optimizer, hyperparameters, horizon and options.

        Raises:
            ValueError: If it is of another run, which the message says; outside the ``with``
                block; or after a backward.
        """
        self._check(state)
        state = on_device(self._optimizer.param_groups[0]["params"][0].device, state)
        run = self._run
        self._fold.resume(str(state["run"]))
        value, when = state["best"]
        self._best = float(value), int(when)
        self._compared_at = int(state.get("compared_at", -1))
        run.bindings.load_state_dict(state["bindings"])
        run.shield.load_state_dict(state["shield"])
        run.meter.load_state_dict(state["meter"])
        run.validation.load_state_dict(state["validation"])
        if self._mode is not None:
            self._mode.load_state_dict(state["mode"])
        if self._averages is not None:  # which a tuner that is made anew has told to wait
            self._averages.load_state_dict(state["averages"])
        # What made a run tune has moved what it was made of.
        run.bindings.load_state_dict(state["bindings"])
        self._hooks.count = int(state["steps"])

    def _check(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or state.get("version") != VERSION:
            raise ValueError(
                f"state: expected what state_dict() of version {VERSION} has returned, got "
                f"{_brief(state)}. Save glocal.state_dict() and load it again."
            )
        if not self._is_open or self._hooks.has_seen_backward:
            got = "after a backward" if self._is_open else "outside it"
            raise ValueError(
                "load_state_dict: expected inside the with block, before the first backward, got "
                f"a call {got}. Move it to the top of the block."
            )
        for name, own in self._described().items():
            given = state.get(name)
            if name == "start" and self._starts_anywhere:
                continue
            if not _equal(own, given):
                what, own, given = _where(name, own, given)
                raise ValueError(
                    f"state: expected that of a run with the same {what} as this one, {own}, got "
                    f"{given}. Resume with what the run was begun with, or do not load the state."
                )


@contextlib.contextmanager
def at_start(optimizer: Any, state: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside, bound entries are what they were at the start of the run that ``state`` is of.

    A framework loads the optimizer before the callback is made, which binds hyperparameters by the
    values that they started with.
    """
    starts = {} if state is None else state["bindings"]["starts"]
    entries = (
        [] if state is None else [(i, entry) for i, entry, *_ in state["bindings"]["entries"]]
    )
    groups = unwrapped(optimizer).param_groups
    kept = [(i, e) for i, e in entries if i < len(groups) and e in group_entries(groups[i])]
    held = {key: group_entry(groups[key[0]], key[1]) for key in kept}
    for i, entry in kept:
        set_group_entry(groups[i], entry, starts[i, entry])
    try:
        yield
    finally:
        for (i, entry), value in held.items():
            set_group_entry(groups[i], entry, value)


def on_device(device: torch.device, value: Any) -> Any:
    """All tensors but single numbers on ``device``, wherever they were loaded to."""
    if isinstance(value, Tensor):
        is_random_state = value.dtype == torch.uint8
        return value if value.ndim == 0 or is_random_state else value.to(device)
    if isinstance(value, Mapping):
        return {key: on_device(device, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(device, item) for item in value)
    return value


def _equal(own: Any, given: Any) -> bool:
    """Equal but for the rounding of a trial's parameters to single precision."""
    if isinstance(own, float) and isinstance(given, (int, float)):
        return bool(abs(own - given) <= 1e-6 * abs(own))
    if isinstance(own, dict) and isinstance(given, dict):
        return own.keys() == given.keys() and all(_equal(own[k], given[k]) for k in own)
    if isinstance(own, (list, tuple)) and isinstance(given, (list, tuple)):
        return len(own) == len(given) and all(map(_equal, own, given))
    return bool(own == given)


def _where(name: str, own: Any, given: Any) -> tuple[str, Any, Any]:
    """The first part that differs, in words."""
    if isinstance(own, dict) and isinstance(given, dict) and own.keys() == given.keys():
        key = next(k for k in own if not _equal(own[k], given[k]))
        return f"{name} {key}", own[key], given[key]
    if name == "model" and isinstance(given, list):
        mine, theirs = ([s for group in groups for s in group] for groups in (own, given))
        for j, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if a != b:
                return f"model (shape of parameter {j})", a, b
        return "model (parameters by group)", [len(g) for g in own], [len(g) for g in given]
    return name, own, given


def _brief(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a dict with the keys {list(state)[:5]}, version {state.get('version')!r}"
    return type(state).__name__
