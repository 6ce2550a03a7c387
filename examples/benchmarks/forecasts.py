"""How good the forecasts of a run's end are, with the requirement beside the figure.

``python examples/benchmarks/forecasts.py --out DIR`` scores them, in two minutes, on the runs that
trajectories.py keeps in ``DIR`` (what is missing is trained first), and draws how often intervals
hold the truth against how often they should (calibration-*.html). ``--only report`` leaves out the
development runs, on which everything was chosen; ``--quick`` and ``--out`` as in self_tuning.py.

A forecast sees what a callback would at τ: a point every 5 steps, at most 40. The truth is the
mean of h over the last twentieth (0.95 T, T], and L at T. Errors are of whole vectors, relative,
in coordinates that compare (h times the range of the search space). Intervals in brackets: 95 %,
bootstrap over runs.
"""

import pathlib
import sys
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
import trajectories
from harness import Store, parse, run_parts

from optuna_glocal import Trajectory, forecast, free_gradient

sys.path.append(str(pathlib.Path(__file__).parents[2] / "tests" / "support"))
import systems  # noqa: E402

SHARES, POINTS = (0.1, 0.2, 0.4), 40
Z80 = 1.2816
NAN = float("nan")


# -- one run, seen until τ ------------------------------------------------------------------------


def prefix(t, tau):
    """What is seen by step ``tau``: the start, and at most 40 points of which τ is the last."""
    m = int((t.steps <= tau).sum())
    every = -(-(m - 1) // POINTS)
    keep = np.append(0, np.arange(m - 1, 0, -every)[::-1])
    return Trajectory(t.steps[keep], t.losses[keep], t.hypergradients[keep], t.names, t.scales)


def cosine(a, b):
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-290)


def off(a, b):
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-290))


@dataclass
class Seen:
    """A run until τ, its end, and what is made of the one for the other."""

    run: object
    share: float
    smoothed: np.ndarray
    truth: np.ndarray  # NaN where the run has no end
    last: np.ndarray  # h at T itself
    loss: float
    newest_loss: float
    made: dict  # Forecast by estimator
    scales: np.ndarray
    start: dict

    @classmethod
    def of(cls, run, t, horizon, start, share):
        seen = prefix(t, share * horizon)
        h, late = t.hypergradients * t.scales, t.steps > 0.95 * horizon
        ended = t.steps[-1] == horizon
        truth = h[late].mean(0) if ended else np.full(t.q, NAN)
        rows = seen.steps > 0.9 * seen.steps[-1]
        factors = [trajectories.factor(run.schedule, i, horizon) for i in range(horizon)]
        made = {
            "auto": forecast(seen, horizon),
            "schedule known": forecast(seen, horizon, lr_factors=factors),
            "koopman": forecast(seen, horizon, estimator="koopman"),
            "free": free_gradient(seen, horizon, lr_factors=factors),
        }
        smoothed = (seen.hypergradients * seen.scales)[rows].mean(0)
        loss = t.losses[-1] if ended else NAN
        newest = seen.losses[-1]
        return cls(run, share, smoothed, truth, h[-1], loss, newest, made, t.scales, start)

    @property
    def comparable(self):
        """Whether there is anything to compare: training may have diverged before τ or T."""
        return bool(np.isfinite([*self.truth, *self.smoothed]).all())

    def gradient(self, name):
        return np.array(list(self.made[name].gradient.values())) * self.scales

    def given(self, name):
        return bool(self.made[name].gradient)

    def error(self, name):
        return off(self.gradient(name), self.truth)

    def misses_of(self, name, entry):
        """Those of one hyperparameter, if the run has it."""
        names = list(self.made[name].gradient)
        return [m for m, n in zip(self.misses(name), names, strict=True) if n == entry]

    def gain(self, name):
        """Cosine to the truth, less that of the smoothed local hypergradient."""
        return cosine(self.gradient(name), self.truth) - cosine(self.smoothed, self.truth)

    def misses(self, name):
        """Errors of the coordinates in standard deviations."""
        sd = np.array(list(self.made[name].gradient_sd.values())) * self.scales
        return list(np.abs(self.gradient(name) - self.truth) / np.maximum(sd, 1e-290))

    def lr(self, name):
        """dL/dlog lr."""
        gradient = self.made[name].gradient
        return gradient["log lr"] if name == "free" else gradient["lr"] * self.start["lr"]

    @property
    def lr_truth(self):
        return self.truth[0] / self.scales[0] * self.start["lr"]  # lr is each box's first

    def lr_error(self, name):
        return abs(self.lr(name) / self.lr_truth - 1)

    def loss_error(self, name):
        return abs(self.made[name].value / self.loss - 1)

    def loss_miss(self, name):
        made = self.made[name]
        return abs(made.value - self.loss) / max(made.value_sd, 1e-290)


def interval(statistic, cases, repeats=500):
    """The statistic and its 95 % bootstrap interval over the cases; NaN without any."""
    if not cases:
        return NAN, NAN, NAN
    g, n = np.random.default_rng(0), len(cases)
    again = [statistic([cases[i] for i in g.integers(n, size=n)]) for _ in range(repeats)]
    return (statistic(cases), *np.nanquantile(again, [0.025, 0.975]))


# -- the rows: (case, figure, requirement, whether it is met) -------------------------------------


class Table:
    """Rows of one set of runs; judged only where the set is the report's."""

    def __init__(self, title, judged):
        self.title, self.judged, self.rows = title, judged, []

    def add(self, case, values, statistic, must="", met=None):
        figure, low, high = interval(statistic, values)
        shown = f"{figure:.3f} [{low:.3f}, {high:.3f}] of {len(values)}"
        judged = self.judged and met is not None
        verdict = met(figure) if judged else None
        self.rows.append((f"{self.title}, {case}", shown, must if judged else "", verdict))


def mean(values):
    return float(np.mean(values))


def median(values):
    return float(np.median(values))


def catastrophes(values):
    return float(np.mean(np.array(values) > 10))


def covered(misses):
    """Share of the 80 % intervals that hold the truth; a run's coordinates stay together."""
    return float(np.mean(np.concatenate(misses) <= Z80))


def gap(cases):
    """Mean cosine of the smoothed local hypergradient, kept minus rejected."""
    kept = [c for is_kept, c in cases if is_kept]
    rejected = [c for is_kept, c in cases if not is_kept]
    return mean(kept) - mean(rejected) if kept and rejected else NAN


def within(low, high):
    return lambda value: low <= value <= high


def rows_of(title, runs, judged):
    for share in SHARES:
        here = [s for s in runs if s.share == share]
        table = Table(f"{title}, τ = {share} T", judged and share == 0.2)
        gradient_rows(table, [s for s in here if s.comparable], "auto")
        free_rows(table, [s for s in here if s.comparable])
        table.judged = judged and share >= 0.2
        loss_rows(table, [s for s in here if np.isfinite(s.loss)], 0.27 if share < 0.4 else 0.15)
        yield from table.rows


def gradient_rows(table, here, name):
    given = [s for s in here if s.given(name)]
    gate = [(s.given(name), cosine(s.smoothed, s.truth)) for s in here]
    table.add("gate: share kept", [float(k) for k, _ in gate], mean, ">= .6", lambda v: v >= 0.6)
    table.add("gate: cosine, kept - rejected", gate, gap, ">= .4", lambda v: v >= 0.4)
    table.add("cosine of given", [cosine(s.gradient(name), s.truth) for s in given], mean)
    gains = [s.gain(name) for s in given]
    table.add("cosine - smoothed last", gains, mean, ">= -.02", lambda v: v >= -0.02)
    errors = [s.error(name) for s in given]
    table.add("error of given, median", errors, median, "<= .80", lambda v: v <= 0.8)
    table.add("error of given above 10", errors, catastrophes, "<= .03", lambda v: v <= 0.03)
    misses = [s.misses(name) for s in given]
    table.add("80 % intervals of h cover", misses, covered, ".7-.9", within(0.7, 0.9))
    for entry in ("lr", "omm", "omb1", "omb2", "weight_decay"):
        misses = [m for s in given if (m := s.misses_of(name, entry))]
        case = f"80 % intervals of {entry} cover"
        table.add(case, misses, covered, ".7-.9", within(0.7, 0.9))
    table.add("error to h at T itself", [off(s.gradient(name), s.last) for s in given], median)
    table.add("error of smoothed last", [off(s.smoothed, s.truth) for s in given], median)
    old = [off(0.86 * s.share**0.66 * s.smoothed, s.truth) for s in given]
    table.add("error of calibrated smoothing", old, median)
    modes = [s for s in given if s.given("koopman")]
    table.add("error of koopman, unproved", [s.error("koopman") for s in modes], median)
    known = [s for s in given if s.given("schedule known")]
    for kind in ("constant", "cosine", "step"):
        alike = [s for s in known if s.run.schedule == kind]
        table.add(f"error, {kind}", [s.error(name) for s in alike], median)
        if kind != "constant":
            errors = [s.error("schedule known") for s in alike]
            table.add(f"error, {kind}, schedule known", errors, median)


def free_rows(table, here):
    """dL/dlog lr from the losses alone, beside the one from tangents, schedule known."""
    given = [s for s in here if s.made["free"].gradient]
    table.add("lr for free: share given", [float(s in given) for s in here], mean)
    table.add("lr for free: error", [s.lr_error("free") for s in given], median)
    both = [s for s in given if s.given("schedule known")]
    table.add("lr by tangents, the same", [s.lr_error("schedule known") for s in both], median)
    right = [float(s.lr("free") * s.lr_truth > 0) for s in given]
    table.add("lr for free: sign right", right, mean)
    sds = [s.made["free"].gradient_sd["log lr"] for s in given]
    misses = [[abs(s.lr("free") - s.lr_truth) / sd] for s, sd in zip(given, sds, strict=True)]
    table.add("lr for free: 80 % intervals cover", misses, covered)


def loss_rows(table, here, most):
    errors = [s.loss_error("auto") for s in here]
    table.add("loss, median error", errors, median, f"<= {most}", lambda v: v <= most)
    table.add("loss, newest as it is", [abs(s.newest_loss / s.loss - 1) for s in here], median)
    table.add("loss, schedule known", [s.loss_error("schedule known") for s in here], median)
    misses = [[s.loss_miss("auto")] for s in here]
    table.add("80 % intervals of loss cover", misses, covered, ".7-.9", within(0.7, 0.9))


def training(name, judged):
    def part(store, size):
        trajectories.make(store, name, *size)
        stored = trajectories.stored(store.results, name)
        runs = [Seen.of(*one, share) for one in stored for share in SHARES]
        yield from rows_of(name, runs, judged)
        draw(runs, store.path.with_name(f"calibration-{name}.html"))

    return part


def draw(runs, path):
    """How often intervals hold the truth, against how often they should."""
    from scipy.stats import norm

    nominal = np.linspace(0.05, 0.95, 19)
    page = go.Figure()
    page.add_scatter(x=[0, 1], y=[0, 1], name="ideal", line={"dash": "dot", "color": "#767676"})
    for share in SHARES:
        here = [s for s in runs if s.share == share]
        kinds = {
            "h": [m for s in here if s.comparable and s.given("auto") for m in s.misses("auto")],
            "L": [s.loss_miss("auto") for s in here if np.isfinite(s.loss)],
        }
        for kind, misses in kinds.items():
            y = [(np.array(misses) <= norm.ppf(0.5 + n / 2)).mean() if misses else NAN
                 for n in nominal]  # fmt: skip
            dash = "solid" if kind == "h" else "dash"
            page.add_scatter(x=nominal, y=y, name=f"{kind}, τ = {share} T", line={"dash": dash})
    page.update_xaxes(title="nominal coverage", range=[0, 1])
    page.update_yaxes(title="share of truths inside", range=[0, 1])
    page.update_layout(title="Calibration of forecast intervals", width=720, height=640)
    page.write_html(path)


# -- where theory knows the answer ----------------------------------------------------------------


def known(store, size):
    yield from exponentials()
    yield quadratic(0.1, 20, 300)
    yield convex(np.exp(-2), 50, 3000)


def exponentials(draws=60):
    table = Table("sums of exponentials", True)
    made = [systems.exponentials(seed, 0.02) for seed in range(draws)]
    errors = [systems.error(forecast(t, 200), h) for t, h in made]
    table.add("2 % noise, τ = .4 T", errors, median, "<= .03", lambda v: v <= 0.03)
    yield from table.rows


def quadratic(lr, window, horizon):
    losses, h = systems.noisy_quadratic(lr, horizon)
    seen = Trajectory(range(1, window + 1), losses[:window], h[:window], ["log_lr"])
    made = forecast(seen, horizon).gradient.get("log_lr", NAN)
    shown = f"{made:.4f}, true {h[-1]:.4f}, local {h[window - 1]:.4f}"
    return f"noisy quadratic, τ = {window}: sign", shown, "that of h_T", made * h[-1] > 0


def convex(weight_decay, window, horizon):
    losses, h, truth = systems.convex(weight_decay, window)
    seen = Trajectory(range(1, window + 1), losses, h, ["wd", "a", "b", "c"])
    error = systems.error(forecast(seen, horizon), truth)
    shown = f"{error:.3f}, local {off(h[-1], truth):.3f}"
    return f"convex softmax, τ = {window}: error", shown, "<= .03", error <= 0.03


PARTS = {
    "development": training("development", False),
    "report": training("report", True),
    "known": known,
}


def main(argv=None):
    args = parse(PARTS, argv)
    torch.set_num_threads(1)
    name = "trajectories-quick.json" if args.quick else "trajectories.json"
    store = Store(pathlib.Path(args.out) / name, args.forget)
    run_parts(PARTS, args.only, store, trajectories.QUICK if args.quick else trajectories.FULL)


if __name__ == "__main__":
    main()
