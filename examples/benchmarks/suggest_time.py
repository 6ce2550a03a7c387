"""Seconds per suggestion as a study grows, beside GPSampler in the same run.

``python examples/benchmarks/suggest_time.py``: eight parameters, N trials with a gradient each,
then a few suggestions of each sampler in turn. CPU seconds of one thread, medians; install
``greenlet``, without which GPSampler is slower. Then a study of ours in a hundred dimensions, once
with gradients that it follows in all 100 trials and once with the opposite ones after 90 random
trials, where the model of the whole space proposes: the largest of the last ten suggestions.
``--quick`` at a tiny size.
"""

import argparse
import statistics
import time
import tracemalloc

import numpy as np
import optuna
import torch
from harness import print_table
from optuna.distributions import FloatDistribution
from problems import rosenbrock

from optuna_glocal import GlocalSampler, Record, record_gradient
from optuna_glocal.storage.keys import RECORD

NAMES = [f"x{i}" for i in range(8)]
LAST = 10  # suggestions in many dimensions, of which the largest counts
SAMPLERS = {
    "ours": lambda: GlocalSampler(seed=0),
    "ours, no gradients": lambda: GlocalSampler(seed=0, use_gradients=False),
    "GPSampler": lambda: optuna.samplers.GPSampler(seed=0),
}


def box(names):
    return {name: FloatDistribution(0, 1) for name in names}


def finished(count, names=NAMES, sign=1):
    """Random trials, each with its gradient."""
    rng = np.random.default_rng(0)
    for number, u in enumerate(rng.random((count, len(names)))):
        value, gradient = rosenbrock(u)
        partials = dict(zip(names, (sign * gradient).tolist(), strict=True))
        record = Record(number, 1, 1, "given", gradient=partials)
        yield optuna.trial.create_trial(
            params=dict(zip(names, u.tolist(), strict=True)),
            distributions=box(names),
            value=value,
            user_attrs={RECORD: record.to_json()},
        )


def one_more(study, names=NAMES, sign=1):
    """CPU seconds of one suggestion; the trial is then run."""
    began = time.process_time()
    trial = study.ask(box(names))
    seconds = time.process_time() - began
    value, gradient = rosenbrock(np.array([trial.params[name] for name in names]))
    record_gradient(trial, dict(zip(names, (sign * gradient).tolist(), strict=True)))
    study.tell(trial, value)
    return seconds


def suggestions(count, repeats):
    """Median seconds by sampler, and the peak of what ours allocates in MB."""
    studies = {name: optuna.create_study(sampler=make()) for name, make in SAMPLERS.items()}
    trials = list(finished(count))
    for study in studies.values():
        study.add_trials(trials)
    taken = {name: [] for name in studies}
    for _ in range(repeats):
        for name, study in studies.items():
            taken[name].append(one_more(study))
    tracemalloc.start()
    one_more(studies["ours"])
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return {name: statistics.median(each) for name, each in taken.items()}, peak


def rows(sizes, repeats):
    asked = {100: 1.0, 1000: 0.2}
    for count in sizes:
        taken, peak = suggestions(count, repeats if count < 1000 else max(repeats // 2, 1))
        for name, seconds in taken.items():
            yield f"N = {count}: {name}", f"{seconds:.3f} s", "", None
        ratio, most = taken["ours"] / taken["GPSampler"], asked.get(count)
        must, met = (f"<= {most}x", ratio <= most) if most else ("", None)
        yield f"N = {count}: ours over GPSampler", f"{ratio:.2f}x", must, met
        yield f"N = {count}: peak of ours", f"{peak:.0f} MB", "<= 200 MB", peak <= 200


def of_many_dimensions(D, count):
    names = [f"x{i}" for i in range(D)]
    for case, sign in (("gradients", 1), ("opposite gradients", -1)):
        study = optuna.create_study(sampler=SAMPLERS["ours"]())
        left = count if sign > 0 else min(LAST, count)
        study.add_trials(list(finished(count - left, names, sign)))
        most = max([one_more(study, names, sign) for _ in range(left)][-LAST:])
        yield f"D = {D}, N = {count}: ours, {case}", f"{most:.3f} s", "<= 0.5 s", most <= 0.5


def main(argv=None):
    parser = argparse.ArgumentParser(description="Benchmark; see the top of this file.")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    parser.add_argument("--most", type=int, default=1000, help="trials of the largest study")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sizes = [count for count in (30, 100, 300, 1000) if count <= args.most]
    parts = rows([12] if args.quick else sizes, 1 if args.quick else 7)
    print_table([*parts, *of_many_dimensions(*((20, 4) if args.quick else (100, 100)))])


if __name__ == "__main__":
    main()
