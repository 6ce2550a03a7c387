"""Vectors of hyperparameters, learnt in one run: where search cannot follow.

Four parts, each resumable: ``python vectors.py --only weights --seeds 20 --out results``.

- ``weights``: softmax regression on digits, 200 images to train on, 400 to validate on: 640 (one
  per weight) and 64 strengths (one per pixel) in one run, against one strength tuned in 30 trials
  of GPSampler, and the 640 searched in 30 trials of TPE, CMA-ES and at random.
- ``features``: a table of 10 useful and 90 useless columns, one strength per column.
- ``ridge``: 54 strengths of a ridge regression, against the exact bilevel optimum.
- ``cleaning``: one weight per example where 40 % of the labels are wrong.
- ``cost``: time of a step with 10,000 hyperparameters of the loss over one with 1.
"""

import argparse
import time
import warnings

import numpy as np
import optuna
import torch
from harness import FIRST_SEED, Store, interval, print_table
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import PolynomialFeatures
from torch.nn.functional import cross_entropy

from optuna_glocal import SelfTuning, Vector

LOW, HIGH = 1e-6, 1.0  # of a strength
STEPS = {"weights": 1000, "features": 1000, "ridge": 2000, "cleaning": 600, "cost": 200}


def rows(count, seed, *sizes):
    """Disjoint random rows, and the rest."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.split(order, [*sizes, count - sum(sizes)])


def images():
    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x / 16.0).float(), torch.as_tensor(y)


# -- one strength per weight, per pixel, or one ------------------------------------------------


class Softmax:
    """Softmax regression with a strength, or many."""

    def __init__(self, seed):
        x, y = images()
        self.parts = [(x[r], y[r]) for r in rows(len(x), seed, 200, 400)]
        self.w = torch.zeros(10, 64, requires_grad=True)
        self.bias = torch.zeros(10, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.w, self.bias], lr=0.5, momentum=0.9)

    def loss(self, part):
        x, y = self.parts[part]
        return cross_entropy(x @ self.w.T + self.bias, y)

    def train(self, strength, backward=torch.Tensor.backward):
        for _ in range(STEPS["weights"]):
            self.optimizer.zero_grad()
            backward(self.loss(0) + (strength() * self.w**2).sum())
            self.optimizer.step()
        with torch.no_grad():
            return [self.loss(1).item(), self.loss(2).item()]


def learnt(seed, shape):
    began, task = time.process_time(), Softmax(seed)
    l2 = Vector(shape, LOW, HIGH)
    with SelfTuning(task.optimizer, lambda: task.loss(1), horizon=STEPS["weights"], l2=l2) as run:
        losses = task.train(lambda: run["l2"], run.backward)
    return [*losses, time.process_time() - began]


def searched(seed, name, shape, trials):
    """The best of so many trials by the validation loss, and the seconds of a trial."""
    samplers = {
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    count, spent = int(np.prod(shape)), 0.0

    def objective(trial):
        nonlocal spent
        values = [trial.suggest_float(f"l2[{i}]", LOW, HIGH, log=True) for i in range(count)]
        strength, began = torch.tensor(values).reshape(shape), time.process_time()
        valid, test = Softmax(seed).train(lambda: strength)
        spent += time.process_time() - began
        trial.set_user_attr("test", test)
        return valid

    study = optuna.create_study(sampler=samplers[name]())
    study.optimize(objective, n_trials=trials)
    return [study.best_value, study.best_trial.user_attrs["test"], spent / trials]


def weights(store, seeds, trials):
    for seed in seeds:
        one = store.get(f"weights/one/{seed}", searched, seed, "gp", (1,), trials)
        for shape in ((10, 64), (64,), (1,)):
            store.get(f"weights/learnt {shape}/{seed}", learnt, seed, shape)
        print("weights", seed, one, store.results[f"weights/learnt (10, 64)/{seed}"], flush=True)
    for seed in seeds:
        for name in ("tpe", "cmaes", "random"):
            store.get(f"weights/{name}/{seed}", searched, seed, name, (10, 64), trials)
    found = store.results
    one = np.array([found[f"weights/one/{s}"] for s in seeds])
    out = []
    for shape in ((10, 64), (64,), (1,)):
        own = np.array([found[f"weights/learnt {shape}/{s}"] for s in seeds])
        ratio = own[:, 1] / one[:, 1]
        must = ("< 1", interval(ratio)[1] < 1) if shape == (10, 64) else ("", None)
        out.append((f"{np.prod(shape)} learnt, test loss over one tuned", told(ratio), *must))
        gap = own[:, 1] / own[:, 0] / (one[:, 1] / one[:, 0])
        must = ("<= 1.05", np.median(gap) <= 1.05) if shape == (10, 64) else ("", None)
        out.append(("  test over validation loss, over that of one", told(gap), *must))
        out.append(("  time, in plain trials", told(own[:, 2] / one[:, 2]), "<= 10", None))
    for name in ("tpe", "cmaes", "random"):
        theirs = np.array([found[f"weights/{name}/{s}"] for s in seeds])
        ratio = theirs[:, 1] / one[:, 1]
        out.append((f"640 by {name} in {trials} trials", told(ratio), "", None))
    return out


def told(ratios):
    low, high = interval(ratios)
    return f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}]"


# -- useless columns ---------------------------------------------------------------------------


def table(seed, useful=10, useless=90):
    """Share of the useless columns whose strength ended above that of every useful one."""
    g, steps = torch.Generator().manual_seed(seed), STEPS["features"]
    x = torch.randn(1500, useful + useless, generator=g)
    sizes = 0.5 + torch.rand(useful, generator=g)
    signs = torch.randint(0, 2, (useful,), generator=g) * 2 - 1
    y = x[:, :useful] @ (sizes * signs) + 0.5 * torch.randn(1500, generator=g)
    parts = [(x[r], y[r]) for r in rows(1500, seed, 200, 300)]
    w = torch.zeros(useful + useless, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9)

    def loss(part):
        x, y = parts[part]
        return ((x @ w - y) ** 2).mean()

    l2 = Vector(useful + useless, 1e-4, 10.0)
    with SelfTuning(optimizer, lambda: loss(1), horizon=steps, l2=l2) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            run.backward(loss(0) + (run["l2"] * w**2).sum())
            optimizer.step()
    strengths = run.vectors["l2"]
    above = strengths[useful:] > strengths[:useful].max()
    return [above.double().mean().item(), loss(2).item()]


def features(store, seeds, trials):
    found = np.array([store.get(f"features/{s}", table, s) for s in seeds])
    share = found[:, 0].mean()
    return [("useless columns above every useful one", f"{share:.1%}", ">= 90 %", share >= 0.9)]


# -- ridge regression ---------------------------------------------------------------------------


def diabetes(seed):
    """Nine columns of the diabetes data, their squares and products: 54 columns."""
    x, y = load_diabetes(return_X_y=True)
    x = PolynomialFeatures(2, include_bias=False).fit_transform(np.delete(x, 1, axis=1))
    parts = [r.numpy() for r in rows(len(x), seed, 150, 140)]
    first = parts[0]
    x, y = (x - x[first].mean(0)) / x[first].std(0), (y - y[first].mean()) / y[first].std()
    return [(x[r], y[r]) for r in parts]


def of_optimum(strengths, parts):
    """Validation loss of the ridge regression with these strengths, and its gradient."""
    (x, y), (x_valid, y_valid) = parts[:2]
    hessian = x.T @ x / len(y) + np.diag(strengths)
    w = np.linalg.solve(hessian, x.T @ y / len(y))
    left = x_valid @ w - y_valid
    v = x_valid.T @ left / len(left)
    return left @ left / len(left) / 2, -np.linalg.solve(hessian, v) * w


def exact(parts, low, high, starts=10):
    """The least validation loss over all strengths: L-BFGS on the closed form, many starts."""
    ends = np.log([low, high])

    def objective(u):
        value, gradient = of_optimum(np.exp(u), parts)
        return value, gradient * np.exp(u)

    best = np.inf
    for start in range(starts):
        u = np.random.default_rng(start).uniform(*ends, 54)
        options = {"maxiter": 3000, "maxfun": 5000, "ftol": 1e-12, "gtol": 1e-9}
        found = minimize(
            objective, u, jac=True, bounds=[ends] * 54, method="L-BFGS-B", options=options
        )
        best = min(best, found.fun)
    return best


def ridge_run(seed, low=1e-4, high=20.0):
    parts, steps = diabetes(seed), STEPS["ridge"]
    tensors = [[torch.as_tensor(a) for a in part] for part in parts]
    w = torch.zeros(54, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=0.9)

    def loss(part):
        x, y = tensors[part]
        return ((x @ w - y) ** 2).mean() / 2

    l2 = Vector(54, low, high, start=0.1, smoothing=0.0)
    with SelfTuning(optimizer, lambda: loss(1), horizon=steps, l2=l2) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            run.backward(loss(0) + (run["l2"] * w**2).sum() / 2)
            optimizer.step()
    found = of_optimum(run.vectors["l2"].numpy(), parts)[0]
    one = min(of_optimum(np.full(54, s), parts)[0] for s in np.geomspace(low, high, 200))
    return [found, exact(parts, low, high), one]


def ridge(store, seeds, trials):
    found = np.array([store.get(f"ridge/{s}", ridge_run, s) for s in seeds])
    off, one = found[:, 0] / found[:, 1] - 1, found[:, 2] / found[:, 1] - 1
    return [
        ("ridge, 54 strengths, above the optimum: median", f"{np.median(off):.2%}", "<= 2 %",
         np.median(off) <= 0.02),
        ("  worst seed", f"{off.max():.2%}", "", None),
        ("  best single strength", f"{np.median(one):.2%}", "", None),
    ]  # fmt: skip


# -- wrong labels -------------------------------------------------------------------------------


def cleaned(seed, how, hidden=64, wrong=0.4):
    """Test accuracy of training on all, on the clean, or on weighted examples."""
    (x, y), steps = images(), STEPS["cleaning"]
    (train, valid, test), g = rows(len(x), seed, 1000, 300), torch.Generator().manual_seed(seed)
    is_wrong = torch.rand(1000, generator=g) < wrong
    labels = (y[train] + is_wrong * torch.randint(1, 10, (1000,), generator=g)) % 10
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def accuracy():
        return (model(x[test]).argmax(1) == y[test]).double().mean().item()

    def fit(weights, backward=torch.Tensor.backward):
        best, least = 0.0, np.inf
        for step in range(steps):
            optimizer.zero_grad()
            each = cross_entropy(model(x[train]), labels, reduction="none")
            backward((weights() * each).mean())
            optimizer.step()
            if how == "stopped" and step % 10 == 9:
                with torch.no_grad():
                    loss = cross_entropy(model(x[valid]), y[valid]).item()
                least, best = min((least, best), (loss, accuracy()), key=lambda row: row[0])
        return best if how == "stopped" else accuracy()

    if how != "learnt":
        fixed = (~is_wrong).float() / 0.6 if how == "clean" else torch.ones(1000)
        return [fit(lambda: fixed), 0.0]
    with SelfTuning(
        optimizer,
        lambda: cross_entropy(model(x[valid]), y[valid]),
        horizon=steps,
        weight=Vector(1000, 0.0, 1.0),
    ) as run:
        accurate = fit(lambda: run["weight"], run.backward)
    below = run.vectors["weight"] < 0.5
    return [accurate, (below == is_wrong).double().mean().item()]


def cleaning(store, seeds, trials):
    ways = ("all", "stopped", "clean", "learnt")
    found = {
        how: np.array([store.get(f"cleaning/{how}/{s}", cleaned, s, how) for s in seeds])
        for how in ways
    }
    mean = {how: each[:, 0].mean() for how, each in found.items()}
    gain = (mean["learnt"] - mean["all"]) / (mean["clean"] - mean["all"])
    stopped = (mean["learnt"] - mean["stopped"]) / (mean["clean"] - mean["stopped"])
    return [
        *((f"accuracy, {how}", f"{mean[how]:.4f}", "", None) for how in ways),
        ("gained of the gap between all and clean", f"{gain:.1%}", ">= 70 %", gain >= 0.7),
        ("  all stopped at the least validation loss", f"{stopped:.1%}", "", None),
        ("  labels told right from wrong", f"{found['learnt'][:, 1].mean():.1%}", "", None),
    ]


# -- cost ---------------------------------------------------------------------------------------


def step_time(size):
    """Seconds of a step with so many weights of examples, least of three repeats."""
    torch.manual_seed(0)
    steps = STEPS["cost"]
    x, y = torch.randn(10_000, 20), torch.randint(0, 5, (10_000,))
    times = []
    for _ in range(3):
        model = torch.nn.Sequential(
            torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 5)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with SelfTuning(
            optimizer,
            lambda model=model: cross_entropy(model(x[:500]), y[:500]),
            horizon=steps,
            weight=Vector(size, 0.1, 10.0),
        ) as run:
            began = time.process_time()
            for _ in range(steps):
                optimizer.zero_grad()
                each = cross_entropy(model(x), y, reduction="none")
                run.backward((run["weight"] * each).mean())
                optimizer.step()
            times.append((time.process_time() - began) / steps)
    return min(times)


def cost(store, seeds, trials):
    found = {q: store.get(f"cost/{q}", step_time, q) for q in (1, 10_000)}
    ratio = found[10_000] / found[1]
    return [("step with q = 10,000 over q = 1", f"{ratio:.3f}", "<= 1.3", ratio <= 1.3)]


PARTS = {
    "weights": weights, "features": features, "ridge": ridge, "cleaning": cleaning, "cost": cost,
}  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="run a part")
    parser.add_argument("--seeds", type=int, default=20, help="number of paired seeds")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="the first seed")
    parser.add_argument("--trials", type=int, default=30, help="trials of a search")
    parser.add_argument("--out", default=".", help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="one seed, to see that it runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    store = Store(f"{args.out}/vectors{'-quick' * args.quick}.json")
    seeds = range(args.first, args.first + (1 if args.quick else args.seeds))
    trials = 2 if args.quick else args.trials
    if args.quick:
        STEPS.update(dict.fromkeys(STEPS, 40))
    table_rows = []
    try:
        for part in args.only or PARTS:
            table_rows += PARTS[part](store, seeds, trials)
    finally:
        store.save()
    print_table(table_rows)


if __name__ == "__main__":
    main()
