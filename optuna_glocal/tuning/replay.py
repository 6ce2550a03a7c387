"""Makes an optimizer follow a schedule, in plain torch: no hypergradients, no trial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from optuna_glocal.hypergradient.optimizers import group_entries, set_group_entry
from optuna_glocal.hypergradient.optimizers.param_group import Key, unwrapped
from optuna_glocal.hypergradient.schedulers.base import base_in_force
from optuna_glocal.tuning.param_group_writer import EntryWriter
from optuna_glocal.tuning.schedule import Schedule


@contextlib.contextmanager
def replay(schedule: Schedule, optimizer: torch.optim.Optimizer) -> Iterator[Schedule]:
    """Inside, ``optimizer.step()`` follows ``schedule`` from its first step.

    Args:
        schedule: The path of a trial that tuned itself.
        optimizer: Built as in that trial, or one around it.

    Yields:
        ``schedule``.

    Raises:
        ValueError: If the optimizer lacks a param group or entry of the schedule, or a scheduler
            that does more than multiply was made for another base value.
    """
    optimizer = unwrapped(optimizer)
    _check(schedule, optimizer)
    built = dict(zip(schedule.columns, schedule.built, strict=True))
    first = {(i, entry): built[column] for i, entry, column in schedule.entries}
    for (i, entry), value in first.items():
        group = optimizer.param_groups[i]
        if "initial_lr" not in group:
            set_group_entry(group, entry, value)
    bases = {key: _base(optimizer, key, value) for key, value in first.items()}
    writer, done = EntryWriter(optimizer, bases), [0]

    def before(*_: Any) -> None:
        row = schedule.at(done[0])
        writer.write({(i, entry): row[column] for i, entry, column in schedule.entries})

    def after(*_: Any) -> None:
        writer.unwrite()
        done[0] += 1

    handles = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ]
    try:
        yield schedule
    finally:
        writer.close()
        for handle in handles:
            handle.remove()


def _check(schedule: Schedule, optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.param_groups
    for i, entry, _ in schedule.entries:
        if i >= len(groups) or entry not in group_entries(groups[i]):
            raise ValueError(
                f"optimizer: expected param group {i} with the entry {entry!r}, got one "
                "without. Build it as in the trial that tuned itself."
            )


def _base(optimizer: torch.optim.Optimizer, key: Key, first: float) -> float:
    """The entry's value without a scheduler's factor: the schedule's first value as a rule."""
    base = base_in_force(optimizer, key, first)
    if base is None:
        i, entry = key
        raise ValueError(
            f"optimizer: expected {entry} = {first:.6g} in param group {i}, as in the trial that "
            "tuned itself, got a scheduler that was made for another value and does more than "
            "multiply it. Make optimizer and scheduler as in that trial; if its scheduler was "
            "made after the callback, make this one inside the with block."
        )
    return base
