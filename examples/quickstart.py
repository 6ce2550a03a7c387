"""Trials that tune themselves beside a search as a practitioner sets it, on real data.

Run ``python examples/quickstart.py``; run it again, and it goes on where it stopped.
Needs ``pip install optuna_glocal[examples]``; about a minute on one CPU core.
"""

import argparse
import itertools
import time

import optuna
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Schedule, summary
from optuna_glocal.visualization import plot_overview, upload

Data = tuple[torch.Tensor, torch.Tensor]


def load() -> list[Data]:
    """Scikit-learn's 8x8 digits: 600 images to train on, 600 to validate on, 597 to test on."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x - x.mean(dim=0))[order], y[order]
    return [(x[rows], y[rows]) for rows in (slice(600), slice(600, 1200), slice(1200, None))]


class Task:
    """What any Optuna user has: data, a model, a training loop, an objective."""

    def __init__(self, steps: int) -> None:
        self.train, self.valid, self.test = load()
        self.steps = steps

    def build(self, trial: optuna.Trial) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """A fresh model and its optimizer with this trial's hyperparameters."""
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=trial.suggest_float("lr", 1e-4, 1.0, log=True),
            momentum=trial.suggest_float("momentum", 0.0, 0.99),
            weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        )
        return model, optimizer

    def fit(self, model, optimizer, backward, scheduler=None) -> None:  # noqa: ANN001
        """An ordinary loop over random batches of 64."""
        (x, y), batches = self.train, torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            rows = torch.randint(len(x), (64,), generator=batches)
            optimizer.zero_grad()
            backward(cross_entropy(model(x[rows]), y[rows]))  # was: loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

    @torch.no_grad()
    def loss(self, model: torch.nn.Module, data: Data) -> float:
        """Mean cross-entropy: on the validation images it is what the studies minimise."""
        return cross_entropy(model(data[0]), data[1]).item()

    def held(self, trial: optuna.Trial) -> float:
        """The peer: hyperparameters are held, the learning rate decays over the last 40 %."""
        model, optimizer = self.build(trial)
        last = max(1, round(0.4 * self.steps))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (self.steps - step) / last)
        )
        self.fit(model, optimizer, torch.Tensor.backward, scheduler)
        trial.set_user_attr("test loss", self.loss(model, self.test))
        return self.loss(model, self.valid)

    def tuned(self, trial: optuna.Trial) -> float:
        """The run moves its own learning rate; what the sampler proposed is where it starts."""
        model, optimizer = self.build(trial)
        with GlocalCallback(
            trial,
            optimizer,
            lambda: cross_entropy(model(self.valid[0]), self.valid[1]),
            horizon=self.steps,
            tune=True,
        ) as glocal:
            self.fit(model, optimizer, glocal.backward)
            value = glocal.best_of(lambda: self.loss(model, self.valid))
            glocal.load_best()  # the last or the averaged weights, whichever were better
        trial.set_user_attr("test loss", self.loss(model, self.test))
        return value

    def observed(self, trial: optuna.Trial) -> float:
        """An untouched run that records how its end changes with each hyperparameter."""
        model, optimizer = self.build(trial)
        with GlocalCallback(
            trial,
            optimizer,
            lambda: cross_entropy(model(self.valid[0]), self.valid[1]),
            horizon=self.steps,
            observe=Observe(estimator="global"),  # exact, to the last step
        ) as glocal:
            self.fit(model, optimizer, glocal.backward)
        return self.loss(model, self.valid)


def run(args, name, sampler, objective, trials) -> optuna.Study:  # noqa: ANN001
    """The study of that name, new or as an earlier run left it, with its missing trials made."""
    study = optuna.create_study(
        storage=args.storage, study_name=name, load_if_exists=True, sampler=sampler
    )
    if not study.trials:  # as one would: the middle of the space first, for every sampler
        study.enqueue_trial({"lr": 1e-2, "momentum": 0.5, "weight_decay": 3e-4})
    done = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
    print(f"{name}: {done} of {trials} trials in {args.storage}")
    if done < trials:
        study.optimize(objective, n_trials=trials - done, show_progress_bar=True)
    return study


def best_so_far(study: optuna.Study) -> list[float]:
    """The least validation loss after each trial."""
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return list(itertools.accumulate((trial.value for trial in complete), min))


def compare(studies: dict[str, optuna.Study], trials: int) -> None:
    """A table of both studies, and one sentence that says which was better."""
    shown = sorted({1, min(3, trials), trials})
    heads = "".join(f"{n:>8}" for n in shown)
    print(f"\n{'validation loss, best after':36}{heads} trials{'test loss':>11}{'seconds':>9}")
    for label, study in studies.items():
        values, best = best_so_far(study), study.best_trial.user_attrs["test loss"]
        seconds = sum(t.duration.total_seconds() for t in study.trials if t.duration)
        row = "".join(f"{values[n - 1]:8.4f}" for n in shown)
        print(f"  {label:34}{row}{'':7}{best:11.4f}{seconds:9.1f}")
    ours, theirs = (best_so_far(study)[:trials] for study in studies.values())
    level = next((i for i, value in enumerate(theirs, 1) if value <= ours[0]), None)
    reached = f"needs {level} trials" if level else f"does not get there in {len(theirs)} trials"
    print(f"\nTo the loss of the first self-tuned run, the search {reached}.")
    ratio = ours[-1] / theirs[-1]
    word = "lower" if ratio < 1 else "higher"
    print(f"After {trials} trials, the best self-tuned run's loss is {abs(1 - ratio):.1%} {word}.")


def tell(study: optuna.Study) -> None:
    """Which way each hyperparameter should go, from one run alone."""
    print("\nOne untouched run from the middle of the space, and its exact hypergradient:")
    print(f"  validation loss {study.best_value:.3f}; a step of a tenth of the range upwards in")
    for slope in summary(study).hyperparameters:
        print(f"  {slope.name:16}changes it by {slope.slopes[0] / 10:+.2g}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default="sqlite:///glocal.db", help="any Optuna storage URL")
    parser.add_argument("--trials", type=int, default=10, help="trials of each study")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a trial")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers")
    parser.add_argument("--out", default="glocal.html", help="the figure")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.trials, args.steps = min(args.trials, 3), min(args.steps, 60)
    return args


def main(argv: list[str] | None = None) -> None:
    """Three studies, the numbers, the figure, the dashboard."""
    args, began = parse(argv), time.perf_counter()
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, name = Task(args.steps), f"digits-{args.steps}-steps"

    tuned = run(args, name, GlocalSampler(seed=args.seed), task.tuned, args.trials)
    search = optuna.samplers.GPSampler(seed=args.seed, n_startup_trials=4)
    held = run(args, f"{name}-held", search, task.held, args.trials)
    studies = {"runs that tune themselves": tuned, "held, GPSampler, linear decay": held}
    compare(studies, args.trials)

    tell(run(args, f"{name}-observed", GlocalSampler(seed=args.seed), task.observed, 1))

    if (schedule := Schedule.best(tuned)) is not None:
        rates = schedule.at(0)["lr"], schedule.at(args.steps // 2)["lr"]
        print(f"\nbest run     lr from {rates[0]:.2g} to {rates[1]:.2g} at half time, then to 0")
        print("to replay    Schedule.best(study).attach(optimizer)")
    plot_overview(tuned).write_html(args.out, include_plotlyjs=True)
    upload(tuned)  # the figures and a note on the study's page
    print(f"figure       {args.out} (opens offline)")
    print(f"dashboard    optuna-dashboard {args.storage}")
    print(f"all in       {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
