"""Population-based training (Jaderberg et al. 2017): members copy the better ones and perturb."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch

from ..optimizers import OPTIMIZERS
from ..training import Clock, finite, measured, step

ROUNDS, QUARTER, FACTORS = 10, 0.25, (0.8, 1.25)


@dataclass(frozen=True)
class Population:
    """PBT of ``size`` members, each of which trains a whole run."""

    size: int

    @property
    def name(self):
        return f"PBT of {self.size}"

    def rows(self, store, task, seed, budget):
        if budget < self.size:
            return []
        return store.get((self.name, task.name, seed), evolve, task, seed, self.size)


POPULATIONS = {peer.name: peer for peer in (Population(4), Population(10))}


class Member:
    """A model in training, with hyperparameters of its own; their random streams differ."""

    def __init__(self, task, seed, h, number):
        self.task, self.seed, self.h = task, seed, h
        self.problem = task.make(h, seed)
        torch.manual_seed(1000 * number + seed)
        self.optimizer = OPTIMIZERS[task.optimizer](self.problem.groups)
        self.loss, self.random_state = math.inf, torch.get_rng_state()

    def train(self, steps):
        torch.set_rng_state(self.random_state)
        for _ in range(steps):
            step(self.problem, self.optimizer, self.h)
        self.loss = finite(self.problem.evaluate("validation")[0])
        self.random_state = torch.get_rng_state()

    def become(self, other, h):
        """Takes the other's weights and optimizer state, and the hyperparameters ``h``."""
        self.problem.model.load_state_dict(other.problem.state())
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.h = h
        entries = self.task.make(h, self.seed).groups
        for group, new in zip(self.optimizer.param_groups, entries, strict=True):
            group.update({k: v for k, v in new.items() if k != "params"})


def explored(task, h, rng):
    """Every hyperparameter times one of two factors, inside the box."""
    return {k: task.space[k].clipped(v * float(rng.choice(FACTORS))) for k, v in h.items()}


def evolve(task, seed, size):
    """One row: the best member at the end."""
    rng, clock = np.random.default_rng(seed), Clock()
    with clock:
        starts = [task.centre] + [task.random(rng) for _ in range(size - 1)]
        members = [Member(task, seed, h, i) for i, h in enumerate(starts)]
        ends = [round(task.horizon * (i + 1) / ROUNDS) for i in range(ROUNDS)]
        for began, end in zip([0, *ends], ends, strict=False):
            for member in members:
                member.train(end - began)
            ranked = sorted(members, key=lambda m: m.loss)
            few = max(1, round(QUARTER * size))
            if end < task.horizon:
                for worse in ranked[-few:]:
                    better = ranked[int(rng.integers(few))]
                    worse.become(better, explored(task, better.h, rng))
    best = ranked[0]
    passes = size * (task.horizon + ROUNDS * best.problem.validation_passes)
    return [[passes, clock.seconds, *measured(best.problem, best.loss)]]
