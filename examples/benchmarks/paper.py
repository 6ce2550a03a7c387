"""The paper's questions at small scale (Hataya & Kawahara, arXiv 2402.02741).

``python examples/benchmarks/paper.py --out DIR``, about an hour on one core; ``--only PART``,
``--quick`` and ``--fresh`` as in self_tuning.py, which holds the data reweighting. Each part
prints its rows and writes its figure, PART.html, beside the results.

- **estimators**: one run from learning rates 1e-4 to 1 by greedy, local, glocal and global
  hypergradients, SGD and AdamW on an MLP and a small CNN.
- **prices**: the cost of one such run in plain runs, also a column of **estimators**.
- **complexity**: seconds and memory of one update as T, τ and q grow.
- **replay**: a self-tuned run's schedule on new seeds, beside ``study.best_params`` held fixed.
- **quadratic**: where one step ahead is provably too short.
"""

import pathlib

import optuna
import torch
from complexity import complexity
from estimators import estimators, prices
from harness import Size, Store, parse, run_parts
from quadratic import quadratic
from replay import replay

SIZE = Size(starts=24, seeds=10, steps=300, trials=4, repeats=3)
QUICK = Size(starts=2, seeds=1, steps=30, trials=2, repeats=1)
PARTS = {part.__name__: part for part in (prices, estimators, complexity, replay, quadratic)}


def main(argv=None):
    args = parse(PARTS, argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = "paper-quick.json" if args.quick else "paper.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    store.path.parent.mkdir(parents=True, exist_ok=True)
    size = QUICK if args.quick else SIZE
    run_parts(PARTS, args.only, store, size)


if __name__ == "__main__":
    main()
