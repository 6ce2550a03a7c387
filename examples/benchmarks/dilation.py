"""Whether an operator of dilation, fitted to a run, forecasts better than its diagonal does.

The power law h_T = h_τ (T/τ)^p is a Koopman operator in s = log t (t: effective time) that is
diagonal: each h_i is an eigenfunction with the eigenvalue e^(p_i Δs). Here the whole operator is
fitted to snapshots even in s, by a ridge regression that shrinks it towards that diagonal:

    z_{k+1} = (P + D) z_k,   P = diag(e^(p δ)),   D = argmin Σ |z_{k+1} - (P + D) z_k|² + n ρ |D|²

z holds h, log L or not, delayed rows or not, and the constant 1. The forecast takes the exponents
that bend with the loss in place of p, and clips eigenvalues to grow at most linearly in t. With
infinite ρ it is the power law exactly; the first row of each table checks it.

``python examples/benchmarks/dilation.py --out DIR`` prints, beside the power law, forecasts of the
development runs that trajectories.py keeps in ``DIR`` (what is missing is trained first), their
spectrum, and systems whose end is known; ``--quick`` and ``--out`` as in self_tuning.py. Changes
are of error/(1 + error) and of the cosine, mean and standard error over the windows in which the
power law gives a gradient, schedule known.
"""

import functools
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
import trajectories
from forecasts import SHARES, cosine, off, prefix, systems
from harness import Store, parse

from optuna_glocal import Trajectory, forecast
from optuna_glocal.forecasting import power_law
from optuna_glocal.forecasting.effective_time import EffectiveTime

STEP, SPAN = 0.15, 1.5  # δ, and how far back snapshots go, in log t
HELD_OUT = 0.35  # of log t, the newest, on which ρ is chosen


class Window:
    """A run until τ, in effective time, and what the power law reads off it."""

    def __init__(self, seen, horizon, factors):
        time = EffectiveTime.of(factors, horizon)
        made = forecast(seen, horizon, estimator="local", lr_factors=factors)
        found = made.diagnostics
        self.seen, self.factors, self.given = seen, factors, bool(made.gradient)
        self.measured = np.isfinite(seen.hypergradients).all(axis=1)  # the start has no h
        self.h = (seen.hypergradients * seen.scales)[self.measured]
        self.times = time(seen.steps[self.measured])
        self.usable = "slopes" in found and bool(self.measured[-1])
        if self.usable:
            self.ahead = max(0.0, float(np.log(time(horizon) / self.times[-1])))
            self.slopes, self.level = np.array(found["slopes"]), np.array(found["smoothed"])
            bent = self.slopes + power_law._BEND * found["log_drop"]
            self.rates = np.clip(bent, *power_law._EXPONENTS)

    def by_power_law(self):
        return self.level * np.exp(self.ahead * self.rates)

    @functools.cached_property
    def earlier(self):
        """The window without its newest third, asked for τ; None where that is too short."""
        until = self.times[-1] * np.exp(-HELD_OUT)
        tau, t = int(self.seen.steps[-1]), self.seen
        late = t.steps[self.measured][self.times > until]
        cut = int((t.steps < late[0]).sum())
        if self.measured[:cut].sum() < 6:
            return None
        seen = Trajectory(t.steps[:cut], t.losses[:cut], t.hypergradients[:cut], t.names, t.scales)
        window = Window(seen, tau, None if self.factors is None else self.factors[:tau])
        return window if window.usable else None

    def snapshots(self, with_loss):
        """Rows even in log t, each the mean over the tenth of the time before it."""
        t, x = self.times, self.h
        if with_loss:
            losses = self.seen.losses[self.measured]
            fine = np.isfinite(losses) & (losses > 0)
            logs = np.log(np.where(fine, losses, 1.0))
            x = np.column_stack([x, logs - logs[-1]])
        first = t[t > 0][0]
        n = int(min(SPAN, np.log(t[-1] / first)) / STEP)
        rows = [power_law.newest(t, x, 0.1).mean(axis=0)]
        for when in t[-1] * np.exp(-STEP * np.arange(1, n + 1)):
            near = (t > 0.9 * when) & (t <= when)
            middle = [np.interp(0.95 * when, t, column) for column in x.T]
            rows.append(x[near].mean(axis=0) if near.sum() > 1 else np.array(middle))
        return np.array(rows[::-1])


@dataclass(frozen=True)
class Dilation:
    """How an operator is fitted; ``common``: one scale for all of h rather than one for each."""

    rho: float
    delays: int = 1
    common: bool = False
    with_loss: bool = False

    def operator(self, window):
        """A, the newest state, and the scale of h; None where the window is too short."""
        d, q = self.delays, window.h.shape[1]
        x = window.snapshots(self.with_loss)
        if len(x) < d + 2:
            return None
        scale = np.sqrt((x[:, :q] ** 2).mean(axis=0))
        scale = np.full(q, np.sqrt((scale**2).sum())) if self.common else scale
        scale = np.maximum(scale, 1e-12 * scale.max())
        extra = np.zeros(x.shape[1] - q)
        y, m = x / np.append(scale, extra + 1), x.shape[1]
        slopes, rates = np.append(window.slopes, extra), np.append(window.rates, extra)
        past = np.hstack([y[d - 1 - j : len(y) - 1 - j] for j in range(d)])
        past = np.column_stack([past, np.ones(len(past))])
        missed = y[d:] - y[d - 1 : -1] * np.exp(slopes * STEP)
        ridge = self.rho * len(past) * np.eye(past.shape[1])
        a = np.eye(m * d + 1, k=-m)  # delayed rows move on by one
        a[:m], a[-1] = np.linalg.solve(past.T @ past + ridge, past.T @ missed).T, 0
        a[:m, :m] += np.diag(np.exp(rates * STEP))
        a[-1, -1] = 1
        return a, np.append(y[: -d - 1 : -1].ravel(), 1.0), scale

    def __call__(self, window):
        """h at the horizon."""
        fitted = self.operator(window)
        if fitted is None:
            return window.by_power_law()
        a, newest, scale = fitted
        values, vectors = np.linalg.eig(a)
        amplitudes = np.linalg.lstsq(vectors, newest.astype(complex), rcond=None)[0]
        size = np.clip(np.abs(values), 1e-290, np.exp(power_law._EXPONENTS[1] * STEP))
        k = window.ahead / STEP
        grown = np.exp(k * np.log(size) + 1j * k * np.angle(values))
        value = (vectors @ (amplitudes * grown)).real[: len(scale)] * scale
        most = np.maximum(10 * np.abs(window.h).max(axis=0), np.abs(window.by_power_law()))
        return np.clip(value, -most, most)


@dataclass(frozen=True)
class Chosen:
    """Of the power law and some operators the one that forecasts the held-out rows best."""

    operators: tuple

    def __call__(self, window):
        early = window.earlier
        if early is None:
            return window.by_power_law()
        tried = [Window.by_power_law, *self.operators]
        missed = [off(method(early), window.level) for method in tried]
        return tried[int(np.argmin(missed))](window)


INFINITE = Dilation(1e12)
COMMON = (Dilation(10, common=True), Dilation(1, common=True), Dilation(0.1, common=True))
METHODS = {
    "ρ infinite": INFINITE,
    **{f"ρ {rho}": Dilation(rho) for rho in (30, 10, 3, 1, 0.1, 0.01)},
    "ρ 1, two delays": Dilation(1, delays=2),
    "ρ 3, log L": Dilation(3, with_loss=True),
    "ρ 10, common scale": COMMON[0],
    "ρ 1, common scale": COMMON[1],
    "ρ .1, common scale": COMMON[2],
    "ρ by held-out rows": Chosen((Dilation(10), Dilation(1), Dilation(0.1))),
    "ρ by held-out rows, common scale": Chosen(COMMON),
}


def windows(store, share):
    """(window, truth) of the development runs that end."""
    for run, t, horizon, _ in trajectories.stored(store.results, "development"):
        truth = (t.hypergradients * t.scales)[t.steps > 0.95 * horizon].mean(axis=0)
        factors = [trajectories.factor(run.schedule, i, horizon) for i in range(horizon)]
        window = Window(prefix(t, share * horizon), horizon, np.array(factors))
        if t.steps[-1] == horizon and window.usable and np.isfinite(truth).all():
            yield window, truth


def mean(values):
    if not len(values):
        return "-"
    return f"{np.mean(values):+.3f} ± {np.std(values) / np.sqrt(len(values)):.3f}"


def judged(here, share):
    """A line per method, and how often held-out rows and the end prefer it to the power law."""
    given, rest = [w for w in here if w[0].given], [w for w in here if not w[0].given]
    print(f"\nτ = {share} T: {len(given)} windows, and {len(rest)} in which none is given")
    for name, method in {"power law": Window.by_power_law, **METHODS}.items():
        errors, changes, turns = [], [], []
        for window, truth in given:
            value, law = method(window), window.by_power_law()
            e, e0 = off(value, truth), off(law, truth)
            errors.append(e)
            changes.append(e / (1 + e) - e0 / (1 + e0))
            turns.append(cosine(value, truth) - cosine(law, truth))
        rejected = [cosine(method(window), truth) for window, truth in rest]
        median = np.median(errors) if errors else np.nan
        print(f"{name:34} error {median:.3f} ({mean(changes)})  cosine {mean(turns)}"
              f"  rejected: cosine {mean(rejected)}")  # fmt: skip


def spectrum(here):
    """What there is to be seen of more than one mode."""
    first, two, turning, held, end = [], [], [], [], []
    one = Dilation(1)
    for window, truth in (w for w in here if w[0].given):
        x = window.snapshots(False)
        s = np.linalg.svd(x / np.sqrt((x**2).mean(axis=0) + 1e-290), compute_uv=False) ** 2
        first.append(s[0] / s.sum())
        two.append(s[:2].sum() / s.sum())
        fitted, early = one.operator(window), window.earlier
        if fitted is None or early is None:
            continue
        rates = np.log(np.linalg.eigvals(fitted[0]).astype(complex)) / STEP
        turning.append(bool((np.abs(rates.imag) > 0.05).any()))
        law, level = early.by_power_law(), window.level
        held.append(off(one(early), level) < off(law, level))
        end.append(off(one(window), truth) < off(window.by_power_law(), truth))
    if held:
        won, ended = np.array(held), np.array(end)
        agreed = [f"{ended[k].mean():.2f}" if k.any() else "-" for k in (won, ~won)]
        print(f"energy in one direction {np.median(first):.3f}, in two {np.median(two):.3f}; "
              f"rotating modes in {np.mean(turning):.2f}; ρ 1 better on held-out rows in "
              f"{won.mean():.2f}, at the end in {ended.mean():.2f} "
              f"(after winning {agreed[0]}, after losing {agreed[1]})")  # fmt: skip


def development(store, size):
    trajectories.make(store, "development", *size)
    for share in SHARES:
        here = list(windows(store, share))
        judged(here, share)
        spectrum(here)


def known(store, size):
    """Systems whose end is known; beside them the estimator that is used."""
    sums = [systems.exponentials(seed, 0.02) for seed in range(60)]
    sums = [(t, 200, truth) for t, truth in sums]
    losses, h = systems.noisy_quadratic(0.1, 300)
    seen = Trajectory(range(1, 21), losses[:20], h[:20, None], ["lr"])
    quadratic = [(seen, 300, h[-1:])]
    losses, h, truth = systems.convex(np.exp(-2), 50)
    softmax = [(Trajectory(range(1, 51), losses, h, ["wd", "a", "b", "c"]), 3000, truth)]
    cases = {"exponentials": sums, "noisy quadratic": quadratic, "convex softmax": softmax}
    for case, runs in cases.items():
        seen = [(Window(t, horizon, None), truth) for t, horizon, truth in runs]
        used = [systems.error(forecast(t, horizon), truth) for t, horizon, truth in runs
                if forecast(t, horizon).gradient]  # fmt: skip
        print(f"{case}: median error {np.median(used):.4f} as used (Hankel DMD in t)")
        for name in ("ρ infinite", "ρ 1", "ρ 0.01", "ρ by held-out rows"):
            found = [off(METHODS[name](window), truth) for window, truth in seen]
            print(f"{case}: {np.median(found):.4f} {name}")
        far = max(off(INFINITE(w), w.by_power_law()) for w, _ in seen)
        print(f"{case}: from the power law with ρ infinite {far:.1e}")


PARTS = {"development": development, "known": known}


def main(argv=None):
    args = parse(PARTS, argv)
    torch.set_num_threads(1)
    name = "trajectories-quick.json" if args.quick else "trajectories.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    try:
        for part in args.only:
            PARTS[part](store, trajectories.QUICK if args.quick else trajectories.FULL)
    finally:
        store.save()


if __name__ == "__main__":
    main()
