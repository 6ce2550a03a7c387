"""How a trial is observed or tuned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optuna_glocal._checks import step_count
from optuna_glocal.tuning.transforms import Coordinate

# Steps between moves where the user names none, up to 2000 steps and beyond. A move in every step
# costs a third more and ends one run at 1.00 of the loss (digits, T = 300, seeds 0-7; at .95 under
# label noise); a study of such runs is level at equal compute.
_EVERY, _LONG, _EVERY_LONG = 2, 2000, 5


# Windows per trial where it tunes itself by "local" or "glocal": 20 or 30 of them ended 1.2 to 3
# times above 60 (digits, SGD and AdamW, T = 300, seeds 0-2).
_WINDOWS = 60


@dataclass(frozen=True)
class Settings:
    """How a trial tunes itself; see :class:`~optuna_glocal.training.callback.GlocalCallback`.

    Attributes:
        names: Hyperparameters to move; none named: all that turn out to be bound.
        horizon, every, meta, meta_step, tune_by, discount, estimator, policy: As there.
        at: As there, but for ``"auto"``.
        coordinates: Box and scale of every float parameter of the trial.
        scales: dλ/du by hyperparameter.
    """

    names: tuple[str, ...]
    horizon: int
    every: int | None
    meta: str
    meta_step: float | None
    tune_by: str
    discount: float
    estimator: str
    policy: str
    at: str
    coordinates: Mapping[str, Coordinate]
    scales: Mapping[str, float]

    @property
    def interval(self) -> int:
        """k, steps between two moves."""
        if self.every is not None:
            return self.every
        if self.tune_by != "greedy":
            return max(1, self.horizon // _WINDOWS)
        return _EVERY if self.horizon <= _LONG else _EVERY_LONG


def where_to_look(
    at: str, optimizer: torch.optim.Optimizer, keeps_average: bool, tune_by: str, meta: str
) -> str:
    """Where the greedy gradient is taken, ``at`` with ``"auto"`` decided.

    Raises:
        ValueError: If averaged weights do not go with the optimizer.
    """
    if at == "auto":
        is_usual = isinstance(optimizer, torch.optim.SGD) and tune_by == "greedy"
        # The sign of gradients from two places is no mean of them.
        at = "in turn" if keeps_average and is_usual and meta == "adam" else "raw"
    if at != "raw" and isinstance(optimizer, torch.optim.Adam):
        raise ValueError(
            f"at: expected 'raw' for Adam, got {at!r}, which measured 1.4 times worse "
            "with it. Averaged weights themselves are fine: average=True."
        )
    return at


def names_to_tune(tune: Any, known: Collection[str]) -> tuple[str, ...] | None:
    """Names to move; ``()`` for all that turn out to be bound; ``None`` for none.

    Raises:
        TypeError: If it is no boolean, name or list of names.
        ValueError: If a name is not ``known``.
    """
    if isinstance(tune, bool):
        return () if tune else None
    names = [tune] if isinstance(tune, str) else tune
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"tune: expected True, False, a name or a list of names, got {tune!r}. Pass True to "
            "move all that is bound."
        )
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"tune: expected float parameters of the trial, {sorted(known)}, got {unknown}. "
            "Suggest them before the callback is made."
        )
    return tuple(names) or None


def window_steps(window: Any, horizon: int) -> int:
    """τ from steps or a fraction of the horizon.

    Raises:
        TypeError, ValueError: If it is neither, or longer than the horizon.
    """
    if isinstance(window, float):
        if not 0 < window <= 1:
            raise ValueError(
                "window: expected steps, or a fraction of the horizon in (0, 1], got "
                f"{window!r}. Give an int for steps."
            )
        return max(1, round(window * horizon))
    if step_count("window", window) > horizon:
        raise ValueError(
            f"window: expected at most the horizon of {horizon} steps, got {window}. Pass "
            "estimator='global' to carry tangents to the end."
        )
    return int(window)
