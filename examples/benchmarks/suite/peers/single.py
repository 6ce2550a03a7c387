"""Single runs: what a practitioner gets from a first guess, without any search."""

import functools
from dataclasses import dataclass

from ..optimizers import PACKAGES
from ..training import plain


@dataclass(frozen=True)
class Single:
    """One plain run.

    Attributes:
        start: ``"strong"``, the task's first guess, or ``"centre"`` of the box.
        schedule: Name of a learning-rate schedule.
        averaged: Whether the best of last and averaged weights is returned.
        optimizer: Where it is not the task's own.
        settings: Its param-group entries, as a function of the task.
    """

    start: str = "strong"
    schedule: str = "constant"
    averaged: bool = False
    optimizer: str | None = None
    settings: object = None

    @property
    def package(self):
        return PACKAGES.get(self.optimizer)


def decay_of(task):
    return task.strong.get("weight_decay", 0.0)


def entries(task, lr, **more):
    return {"lr": lr, "weight_decay": decay_of(task), **more}


def as_adam(task):
    """The learning rate of Adam's kind that a practitioner would begin with."""
    rates = [v for k, v in task.strong.items() if k.startswith("lr")]
    return 1e-2 if task.optimizer == "sgd" else max(rates)


def schedule_free(task):
    return entries(task, as_adam(task), warmup_steps=round(0.05 * task.horizon))


def sgd(task):
    return {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def fixed(lr, **more):
    return functools.partial(entries, lr=lr, **more)


SINGLES = {
    f"{start}, {schedule}" + (", averages" if averaged else ""): Single(start, schedule, averaged)
    for start in ("strong", "centre")
    for schedule in ("constant", "cosine", "linear")
    for averaged in (False, True)
}
SINGLES |= {
    f"AdamW {lr:g}, {schedule}": Single("strong", schedule, False, "adamw", fixed(lr))
    for lr in (1e-3, 1e-2)
    for schedule in ("cosine", "linear")
}
SINGLES |= {
    f"SGD .1, {schedule}": Single("strong", schedule, False, "sgd", sgd)
    for schedule in ("cosine", "linear")
}
# Of its settings, corrected biases were best in a look at five development tasks.
PRODIGY = fixed(1.0, use_bias_correction=True)
SINGLES |= {
    "Schedule-Free": Single("strong", "constant", False, "schedule-free", schedule_free),
    "Prodigy, cosine": Single("strong", "annealing", False, "prodigy", PRODIGY),
    "Mechanic, cosine": Single("strong", "annealing", False, "mechanic", fixed(1e-2)),
    "D-Adaptation, cosine": Single("strong", "annealing", False, "dadaptation", fixed(1.0)),
}


def trial(store, task, seed, h, schedule, optimizer=None, settings=None):
    """A plain trial, from the store if any peer has trained it."""
    key = ("plain", task.name, seed, h, schedule, optimizer or "", settings or {})
    return store.get(key, plain, task, seed, h, schedule, optimizer, settings)


def run(store, task, seed, peer):
    """One row [passes, CPU seconds, validation loss, test loss, test error] in a list."""
    h = dict(task.strong) if peer.start == "strong" else task.centre
    settings = peer.settings(task) if peer.settings else None
    return [row_of(trial(store, task, seed, h, peer.schedule, peer.optimizer, settings), peer)]


def row_of(found, peer):
    more = ("passes_averaged", "cpu_averaged") if peer.averaged else ()
    passes, seconds = found["passes"], found["cpu"]
    if more:
        passes, seconds = passes + found[more[0]], seconds + found[more[1]]
    return [passes, seconds, *found["averaged" if peer.averaged else "last"]]
