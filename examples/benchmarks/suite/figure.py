"""One figure: what one self-tuned run is worth against everything else that one would do."""

import math
from dataclasses import dataclass

from .comparison import geometric_mean
from .results import OURS

LIMITS = 0.4, 2.5
BETTER, WORSE = "tab:blue", "tab:red"
# What one would do instead, and after how many plain trials; None: a single run.
ROWS = (
    ("AdamW 0.001, cosine", "AdamW 1e-3, cosine", None),
    ("AdamW 0.01, cosine", "AdamW 1e-2, cosine", None),
    ("strong, constant", "a strong first guess", None),
    ("strong, cosine", "... with warm-up and cosine", None),
    ("strong, linear, averages", "... with decay and averages", None),
    ("Schedule-Free", "Schedule-Free", None),
    ("Prodigy, cosine", "Prodigy, cosine", None),
    ("GPSampler at defaults, cosine", "GPSampler at defaults, cosine", 10),
    ("TPE at defaults, cosine", "TPE at defaults, cosine", 10),
    ("TPE + Hyperband, cosine", "TPE + Hyperband, cosine", 10),
    ("TPE, cosine", "TPE, cosine", 10),
    ("GPSampler, cosine", "GPSampler, cosine", 10),
    ("GPSampler, linear, averages", "... with decay and averages", 10),
    ("PBT of 4", "population of 4", 4),
    ("PBT of 10", "population of 10", 10),
)


@dataclass(frozen=True)
class Row:
    """One peer: its words, and the ratio on every task."""

    words: str
    trials: int | None
    ratios: dict

    @property
    def mean(self):
        return geometric_mean(list(self.ratios.values()))

    def label(self, tasks):
        """Its words, its price, and on how many tasks it was run, where not on all."""
        price = f"{self.trials or 1} run{'s' * bool(self.trials)}"
        few = "" if len(self.ratios) == tasks else f", {len(self.ratios)} of {tasks} tasks"
        return f"{self.words}  ({price}{few})"


def rows_of(results, ours):
    """The peers that were run, in :data:`ROWS`' order."""
    for peer, words, trials in ROWS:
        if peer in results.arms:
            pairs = results.pairs(ours, peer, trials or math.inf)
            if found := {p.task: p.median for p in pairs}:
                yield Row(words, trials, found)


def draw(results, path, ours=OURS):
    """Writes a PNG beside the tables; ``None`` where matplotlib or the runs are missing.

    Report tasks alone where there are any.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    report = results.half(True)
    half = report if ours in results.arms and list(rows_of(report, ours)) else results.half(False)
    rows = list(rows_of(half, ours)) if ours in results.arms else []
    if not rows:
        return None
    figure = Figure(figsize=(8, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(LIMITS[0], 1, color=BETTER, alpha=0.07, lw=0)
    axes.axvspan(1, LIMITS[1], color=WORSE, alpha=0.07, lw=0)
    for y, row in enumerate(reversed(rows)):
        draw_row(axes, y, row)
    finish(axes, rows, half)
    figure.savefig(path, dpi=150)
    return path


def inside(value):
    """The place of a ratio in the picture, and its marker: an arrow where it lies beyond."""
    place = min(max(value, LIMITS[0] * 1.02), LIMITS[1] / 1.02)
    return place, "o" if place == value else "<" if value < 1 else ">"


def draw_row(axes, y, row):
    """A grey dot per task, the mean as a large one with its number."""
    colour = BETTER if row.mean < 1 else WORSE
    for value in row.ratios.values():
        place, marker = inside(value)
        axes.plot(place, y, marker, color="grey", ms=4, alpha=0.6, mew=0)
    place, marker = inside(row.mean)
    axes.plot(place, y, marker, color=colour, ms=11, alpha=0.9, mew=0)
    axes.annotate(
        f"{row.mean:.2f}", (place, y), (0, 7), textcoords="offset points", ha="center",
        va="bottom", fontsize=8, color=colour, weight="bold",
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.5},
    )  # fmt: skip


def finish(axes, rows, results):
    """Axes, words, and a line between single runs and searches."""
    axes.axvline(1, color="black", lw=1, zorder=1)
    searches = sum(row.trials is not None for row in rows)
    if 0 < searches < len(rows):
        axes.axhline(searches - 0.45, color="grey", lw=0.8, ls=":")
    tasks = {task for row in rows for task in row.ratios}
    labels = [row.label(len(tasks)) for row in rows]
    axes.set_yticks(range(len(rows)), labels[::-1], fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xscale("log")
    axes.set_xlim(*LIMITS)
    ticks = (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("validation loss of ONE self-tuned run, over that of the row", fontsize=9)
    sides = ((0.01, "left", BETTER, "← the self-tuned run is better"),
             (0.99, "right", WORSE, "it is worse →"))  # fmt: skip
    for x, side, colour, words in sides:
        axes.text(
            x, 1.01, words, transform=axes.transAxes, color=colour, ha=side, va="bottom",
            fontsize=10, weight="bold",
        )  # fmt: skip
    kind = "report" if any(results.tasks[t].is_report for t in tasks) else "development"
    axes.set_title(
        "One self-tuned run against what you would do instead\n"
        f"grey: each of {len(tasks)} {kind} tasks; large: their geometric mean",
        fontsize=10, pad=20,
    )  # fmt: skip
