"""A self-tuned run's schedule on training and validation data together, beside OneCycle there.

Run ``python examples/benchmarks/all_data.py``: digits of scikit-learn, 1000 steps of SGD with
momentum, seven seeds from 100, a minute. The self-tuned run starts from a learning rate a hundred
times too small; OneCycle's peak is the best of five by the validation loss of a run on training
data alone. Both then train once on all data but the test data, in as many steps.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from optuna_glocal import SelfTuning

STORED = pathlib.Path(__file__).with_suffix(".json")
FIRST_SEED, SEEDS, STEPS = 100, 7, 1000
START, PEAKS = 1e-3, (0.03, 0.1, 0.3, 1.0, 3.0)


class Run:
    """A fresh model on 600 images, or on 1200 with the validation data among them."""

    def __init__(self, seed, lr, all_data=False):
        x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        x, y = (x.float() / 16)[order], y[order]
        self.train = (x[:1200], y[:1200]) if all_data else (x[:600], y[:600])
        self.valid, self.test = (x[600:1200], y[600:1200]), (x[1200:], y[1200:])
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)

    def batch_loss(self, data):
        rows = torch.randint(len(data[0]), (64,))
        return cross_entropy(self.model(data[0][rows]), data[1][rows])

    @torch.no_grad()
    def loss(self, data):
        return cross_entropy(self.model(data[0]), data[1]).item()

    def fit(self, steps, backward=torch.Tensor.backward, scheduler=None):
        for _ in range(steps):
            self.optimizer.zero_grad()
            backward(self.batch_loss(self.train))
            self.optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return self

    def one_cycle(self, steps, peak):
        cycle = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, peak, total_steps=steps)
        return self.fit(steps, scheduler=cycle)


def losses(seed, steps):
    """Test losses of the three runs."""
    tuned = Run(seed, START)
    with SelfTuning(
        tuned.optimizer, lambda: tuned.batch_loss(tuned.valid), horizon=steps, lr=(1e-5, 10.0)
    ) as run:
        tuned.fit(steps, run.backward)
        run.best_of(lambda: tuned.loss(tuned.valid))
    run.load_best()
    again = Run(seed, START, all_data=True)
    with run.schedule.attach(again.optimizer):
        again.fit(steps)
    searched = {}
    for peak in PEAKS:
        part = Run(seed, peak).one_cycle(steps, peak)
        searched[peak] = part.loss(part.valid)
    peak = min(searched, key=searched.get)
    cycle = Run(seed, peak, all_data=True).one_cycle(steps, peak)
    runs = {"self-tuned": tuned, "replayed on all data": again, "OneCycle on all data": cycle}
    return {name: each.loss(each.test) for name, each in runs.items()}


def main(argv=None):
    quick = "--quick" in (sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)
    seeds, steps = (1, 40) if quick else (SEEDS, STEPS)
    known = [] if quick or not STORED.exists() else json.loads(STORED.read_text())
    found = known[:seeds]  # a stopped run goes on where it was; remove the file to measure again
    for seed in range(FIRST_SEED + len(found), FIRST_SEED + seeds):
        found.append(losses(seed, steps))
        if not quick:
            STORED.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{'test loss':24}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name in found[0]:
        values = np.array([each[name] for each in found])
        print(f"{name:24}{np.median(values):10.3f}{values.min():10.3f}{values.max():10.3f}")


if __name__ == "__main__":
    main()
