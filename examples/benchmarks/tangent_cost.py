"""What tangents cost, exact and cheap, and how near approximate ones come to the exact.

``python examples/benchmarks/tangent_cost.py`` measures everything (some forty minutes on one
core) and prints one table; stopped, it goes on where it was, from the JSON file in ``--out``.
``--only cosines`` runs a part, ``--quick`` everything at a tiny size. Costs are ratios of CPU time
within one run, the least of several repeats taken in turns. Settings were chosen on seeds 0-2;
what is printed are seeds from 100.
"""

import contextlib
import pathlib
import weakref
from dataclasses import dataclass
from time import process_time

import numpy as np
import optuna
import torch
from approximations import compared, network
from detectors import share_of_detectors
from harness import FIRST_SEED, Store, parse, run_parts
from tasks import TASKS, mlp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from optuna_glocal import GlocalCallback, Observe


@dataclass(frozen=True)
class Size:
    """How much of everything is run."""

    seeds: int = 10
    steps: int = 120
    repeats: int = 5
    counts: tuple = (1, 3, 4, 8)
    models: tuple = ("mlp", "mlp128", "cnn", "transformer", "wide")
    nets: tuple = ("tanh", "cnn", "relu")
    block: int = 48
    horizon: int = 1000
    sizes: tuple = ("10k", "100k", "1M", "cnn")
    turns: int = 40


QUICK = Size(1, 6, 1, (1, 3), ("mlp",), ("tanh",), 16, 40, ("10k",), 2)

# -- step: what a step costs ----------------------------------------------------------------------


class Sequences(nn.Module):
    """Two transformer layers of width 64 over 32 tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 64), nn.Linear(64, 10)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.layers(self.embed(x)).mean(1))


def case(name):
    """A model, its minibatch, and the layer whose input is constant."""
    torch.manual_seed(0)
    if name == "transformer":
        return Sequences(), torch.randint(0, 50, (32, 32)), torch.randint(0, 10, (32,)), None
    if name == "cnn":
        model = network("cnn", 0)
        return model, torch.randn(64, 64), torch.randint(0, 10, (64,)), model[1]
    sizes = {"mlp": (64, 32, 10), "mlp128": (64, 128, 10), "wide": (64, 1344, 1344, 10)}[name]
    model, batch = mlp(*sizes), 256 if name == "wide" else 64
    return model, torch.randn(batch, 64), torch.randint(0, 10, (batch,)), model[0]


ENTRIES = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "dampening": 0.1}


def block(name, q, tangents, steps, warm=16):
    """CPU seconds of ``steps`` steps of SGD with q hyperparameters, after ``warm`` others.

    Up to four are the entries of all parameters, eight those of two groups.
    """
    model, x, y, _ = case(name)
    groups = 2 if q > len(ENTRIES) else 1
    chosen = dict(list(ENTRIES.items())[: q // groups])
    params = list(model.parameters())
    halves = [params] if groups == 1 else [params[:2], params[2:]]
    optimizer = torch.optim.SGD([{"params": half} for half in halves], **ENTRIES)
    values = {f"{entry}{g}": chosen[entry] for g in range(groups) for entry in chosen}
    trial = optuna.trial.FixedTrial(values)
    for parameter in values:
        trial.suggest_float(parameter, 1e-6, 1.0)
    glocal, backward = contextlib.nullcontext(), torch.Tensor.backward
    if tangents is not None:
        glocal = GlocalCallback(
            trial, optimizer, lambda: cross_entropy(model(x), y), horizon=10**6,
            observe=Observe(window=10**6, every=10**6, tangents=tangents), store_trajectory=False,
        )  # fmt: skip
        for g in range(groups):
            glocal.bind(group=g, **{entry: glocal[f"{entry}{g}"] for entry in chosen})
        backward = glocal.backward
    with glocal:
        for t in range(warm + steps):
            if t == warm:
                began = process_time()
            optimizer.zero_grad()
            backward(cross_entropy(model(x), y))
            optimizer.step()
        return process_time() - began


def step_costs(name, q, size):
    """Ratios to the plain step: exact and cheap, measured in turns."""
    steps = max(16, size.block // 3) if name == "wide" else size.block
    least = {kind: np.inf for kind in (None, True, "cheap")}
    for _ in range(2 if name == "wide" else size.repeats):
        for kind in least:
            least[kind] = min(least[kind], block(name, q, kind, steps))
    return {"exact": least[True] / least[None], "cheap": least["cheap"] / least[None]}


def passes(name, q):
    """Floating-point operations of a step with q exact tangents over the plain one, at least.

    A matrix product of the forward pass costs two of the backward, and its tangent twice the
    three; where the input is constant it is one and twice that, less one.
    """
    model, x, y, first = case(name)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(x), y).backward()
    whole = counter.get_total_flops()
    constant = 0
    if first is not None:
        with FlopCounterMode(display=False) as counter:
            first(x.reshape(len(x), 1, 8, 8) if name == "cnn" else x)
        constant = 2 * counter.get_total_flops()
    return 1 + q * (2 * (whole - constant) + constant) / whole


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it, and the most alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage):
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.remove, storage.nbytes())

    def remove(self, size):
        self.now -= size


def peak(name, q, tangents):
    """Most bytes of tensors alive at once in a few steps."""
    with Alive() as alive:
        block(name, q, tangents, 2, warm=6)
    return alive.most


def steps(store, size):
    """A step inside the window, beside what its arithmetic costs at least."""
    for name in size.models:
        for q in size.counts:
            ratio = store.get(f"steps/{name}/{q}", step_costs, name, q, size)
            least = passes(name, q)
            memory = [store.get(f"steps/{name}/{q}/{k}", peak, name, q, k) for k in (None, True)]
            share = (ratio["cheap"] - 1) / q
            yield (
                f"{name}, q = {q}: step, exact and cheap",
                f"{ratio['exact']:.2f}x {ratio['cheap']:.2f}x, exact in passes {least:.2f}x, "
                f"memory +{(memory[1] - memory[0]) / 2**20:.1f} MB of {memory[0] / 2**20:.1f}",
                f"cheap <= {1 + 0.35 * q:.2f}x",
                share <= 0.35,
            )


# -- detectors: what it costs to know whether tangents are right ----------------------------------


def detectors(store, size):
    """Their share of an observed step, q = 3 (SGD) and 2 (AdamW), by the number of parameters."""
    for name in size.sizes:
        for kind in ("sgd", "adamw"):
            seen = store.get(
                f"detectors/{name}/{kind}",
                share_of_detectors,
                name,
                kind,
                size.repeats,
                size.turns,
            )
            yield (
                f"{name}, {kind}: detectors' share of a step",
                f"{seen['share']:.1%} of {seen['over plain']:.2f}x the plain step",
                "<= 3.0%",
                seen["share"] <= 0.03,
            )


# -- cosines: how near ----------------------------------------------------------------------------


def cosine(a, b):
    a, b = np.array(a), np.array(b)
    with np.errstate(all="ignore"):
        value = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return value if np.isfinite(value) else 0.0


def error(a, b):
    a, b = np.array(a), np.array(b)
    value = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
    return value if np.isfinite(value) else np.inf


def cosines(store, size):
    """To the exact hypergradient in log λ at the end of a window of 120 steps, a fifth of T = 600.

    Each seed runs from the centre of the box and from a random point of it.
    """
    for kind in size.nets:
        for name in ("sgd", "adam"):
            task = TASKS[name]()
            runs = []
            for seed in range(FIRST_SEED, FIRST_SEED + size.seeds):
                random = task.random_start(torch.Generator().manual_seed(seed))
                for j, h in enumerate((task.centre(), random)):
                    key = f"cosines/{kind}/{name}/{seed}/{j}"
                    runs.append(store.get(key, compared, kind, name, seed, h, size.steps))
            yield from rows_of_cosines(kind, name, runs)


def rows_of_cosines(kind, name, runs):
    runs = [run for run in runs if np.isfinite(run["h"]["exact"]).all()]
    asked = {"tanh": 0.97, "cnn": 0.9}.get(kind)
    for scheme in runs[0]["h"]:
        if scheme == "exact":
            continue
        pairs = [(run["h"][scheme], run["h"]["exact"]) for run in runs]
        near = [cosine(*pair) for pair in pairs]
        off = [error(*pair) for pair in pairs]
        used = [run["products"][scheme] for run in runs]
        median, q10 = np.median(near), np.quantile(near, 0.1)
        shown = f"cos {median:.4f} (q10 {q10:.2f}), off by {np.median(off):.1%}"
        shown += f" (worse than half in {np.mean(np.array(off) > 0.5):.0%})"
        shown += f", products {np.median(used):.2f} (most {max(used):.2f})"
        must = asked if scheme == "cheap" else None
        yield (
            f"{kind}, {name}: {scheme}",
            shown,
            f">= {must}" if must else "",
            median >= must if must else None,
        )


# -- trial: the whole of it -----------------------------------------------------------------------


def whole(kind, steps, window, repeats):
    """Least CPU seconds of digits runs with q = 3, plain and observed in turns.

    ``kind`` is the callback's ``tangents``; ``window`` steps carry them.
    """
    task = TASKS["sgd"](steps=steps)
    h, (x, y), (xv, yv) = task.centre(), *task.data(0)[:2]
    batches, least = task.batches(0), [np.inf, np.inf]
    for _ in range(repeats):
        for observed in (0, 1):
            model = task.model(0)
            optimizer, glocal = task.optimizer(model, h), contextlib.nullcontext()
            backward = torch.Tensor.backward
            if observed:
                trial = optuna.trial.FixedTrial(task.suggest(optuna.trial.FixedTrial(h)))
                task.suggest(trial)
                glocal = GlocalCallback(
                    trial, optimizer, lambda m=model: cross_entropy(m(xv), yv), horizon=steps,
                    observe=Observe(window=window, tangents=kind),
                )  # fmt: skip
                task.bind(glocal)
                backward = glocal.backward
            began = process_time()
            with glocal:
                for t in range(steps):
                    if t == window + 1:
                        after = process_time()
                    optimizer.zero_grad()
                    backward(cross_entropy(model(x[batches[t]]), y[batches[t]]))
                    optimizer.step()
                now = process_time()
            spent = {"trial": process_time() - began, "outside": now - after}
            least[observed] = (
                spent
                if least[observed] is np.inf
                else {k: min(v, least[observed][k]) for k, v in spent.items()}
            )
    return {part: least[1][part] / least[0][part] for part in least[0]}


def trial(store, size):
    """A trial of T = 1000 with tangents over a fifth of it, and its steps after the window."""
    for kind in (True, "cheap"):
        ratio = store.get(
            f"trial/{kind}", whole, kind, size.horizon, size.horizon // 5, size.repeats
        )
        said = "cheap" if kind == "cheap" else "exact"
        yield (
            f"digits MLP, q = 3: whole trial, {said}",
            f"{ratio['trial']:.2f}x",
            "<= 1.25x",
            ratio["trial"] <= 1.25,
        )
        outside = ratio["outside"] - 1
        yield f"digits MLP: steps after the window, {said}", f"{outside:+.1%}", "", None


PARTS = {part.__name__: part for part in (steps, detectors, cosines, trial)}


def main(argv=None):
    args = parse(PARTS, argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = "tangent_cost-quick.json" if args.quick else "tangent_cost.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    run_parts(PARTS, args.only, store, QUICK if args.quick else Size())


if __name__ == "__main__":
    main()
