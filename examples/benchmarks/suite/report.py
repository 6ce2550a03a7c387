"""The tables, in markdown, with losses in front."""

import math

import numpy as np

from .comparison import PASSES, SECONDS, VALIDATION, best_within, compare, geometric_mean

REFERENCE, OURS = "strong, cosine", "self-tuned"
BUDGETS = (1, 2, 3, 10, 30)


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
            self.rows.setdefault((task, arm), {})[seed] = scaled

    def plain(self, rows, task, seed):
        """Passes and CPU seconds of one plain trial at this seed."""
        reference = rows.get((task, "strong, constant", seed)) or rows.get((task, REFERENCE, seed))
        return reference[0][:2] if reference else (self.tasks[task].horizon, 1.0)

    def pairs(self, ours, peer, budget=math.inf, cost=PASSES):
        """One :class:`Pair` per task; a single run of ours counts whatever it cost."""
        own = None if self.arms[ours].is_study else math.inf
        for task in self.tasks:
            mine, theirs = self.rows.get((task, ours)), self.rows.get((task, peer))
            if mine and theirs:
                pair = compare(task, mine, theirs, budget, cost, own)
                if pair is not None:
                    yield pair

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
    """One line per peer and budget, those first that we lose to."""
    lines = []
    for peer, arm in results.arms.items():
        if peer == ours:
            continue
        for budget in budgets if arm.is_study or results.arms[ours].is_study else (1,):
            bound = budget if arm.is_study or results.arms[ours].is_study else math.inf
            pairs = list(results.pairs(ours, peer, bound, cost))
            if not pairs:
                continue
            mean, worst = (
                geometric_mean([p.median for p in pairs]),
                max(pairs, key=lambda p: p.median),
            )
            test = geometric_mean([p.median_test for p in pairs])
            lost = sum(p.median > 1 for p in pairs)
            name = f"{peer}, {budget} trials" if math.isfinite(bound) else peer
            cells = [name, f"{mean:.2f}", f"{worst.median:.2f} {worst.task}"]
            lines.append((mean, [*cells, f"{lost} of {len(pairs)}", f"{test:.2f}"]))
    head = ["peer", "geometric mean", "worst task", "tasks lost", "test loss"]
    return table(head, [line for _, line in sorted(lines, key=lambda pair: -pair[0])])


def losses(results):
    """Median validation losses of every arm, the least of each task in bold."""
    head, lines = ["arm", *results.tasks], []
    medians = {}
    for task in results.tasks:
        for arm in results.arms:
            found = results.rows.get((task, arm))
            if found:
                values = [best_within(rows)[VALIDATION] for rows in found.values()]
                medians[task, arm] = float(np.median(values))
    for arm in results.arms:
        cells = []
        for task in results.tasks:
            value = medians.get((task, arm))
            least = min(v for (t, _), v in medians.items() if t == task) if value else None
            shown = "-" if value is None else f"{value:.3g}"
            cells.append(f"**{shown}**" if value is not None and value == least else shown)
        if any(cell != "-" for cell in cells):
            lines.append([arm, *cells])
    return table(head, lines)


def markdown(results, notes=()):
    """The whole report."""
    seeds = sorted({seed for found in results.rows.values() for seed in found})
    pieces = [
        "# Benchmark suite",
        f"Seeds {', '.join(map(str, seeds))}; {len(results.tasks)} tasks. Ratios are ours over "
        "the peer's on the same seed, below 1 where ours is lower: medians over seeds with 95 % "
        "bootstrap intervals. A run that broke counts as a ratio of 100. Costs are in plain "
        "trials, one trial of the task without us; a single run of ours counts whatever it cost.",
        *notes,
    ]
    mine = [name for name, arm in results.arms.items() if arm.kind == "ours"]
    for ours in mine:
        if list(results.pairs(ours, REFERENCE)):
            pieces.append(f"## {ours}: over one plain run ({REFERENCE}), the worst task first")
            pieces.append(by_task(results, ours))
        pieces.append(f"## {ours}: over every peer, the worst for us first")
        pieces.append(by_peer(results, ours))
        if results.arms[ours].is_study:
            pieces += ["The same by CPU time:", by_peer(results, ours, cost=SECONDS)]
    pieces += ["## Median validation losses", losses(results)]
    return "\n\n".join(pieces) + "\n"
