"""A study on real data that learns from its own hypergradients, beside TPE on the same task.

Run ``python examples/quickstart.py``; run it again, and it goes on where it stopped.
Needs ``pip install optuna_glocal[examples]``; about a minute on two CPU cores.
"""

import argparse
import importlib.util
import time

import optuna
import torch
from optuna.trial import TrialState
from sklearn.datasets import load_digits

from optuna_glocal import GlocalCallback, GlocalSampler, Observe, Record, Schedule
from optuna_glocal.visualization import plot_overview, upload

Args = argparse.Namespace
Data = tuple[torch.Tensor, torch.Tensor]
Trials = list[optuna.trial.FrozenTrial]


def load() -> tuple[Data, Data]:
    """Scikit-learn's 8x8 digits: 600 images to train on, 600 to validate on."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x - x.mean(dim=0))[order], y[order]
    return (x[:600], y[:600]), (x[600:1200], y[600:1200])


class Task:
    """The digits, and what any Optuna user has: a model, a training loop, an objective."""

    def __init__(self, steps: int) -> None:
        self.train, self.valid = load()
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

    def validation_loss(self, model: torch.nn.Module) -> torch.Tensor:
        """Mean cross-entropy on the held-out images: what the study minimises."""
        x, y = self.valid
        return torch.nn.functional.cross_entropy(model(x), y)

    def fit(self, trial, model, optimizer, backward) -> float:  # noqa: ANN001
        """An ordinary loop; the pruner is asked twenty times."""
        (x, y), batches = self.train, torch.Generator().manual_seed(0)
        for step in range(1, self.steps + 1):
            batch = torch.randint(len(x), (64,), generator=batches)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            backward(loss)  # the one changed line of the loop; was: loss.backward()
            optimizer.step()
            if step % max(1, self.steps // 20) == 0:
                with torch.no_grad():
                    value = self.validation_loss(model).item()
                trial.report(value, step)
                if step < self.steps and trial.should_prune():
                    raise optuna.TrialPruned()  # the callback still leaves a gradient
        return value

    def objective(self, trial: optuna.Trial) -> float:
        """With hypergradients: the callback is told the optimizer and the validation loss."""
        model, optimizer = self.build(trial)
        with GlocalCallback(
            trial,
            optimizer,
            lambda: self.validation_loss(model),
            horizon=self.steps,
            # tangents="auto" weighs their cost by the clock: two runs would differ.
            observe=Observe(tangents=True),
        ) as glocal:
            return self.fit(trial, model, optimizer, glocal.backward)

    def tuning_objective(self, trial: optuna.Trial) -> float:
        """The trial moves its own hyperparameters; what the sampler chose is where they start."""
        model, optimizer = self.build(trial)
        (x, y), rows = self.valid, torch.Generator().manual_seed(1)

        def batch_loss() -> torch.Tensor:
            batch = torch.randint(len(x), (64,), generator=rows)  # enough, and cheaper than all
            return torch.nn.functional.cross_entropy(model(x[batch]), y[batch])

        with GlocalCallback(trial, optimizer, batch_loss, horizon=self.steps, tune=True) as glocal:
            self.fit(trial, model, optimizer, glocal.backward)
            with torch.no_grad():  # the better of the last and the averaged weights
                return glocal.best_of(lambda: self.validation_loss(model).item())

    def plain_objective(self, trial: optuna.Trial) -> float:
        """The same without: what TPE is given, so that it pays for nothing it does not use."""
        model, optimizer = self.build(trial)
        return self.fit(trial, model, optimizer, torch.Tensor.backward)


def open_study(args: Args, name: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """The study of that name, new or as an earlier run left it."""
    study = optuna.create_study(
        storage=args.storage,
        study_name=name,
        load_if_exists=True,
        sampler=sampler,
        # Not before a fifth of the steps: the callback's window. So pruned trials teach, too.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=args.steps // 5),
    )
    print(f"{name}: found {len(study.trials)} trials in {args.storage}")
    return study


def seconds(trials: Trials) -> float:
    """Wall time of the trials, with what the sampler thought about each: Optuna's own clock."""
    return sum(t.duration.total_seconds() for t in trials if t.duration is not None)


def run_tpe(study: optuna.Study, task: Task, trials: int, budget: float) -> None:
    """TPE until it has had as many trials *and* as many seconds as the other study."""
    if (missing := trials - len(study.trials)) > 0:
        study.optimize(task.plain_objective, n_trials=missing, show_progress_bar=True)
    while (left := budget - seconds(study.trials)) > 0.01:
        study.optimize(task.plain_objective, timeout=left)  # a bar would overshoot, and warn


def within(trials: Trials, budget: float) -> Trials:
    """The first trials whose time adds up to ``budget`` seconds."""
    kept, spent = [], 0.0
    for trial in trials:
        spent += seconds([trial])
        if spent > budget:
            break
        kept.append(trial)
    return kept


def report(study: optuna.Study) -> None:
    """What came of the study, and what its gradients cost."""
    best, trials = study.best_trial, study.trials
    pruned = [t for t in trials if t.state == TrialState.PRUNED]
    records = [r for t in trials if (r := Record.read(t)) is not None]
    taught = [t for t in pruned if (r := Record.read(t)) is not None and r.gradient]
    tangents, total = sum(r.overhead_seconds for r in records), seconds(trials)
    found = ", ".join(f"{name} {value:.3g}" for name, value in best.params.items())
    print(f"\nbest value   {best.value:.4f} (trial {best.number}): {found}")
    print(f"pruned       {len(pruned)} of {len(trials)} trials; {len(taught)} gave a gradient")
    print(f"tangents     {tangents / total:.0%} of the time ({tangents:.1f} of {total:.1f} s)")


def compare(study: optuna.Study, tpe: optuna.Study, tuned: optuna.Study | None) -> None:
    """TPE's best at the same number of trials, and at the same compute."""
    budget = seconds(study.trials)
    rows = {
        "GlocalSampler": study.trials,
        "TPE, same trials": tpe.trials[: len(study.trials)],
        "TPE, same compute": within(tpe.trials, budget),
    }
    if tuned is not None:
        rows["self-tuned"] = tuned.trials
        rows["self-tuned, compute"] = within(tuned.trials, budget)
    print(f"\n{'best validation loss':30}{'trials':>8}{'seconds':>9}")
    for name, trials in rows.items():
        values = [t.value for t in trials if t.state == TrialState.COMPLETE]
        best = f"{min(values):.4f}" if values else "-"
        print(f"  {name:20}{best:>8}{len(trials):>8}{seconds(trials):>9.1f}")


def parse(argv: list[str] | None = None) -> Args:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default="sqlite:///glocal.db", help="any Optuna storage URL")
    parser.add_argument("--trials", type=int, default=30, help="trials to add")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a full trial")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers")
    parser.add_argument("--out", default="glocal.html", help="the figure")
    parser.add_argument(
        "--tune", action="store_true", help="beside it, trials that tune themselves"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.trials, args.steps = min(args.trials, 6), min(args.steps, 60)
    return args


def main(argv: list[str] | None = None) -> None:
    """Both studies, the numbers, the figure."""
    args, began = parse(argv), time.perf_counter()
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, name = Task(args.steps), f"digits-{args.steps}-steps"

    study = open_study(args, name, GlocalSampler(seed=args.seed))
    study.optimize(task.objective, n_trials=args.trials, show_progress_bar=True)
    report(study)

    # One TPE study serves both comparisons: its first trials, and those its first seconds held.
    number = len(study.trials)
    tpe = open_study(args, f"{name}-tpe", optuna.samplers.TPESampler(seed=args.seed + number))
    run_tpe(tpe, task, number, seconds(study.trials))
    tuned = None
    if args.tune:
        tuned = open_study(args, f"{name}-tuned", GlocalSampler(seed=args.seed))
        tuned.optimize(task.tuning_objective, n_trials=args.trials, show_progress_bar=True)
    compare(study, tpe, tuned)
    if tuned is not None and (schedule := Schedule.best(tuned)) is not None:
        start, end = schedule.at(0), schedule.at(args.steps)
        path = ", ".join(f"{n} {start[n]:.3g} -> {end[n]:.3g}" for n in start)
        print(f"\nbest path    {path} (to train with: Schedule.best(study).attach(optimizer))")

    plot_overview(study).write_html(args.out, include_plotlyjs=True)
    dashboard = f"optuna-dashboard {args.storage}"
    if importlib.util.find_spec("optuna_dashboard"):
        upload(study)  # the figures and a note on the study's page
    else:
        dashboard = f"pip install optuna-dashboard && {dashboard}"
    print(f"\nfigure       {args.out} (opens offline)")
    print(f"dashboard    {dashboard}")
    print(f"all in       {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
