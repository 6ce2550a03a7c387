"""Self-tuned studies with and without the implicit gradient of what they hold, at equal passes.

Both arms are the same trials under ``GlocalSampler``: learning rates move in the run, weight decay
and the rest are held and searched. One arm records ``Tune(held="implicit")``. A product counts as
2.7 passes, a look at a validation minibatch as one.

    python -m examples.benchmarks.held --tasks digits-noise-sgd --seeds 10 --budget 10
"""

import argparse
import json
import logging
import math
import warnings

import numpy as np
import optuna

from optuna_glocal import GlocalSampler, Tune

from .suite import ours
from .suite.tasks import TASKS
from .suite.training import WORST

PRODUCT, SHARE, FEWEST = 2.7, 0.03, 12  # passes of one product; how many a run has at most


def study(task, seed, budget, held):
    """The best validation loss after so many plain trials' passes, and the trials it took."""
    names = tuple(name for name in task.space if name.startswith("lr"))
    found = optuna.create_study(sampler=GlocalSampler(seed=seed))
    extra = PRODUCT * max(FEWEST, round(SHARE * task.horizon)) if held else 0.0
    passes, best, curve = 0.0, math.inf, []
    while passes < budget * task.horizon:
        trial = found.ask()
        h = task.suggest(trial)
        options = {"tune": Tune(names, held=held)}
        run = ours.under_callback(task, seed, trial, h, options, "constant")
        value = run["averaged"][0]
        found.tell(trial, value if math.isfinite(value) else WORST)
        passes += run["passes"] + extra
        best = min(best, value)
        curve.append([round(passes / task.horizon, 2), best])
    return curve


def at(curve, budget):
    """The best loss among trials that were done by then."""
    done = [best for passes, best in curve if passes <= budget]
    return done[-1] if done else math.inf


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["digits-noise-sgd", "digits-noise-adamw"])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.tasks, given.seeds, given.budget = ["digits-noise-adamw"], 1, 2.0
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_glocal").setLevel(logging.ERROR)
    for name in given.tasks:
        ratios = []
        for seed in range(given.first, given.first + given.seeds):
            with_it, without = (
                study(TASKS[name], seed, given.budget, held) for held in ("implicit", None)
            )
            ratios.append(at(with_it, given.budget) / at(without, given.budget))
            line = {"task": name, "seed": seed, "with": with_it, "without": without}
            print(json.dumps(line), flush=True)
        print(f"{name}: {np.round(np.median(ratios), 3)} {np.round(ratios, 3).tolist()}")


if __name__ == "__main__":
    main()
