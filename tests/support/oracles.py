"""Slow twins: obviously right, and nothing else.

Runs are small float64 models with smooth activations, trained by hand-written optimizers whose
every operation is differentiable; hypergradients by autograd through the whole unrolled run, or
by central differences of whole runs of the real ``torch.optim`` optimizer.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.func import functional_call


def rounding(*terms, operations=64):
    """The absolute tolerance for a sum of these terms: what so many roundings may add up to.

    A sum is rounded in proportion to its largest term, not to what is left when terms cancel: a
    derivative that is exactly zero comes out as some eps times the terms. ``terms`` are numbers,
    arrays or tensors as large as what is summed; the least precise dtype among them counts.
    """
    arrays = [np.asarray(t.detach() if isinstance(t, torch.Tensor) else t) for t in terms]
    eps = max(np.finfo(a.dtype).eps for a in arrays)
    return float(operations * eps * max(np.abs(a).max() for a in arrays))


def slope(value, at):
    """dvalue/dat by central differences, and the :func:`rounding` in it."""
    e = 1e-5 * abs(at)
    values = {k: value(at + k * e) for k in (-2, -1, 1, 2)}
    # Richardson's extrapolation: the O(e²) error of the central difference cancels.
    near, far = ((values[k] - values[-k]) / (2 * k * e) for k in (1, 2))
    return (4 * near - far) / 3, rounding(*values.values(), operations=4) / e


@dataclass
class Task:
    """Data and a model; every run starts from the same weights and sees the same batches."""

    steps: int = 30
    clip: float | None = None
    cosine: bool = False
    l2: bool = False
    accumulate: int = 1
    loss_scale: float = 1.0
    clip_value: float | None = None
    width: int = 5
    bias: bool = True
    convolves: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float64
    model: nn.Module = field(init=False)

    def __post_init__(self):
        g = torch.Generator().manual_seed(self.seed)
        self.x = torch.randn(40, 4, generator=g, dtype=torch.float64).to(self.dtype)
        self.y = torch.randint(0, 3, (40,), generator=g)
        self.xv = torch.randn(30, 4, generator=g, dtype=torch.float64).to(self.dtype)
        self.yv = torch.randint(0, 3, (30,), generator=g)
        self.batches = torch.randint(0, 40, (self.steps * self.accumulate, 8), generator=g)
        torch.manual_seed(self.seed)
        self.start = {k: v.detach() for k, v in self.untrained().named_parameters()}

    def untrained(self):
        if self.convolves:
            return nn.Sequential(
                nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.LayerNorm(9),
                nn.GELU(), nn.Linear(9, 3),
            ).to(self.dtype)  # fmt: skip
        first, last = nn.Linear(4, self.width, self.bias), nn.Linear(self.width, 3, self.bias)
        return nn.Sequential(first, nn.Tanh(), last).to(self.dtype)

    def new_model(self):
        model = self.untrained()
        model.load_state_dict(self.start)
        return model

    def lr_factor(self, t):
        return 0.5 * (1 + math.cos(math.pi * t / self.steps)) if self.cosine else 1.0

    def loss(self, model, params, i, l2):
        out = functional_call(model, params, self.x[self.batches[i]])
        loss = nn.functional.cross_entropy(out, self.y[self.batches[i]])
        if self.l2:
            loss = loss + l2 * sum((p**2).sum() for p in params.values())
        return loss / self.accumulate

    def validation(self, model, params=None):
        out = functional_call(model, params or dict(model.named_parameters()), self.xv)
        return nn.functional.cross_entropy(out, self.yv)


def clipped(grads, task):
    if task.clip is not None:
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        factor = torch.clamp(task.clip / (norm + 1e-6), max=1.0)
        return [g * factor for g in grads]
    if task.clip_value is not None:
        return [g.clamp(-task.clip_value, task.clip_value) for g in grads]
    return grads


def sgd(params, grads, state, h, nesterov=False, maximize=False):
    out = {}
    for (name, p), g in zip(params.items(), grads, strict=True):
        g = (-g if maximize else g) + h["weight_decay"] * p
        buffer = state.get(name)
        buffer = (
            g if buffer is None else h["momentum"] * buffer + (1 - h.get("dampening", 0.0)) * g
        )
        state[name] = buffer
        out[name] = p - h["lr"] * (g + h["momentum"] * buffer if nesterov else buffer)
    return out


def adam(params, grads, state, h, decoupled=False, amsgrad=False):
    state["k"] = k = state.get("k", 0) + 1
    out = {}
    for (name, p), g in zip(params.items(), grads, strict=True):
        if decoupled:
            p = p * (1 - h["lr"] * h["weight_decay"])
        else:
            g = g + h["weight_decay"] * p
        m, v, vmax = state.get(name, (torch.zeros_like(p),) * 3)
        m = h["beta1"] * m + (1 - h["beta1"]) * g
        v = h["beta2"] * v + (1 - h["beta2"]) * g**2
        vmax = torch.maximum(vmax, v)
        state[name] = (m, v, vmax)
        root = torch.sqrt(vmax if amsgrad else v) / torch.sqrt(1 - h["beta2"] ** k)
        out[name] = p - h["lr"] / (1 - h["beta1"] ** k) * m / (root + h["eps"])
    return out


def by_parameter(update):
    """``update(p, g̃, state, h, k)`` -> θ' for one tensor, as a step of all of them.

    g̃ holds the coupled weight decay; the state is a dictionary per tensor.
    """

    def step(params, grads, state, h, decoupled=False, **options):
        state["k"] = k = state.get("k", 0) + 1
        out = {}
        for (name, p), g in zip(params.items(), grads, strict=True):
            decay = h.get("weight_decay", 0.0)
            g, p = (g, p * (1 - h["lr"] * decay)) if decoupled else (g + decay * p, p)
            own = state.setdefault(name, {})
            own["start"] = params[name]
            out[name] = update(p, g, own, h, k, **options)
        return out

    return step


def moments(g, s, h):
    s["m"] = h["beta1"] * s.get("m", torch.zeros_like(g)) + (1 - h["beta1"]) * g
    s["v"] = h["beta2"] * s.get("v", torch.zeros_like(g)) + (1 - h["beta2"]) * g**2
    return s["m"], s["v"]


@by_parameter
def nadam(p, g, s, h, k):
    m, v = moments(g, s, h)
    mu, following = (h["beta1"] * (1 - 0.96 ** (j * h["momentum_decay"]) / 2) for j in (k, k + 1))
    s["product"] = s.get("product", 1.0) * mu
    d = torch.sqrt(v / (1 - h["beta2"] ** k)) + h["eps"]
    nesterov = (1 - mu) / (1 - s["product"]) * g + following / (1 - s["product"] * following) * m
    return p - h["lr"] * nesterov / d


@by_parameter
def radam(p, g, s, h, k):
    m, v = moments(g, s, h)
    m = m / (1 - h["beta1"] ** k)
    c2 = 1 - h["beta2"] ** k
    most = 2 / (1 - h["beta2"]) - 1
    rho = most - 2 * k * h["beta2"] ** k / c2
    if rho.item() <= 5:
        return p - h["lr"] * m
    r = torch.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return p - h["lr"] * m * r * torch.sqrt(c2) / (torch.sqrt(v) + h["eps"])


@by_parameter
def adamax(p, g, s, h, k):
    s["m"] = h["beta1"] * s.get("m", torch.zeros_like(g)) + (1 - h["beta1"]) * g
    s["u"] = torch.maximum(h["beta2"] * s.get("u", torch.zeros_like(g)), g.abs() + h["eps"])
    return p - h["lr"] / (1 - h["beta1"] ** k) * s["m"] / s["u"]


@by_parameter
def adagrad(p, g, s, h, k):
    s["v"] = s.get("v", h["initial_accumulator_value"]) + g**2
    rate = h["lr"] / (1 + (k - 1) * h["lr_decay"])
    return p - rate * g / (torch.sqrt(s["v"]) + h["eps"])


@by_parameter
def adadelta(p, g, s, h, k):
    a = s.get("a", torch.zeros_like(g))
    s["v"] = h["rho"] * s.get("v", torch.zeros_like(g)) + (1 - h["rho"]) * g**2
    delta = torch.sqrt((a + h["eps"]) / (s["v"] + h["eps"])) * g
    s["a"] = h["rho"] * a + (1 - h["rho"]) * delta**2
    return p - h["lr"] * delta


@by_parameter
def rmsprop(p, g, s, h, k, centered=False):
    s["v"] = h["alpha"] * s.get("v", torch.zeros_like(g)) + (1 - h["alpha"]) * g**2
    s["mean"] = h["alpha"] * s.get("mean", torch.zeros_like(g)) + (1 - h["alpha"]) * g
    variance = s["v"] - s["mean"] ** 2 if centered else s["v"]
    s["b"] = h["momentum"] * s.get("b", 0.0) + g / (torch.sqrt(variance) + h["eps"])
    return p - h["lr"] * s["b"]


@by_parameter
def asgd(p, g, s, h, k):
    eta = s.get("eta", h["lr"])
    s["eta"] = h["lr"] / (1 + h["lambd"] * h["lr"] * k) ** h["alpha"]
    return p * (1 - h["lambd"] * eta) - eta * g


@by_parameter
def rprop(p, g, s, h, k):
    agree = g.detach() * s.get("before", torch.zeros_like(p))
    factor = torch.where(agree > 0, h["eta2"], torch.where(agree < 0, h["eta1"], 1.0))
    size = s.get("size", h["lr"]) * factor
    size = torch.where(size > h["step_size2"], h["step_size2"], size)
    s["size"] = torch.where(size < h["step_size1"], h["step_size1"], size)
    s["before"] = torch.where(agree < 0, 0.0, g.detach())
    return p - s["before"].sign() * s["size"]


@by_parameter
def adafactor(p, g, s, h, k):
    share = k ** h["beta2_decay"]

    def mean(name, value):
        s[name] = (1 - share) * s.get(name, torch.zeros_like(value)) + share * value
        return s[name]

    if p.ndim > 1:
        row, column = mean("r", (g**2).mean(-1, True)), mean("c", (g**2).mean(-2, True))
        moment = row @ column / torch.clamp(row.mean(-2, True), min=h["eps1"])
    else:
        moment = mean("v", g**2)
    update = g / torch.sqrt(torch.maximum(moment, h["eps1"] ** 2))
    rms = torch.sqrt((update**2).mean())
    size = min(h["lr"], k**-0.5) * torch.maximum(h["eps2"], torch.sqrt((s["start"] ** 2).mean()))
    return p - size * update / torch.clamp(rms / h["d"], min=1.0)


def orthogonal(u, coefficients=(3.4445, -4.775, 2.0315), steps=5, eps=1e-7):
    """Muon's Newton-Schulz iteration, in the precision of its argument."""
    a, b, c = coefficients
    if u.shape[0] > u.shape[1]:
        return orthogonal(u.T, coefficients, steps, eps).T
    x = u / torch.clamp(torch.sqrt((u**2).sum()), min=eps)
    for _ in range(steps):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


@by_parameter
def muon(p, g, s, h, k):
    s["b"] = h["momentum"] * s.get("b", torch.zeros_like(g)) + (1 - h["momentum"]) * g
    u = h["momentum"] * s["b"] + (1 - h["momentum"]) * g
    return p - h["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5 * orthogonal(u)


def unrolled(task, step, h, every=1):
    """Validation loss and its hypergradients at every ``every``-th step, by reverse mode."""
    leaves = {k: torch.tensor(v, dtype=task.dtype, requires_grad=True) for k, v in h.items()}
    model = task.new_model()
    params = {k: v.clone().requires_grad_() for k, v in task.start.items()}
    state, losses, gradients = {}, [], []
    for t in range(task.steps):
        grads = None
        for a in range(task.accumulate):
            loss = task.loss(model, params, t * task.accumulate + a, leaves.get("l2"))
            new = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            grads = new if grads is None else [g + n for g, n in zip(grads, new, strict=True)]
        now = {**leaves, "lr": leaves["lr"] * task.lr_factor(t)}
        params = step(params, clipped(grads, task), state, now)
        if (t + 1) % every == 0:
            value = task.validation(model, params)
            got = torch.autograd.grad(
                value, list(leaves.values()), retain_graph=True, allow_unused=True
            )
            losses.append(value.item())
            gradients.append([0.0 if g is None else g.item() for g in got])
    return losses, gradients


def train(task, make_optimizer, h, callback=None):
    """The real loop with the real optimizer; ``callback(model, optimizer)`` attaches ours."""
    model = task.new_model()
    optimizer = make_optimizer(model, h)
    scheduler = (
        torch.optim.lr_scheduler.LambdaLR(optimizer, task.lr_factor) if task.cosine else None
    )
    glocal = callback(model, optimizer) if callback else None
    with glocal or torch.enable_grad():
        l2 = glocal["l2"] if glocal and task.l2 else h.get("l2")
        for t in range(task.steps):
            optimizer.zero_grad()
            for a in range(task.accumulate):
                params = dict(model.named_parameters())
                loss = task.loss(model, params, t * task.accumulate + a, l2)
                glocal.backward(loss) if glocal else loss.backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            if task.clip_value is not None:
                nn.utils.clip_grad_value_(model.parameters(), task.clip_value)
            optimizer.step()
            if scheduler:
                scheduler.step()
    return model, optimizer, glocal


def differences(task, make_optimizer, h):
    """d(final validation loss)/dh by differences of whole runs: of each name its :func:`slope`."""

    def value(changed):
        model, _, _ = train(task, make_optimizer, changed)
        return task.validation(model).item()

    return {name: slope(lambda x, n=name: value({**h, n: x}), h[name]) for name in h}
