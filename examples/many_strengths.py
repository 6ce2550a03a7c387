"""One regularisation strength for each of 640 weights, learnt in one run.

Softmax regression on few digits of scikit-learn. ``python examples/many_strengths.py`` compares
it with one strength for all, tuned in 30 trials, and draws what was learnt
(``strengths.html``); seconds. Needs ``pip install optuna_glocal[examples]``.
"""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from optuna_glocal import SelfTuning, Vector
from optuna_glocal.visualization import plot_vector


class Task:
    def __init__(self, seed=0):
        x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        self.train, self.valid, self.test = (
            (x[rows].float() / 16, y[rows]) for rows in order.split([200, 400, 1197])
        )
        self.w = torch.zeros(10, 64, requires_grad=True)
        self.bias = torch.zeros(10, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.w, self.bias], lr=0.5, momentum=0.9)

    def loss(self, data):
        x, y = data
        return cross_entropy(x @ self.w.T + self.bias, y)

    def fit(self, steps, strength, backward=torch.Tensor.backward):
        for _ in range(steps):
            self.optimizer.zero_grad()
            backward(self.loss(self.train) + (strength() * self.w**2).sum())
            self.optimizer.step()
        return self.loss(self.valid).item(), self.loss(self.test).item()


def searched(steps, trials):
    """The best single strength by the validation loss: its validation and test loss."""

    def objective(trial):
        strength = trial.suggest_float("l2", 1e-6, 1.0, log=True)
        valid, test = Task().fit(steps, lambda: strength)
        trial.set_user_attr("test", test)
        return valid

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return study.best_value, study.best_trial.user_attrs["test"]


def learnt(steps):
    """All 640 strengths in one run."""
    task = Task()
    with SelfTuning(
        task.optimizer,
        lambda: task.loss(task.valid),
        horizon=steps,
        l2=Vector((10, 64), 1e-6, 1.0),
    ) as run:
        losses = task.fit(steps, lambda: run["l2"], run.backward)
    plot_vector(run.learnt["l2"]).write_html("strengths.html")
    return losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of a run")
    parser.add_argument("--trials", type=int, default=30, help="trials of the search")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    steps, trials = (150, 3) if args.quick else (args.steps, args.trials)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{'':32}{'validation':>12}{'test':>10}")
    for name, (valid, test) in (
        (f"one strength, {trials} trials", searched(steps, trials)),
        ("640 strengths, one run", learnt(steps)),
    ):
        print(f"{name:32}{valid:12.4f}{test:10.4f}")


if __name__ == "__main__":
    main()
