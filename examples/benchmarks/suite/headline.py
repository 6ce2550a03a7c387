"""The one table of the project's README, and the ratios by seed that it is made of."""

import json
import math
import pathlib
import statistics

from .readme import put
from .report import told_range
from .results import OURS, REFERENCE

STORED = pathlib.Path(__file__).with_name("headline.json")
MARKS = "<!-- headline: begin -->", "<!-- headline: end -->"
PEERS = {
    "one run, strong rate, cosine": (REFERENCE, math.inf),
    "... with our decay and averages": ("strong, linear, averages", math.inf),
    "the best of five first guesses": ("the best first guess", math.inf),
    "GPSampler, our decay and averages, 10 trials": ("GPSampler, linear, averages", 10),
    "the best of all searches, 10 trials": ("the best search", 10),
}


def measured(results):
    """Ratios of validation losses by peer, report task and seed."""
    half = results.half(True)
    return {
        words: {pair.task: pair.validation for pair in half.pairs(OURS, peer, budget)}
        for words, (peer, budget) in PEERS.items()
    }


def table(ratios):
    """Medians over seeds, and how many; tasks in the order of the first row, ours lowest first."""
    medians = {
        words: {task: statistics.median(found) for task, found in by_task.items()}
        for words, by_task in ratios.items()
    }
    first = next(iter(medians.values()))
    tasks = sorted(first, key=first.get)
    head = ["over", *tasks, "median", "seeds"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " --- |" * (len(head) - 1)]
    for words, row in medians.items():
        cells = [_cell(row[task]) if task in row else "-" for task in tasks]
        counts = sorted(len(found) for found in ratios[words].values())
        cells += [_cell(statistics.median(row.values())), told_range(counts[0], counts[-1])]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(ratio):
    text = f"{ratio:.2f}"
    return f"**{text}**" if float(text) > 1 else text


def write(results, page):
    """Stores the ratios beside this file and puts the table into ``page``."""
    ratios = measured(results)
    STORED.write_text(json.dumps(ratios, indent=1) + "\n")
    put(page, table(ratios), *MARKS)


def stored():
    """The ratios that the table of the README was made of."""
    return json.loads(STORED.read_text())
