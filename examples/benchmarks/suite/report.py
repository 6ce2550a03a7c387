"""The tables, in markdown, with losses in front."""

import math

import numpy as np

from .comparison import PASSES, SECONDS, VALIDATION, best_within, compare, geometric_mean

REFERENCE, OURS = "strong, cosine", "self-tuned"
BUDGETS = (1, 2, 3, 10, 30)
# Peers that are the best of several on each task, by the median over seeds.
GUESSES = ("strong, cosine", "strong, linear", "Schedule-Free", "Prodigy, cosine")
BEST = {
    "the best first guess": lambda name, arm: name in GUESSES,
    "the best of GPSampler": lambda name, arm: name.startswith("GPSampler, "),
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

    def has_budgets(self, ours, peer):
        """Whether more compute changes either side."""
        is_one = BEST.get(peer, lambda name, arm: name == peer)
        members = [arm for name, arm in self.arms.items() if is_one(name, arm)]
        return any(arm.is_study for arm in [self.arms[ours], *members])

    def plain(self, rows, task, seed):
        """Passes and CPU seconds of one plain trial at this seed."""
        reference = rows.get((task, "strong, constant", seed)) or rows.get((task, REFERENCE, seed))
        return reference[0][:2] if reference else (self.tasks[task].horizon, 1.0)

    def pairs(self, ours, peer, budget=math.inf, cost=PASSES):
        """One :class:`Pair` per task; a single run of ours counts whatever it cost."""
        own = None if self.arms[ours].is_study else math.inf
        for task in self.tasks:
            mine, theirs = self.rows.get((task, ours)), self.of_peer(task, peer, budget, cost)
            if mine and theirs:
                pair = compare(task, mine, theirs, budget, cost, own)
                if pair is not None:
                    yield pair

    def of_peer(self, task, peer, budget, cost):
        """Rows by seed of a peer, or of the one of several that is best on the task."""
        if peer not in BEST:
            return self.rows.get((task, peer))
        names = [n for n, arm in self.arms.items() if BEST[peer](n, arm)]
        medians = {n: self.median(task, n, budget, cost) for n in names}
        best = min(names, key=medians.get, default=None)
        return self.rows[task, best] if names and math.isfinite(medians[best]) else None

    def median(self, task, arm, budget=math.inf, cost=PASSES):
        """Median over seeds of the least validation loss within a budget; infinite if none."""
        found = self.rows.get((task, arm), {})
        best = [best_within(rows, budget, cost) for rows in found.values()]
        return float(np.median([b[VALIDATION] if b else math.inf for b in best] or [math.inf]))

    def cost(self, task, arm, which):
        """Median cost of the first trial, in plain trials."""
        return float(np.median([r[0][which] for r in self.rows[task, arm].values()]))


def table(head, lines):
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *lines])


def by_task(results, ours=OURS, peer=REFERENCE):
    """One line per task, the worst first."""
    lines = []
    for pair in sorted(results.pairs(ours, peer), key=lambda p: -p.median):
        low, high = pair.interval
        errors = "-" if pair.errors is None else "{:.1%} / {:.1%}".format(*pair.errors)
        lines.append(
            [
                pair.task + (" (report)" if results.tasks[pair.task].is_report else ""),
                f"{pair.median:.2f} [{low:.2f}, {high:.2f}]",
                f"{pair.wins}/{len(pair.validation)}",
                f"{pair.median_test:.2f}",
                errors,
                f"{results.cost(pair.task, ours, SECONDS):.2f}",
                f"{results.cost(pair.task, ours, PASSES):.2f}",
            ]
        )
    head = ["task", "validation loss", "lower", "test loss", "test error, ours / peer"]
    return table([*head, "CPU", "passes"], lines)


def by_peer(results, ours, budgets=BUDGETS, cost=PASSES):
    """One line per peer, the mean over tasks at every budget; those first that we lose to."""
    lines = []
    for peer in [*BEST, *results.arms]:
        if peer == ours:
            continue
        cells, last = [], None
        for budget in budgets if results.has_budgets(ours, peer) else (math.inf,):
            pairs = list(results.pairs(ours, peer, budget, cost))
            is_known = pairs and not any(p.is_late for p in pairs)
            mean = geometric_mean([p.median for p in pairs]) if is_known else math.nan
            cells.append(f"{mean:.2f}" if is_known else "-")
            last = (mean, pairs) if is_known else last
        if last:
            mean, pairs = last
            cells += [""] * (len(budgets) - len(cells))
            worst = max(pairs, key=lambda p: p.median)
            lost = f"{sum(p.median > 1 for p in pairs)} of {len(pairs)}"
            test = geometric_mean([p.median_test for p in pairs])
            median = float(np.median([p.median for p in pairs]))
            shown = [f"{median:.2f}", f"{worst.median:.2f} {worst.task}", lost, f"{test:.2f}"]
            lines.append((mean, [peer, *cells, *shown]))
    head = ["peer", *(f"{b} trials" if b > 1 else "1 trial" for b in budgets)]
    head += ["median", "worst task", "tasks lost", "test loss"]
    return table(head, [line for _, line in sorted(lines, key=lambda pair: -pair[0])])


def losses(results):
    """Median validation losses, a table per family, the least of each task in bold."""
    families = {}
    for task in dict.fromkeys(task for task, _ in results.rows):
        families.setdefault(task.split("-")[0], []).append(task)
    return "\n\n".join(losses_of(results, tasks) for tasks in families.values())


def losses_of(results, tasks):
    medians = {
        (task, arm): results.median(task, arm)
        for task in tasks
        for arm in results.arms
        if (task, arm) in results.rows
    }
    least = {task: min(v for (t, _), v in medians.items() if t == task) for task in tasks}
    lines = []
    for arm in results.arms:
        values = {task: medians[task, arm] for task in tasks if (task, arm) in medians}
        cells = {task: f"{v:.3g}" for task, v in values.items()}
        cells |= {task: f"**{cells[task]}**" for task, v in values.items() if v == least[task]}
        if cells:
            lines.append([arm, *(cells.get(task, "-") for task in tasks)])
    return table(["arm", *tasks], lines)


def markdown(results, notes=(), budget=math.inf):
    """The whole report."""
    seeds = sorted({seed for found in results.rows.values() for seed in found})
    count = len({task for task, _ in results.rows})
    pieces = [
        "# Benchmark suite",
        f"Seeds {', '.join(map(str, seeds))}; {count} tasks. Ratios are ours over "
        "the peer's on the same seed, below 1 where ours is lower: medians over seeds with 95 % "
        "bootstrap intervals. A run that broke counts as a ratio of 100. Costs are in plain "
        "trials, one trial of the task without us; a single run of ours counts whatever it cost. "
        "Tables over every peer show the geometric mean over tasks after so many plain trials' "
        "passes (-: no trial of ours was done by then), then, at the largest budget, the median "
        "over tasks, the worst task, the tasks with a ratio above 1 and the mean ratio of test "
        "losses.",
        *notes,
    ]
    mine = [name for name, arm in results.arms.items() if arm.kind == "ours"]
    for ours in mine:
        if list(results.pairs(ours, REFERENCE)):
            pieces.append(f"## {ours}: over one plain run ({REFERENCE}), the worst task first")
            pieces.append(by_task(results, ours))
        pieces.append(f"## {ours}: over every peer, the worst for us first")
        budgets = [b for b in BUDGETS if b <= max(budget, 1)]
        pieces.append(by_peer(results, ours, budgets))
        if results.arms[ours].is_study:
            pieces += ["The same by CPU time:", by_peer(results, ours, budgets, SECONDS)]
    pieces += ["## Median validation losses", losses(results)]
    return "\n\n".join(pieces) + "\n"
