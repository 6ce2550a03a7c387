"""The tasks that every benchmark uses: same data, same starts, same batches per seed.

Digits scaled to [0, 1], per-feature mean removed, one fixed permutation; 600 train, 600
validation, 597 test; tanh networks, He initialisation and batches of 64 drawn with replacement by
task seed; cross-entropy. Beside them digits with rare classes, whose weights in the loss are
hyperparameters, and a table of scikit-learn's ``make_classification``.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits, make_classification
from torch import nn
from torch.nn.functional import cross_entropy


@functools.cache
def digits():
    """((x, y) train, validation, test)."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16.0), torch.as_tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0))[order].float()
    y = y[order]
    return (x[:600], y[:600]), (x[600:1200], y[600:1200]), (x[1200:], y[1200:])


@functools.cache
def table():
    """((x, y) train, validation, test): 30 columns, 8 of them telling, 5 classes, 5 % noise."""
    x, y = make_classification(
        1800, 30, n_informative=8, n_classes=5, flip_y=0.05, class_sep=1.5, random_state=0
    )
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y)
    x = (x - x.mean(0)) / x.std(0)
    return (x[:600], y[:600]), (x[600:1200], y[600:1200]), (x[1200:], y[1200:])


@functools.cache
def imbalanced(seed):
    """80 images of five classes, 8 of the others; 10 of each to validate on; the rest to test."""
    x, y = (torch.cat(parts) for parts in zip(*digits(), strict=True))
    g = torch.Generator().manual_seed(40_000 + seed)
    minor = set(torch.randperm(10, generator=g)[:5].tolist())
    parts = [[], [], []]
    for c in range(10):
        rows = torch.nonzero(y == c).flatten()
        rows = rows[torch.randperm(len(rows), generator=g)]
        n = 8 if c in minor else 80
        for part, taken in zip(parts, (rows[:n], rows[80:90], rows[90:]), strict=True):
            part.append(taken)
    return [(x[rows], y[rows]) for rows in map(torch.cat, parts)], minor


def mlp(*sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)
    return model


def cnn(first, second, classes):
    """Two 3x3 convolutions of stride 2 on the 8x8 image, then one linear layer."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, first, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * second, classes),
    )
    for layer in model:
        if hasattr(layer, "weight"):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)
    return model


@dataclass(frozen=True)
class Task:
    """One problem: a network, its optimizer, the box of its hyperparameters.

    ``box`` maps each hyperparameter to (low, high), all log-scaled; ``layers`` makes the model
    of ``sizes``.
    """

    name: str
    sizes: tuple
    box: dict
    steps: int = 300
    noise: float = 0.0
    layers: Callable = mlp

    def split(self, seed):
        return digits()

    def data(self, seed):
        """Training set of this seed: with label noise, a share of the labels is redrawn."""
        (x, y), valid, test = self.split(seed)
        if self.noise:
            g = torch.Generator().manual_seed(10_000 + seed)
            flip = torch.rand(len(y), generator=g) < self.noise
            y = torch.where(flip, torch.randint(0, 10, y.shape, generator=g), y)
        return (x, y), valid, test

    def batches(self, seed):
        g = torch.Generator().manual_seed(20_000 + seed)
        rows = len(self.split(seed)[0][1])
        return torch.randint(0, rows, (self.steps, 64), generator=g)

    def model(self, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network()

    def network(self):
        return self.layers(*self.sizes)

    def optimizer(self, model, h):
        raise NotImplementedError

    def loss(self, model, x, y, h):
        """Of one training batch; ``h`` holds the hyperparameters, or is the callback."""
        return cross_entropy(model(x), y)

    def bind(self, glocal):
        """Tells the callback what the names do not."""

    def suggest(self, trial):
        return {n: trial.suggest_float(n, *b, log=True) for n, b in self.box.items()}

    def centre(self):
        return {n: math.sqrt(low * high) for n, (low, high) in self.box.items()}

    def random_start(self, generator):
        u = torch.rand(len(self.box), generator=generator).tolist()
        ends = self.box.items()
        return {n: lo * (hi / lo) ** v for (n, (lo, hi)), v in zip(ends, u, strict=True)}


class SGD(Task):
    """q = 3: momentum in its averaging form, so that lr is the effective learning rate."""

    def optimizer(self, model, h):
        m = 1 - h["omm"]
        return torch.optim.SGD(
            model.parameters(), lr=h["lr"], momentum=m, dampening=m, weight_decay=h["weight_decay"]
        )

    def bind(self, glocal):
        glocal.bind(
            momentum=lambda: 1 - glocal["omm"], dampening=lambda: 1 - glocal["omm"]
        )  # fmt: skip


class Adam(Task):
    """q = 4: AdamW by lr, 1 - β1, 1 - β2 and weight decay."""

    def optimizer(self, model, h):
        return torch.optim.AdamW(
            model.parameters(),
            lr=h["lr"],
            betas=(1 - h["omb1"], 1 - h["omb2"]),
            eps=1e-6,
            weight_decay=h["weight_decay"],
        )

    def bind(self, glocal):
        glocal.bind(beta1=lambda: 1 - glocal["omb1"], beta2=lambda: 1 - glocal["omb2"])


class LayerWise(Task):
    """q = 8: a learning rate and a weight decay per layer."""

    def optimizer(self, model, h):
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        groups = [
            {"params": layer.parameters(), "lr": h[f"lr{i}"], "weight_decay": h[f"wd{i}"]}
            for i, layer in enumerate(layers)
        ]
        return torch.optim.SGD(groups, momentum=0.9, dampening=0.9)

    def bind(self, glocal):
        for i in range(4):
            glocal.bind(group=i, lr=lambda i=i: glocal[f"lr{i}"])
            glocal.bind(group=i, weight_decay=lambda i=i: glocal[f"wd{i}"])


class Tabular(Adam):
    """AdamW on the table."""

    def split(self, seed):
        return table()


class Weighted(Task):
    """q = 11: the learning rate of SGD, and a weight in the loss for each class of digits.

    The weights are normalised over the batch, so that they are no learning rate in disguise.
    """

    def split(self, seed):
        return imbalanced(seed)[0]

    def loss(self, model, x, y, h):
        weight = torch.stack([torch.as_tensor(h[f"w{i}"]) for i in range(10)])[y]
        return (weight * cross_entropy(model(x), y, reduction="none")).sum() / weight.sum()

    def optimizer(self, model, h):
        return torch.optim.SGD(model.parameters(), lr=h["lr"], momentum=0.9, dampening=0.9)


_LR, _WD = (1e-3, 3.0), (1e-6, 1e-1)
_SGD = {"lr": _LR, "omm": (5e-3, 1.0), "weight_decay": _WD}
_ADAM = {"lr": (1e-5, 1e-1), "omb1": (1e-2, 1.0), "omb2": (1e-4, 1.0), "weight_decay": (1e-5, 1.0)}
_WEIGHTS = {"lr": _LR} | {f"w{i}": (1e-2, 1.0) for i in range(10)}
_LAYERS = {f"lr{i}": _LR for i in range(4)} | {f"wd{i}": _WD for i in range(4)}


def sgd(**kw):
    return SGD("sgd", (64, 32, 10), _SGD, **kw)


def adam(**kw):
    return Adam("adam", (64, 32, 10), _ADAM, **kw)


def convolutional(task):
    """The same optimizer and box on the small CNN."""
    return replace(task, name=f"{task.name} cnn", sizes=(8, 16, 10), layers=cnn)


def layerwise(**kw):
    return LayerWise("layerwise", (64, 32, 32, 32, 10), _LAYERS, **kw)


def tabular(**kw):
    return Tabular("tabular", (30, 64, 32, 5), _ADAM, **kw)


def weighted(**kw):
    return Weighted("weighted", (64, 32, 10), _WEIGHTS, **kw)


TASKS = {"sgd": sgd, "adam": adam, "layerwise": layerwise}


def train(task, seed, h, attach=None, scheduler=None, report=None, schedule=None):
    """One run; ``attach(model, optimizer)`` may return a callback.

    ``scheduler(optimizer)`` makes one of torch's; ``schedule`` is a self-tuned run's to follow.

    Returns:
        (model, callback or None, validation loss, test loss), the better of raw and averaged
        weights where the callback keeps an average.
    """
    (x, y), (xv, yv), (xt, yt) = task.data(seed)
    loss_fn, batches = nn.functional.cross_entropy, task.batches(seed)
    model = task.model(seed)
    optimizer = task.optimizer(model, h)
    annealing = scheduler(optimizer) if scheduler else None
    glocal = attach(model, optimizer) if attach else None
    following = schedule.attach(optimizer) if schedule else contextlib.nullcontext()
    backward = torch.Tensor.backward if glocal is None else glocal.backward
    with following, contextlib.nullcontext() if glocal is None else glocal:
        if glocal is not None:
            task.bind(glocal)
        for t in range(task.steps):
            optimizer.zero_grad()
            backward(loss_fn(model(x[batches[t]]), y[batches[t]]))
            optimizer.step()
            if annealing:
                annealing.step()
            if report:
                report(t, model)
        with torch.no_grad():
            if glocal is None:
                return model, None, loss_fn(model(xv), yv).item(), loss_fn(model(xt), yt).item()
            value = glocal.best_of(lambda: loss_fn(model(xv), yv).item())
            with glocal.averaged() if glocal.is_averaged else contextlib.nullcontext():
                test = loss_fn(model(xt), yt).item()
    return model, glocal, value, test
