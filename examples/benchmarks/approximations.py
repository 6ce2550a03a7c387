"""Approximate tangents, all of them carried on the same training run beside the exact ones.

A scheme replaces the product H Z of a step; the update rules are the product's own, and tangents
do not touch the training, so that one run serves every scheme. Row j of Z is dθ/du_j with
u = log λ, shape (q, P).
"""

import math

import torch
from tasks import TASKS, digits, mlp
from torch import nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.functional import cross_entropy

from optuna_glocal.hypergradient.optimizers import GRAD, PARAM, point_of, rule_of
from optuna_glocal.hypergradient.product_spacing import Spacing, mean_cosine


def network(kind, seed):
    """tanh and relu: 64-32-10; cnn: two ReLU convolutions with max pooling, a linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind != "cnn":
            model = mlp(64, 32, 10)
            if kind == "relu":
                model[1] = nn.ReLU()
            return model
        first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), *first, *second, nn.Flatten(), nn.Linear(64, 10)
        )


class Exact:
    """A product in every step; ``of``: the share of the minibatch it is taken on."""

    curvature, gamma = "hessian", 1.0

    def __init__(self, of=1.0):
        self.of, self.rows_asked, self.last = of, 0.0, None

    def asks(self, t, z):
        """The rows to multiply in step ``t``, or ``None``."""
        return z

    def answer(self, t, z, product):
        """What stands for H Z in step ``t``; ``product`` is of the rows asked for."""
        return product


class Held(Exact):
    """A product every k-th step, repeated between; ``along`` scales it as Z has grown along Z."""

    def __init__(self, k, of=1.0, along=False, dense=4):
        super().__init__(of)
        self.k, self.along, self.dense = k, along, dense

    def asks(self, t, z):
        return z if t % self.k == 0 or t < self.dense else None

    def answer(self, t, z, product):
        if product is not None:
            self.last, self.at = product, z.clone()
        if not self.along:
            return self.last
        square = (self.at**2).sum(1, keepdim=True).clamp_min(1e-30)
        return (z * self.at).sum(1, keepdim=True) / square * self.last


class Stretched(Exact):
    """A product every k-th step, k times as long, nothing between."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def asks(self, t, z):
        return z if t % self.k == self.k // 2 else None

    def answer(self, t, z, product):
        return 0 * z if product is None else self.k * product


class Adaptive(Exact):
    """What ``tangents="cheap"`` does."""

    def __init__(self, most):
        super().__init__()
        self.spacing = Spacing(most)

    def asks(self, t, z):
        return None if self.spacing.skips else z

    def answer(self, t, z, product):
        if product is None:
            self.spacing.skipped()
            return 0 * z
        pairs = [] if self.last is None else [(product, self.last)]
        self.last = product
        return self.spacing.weight(mean_cosine(pairs)) * product


class FirstOrder(Exact):
    """No product at all, Z discounted by γ per step."""

    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def asks(self, t, z):
        return None

    def answer(self, t, z, product):
        return 0 * z


class Late(FirstOrder):
    """First order, and exact over the last share of the window."""

    def __init__(self, share, steps):
        super().__init__(1.0)
        self.start = round((1 - share) * steps)

    def asks(self, t, z):
        return z if t >= self.start else None

    def answer(self, t, z, product):
        return 0 * z if product is None else product


class Directions(Exact):
    """Products of k of the q directions: the leading singular ones, or random and unbiased."""

    def __init__(self, k, at_random=False):
        super().__init__()
        self.k, self.at_random = k, at_random
        self.generator = torch.Generator().manual_seed(0)

    def asks(self, t, z):
        scale = z.norm(dim=1, keepdim=True).clamp_min(1e-30)
        if self.at_random:
            mix = torch.randn(len(z), len(z), generator=self.generator)
            mix = torch.linalg.qr(mix).Q[:, : self.k]
            self.back = scale * mix * len(z) / self.k  # E[q/k M Mᵀ] = 1
            return mix.T @ (z / scale)
        u, s, rows = torch.linalg.svd(z / scale, full_matrices=False)
        self.back = scale * (u * s)[:, : self.k]
        return rows[: self.k]

    def answer(self, t, z, product):
        return self.back @ product


class GaussNewton(Exact):
    """Gᵀ H_out G in place of H."""

    curvature = "gauss-newton"


def schemes(steps):
    """By the name in the table; the exact ones first."""
    return {
        "exact": Exact(),
        "cheap": Adaptive(16),
        "every 4th, held": Held(4),
        "every 8th, held": Held(8),
        "every 8th, held along Z": Held(8, along=True),
        "every 8th, eight times": Stretched(8),
        "sub-batch of 16": Exact(of=1 / 4),
        "sub-batch of 8": Exact(of=1 / 8),
        "1 leading direction": Directions(1),
        "1 random direction": Directions(1, at_random=True),
        "Gauss-Newton": GaussNewton(),
        "last tenth only": Late(0.1, steps),
        "first order": FirstOrder(1.0),
        "first order, times .99": FirstOrder(0.99),
    }


class Curvature:
    """Products of many rows at once with a minibatch's Hessian or Gauss-Newton matrix."""

    def __init__(self, model):
        self.model, self.params = model, list(model.parameters())
        self.names = [name for name, _ in model.named_parameters()]
        self.sizes = [p.numel() for p in self.params]

    def output(self, flat, x):
        pieces = zip(self.names, flat.split(self.sizes), self.params, strict=True)
        return functional_call(self.model, {n: v.reshape(p.shape) for n, v, p in pieces}, x)

    def products(self, kind, rows, x, y):
        flat = torch.cat([p.detach().flatten() for p in self.params])
        one = self._hessian if kind == "hessian" else self._gauss_newton
        return vmap(lambda row: one(flat, row, x, y))(rows)

    def _hessian(self, flat, row, x, y):
        slope = grad(lambda v: cross_entropy(self.output(v, x), y))
        return jvp(slope, (flat,), (row,))[1]

    def _gauss_newton(self, flat, row, x, y):
        logits, change = jvp(lambda v: self.output(v, x), (flat,), (row,))
        p = logits.softmax(1)
        curved = p * (change - (p * change).sum(1, keepdim=True)) / len(x)
        return vjp(lambda v: self.output(v, x), flat)[1](curved)[0]


ENTRIES = {
    "sgd": {"lr": {"lr": 1}, "omm": {"momentum": -1, "dampening": -1}},
    "adam": {"lr": {"lr": 1}, "omb1": {"beta1": -1}, "omb2": {"beta2": -1}},
}


def entry_tangents(name, h, repeats):
    """dη/du by entry of the param group, for every scheme's q rows."""
    out = {}
    for j, (parameter, value) in enumerate(h.items()):
        for entry, slope in ENTRIES[name].get(parameter, {parameter: 1}).items():
            out.setdefault(entry, torch.zeros(len(h)))[j] = slope * value
    return {entry: row.repeat(repeats) for entry, row in out.items()}


def compared(kind, name, seed, h, steps):
    """One run; per scheme the hypergradient at its end and the products per step.

    Returns:
        {"h": by scheme, "products": by scheme, "loss": the validation loss at the end}.
    """
    task = TASKS[name](steps=steps)
    (x, y), (xv, yv), _ = digits()
    model, batches = network(kind, seed), task.batches(seed)
    optimizer, curvature = task.optimizer(model, h), Curvature(model)
    rule, made = rule_of(optimizer), schemes(steps)
    q, entries = len(h), entry_tangents(name, h, len(made))
    rows = {s: slice(i * q, i * q + q) for i, s in enumerate(made)}
    z = {PARAM: torch.zeros(len(made) * q, sum(curvature.sizes))}
    gamma = torch.tensor([s.gamma for s in made.values()]).repeat_interleave(q)[:, None]
    for t in range(steps):
        xb, yb = x[batches[t]], y[batches[t]]
        optimizer.zero_grad()
        cross_entropy(model(xb), yb).backward()
        tangents = {s: z[PARAM][rows[s]] for s in made}
        products = all_products(curvature, made, tangents, t, xb, yb)
        dg = torch.cat([made[s].answer(t, tangents[s], products.get(s)) for s in made])
        point = point_of(optimizer, 0, curvature.params, rule)
        z = rule.linearize(point).jvp({**z, GRAD: dg}, entries)
        z = {part: value.mul_(gamma) for part, value in z.items()}
        optimizer.step()
    loss = cross_entropy(model(xv), yv)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, curvature.params)])
    ends = {s: (z[PARAM][rows[s]] @ slope).tolist() for s in made}
    share = {s: made[s].rows_asked / q / steps for s in made}
    return {"h": ends, "products": share, "loss": loss.item()}


def all_products(curvature, made, tangents, t, x, y):
    """By scheme, for those that ask in this step: one batched call per kind of product."""
    asked = {}
    for s, scheme in made.items():
        wanted = scheme.asks(t, tangents[s])
        if wanted is not None:
            scheme.rows_asked += scheme.of * len(wanted)
            asked.setdefault((scheme.curvature, scheme.of), {})[s] = wanted
    out = {}
    for (kind, of), wanted in asked.items():
        n = math.ceil(of * len(x))
        found = curvature.products(kind, torch.cat(list(wanted.values())), x[:n], y[:n])
        out |= dict(zip(wanted, found.split([len(w) for w in wanted.values()]), strict=True))
    return out
