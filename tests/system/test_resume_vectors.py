"""A run whose vectors of hyperparameters move goes on from its checkpoint, bit for bit."""

import io

import pytest
import torch

from optuna_glocal import SelfTuning, Vector

STEPS = 48


class Part:
    """A run up to a step, or on from what was saved there."""

    def __init__(self, with_rate):
        torch.manual_seed(0)
        x = torch.randn(120, 5)
        self.train, self.valid = (x[:60], x[:60, 0] - x[:60, 1]), (x[60:], x[60:, 0] - x[60:, 1])
        self.model = torch.nn.Linear(5, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.5)
        self.boxes = {"l2": Vector(5, 1e-6, 1.0), **({"lr": (1e-4, 1.0)} if with_rate else {})}

    def loss(self, data):
        return (self.model(data[0])[:, 0] - data[1]).square().mean()

    def run(self, begin=0, end=STEPS, saved=None):
        tuning = SelfTuning(
            self.optimizer, lambda: self.loss(self.valid), horizon=STEPS, **self.boxes
        )
        with tuning as run:
            if saved is not None:
                held = torch.load(io.BytesIO(saved), weights_only=True)
                self.model.load_state_dict(held["model"])
                self.optimizer.load_state_dict(held["optimizer"])
                run.load_state_dict(held["run"])
            for _ in range(begin, end):
                self.optimizer.zero_grad()
                penalty = (run["l2"] * self.model.weight[0] ** 2).sum()
                run.backward(self.loss(self.train) + penalty)
                self.optimizer.step()
            if end < STEPS:
                file = io.BytesIO()
                states = {"model": self.model.state_dict(), "run": run.state_dict()}
                torch.save({**states, "optimizer": self.optimizer.state_dict()}, file)
                return file.getvalue()
            best = run.best_of(lambda: self.loss(self.valid).item())
            return self.model.weight.detach().clone(), run["l2"].detach().clone(), best


@pytest.mark.parametrize("with_rate", [True, False])
def test_it_ends_as_the_uninterrupted_run(with_rate):
    weights, l2, best = Part(with_rate).run()
    assert not torch.equal(l2, torch.full_like(l2, 1e-3))  # it has moved
    for step in (1, 7, 8, 12, 13, 30, STEPS - 1):
        saved = Part(with_rate).run(end=step)
        again = Part(with_rate).run(step, saved=saved)
        assert torch.equal(again[0], weights) and torch.equal(again[1], l2), step
        assert again[2] == best, step
