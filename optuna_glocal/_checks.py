"""What door 1 is given, checked: each error says which argument, expected, got, and the cure."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch


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
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}. Pass "
            "the optimizer itself, not a scheduler or a class."
        )
    return optimizer


def one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """The one of ``choices`` that ``value`` equals; itself, for 0 is not ``False``.

    Raises:
        ValueError: If there is none.
    """
    for choice in choices:
        if value is choice or value == choice:
            return choice
    raise ValueError(f"{argument}: expected one of {choices}, got {value!r}.")


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


def number(argument: str, value: Any, least: float, most: float = math.inf) -> float:
    """A finite number between ``least`` and ``most``, both included.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is outside, or not finite.
    """
    try:
        out = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number, got {value!r}. Pass a float.") from None
    if not least <= out <= most or math.isinf(out):
        raise ValueError(
            f"{argument}: expected a number in [{least:g}, {most:g}], got {value!r}. Pass one "
            "that is, or leave it out for the default."
        )
    return out


def step_count(argument: str, value: Any) -> int:
    """A whole number of steps, at least 1.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{argument}: expected a whole number of steps, got {value!r}. Round it to an int."
        )
    if value <= 0:
        raise ValueError(f"{argument}: expected at least 1 step, got {value}. Give a larger one.")
    return value


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
