"""Systems whose hypergradient at the horizon is known: what forecasts must get right."""

import numpy as np

from optuna_glocal.forecasting.trajectory import Trajectory


def noisy_quadratic(lr, steps):
    """E L_t and dE L_t / dlog lr of SGD on ½ Σ c θ², θ_0 = 1, gradient noise of variance c.

    E θ'^2 = (1 - lr c)^2 E θ^2 + lr^2 c exactly: see Wu et al. 2018 and reference/paper.md 1.5.
    """
    c, e, de = np.array([1.0, 0.3, 0.03, 0.01]), np.ones(4), np.zeros(4)
    losses, slopes = [], []
    for _ in range(steps):
        de = (1 - lr * c) ** 2 * de - 2 * c * (1 - lr * c) * e + 2 * lr * c
        e = (1 - lr * c) ** 2 * e + lr**2 * c
        losses.append((c * e).sum() / 2)
        slopes.append(lr * (c * de).sum() / 2)
    return np.array(losses), np.array(slopes)


def softmax(a):
    e = np.exp(a - a.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class Regression:
    """Softmax regression, 3 classes: λ = (log weight decay, log weight of each class)."""

    def __init__(self, weight_decay, n=90, p=5):
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(3, p))
        self.wd, self.n, labels = weight_decay, n, np.arange(2 * n) % 3
        x = centres[labels] + rng.normal(size=(2 * n, p))
        self.x, self.xv, hot = x[:n], x[n:], np.eye(3)[labels]
        self.y, self.yv = hot[:n], hot[n:]

    def gradient(self, w):
        return self.x.T @ (softmax(self.x @ w) - self.y) / self.n + self.wd * w

    def hessian_times(self, w, z):
        p, d = softmax(self.x @ w), self.x @ z
        return self.x.T @ (p * d - p * (p * d).sum(axis=1, keepdims=True)) / self.n + self.wd * z

    def mixed(self, w):
        """∂(training gradient)/∂λ, shape (4, p, 3)."""
        wrong = softmax(self.x @ w) - self.y
        classes = [self.x.T @ (self.y[:, [j]] * wrong) / self.n for j in range(3)]
        return np.array([self.wd * w, *classes])

    def validation(self, w):
        p = softmax(self.xv @ w)
        return -np.log((p * self.yv).sum(axis=1)).mean(), self.xv.T @ (p - self.yv) / self.n

    def train(self, lr, steps):
        """Losses and forward-mode hypergradients of full-batch gradient descent."""
        w, z, seen = np.zeros((self.x.shape[1], 3)), np.zeros((4, self.x.shape[1], 3)), []
        for _ in range(steps):
            mixed = self.mixed(w)
            z = np.array(
                [d - lr * (self.hessian_times(w, d) + m) for d, m in zip(z, mixed, strict=True)]
            )
            w = w - lr * self.gradient(w)
            loss, slope = self.validation(w)
            seen.append((loss, (z * slope).sum(axis=(1, 2))))
        return np.array([s[0] for s in seen]), np.array([s[1] for s in seen]), w

    def implicit(self, w):
        """-∂L/∂w H^{-1} ∂²l/∂w∂λ at the optimum, with H in full."""
        size = w.size
        h = np.array([self.hessian_times(w, e.reshape(w.shape)).ravel() for e in np.eye(size)])
        slope = np.linalg.solve(h, self.validation(w)[1].ravel())
        return -self.mixed(w).reshape(4, size) @ slope


def error(forecast_, truth):
    got = np.array(list(forecast_.gradient.values()))
    return np.linalg.norm(got - truth) / np.linalg.norm(truth)


def convex(weight_decay, window):
    """Losses and hypergradients of the first ``window`` steps, and the implicit gradient."""
    problem = Regression(weight_decay)
    optimum = problem.train(0.3, 3000)[2]
    return *problem.train(0.1, window)[:2], problem.implicit(optimum)


def exponentials(seed, noise, modes=3, window=80, horizon=200):
    rng = np.random.default_rng(seed)
    rates = 1 / np.exp(rng.uniform(np.log(8), np.log(80), modes))
    weights, constant, t = (
        rng.normal(size=(modes, 3)),
        rng.normal(size=3),
        np.arange(1, horizon + 1),
    )
    h = constant + np.exp(-t[:, None] * rates) @ weights
    seen = h[:window] + noise * h[:window].std(axis=0) * rng.normal(size=(window, 3))
    return Trajectory(t[:window], np.ones(window), seen, ["a", "b", "c"]), h[-1]


def modes(eigenvalues, times, seed=0, q=3, constant=2.0):
    """x_t = c + Re Σ_j C_j λ_j^t, at ``times``, shape (s, q)."""
    rng = np.random.default_rng(seed)
    powers = np.asarray(eigenvalues)[None] ** np.asarray(times, float)[:, None]
    return constant * rng.normal(size=q) + (powers @ rng.normal(size=(len(eigenvalues), q))).real


def decaying(m=100, noise=0.0, q=2, horizon=500, seed=0):
    """A well-behaved run: power-law loss, and h that fades in a constant direction."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, m + 1) * 2
    losses = 0.2 + t**-0.5 * np.exp(noise * rng.normal(size=m))
    direction = rng.normal(size=q)
    h = (t / horizon)[:, None] ** -0.3 * direction * (1 + noise * rng.normal(size=(m, q)))
    return Trajectory(t, losses, h, [f"p{i}" for i in range(q)]), direction
