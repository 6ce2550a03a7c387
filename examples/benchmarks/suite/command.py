"""The command line: run what is asked for, then write the report and the figure."""

import argparse
import dataclasses
import pathlib
import time
import warnings

import optuna
import torch

from . import figure, headline, readme, report
from .arms import arms, chosen
from .results import Results
from .store import Missing, Store
from .tasks import TASKS

FIRST_REPORT_SEED = 100
QUICK_STEPS, QUICK_TASKS = 20, ("stream-adamw-300", "digits-sgd")


def parse(argv=None):
    parser = argparse.ArgumentParser(prog="suite", description="See README.md beside this file.")
    add = parser.add_argument
    add("--tasks", nargs="+", default=["dev"], help="names, 'dev', 'report' or 'all'")
    add("--peers", nargs="+", default=["dev"], help="names, kinds, 'dev' or 'all'")
    add("--seeds", type=int, default=4, help="number of paired seeds")
    add("--first-seed", type=int, help="default 0, and 100 for report tasks")
    add("--budget", type=float, default=30, help="bound of a search's plain trials (10, some 30)")
    add("--variant", action="append", default=[], help='an arm of ours, NAME={"every": 4}')
    add("--label", default="today", help="version of the product, for stored results")
    add("--out", default="suite.jsonl", help="file of results; tables go beside it")
    add("--tables", action="store_true", help="run nothing, report what is stored")
    add("--readme", type=pathlib.Path, help="page whose section is written anew, with the figure")
    add("--headline", type=pathlib.Path, help="page whose table of report tasks is written anew")
    add("--quick", action="store_true", help="a tiny size, to see that it runs")
    return parser.parse_args(argv)


def seed_of(task, number, first=None):
    """The seed of a task's run number ``number``: report tasks have seeds of their own."""
    return number + (first if first is not None else FIRST_REPORT_SEED * task.is_report)


def tasks_of(names, is_quick=False):
    """Tasks by name; ``dev`` and ``report`` are the two halves."""
    if is_quick and list(names) == ["dev"]:
        names = QUICK_TASKS
    found = {}
    for name in names:
        if name in TASKS:
            found[name] = TASKS[name]
        elif name in ("dev", "report", "all"):
            found |= {
                n: t
                for n, t in TASKS.items()
                if name == "all" or t.is_report == (name == "report")
            }
        else:
            raise ValueError(f"--tasks: expected one of {', '.join(TASKS)}, got {name!r}.")
    if is_quick:
        short = [
            dataclasses.replace(t, name=f"{n}, {QUICK_STEPS} steps", horizon=QUICK_STEPS)
            for n, t in found.items()
        ]
        found = {t.name: t for t in short}
    return found


def run(store, tasks, peers, args):
    """Rows of every (task, arm, seed); what cannot be had is left out with one line."""
    rows, left_out = {}, set()
    for number in range(args.seeds):
        for task in tasks.values():
            seed, began = seed_of(task, number, args.first_seed), time.monotonic()
            for name, arm in peers.items():
                if not arm.is_available and not store.is_frozen:
                    left_out.add(f"{name}: needs the package {arm.package}")
                    continue
                try:
                    budget = min(args.budget, task.budget)
                    rows[task.name, name, seed] = arm.rows(store, task, seed, budget)
                except Missing:
                    continue
                except ModuleNotFoundError as error:
                    left_out.add(f"{task.name}: needs the package {error.name}")
                    break
                except Exception as error:
                    if arm.package is None:
                        raise
                    # Somebody else's optimizer may refuse a task; that ends no suite.
                    left_out.add(f"{name} on {task.name}: {error}")
            if not store.is_frozen:
                print(f"{task.name}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    return rows, sorted(left_out)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    store = Store(args.out, is_frozen=args.tables)
    tasks = tasks_of(args.tasks, args.quick)
    known = arms(args.label, args.variant)
    peers = chosen([*args.peers, *(text.partition("=")[0] for text in args.variant)], known)
    rows, left_out = run(store, tasks, peers, args)
    results = Results(tasks, peers, rows)
    text = report.markdown(results, [f"Left out: {line}." for line in left_out], args.budget)
    page = pathlib.Path(args.out).with_suffix(".md")
    page.write_text(text)
    print(text)
    print(f"results: {store.path}\ntables: {page}")
    if drawn := figure.draw(results, page.with_suffix(".png")):
        print(f"figure: {drawn}")
    if args.readme:
        readme.put(args.readme, readme.section(results))
        figure.draw(results, args.readme.with_name("suite.png"))
    if args.headline:
        headline.write(results, args.headline)
    return results
