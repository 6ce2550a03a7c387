"""Everything that can be compared, by name: single runs, searches, and our own trials.

An arm returns, for a task, a seed and a budget in plain trials, a list of rows, one per finished
trial: [passes and CPU seconds spent so far, validation loss, test loss, test error].
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass

from . import ours
from .peers import population, search, single


@dataclass(frozen=True)
class Arm:
    """One way of getting a model.

    Attributes:
        kind: ``"single"`` run, ``"search"`` or ``"ours"``.
        rows: Of (store, task, seed, budget).
        package: Name of a package that it needs beyond the suite's own.
        is_study: Whether it goes on with a larger budget.
        size: Plain trials that it trains at once; it counts from that budget on, whatever it
            pays for looks at the validation set.
    """

    kind: str
    rows: Callable
    package: str | None = None
    is_study: bool = False
    size: int = 1

    @property
    def is_available(self):
        return self.package is None or importlib.util.find_spec(self.package) is not None


def of_single(peer):
    return Arm(
        "single", lambda store, task, seed, _: single.run(store, task, seed, peer), peer.package
    )


@dataclass(frozen=True)
class Tuned:
    """How a trial of ours is run.

    Attributes:
        options: Of the callback.
        start: ``"strong"``, or the factor of the centre's learning rates.
        schedule: Name of a learning-rate schedule.
        is_study: Whether trials follow under our sampler until the budget is spent.
    """

    options: dict
    start: float | str = 1.0
    schedule: str = "constant"
    is_study: bool = False

    def rows(self, store, task, seed, budget, label):
        more = (label, task.name, seed, json.dumps(self.options, sort_keys=True), self.schedule)
        if self.is_study:
            options = task, seed, budget, self.options, self.schedule
            return store.longest(("study", *more), budget, ours.study, *options)
        h = dict(task.strong) if self.start == "strong" else task.start(self.start)
        found = store.get(("ours", h, *more), ours.run, task, seed, h, self.options, self.schedule)
        return [[found["passes"], found["cpu"], *found["averaged"]]]


TUNE, OBSERVE = {"tune": True}, {"tune": False}
OURS = {
    "self-tuned": Tuned(TUNE),
    "self-tuned, lr / 50": Tuned(TUNE, 1 / 50),
    "self-tuned, lr * 50": Tuned(TUNE, 50.0),
    "self-tuned, strong start": Tuned(TUNE, "strong"),
    "self-tuned, strong start, cosine": Tuned(TUNE, "strong", "cosine"),
    "self-tuned, strong start, linear": Tuned(TUNE, "strong", "linear"),
    "self-tuned study": Tuned(TUNE, is_study=True),
    "observing study": Tuned(OBSERVE, is_study=True),
    "observing study, linear": Tuned(OBSERVE, schedule="linear", is_study=True),
}


def of_ours(tuned, label):
    return Arm(
        "ours",
        lambda store, task, seed, budget: tuned.rows(store, task, seed, budget, label),
        is_study=tuned.is_study,
    )


def variant_of(text):
    """``NAME={"every": 4, "start": 50, "study": false, ...}`` as (name, :class:`Tuned`)."""
    name, _, options = text.partition("=")
    options = {"tune": True} | json.loads(options or "{}")
    start, schedule = options.pop("start", 1.0), options.pop("schedule", "constant")
    return name, Tuned(options, start, schedule, options.pop("study", False))


def arms(label="today", variants=()):
    """Every arm by name; ``label`` tells results of one version of the product from another's."""
    found = {name: of_single(peer) for name, peer in single.SINGLES.items()}
    found |= {n: Arm("search", peer.rows, is_study=True) for n, peer in search.SEARCHES.items()}
    found |= {
        n: Arm("search", peer.rows, is_study=True, size=peer.size)
        for n, peer in population.POPULATIONS.items()
    }
    # The same run as a single peer, named for what it tells: what averages do without tuning.
    found["averages alone"] = Arm("ours", found["centre, constant, averages"].rows)
    named = OURS | dict(variant_of(text) for text in variants)
    return found | {name: of_ours(tuned, label) for name, tuned in named.items()}


GROUPS = {
    # The searches that tell most for their price; kind ``search`` has all of them.
    "core": (
        "GPSampler, constant, averages",
        "GPSampler, cosine",
        "GPSampler, linear, averages",
        "GPSampler at defaults, cosine",
        "TPE, cosine",
        "TPE at defaults, cosine",
        "TPE + Hyperband, cosine",
        "PBT of 4",
        "PBT of 10",
    ),
    # The single runs that are shown where a line for every one would be too long.
    "guesses": (
        "AdamW 0.001, cosine",
        "AdamW 0.01, cosine",
        "SGD .1, linear",
        "Mechanic, cosine",
        "D-Adaptation, cosine",
    ),
    # What a development run compares: cheap, and enough to see where the product loses.
    "dev": (
        "self-tuned",
        "averages alone",
        "strong, constant",
        "strong, constant, averages",
        "strong, cosine",
        "strong, linear",
        "strong, linear, averages",
        "Schedule-Free",
        "Prodigy, cosine",
    ),
}


def chosen(names, known):
    """Arms by name, kind (``single``, ``search``, ``ours``), group or ``all``."""
    found = {}
    for name in names:
        if name in known:
            found[name] = known[name]
        elif name in GROUPS:
            found |= {n: known[n] for n in GROUPS[name]}
        elif name == "all" or name in {arm.kind for arm in known.values()}:
            found |= {n: a for n, a in known.items() if name in ("all", a.kind)}
        else:
            raise ValueError(f"--peers: expected one of {', '.join(known)}, got {name!r}.")
    return found
