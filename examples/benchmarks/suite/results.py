"""What was measured, as the tables and the figure ask for it."""

import copy
import math

import numpy as np

from .comparison import PASSES, SECONDS, VALIDATION, best_within, compare, geometric_mean

REFERENCE, OURS = "strong, cosine", "self-tuned"
# Peers that are the best of several on each task, by the median over seeds.
GUESSES = (
    "strong, cosine",
    "strong, linear",
    "strong, linear, averages",
    "Schedule-Free",
    "Prodigy, cosine",
)
# Seeds at which an arm has to be known to be the best of several.
_ENOUGH = 3
BEST = {
    "the best first guess": lambda name, arm: name in GUESSES,
    "the best search": lambda name, arm: arm.kind == "search",
    "the best peer": lambda name, arm: arm.kind != "ours",
}


class Results:
    """Rows of every arm, costs in plain trials of the task.

    Args:
        tasks: By name.
        arms: By name.
        rows: By (task, arm, seed), costs in passes and CPU seconds.
    """

    def __init__(self, tasks, arms, rows):
        self.tasks, self.arms = tasks, arms
        self.rows = {}
        for (task, arm, seed), found in rows.items():
            passes, seconds = self.plain(rows, task, seed)
            scaled = [[r[0] / passes, r[1] / seconds, *r[2:]] for r in found]
            if scaled:
                self.rows.setdefault((task, arm), {})[seed] = scaled

    def half(self, is_report):
        """The same on report tasks alone, or on development tasks alone."""
        part = copy.copy(self)
        part.tasks = {n: t for n, t in self.tasks.items() if t.is_report == is_report}
        part.rows = {key: found for key, found in self.rows.items() if key[0] in part.tasks}
        return part

    @property
    def seeds(self):
        return sorted({seed for found in self.rows.values() for seed in found})

    def plain(self, rows, task, seed):
        """Passes and CPU seconds of one plain trial at this seed."""
        reference = rows.get((task, "strong, constant", seed)) or rows.get((task, REFERENCE, seed))
        return reference[0][:2] if reference else (self.tasks[task].horizon, 1.0)

    def members(self, peer):
        """Arms by name: the peer alone, or all those that a best peer is the best of."""
        is_one = BEST.get(peer, lambda name, arm: name == peer)
        return {name: arm for name, arm in self.arms.items() if is_one(name, arm)}

    def has_budgets(self, ours, peer):
        """Whether more compute changes either side."""
        return any(arm.is_study for arm in [self.arms[ours], *self.members(peer).values()])

    def pairs(self, ours, peer, budget=math.inf, cost=PASSES):
        """One :class:`Pair` per task that has such a budget.

        A single run of ours counts whatever it cost.
        """
        own = None if self.arms[ours].is_study else math.inf
        for name, task in self.tasks.items():
            if task.budget < budget < math.inf:
                continue
            mine = self.allowed(name, ours, budget)
            theirs = self.of_peer(name, peer, budget, cost)
            if mine and theirs:
                pair = compare(name, mine, theirs, budget, cost, own)
                if pair is not None:
                    yield pair

    def of_peer(self, task, peer, budget, cost):
        """Rows by seed of a peer, or of the one of several that is best on the task."""
        if peer not in BEST:
            return self.allowed(task, peer, budget)
        found = {n: self.allowed(task, n, budget) for n in self.members(peer)}
        most = max(map(len, found.values()), default=0)
        # An arm that is known at one or two seeds only may be the best of them by luck.
        standings = {
            n: self.standing(task, rows, budget, cost)
            for n, rows in found.items()
            if len(rows) >= min(_ENOUGH, most)
        }
        best = min(standings, key=standings.get, default=None)
        return None if best is None or math.isinf(standings[best]) else found[best]

    def standing(self, task, rows, budget, cost):
        """Median over seeds of the least loss within a budget, over the reference's at the seed.

        Arms that were run at different seeds can so be ranked; infinite if nothing is known.
        """
        known, losses = self.rows.get((task, REFERENCE), {}), []
        for seed, found in rows.items():
            best = best_within(found, budget, cost)
            scale = known[seed][0][VALIDATION] if seed in known else 1.0
            losses.append(best[VALIDATION] / scale if best else math.inf)
        return float(np.median(losses or [math.inf]))

    def allowed(self, task, name, budget):
        """Rows by seed of an arm, as far as they count at a budget.

        A study that was not run that far does not count. A population counts from its size on:
        its looks at the validation set are no part of the budget.
        """
        found, arm = self.rows.get((task, name), {}), self.arms.get(name)
        if arm is None or not arm.is_study or math.isinf(budget):
            return found
        if arm.size == 1:
            return {s: rows for s, rows in found.items() if rows[-1][PASSES] > budget / 2}
        if budget < arm.size:
            return {}
        return {
            s: [[min(r[0], arm.size), min(r[1], arm.size), *r[2:]] for r in rows]
            for s, rows in found.items()
        }

    def median(self, task, arm):
        """Median over seeds of the least validation loss; infinite if there is none."""
        best = [best_within(rows) for rows in self.rows.get((task, arm), {}).values()]
        return float(np.median([b[VALIDATION] for b in best] or [math.inf]))

    def cost(self, task, arm, which=SECONDS):
        """Median cost of the first trial, in plain trials."""
        return float(np.median([r[0][which] for r in self.rows[task, arm].values()]))

    def mean_cost(self, arm, which=SECONDS):
        """The same, as geometric mean over tasks; not a number for the best of several."""
        costs = [self.cost(t, arm, which) for t in self.tasks if (t, arm) in self.rows]
        return geometric_mean(costs) if costs else math.nan
