"""The digits tasks in plain numpy: validation loss at the end and its exact gradient.

The training of tasks.py again (same start, same batches, float64), taken back step by step: one
Hessian-vector product per step by Pearlmutter's R operator, however many the hyperparameters. Fast
at these sizes, which is what 20 seeds of seven samplers need. ``tests/test_benchmarks.py``
compares with torch and with finite differences.
"""

import functools

import numpy as np
from tasks import TASKS
from torch import nn


class Net:
    """A tanh network with cross-entropy; parameters are one vector in torch's order."""

    def __init__(self, sizes):
        self.shapes = list(zip(sizes[1:], sizes, strict=False))
        ends = np.cumsum([n for out, into in self.shapes for n in (out * into, out)])
        self.cuts = list(zip([0, *ends[:-1]], ends, strict=True))
        self.group = np.repeat(
            np.arange(len(self.shapes)), [out * into + out for out, into in self.shapes]
        )

    def layers(self, theta):
        """[(W, b)] as views."""
        parts = [theta[i:j] for i, j in self.cuts]
        pairs = zip(parts[::2], parts[1::2], self.shapes, strict=True)
        return [(w.reshape(shape), b) for w, b, shape in pairs]

    def forward(self, layers, x):
        """Outputs of all layers, the input first; probabilities last."""
        h = [x]
        for w, b in layers[:-1]:
            h.append(np.tanh(h[-1] @ w.T + b))
        w, b = layers[-1]
        z = h[-1] @ w.T + b
        e = np.exp(z - z.max(1, keepdims=True))
        return h, e / e.sum(1, keepdims=True)

    def loss(self, theta, x, target):
        """Mean cross-entropy."""
        _, p = self.forward(self.layers(theta), x)
        right = np.sum(p * target, axis=1)
        return float(-np.mean(np.log(np.maximum(right, 1e-300))))

    def gradient(self, theta, x, target):
        """d loss / dθ."""
        layers, out = self.layers(theta), []
        h, p = self.forward(layers, x)
        d = (p - target) / len(x)
        for (w, _), below in zip(layers[::-1], h[::-1], strict=True):
            out += [d.sum(0), (d.T @ below).ravel()]
            d = (d @ w) * (1 - below * below)
        return np.concatenate(out[::-1])

    def hessian_times(self, theta, v, x, target):
        """d² loss / dθ² · v."""
        layers, along, out = self.layers(theta), self.layers(v), []
        h, p = self.forward(layers, x)
        r = [np.zeros_like(x)]
        for (w, _), (vw, vb), below, above in zip(layers, along, h, h[1:], strict=False):
            r.append((1 - above * above) * (r[-1] @ w.T + below @ vw.T + vb))
        rz = r[-1] @ layers[-1][0].T + h[-1] @ along[-1][0].T + along[-1][1]
        d, rd = (p - target) / len(x), p * (rz - np.sum(p * rz, axis=1, keepdims=True)) / len(x)
        levels = zip(layers[::-1], along[::-1], h[::-1], r[::-1], strict=True)
        for (w, _), (vw, _), below, r_below in levels:
            out += [rd.sum(0), (rd.T @ below + d.T @ r_below).ravel()]
            back, slope = d @ w, 1 - below * below
            rd = (rd @ w + d @ vw) * slope - 2 * back * below * r_below
            d = back * slope
        return np.concatenate(out[::-1])


@functools.lru_cache(maxsize=4)
def problem(name, seed, steps):
    """(net, θ₀, batches, validation set, box) of one task and seed."""
    task = TASKS[name](steps=steps)
    (x, y), (xv, yv), _ = task.data(seed)
    target, x = np.eye(10)[y.numpy()], x.double().numpy()
    theta = nn.utils.parameters_to_vector(task.model(seed).parameters())
    batches = [(x[i], target[i]) for i in task.batches(seed).numpy()]
    valid = xv.double().numpy(), np.eye(10)[yv.numpy()]
    return Net(task.sizes), theta.detach().double().numpy(), batches, valid, task.box


def evaluate(name, seed, h, with_gradient=True, steps=300):
    """Validation loss and, in the order of ``h``, d loss / d hyperparameter.

    A run that diverges is worth 1,000 and has no gradient.
    """
    net, theta, batches, valid, _ = problem(name, seed, steps)
    with np.errstate(all="ignore"):
        train = adam if name == "adam" else sgd
        end, back = train(net, theta, batches, h, with_gradient)
        value = net.loss(end, *valid)
        if not np.isfinite(value) or value > 1e3:
            return 1e3, np.full(len(h), np.nan)
        if not with_gradient:
            return value, None
        return value, back(net.gradient(end, *valid))


def sgd(net, theta, batches, h, keep):
    """(θ_T, adjoint of θ_T -> gradient) of SGD whose dampening is its momentum."""
    layerwise, q = "lr0" in h, len(net.shapes)
    if layerwise:
        lr, wd = (np.array([h[f"{key}{i}"] for i in range(q)])[net.group] for key in ("lr", "wd"))
        m = 0.9
    else:
        lr, wd, m = h["lr"], h["weight_decay"], 1 - h["omm"]
    buffer, tape = np.zeros_like(theta), []
    for t, batch in enumerate(batches):
        d = net.gradient(theta, *batch) + wd * theta
        before, buffer = buffer, d if t == 0 else m * buffer + (1 - m) * d
        if keep:
            tape.append((theta, before, d, buffer))
        theta = theta - lr * buffer

    def back(a):
        ab, by_lr, by_wd, by_m = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a), 0.0
        for t in reversed(range(len(batches))):
            at, before, d, after = tape[t]
            by_lr -= a * after
            ab = ab - lr * a
            if t:
                by_m += ab @ (before - d)
            ad = ab if t == 0 else (1 - m) * ab
            ab = m * ab
            by_wd += ad * at
            a = a + wd * ad + net.hessian_times(at, ad, *batches[t])
        if not layerwise:
            return np.array([by_lr.sum(), -by_m, by_wd.sum()])
        sums = [np.bincount(net.group, by) for by in (by_lr, by_wd)]
        return np.concatenate(sums)

    return theta, back


def adam(net, theta, batches, h, keep, eps=1e-6):
    """The same of AdamW."""
    lr, b1, b2, wd = h["lr"], 1 - h["omb1"], 1 - h["omb2"], h["weight_decay"]
    m, v, tape = np.zeros_like(theta), np.zeros_like(theta), []
    for t, batch in enumerate(batches, 1):
        g, before = net.gradient(theta, *batch), (m, v)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if keep:
            tape.append((theta, *before, g, m, v))
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        theta = (1 - lr * wd) * theta - lr * step

    def back(a):
        am, av, by = np.zeros_like(a), np.zeros_like(a), np.zeros(4)
        for t in reversed(range(1, len(batches) + 1)):
            at, m0, v0, g, m, v = tape[t - 1]
            c1, c2 = 1 - b1**t, 1 - b2**t
            s = np.sqrt(v / c2)
            step = m / c1 / (s + eps)
            by[[0, 3]] -= a @ (step + wd * at), lr * (a @ at)
            au = -lr * a
            am = am + au / (s + eps) / c1
            a_denominator = -au * step / (s + eps)
            av = av + np.divide(0.5 * a_denominator / c2, s, out=np.zeros_like(s), where=s > 0)
            by[1] += am @ (m0 - g) + t * b1 ** (t - 1) * (au @ step) / c1
            by[2] += av @ (v0 - g * g) + t * b2 ** (t - 1) * 0.5 * (a_denominator @ s) / c2
            ag = (1 - b1) * am + 2 * (1 - b2) * av * g
            am, av = b1 * am, b2 * av
            a = (1 - lr * wd) * a + net.hessian_times(at, ag, *batches[t - 1])
        return by * [1, -1, -1, 1]

    return theta, back
