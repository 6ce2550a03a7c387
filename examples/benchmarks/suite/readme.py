"""The section of the benchmarks' README that tells how the product stands."""

import math

from .arms import GROUPS
from .comparison import geometric_mean
from .report import EXPLAINED, by_peer, by_task
from .results import BEST, OURS, REFERENCE

BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
# Lines of the tables where one for every peer would be too long.
SHOWN = [*BEST, *GROUPS["dev"], *GROUPS["core"], *GROUPS["guesses"]]
HALVES = {
    True: "Report tasks, looked at when everything was chosen",
    False: "Development tasks: the rule was chosen on them, so this describes and claims nothing",
}


def section(results, study="self-tuned study"):
    """Headline, figure, tables; losses first."""
    pieces = [headline(results), "![one self-tuned run against its peers](suite.png)", EXPLAINED]
    for is_report, title in HALVES.items():
        half = results.half(is_report)
        if not half.rows:
            continue
        pieces.append(f"### {title}")
        pieces.append(f"Seeds {', '.join(map(str, half.seeds))}.")
        if list(half.pairs(OURS, REFERENCE)):
            pieces.append(f"One self-tuned run over one plain run ({REFERENCE}):")
            pieces.append(by_task(half))
        pieces.append("One self-tuned run over every peer:")
        pieces.append(by_peer(half, OURS, peers=None if is_report else SHOWN))
        if any((task, study) in half.rows for task in half.tasks):
            pieces.append("Self-tuned trials under `GlocalSampler` over peers at equal passes:")
            pieces.append(by_peer(half, study, peers=SHOWN))
    return "\n\n".join(pieces)


COMPARED = (
    (OURS, REFERENCE, "one plain run with a strong rate and a cosine", math.inf),
    (OURS, "strong, linear, averages", "the same with our decay and averages", math.inf),
    (OURS, "the best first guess", "the best of five first guesses", math.inf),
    (OURS, "the best search", "the best of all searches after 10 plain trials", 10),
    ("self-tuned, lr / 50", REFERENCE, "that cosine run from a rate 50 times too low", math.inf),
    ("self-tuned, lr * 50", REFERENCE, "... 50 times too high", math.inf),
)


def headline(results):
    """One sentence per half: what one run is worth."""
    lines = []
    for is_report, name in ((True, "report"), (False, "development")):
        half = results.half(is_report)
        parts = [summed(half, *compared) for compared in COMPARED]
        if any(parts):
            count = len(list(half.pairs(OURS, REFERENCE)))
            parts = "; ".join(filter(None, parts))
            lines.append(f"**{count} {name} tasks.** One self-tuned run ends at {parts}.")
    return "\n\n".join(lines)


def summed(results, ours, peer, words, budget):
    pairs = list(results.pairs(ours, peer, budget)) if ours in results.arms else []
    if not pairs:
        return ""
    worst, mean = max(pairs, key=lambda p: p.median), geometric_mean([p.median for p in pairs])
    lost = sum(p.median > 1 for p in pairs)
    return (
        f"{mean:.2f} of {words} (worst {worst.median:.2f}, {worst.task}; "
        f"higher on {lost} of {len(pairs)})"
    )


def put(page, text, begin=BEGIN, end=END):
    """Replaces what stands between the two marks of the file ``page``."""
    old = page.read_text()
    if begin not in old or end not in old:
        raise ValueError(f"{page}: expected the lines {begin!r} and {end!r}.")
    before, rest = old.split(begin, 1)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")
