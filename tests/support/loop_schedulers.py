"""How the learning rate changes in random training loops.

An entry takes the optimizer, the learning rate (a float, as the user writes it) and the number of
steps, and returns a scheduler, or a function to call after every step.
"""

import math

from torch.optim import lr_scheduler as S


def warm_cosine(optimizer, lr, steps):
    ahead = S.LinearLR(optimizer, 0.1, total_iters=3)
    return S.SequentialLR(optimizer, [ahead, S.CosineAnnealingLR(optimizer, steps)], [3])


def by_hand(optimizer, lr, steps):
    return Assigned(
        lambda t: [g.update(lr=lr * (1 - t / (2 * steps))) for g in optimizer.param_groups]
    )


def by_factors(optimizer, lr, steps):
    return Assigned(lambda t: [g.update(lr=g["lr"] * 0.9) for g in optimizer.param_groups])


def with_a_floor(optimizer, lr, steps):
    return Assigned(
        lambda t: [g.update(lr=max(lr * 0.8**t, 0.004)) for g in optimizer.param_groups]
    )


def momentum_by_hand(optimizer, lr, steps):
    return Assigned(
        lambda t: [
            g.update(momentum=0.5 + t / 40) for g in optimizer.param_groups if "momentum" in g
        ]
    )


class Assigned:
    """A learning rate that the loop sets itself."""

    def __init__(self, act):
        self.t, self.act = 0, act

    def step(self):
        self.t += 1
        self.act(self.t)


SCHEDULERS = {
    "StepLR": lambda o, lr, n: S.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o, lr, n: S.MultiStepLR(o, [2, 7], 0.3),
    "ExponentialLR": lambda o, lr, n: S.ExponentialLR(o, 0.9),
    "ConstantLR": lambda o, lr, n: S.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o, lr, n: S.LinearLR(o, 0.2, 1.0, 5),
    "PolynomialLR": lambda o, lr, n: S.PolynomialLR(o, n + 2, 2.0),
    "CosineAnnealingLR": lambda o, lr, n: S.CosineAnnealingLR(o, n),
    "cosine to a number": lambda o, lr, n: S.CosineAnnealingLR(o, n, eta_min=1e-3),
    "cosine to lr / 10": lambda o, lr, n: S.CosineAnnealingLR(o, n, eta_min=lr / 10),
    "warm restarts": lambda o, lr, n: S.CosineAnnealingWarmRestarts(o, 4, eta_min=1e-4),
    "LambdaLR": lambda o, lr, n: S.LambdaLR(o, lambda t: min(1.0, (t + 1) / 5)),
    "LambdaLR to a number": lambda o, lr, n: S.LambdaLR(o, lambda t: max(0.8**t, 0.004 / lr)),
    "MultiplicativeLR": lambda o, lr, n: S.MultiplicativeLR(o, lambda t: 0.95),
    "OneCycleLR": lambda o, lr, n: S.OneCycleLR(o, max_lr=lr, total_steps=n + 1),
    "OneCycleLR, lr alone": lambda o, lr, n: S.OneCycleLR(
        o, max_lr=lr, total_steps=n + 1, cycle_momentum=False, div_factor=4
    ),
    "CyclicLR": lambda o, lr, n: S.CyclicLR(
        o, base_lr=lr / 5, max_lr=lr, step_size_up=3, cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda o, lr, n: S.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "warm-up and cosine": warm_cosine,
    "two at once": lambda o, lr, n: S.ChainedScheduler(
        [S.ExponentialLR(o, 0.95), S.StepLR(o, 3, 0.7)]
    ),
    "assigned": by_hand,
    "multiplied by hand": by_factors,
    "assigned with a floor": with_a_floor,
    "momentum by hand": momentum_by_hand,
    "cosine by hand": lambda o, lr, n: Assigned(
        lambda t: [
            g.update(lr=lr * (0.1 + 0.45 * (1 + math.cos(math.pi * t / n))))
            for g in o.param_groups
        ]
    ),
}
#: Need a momentum or betas, which not all optimizers have.
CYCLE_MOMENTUM = {"OneCycleLR"}
