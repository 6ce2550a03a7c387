"""Learning-rate schedules of the peers: factors of the base rate."""

import math

import torch

WARM_UP, DECAY = 0.05, 0.4


def constant(t: int, steps: int) -> float:
    return 1.0


def cosine(t: int, steps: int) -> float:
    """Warm-up over 5 % of the run, then half a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if t < warm:
        return (t + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (t - warm) / (steps - warm)))


def annealing(t: int, steps: int) -> float:
    """Half a cosine to zero, without warm-up: what optimizers that find their own rate ask for."""
    return 0.5 * (1 + math.cos(math.pi * t / steps))


def linear(t: int, steps: int) -> float:
    """Constant, then linearly to zero over the last 40 %."""
    return min(1.0, (steps - t) / (DECAY * steps))


SCHEDULES = {f.__name__: f for f in (constant, cosine, annealing, linear)}


def attach(optimizer, name, steps):
    """A scheduler of torch's that multiplies every group's rate; ``None`` for a constant one."""
    factor = SCHEDULES[name]
    if factor is constant:
        return None
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: factor(min(t, steps), steps))
