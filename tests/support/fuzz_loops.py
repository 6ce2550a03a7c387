"""Checks random training loops, for as long as there is time.

    python tests/support/fuzz_loops.py --loops 5000 --start 0
    python tests/support/fuzz_loops.py --seed 17           # one loop, its verdict and the smallest
    python tests/support/fuzz_loops.py --seed 17 --show    # one loop spelled out, as a script

Prints every failing loop, its smallest relative that fails alike, and counts at the end.
"""

import argparse
import collections
import dataclasses
import gc
import inspect
import json
import logging
import sys
import time

import torch
from loop_checks import check
from loop_habits import CARRIED
from loop_models import MODELS
from loop_optimizers import OPTIMIZERS
from loop_schedulers import SCHEDULERS
from random_loops import LoopSpec, draw
from training_loop import HABITS


def kind_of(problem):
    """What a problem is, without where it was seen."""
    words = problem.split(" differ in step")[0]
    return words.split(" is ")[0].split(" at step")[0] if words.startswith("wrong") else words


def smaller(spec, checked=check):
    """The smallest relative of a failing loop that fails alike: habits and options left out."""
    wanted = {kind_of(p).split(":")[0] for p in checked(spec).problems}
    default = LoopSpec(spec.seed)
    changed = True
    while changed:
        changed = False
        for other in relatives(spec, default):
            verdict = checked(other)
            if verdict.is_possible and wanted & {
                kind_of(p).split(":")[0] for p in verdict.problems
            }:
                spec, changed = other, True
                break
    return spec


def relatives(spec, default):
    for name in spec.habits:
        yield dataclasses.replace(spec, habits=tuple(h for h in spec.habits if h != name))
    for field in dataclasses.fields(spec):
        plain = getattr(default, field.name)
        if field.name not in ("seed", "values", "habits") and getattr(spec, field.name) != plain:
            yield dataclasses.replace(spec, **{field.name: plain})
    for name in spec.values:
        if len(spec.values) > 1:
            kept = {k: v for k, v in spec.values.items() if k != name}
            yield dataclasses.replace(spec, values=kept)


def script(spec):
    """The loop as something to run and to change, with the sources of its parts as comments."""
    parts = [MODELS[spec.model], SCHEDULERS.get(spec.scheduler)]
    parts += [getattr(HABITS[h], "source", HABITS[h]) for h in spec.habits]
    told = [inspect.getsource(part) for part in parts if part is not None]
    told.append(f"optimizer: {OPTIMIZERS[spec.optimizer]}")
    comments = "\n".join(f"# {line}".rstrip() for text in told for line in text.splitlines())
    return (
        f"{comments}\nimport sys\n\nsys.path.insert(0, 'tests/support')\n"
        "from loop_checks import check\nfrom random_loops import LoopSpec\n\n"
        f"print(check({spec}).problems)"
    )


def report(verdict, shrink):
    shrink = shrink and not set(verdict.spec.habits) & set(CARRIED)
    print(f"\nFAILED seed {verdict.spec.seed}: {verdict.spec}")
    for problem in verdict.problems:
        print(f"  {problem}")
    if shrink:
        least = smaller(verdict.spec)
        print(f"  smallest: {least}")
        for problem in check(least).problems:
            print(f"    {problem}")
    sys.stdout.flush()


def counts(verdicts):
    """The summary of many loops."""
    possible = [v for v in verdicts if v.is_possible]
    smooth = [v for v in possible if v.is_differentiable]
    given = [v for v in smooth if v.is_given]
    kinds = collections.Counter(kind_of(p).split(":")[0] for v in possible for p in v.problems)
    refused = collections.Counter(v.status[:110] for v in smooth if not v.is_given)
    lines = [
        f"{len(verdicts)} loops, {len(possible)} possible; problems: {dict(kinds) or 'none'}",
        f"{len(smooth)} differentiable, gradients given in {len(given)} "
        f"({len(given) / max(1, len(smooth)):.0%}); "
        f"some hyperparameter left out in {sum(bool(v.left_out) for v in given)}",
        "refused:",
        *(f"  {n:5d}  {sentence}" for sentence, n in refused.most_common()),
    ]
    return "\n".join(lines)


def tuned_by(seed, args):
    """In both ways, or by turns."""
    both = ("blend", "greedy")
    return () if args.no_tuning else both if args.both else (both[seed % 2],)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--no-tuning", action="store_true")
    parser.add_argument("--both", action="store_true", help="tune each loop in both ways")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--out", help="file of JSON lines to append verdicts to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna_glocal").setLevel(logging.ERROR)
    # What is imported is no part of a loop; the callback's search for modules goes faster so.
    gc.collect(), gc.freeze()
    if args.seed is not None and args.show:
        print(script(draw(args.seed)))
        return
    seeds = [args.seed] if args.seed is not None else range(args.start, args.start + args.loops)
    verdicts, began = [], time.time()
    for i, seed in enumerate(seeds, 1):
        verdict = check(draw(seed), tuned_by(seed, args))
        verdicts.append(verdict)
        if args.out:
            with open(args.out, "a") as file:
                print(json.dumps(dataclasses.asdict(verdict)), file=file)
        if verdict.problems:
            report(verdict, args.shrink or args.seed is not None)
        if i % 100 == 0 or i == len(seeds):
            print(f"[{time.time() - began:.0f} s] {counts(verdicts)}", flush=True)
    if args.seed is not None:
        print(verdicts[0])


if __name__ == "__main__":
    main()
