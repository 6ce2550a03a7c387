"""One run that finds its own hyperparameters, beside the same run held fixed.

Run ``python examples/self_tuning.py``: a learning rate a thousand times too small is mended on the
way, the path is exported, and a plain torch loop on another seed follows it.
Needs ``pip install optuna_glocal[examples]``; under a minute on one CPU core.
"""

import argparse
import contextlib
import json
import pathlib

import optuna
import plotly.graph_objects as go
import torch
from quickstart import load
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, Schedule
from optuna_glocal.visualization import plot_schedule

BAD_START = {"lr": 1e-3, "momentum": 0.5, "weight_decay": 1e-3}


class Run:
    """A model, its optimizer and an ordinary loop that remembers the validation loss."""

    def __init__(self, seed, steps):
        (self.x, self.y), self.valid, self.test = load()
        self.batches, self.steps = torch.Generator().manual_seed(seed), steps
        # A generator of its own, so that validation draws the same rows in every run below.
        self.validation_batches = torch.Generator().manual_seed(seed + 1000)
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), **BAD_START)
        self.curve = {}

    def loss(self, data):
        return cross_entropy(self.model(data[0]), data[1])

    @torch.no_grad()
    def value(self, data):
        return self.loss(data).item()

    def validation_batch(self):
        """A batch is enough for a gradient, and makes the tuning cheap."""
        rows = torch.randint(len(self.valid[0]), (64,), generator=self.validation_batches)
        return self.loss((self.valid[0][rows], self.valid[1][rows]))

    def fit(self, backward):
        for step in range(1, self.steps + 1):
            rows = torch.randint(len(self.x), (64,), generator=self.batches)
            self.optimizer.zero_grad()
            backward(self.loss((self.x[rows], self.y[rows])))
            self.optimizer.step()
            if step == 1 or step % max(1, self.steps // 10) == 0:
                self.curve[step] = self.value(self.valid)
        return self


def tune(run):
    """The loop of an Optuna objective; any trial does, here one without a study."""
    trial = optuna.trial.FixedTrial(BAD_START)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)  # the box in which it may move
    trial.suggest_float("momentum", 0.0, 0.99)
    trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    with GlocalCallback(
        trial, run.optimizer, run.validation_batch, horizon=run.steps, tune=True
    ) as glocal:
        run.fit(glocal.backward)  # the one changed line of the loop; was: loss.backward()
        return glocal.schedule


def replay(run, schedule):
    """Plain torch: no trial, no callback, no validation data in the loop."""
    with schedule.attach(run.optimizer) if schedule else contextlib.nullcontext():
        return run.fit(torch.Tensor.backward)


def export(schedule, out):
    """JSON to read back, CSV for a spreadsheet, a figure to look at."""
    file = out / "schedule.json"
    file.write_text(json.dumps(schedule.to_dict()))
    schedule.to_csv(out / "schedule.csv")
    plot_schedule(schedule).write_html(out / "schedule.html")
    return Schedule.from_dict(json.loads(file.read_text()))


def draw(runs, out):
    """Loss curves on a log axis."""
    figure = go.Figure()
    for name, run in runs.items():
        figure.add_scatter(x=list(run.curve), y=list(run.curve.values()), name=name)
    figure.update_yaxes(type="log", title="validation loss")
    figure.update_xaxes(title="optimizer steps")
    figure.write_html(out / "self_tuning.html")


def print_curves(runs):
    print(f"\n{'validation loss':18}" + "".join(f"{name:>24}" for name in runs))
    for step in next(iter(runs.values())).curve:
        print(f"  step {step:<11}" + "".join(f"{run.curve[step]:24.4f}" for run in runs.values()))
    tests = [run.value(run.test) for run in runs.values()]
    print(f"{'test loss':18}" + "".join(f"{value:24.4f}" for value in tests))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a run")
    parser.add_argument("--out", default=".", help="folder of the figures and the schedule")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps, out = 60 if args.quick else args.steps, pathlib.Path(args.out)
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    out.mkdir(parents=True, exist_ok=True)

    tuned, again = Run(0, steps), Run(1, steps)
    schedule = export(tune(tuned), out)
    tune(again)  # only to see what following the first run's schedule costs
    runs = {
        "held fixed": replay(Run(0, steps), None),
        "tuned itself": tuned,
        "schedule, new seed": replay(Run(1, steps), schedule),
        "tuned itself, new seed": again,
    }
    print_curves(runs)
    start, end = schedule.at(0), schedule.at(steps)
    print("\nmoved       " + ", ".join(f"{n} {start[n]:.3g} -> {end[n]:.3g}" for n in start))
    draw(runs, out)
    print(f"figures     {out / 'self_tuning.html'}, {out / 'schedule.html'}")
    print(f"schedule    {out / 'schedule.json'}, {out / 'schedule.csv'}")


if __name__ == "__main__":
    main()
