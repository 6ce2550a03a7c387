"""Figures of two arms on the same seeds: paired ratios, their intervals, means over tasks."""

import math
from dataclasses import dataclass

import numpy as np

PASSES, SECONDS, VALIDATION, TEST, ERROR = range(5)
# A trial that ends just beyond a budget counts: its cost is not known before it is run.
SLACK = 0.15
WORST = 100.0  # what a ratio counts at most, and 1 / WORST at least: a run that broke has no loss


def best_within(rows, budget=math.inf, cost=PASSES):
    """The row of least validation loss among those done within ``budget``; ``None`` if none is."""
    best, before = None, 0.0
    for row in rows:
        if row[cost] > budget + SLACK * (row[cost] - before):
            break
        if best is None or row[VALIDATION] < best[VALIDATION]:
            best = row
        before = row[cost]
    return best


def ratio(ours, theirs):
    if math.isfinite(ours) and math.isfinite(theirs):
        return float(np.clip(ours / theirs, 1 / WORST, WORST))
    return (
        1.0
        if math.isinf(ours) and math.isinf(theirs)
        else WORST
        if math.isinf(ours)
        else 1 / WORST
    )


def interval(ratios):
    """95 % bootstrap interval of the median over seeds."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def interval_of_mean(tasks):
    """95 % interval of the geometric mean over tasks of their medians, seeds drawn anew."""
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(r, (1000, len(r))), axis=1) for r in tasks]
    low, high = np.quantile(np.log(medians).mean(axis=0), [0.025, 0.975])
    return math.exp(low), math.exp(high)


@dataclass(frozen=True)
class Pair:
    """Ours against a peer's on one task.

    Attributes:
        validation, test: Ratio of losses by seed.
        errors: Median test error of ours and of the peer's, where there is one.
        is_late: Whether ours has no finished trial within the budget, at some seed.
    """

    task: str
    validation: list[float]
    test: list[float]
    errors: tuple[float, float] | None
    is_late: bool = False

    @property
    def median(self):
        return float(np.median(self.validation))

    @property
    def median_test(self):
        return float(np.median(self.test))

    @property
    def interval(self):
        return interval(self.validation)

    @property
    def wins(self):
        return sum(r < 1 for r in self.validation)


def compare(task, ours, theirs, budget=math.inf, cost=PASSES, our_budget=None):
    """A :class:`Pair` from rows by seed, or ``None`` where no seed is in both.

    ``budget`` bounds both, ``our_budget`` ours where it differs. A peer that has nothing within
    the budget is not compared.
    """
    pairs, is_late = [], False
    for seed in sorted(set(ours) & set(theirs)):
        mine = best_within(ours[seed], budget if our_budget is None else our_budget, cost)
        other = best_within(theirs[seed], budget, cost)
        is_late |= mine is None
        if other is not None:
            pairs.append((mine or [0, 0, math.inf, math.inf, None], other))
    if not pairs:
        return None
    errors = [[row[ERROR] for row in side] for side in zip(*pairs, strict=True)]
    has_errors = all(e is not None for side in errors for e in side)
    return Pair(
        task,
        [ratio(a[VALIDATION], b[VALIDATION]) for a, b in pairs],
        [ratio(a[TEST], b[TEST]) for a, b in pairs],
        tuple(float(np.median(side)) for side in errors) if has_errors else None,
        is_late,
    )


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))
