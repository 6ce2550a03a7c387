"""One plain trial: the loop that every peer and every start shares.

A run returns a dictionary of what tables need:

- ``last``, ``averaged``: [validation loss, test loss, test error] of the last weights, and of the
  best by validation loss of the last and the averaged ones;
- ``curve``: validation loss after a ninth and a third of the run, for pruners;
- ``cpu``, ``cpu_averaged``: CPU seconds of training and one validation, and what averages add;
- ``passes``, ``passes_averaged``: the same in forward-backward passes of a training batch.
"""

import math
import time

import torch

from .averaging import Averages
from .optimizers import OPTIMIZERS, regrouped
from .schedules import attach

RUNGS = (1 / 9, 1 / 3)
BROKEN, WORST = math.inf, 1e3  # of a run that broke: its loss, and what a sampler is told


class Clock:
    """CPU seconds between starts and stops."""

    def __init__(self):
        self.seconds, self._began = 0.0, None

    def __enter__(self):
        self._began = time.process_time()
        return self

    def __exit__(self, *error):
        self.seconds += time.process_time() - self._began


def finite(value):
    return value if math.isfinite(value) else BROKEN


def measured(problem, value=None):
    """[validation loss, test loss, test error] of the weights as they are."""
    loss = problem.evaluate("validation")[0] if value is None else value
    test, error = problem.evaluate("test")
    return [finite(loss), finite(test), error]


def step(problem, optimizer, h, backward=None):
    """One optimizer step; ``backward`` takes the loss where a callback is in the loop."""
    optimizer.zero_grad()
    loss = problem.loss(problem.draw(), h)
    (backward or torch.Tensor.backward)(loss)
    if problem.clip:
        torch.nn.utils.clip_grad_norm_(problem.parameters(), problem.clip)
    optimizer.step()
    return loss


def plain(task, seed, h, schedule="constant", optimizer=None, settings=None, rungs=0):
    """Trains at hyperparameters ``h`` that are held.

    Args:
        optimizer: Name in :data:`OPTIMIZERS` where it is not the task's own.
        settings: Its param-group entries; ``h`` then only sets the loss's hyperparameters.
        rungs: Where the run stops short: after so many losses of ``curve``, and returns no more.
    """
    problem = task.make(h, seed)
    groups = regrouped(problem.groups, settings, optimizer) if settings else problem.groups
    optimizer = OPTIMIZERS[optimizer or task.optimizer](groups)
    scheduler = attach(optimizer, schedule, task.horizon)
    averages, looks = Averages(problem.parameters()), [round(r * task.horizon) for r in RUNGS]
    training, averaging, curve = Clock(), Clock(), []
    set_mode(optimizer, "train")
    for t in range(task.horizon):
        with training:
            step(problem, optimizer, h)
            if scheduler:
                scheduler.step()
        with averaging:
            averages.update()
        if t + 1 in looks:
            set_mode(optimizer, "eval")
            curve.append(finite(problem.evaluate("validation")[0]))
            set_mode(optimizer, "train")
            if len(curve) == rungs:
                price = problem.validation_passes
                return {"curve": curve, "cpu": training.seconds, "passes": t + 1 + rungs * price}
            if not math.isfinite(curve[-1]):
                break
    set_mode(optimizer, "eval")
    return outcome(task, problem, averages, training, averaging, curve)


def set_mode(optimizer, mode):
    """Schedule-Free's optimizers hold other weights while they train than they return."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def outcome(task, problem, averages, training, averaging, curve):
    with training:
        value = problem.evaluate("validation")[0]
    last = best = measured(problem, value)
    for mean in averages.means:
        with averages.swapped(mean):
            with averaging:
                value = finite(problem.evaluate("validation")[0])
            if value < best[0]:
                best = measured(problem, value)
    price = problem.validation_passes
    return {
        "last": last,
        "averaged": best,
        "curve": curve,
        "cpu": training.seconds,
        "cpu_averaged": averaging.seconds,
        "passes": task.horizon + price,
        "passes_averaged": price * len(averages.means),
    }
