"""What door 1 is given, checked: each error says which argument, expected, got, and the cure."""

from __future__ import annotations

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
    """``value`` if it is among ``choices``.

    Raises:
        ValueError: If it is not.
    """
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"{argument}: expected one of {choices}, got {value!r}.")
    return value


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
