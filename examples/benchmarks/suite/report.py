"""The tables, in markdown, with losses in front."""

import math

import numpy as np

from .comparison import PASSES, SECONDS, geometric_mean, interval_of_mean
from .results import BEST, OURS, REFERENCE

BUDGETS = (1, 2, 3, 10, 30)
# What else one self-tuned run is set against on every task.
OTHERS = (
    ("over linear decay, averages", "strong, linear, averages", math.inf),
    ("over the best first guess", "the best first guess", math.inf),
    ("over the best search of 10", "the best search", 10),
)
SUMMED = 10  # plain trials at which a line is summed up; only three tasks have more
FEW = 3  # seeds under which no interval is told: redrawing one seed or two gives no spread


def table(head, lines):
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *lines])


def by_task(results, ours=OURS, peer=REFERENCE):
    """One line per task, the worst first."""
    others = {
        words: {p.task: f"{p.median:.2f}" for p in results.pairs(ours, other, budget)}
        for words, other, budget in OTHERS
    }
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
                *(found.get(pair.task, "-") for found in others.values()),
            ]
        )
    head = ["task", "validation loss", "lower", "test loss", "test error, ours / peer"]
    return table([*head, "CPU", "passes", *others], lines)


def by_peer(results, ours, budgets=BUDGETS, cost=PASSES, peers=None):
    """One line per peer, the mean over tasks at every budget; those first that we lose to."""
    lines = []
    for peer in peers or [*BEST, *results.arms]:
        found = line_of(results, ours, peer, budgets, cost) if peer != ours else None
        if found:
            lines.append(found)
    head = ["peer", *(f"{b} trials" if b > 1 else "1 trial" for b in budgets)]
    head += ["seeds", "95 %", "median", "worst task", "tasks lost", "test loss", "CPU of a trial"]
    return table(head, [line for _, line in sorted(lines, key=lambda pair: -pair[0])])


def line_of(results, ours, peer, budgets, cost):
    """(mean ratio, cells) of one peer, or ``None`` where nothing can be compared."""
    cells, at = [], {}
    for budget in budgets if results.has_budgets(ours, peer) else (math.inf,):
        pairs = list(results.pairs(ours, peer, budget, cost))
        if pairs and not any(p.is_late for p in pairs):
            at[budget] = pairs
            cells.append(f"{geometric_mean([p.median for p in pairs]):.2f}")
        else:
            cells.append("-")
    if not at:
        return None
    pairs = at[max((b for b in at if b <= SUMMED), default=min(at))]
    mean = geometric_mean([p.median for p in pairs])
    low, high = interval_of_mean([p.validation for p in pairs])
    counts = sorted(len(p.validation) for p in pairs)
    worst = max(pairs, key=lambda p: p.median)
    price = results.mean_cost(peer)
    return mean, [
        peer,
        *cells,
        *[""] * (len(budgets) - len(cells)),
        told_range(counts[0], counts[-1]),
        "-" if counts[0] < FEW else f"[{low:.2f}, {high:.2f}]",
        f"{float(np.median([p.median for p in pairs])):.2f}",
        f"{worst.median:.2f} {worst.task}",
        f"{sum(p.median > 1 for p in pairs)} of {len(pairs)}",
        f"{geometric_mean([p.median_test for p in pairs]):.2f}",
        "" if math.isnan(price) else f"{price:.1f}",
    ]


def told_range(least, most):
    return str(least) if least == most else f"{least} to {most}"


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


EXPLAINED = (
    "Ratios are ours over the peer's on the same seed, below 1 where ours is lower: medians over "
    "seeds with 95 % bootstrap intervals. A run that broke counts as a ratio of 100. Costs are in "
    "plain trials, one trial of the task without us; a single run of ours counts whatever it "
    "cost. Tables over every peer show the geometric mean over tasks after so many plain trials' "
    f"passes (-: no trial of ours was done by then), then, at {SUMMED} or the largest budget "
    f"below, the paired seeds of a task, the mean's interval (-: fewer than {FEW} seeds), the "
    "median over tasks, the worst task, the tasks with a ratio above 1 "
    "and the mean ratio of test losses."
)


def markdown(results, notes=(), budget=math.inf):
    """The whole report."""
    count = len({task for task, _ in results.rows})
    seeds = ", ".join(map(str, results.seeds))
    pieces = ["# Benchmark suite", f"Seeds {seeds}; {count} tasks. {EXPLAINED}", *notes]
    mine = [name for name, arm in results.arms.items() if arm.kind == "ours"]
    budgets = [b for b in BUDGETS if b <= max(budget, 1)]
    for ours in mine:
        if list(results.pairs(ours, REFERENCE)):
            pieces.append(f"## {ours}: over one plain run ({REFERENCE}), the worst task first")
            pieces.append(by_task(results, ours))
        pieces.append(f"## {ours}: over every peer, the worst for us first")
        pieces.append(by_peer(results, ours, budgets))
        if results.arms[ours].is_study:
            pieces += ["The same by CPU time:", by_peer(results, ours, budgets, SECONDS)]
    pieces += ["## Median validation losses", losses(results)]
    return "\n\n".join(pieces) + "\n"
