"""Your own training loop, with hyperparameters that live in the loss.

Run ``python examples/own_loop.py``. The optimizer's ``lr`` is bound by its name; its momentum is
searched as 1 - momentum on a log scale, and bound by a formula; the weight of a penalty and the
label smoothing are used as tensors where the loss is computed, and need no binding.
Needs ``pip install optuna_glocal[examples]``; seconds on one CPU core.
"""

import argparse

import optuna
import torch
from quickstart import load
from torch.nn.functional import cross_entropy, log_softmax

from optuna_glocal import GlocalCallback, GlocalSampler, summary


class Objective:
    """Called by the study with a trial, as any Optuna objective is."""

    def __init__(self, steps):
        self.train, self.valid, _ = load()
        self.steps = steps

    def __call__(self, trial):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        slip = trial.suggest_float("1 - momentum", 0.01, 1.0, log=True)
        trial.suggest_float("penalty", 1e-6, 1e-1, log=True)
        trial.suggest_float("smoothing", 0.0, 0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=1 - slip)

        def validation_loss():
            return cross_entropy(model(self.valid[0]), self.valid[1])

        with GlocalCallback(trial, optimizer, validation_loss, horizon=self.steps) as glocal:
            glocal.bind(momentum=1 - glocal["1 - momentum"])
            for x, y in self.batches():
                optimizer.zero_grad()
                logits = model(x)
                smoothing = glocal["smoothing"]  # a tensor of the trial's value
                loss = (1 - smoothing) * cross_entropy(logits, y)
                loss = loss - smoothing * log_softmax(logits, dim=1).mean()
                loss = loss + glocal["penalty"] * sum((p**2).sum() for p in model.parameters())
                glocal.backward(loss)  # was: loss.backward()
                optimizer.step()
        with torch.no_grad():
            return validation_loss().item()

    def batches(self):
        x, y = self.train
        order = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            rows = torch.randint(len(x), (64,), generator=order)
            yield x[rows], y[rows]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a trial")
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs")
    args = parser.parse_args(argv)
    trials, steps = (3, 40) if args.quick else (args.trials, args.steps)
    torch.set_num_threads(1)  # for so small a model, threads only wait for each other
    study = optuna.create_study(study_name="own loop", sampler=GlocalSampler(seed=0))
    study.optimize(Objective(steps), n_trials=trials)
    print(summary(study))


if __name__ == "__main__":
    main()
