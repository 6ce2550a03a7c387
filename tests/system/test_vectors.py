"""Vectors of hyperparameters over runs of some hundred steps."""

import torch

from optuna_glocal import SelfTuning, Tune, Vector


class Regression:
    """Two useful columns and two of noise, few rows."""

    def __init__(self, columns=4):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(40, columns, generator=g)
        y = x[:, :2].sum(1) + 0.5 * torch.randn(40, generator=g)
        self.train, self.valid = (x[:12], y[:12]), (x[12:], y[12:])
        self.w = torch.zeros(columns, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.w], lr=0.05)

    def loss(self, part):
        x, y = part
        return ((x @ self.w - y) ** 2).mean()

    def fit(self, glocal, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            glocal.backward(self.loss(self.train) + (glocal["l2"] * self.w**2).sum())
            self.optimizer.step()


def test_a_run_that_a_strength_breaks_goes_back_and_ends():
    task = Regression()
    # A validation loss that asks for small weights: strengths rise until 2 lr * strength > 2.
    with SelfTuning(
        task.optimizer,
        lambda: (task.w**2).sum(),
        horizon=600,
        options=Tune(every=1, meta_step=0.2, average=False),
        l2=Vector(4, 0.1, 1e6, smoothing=0.0, start=1.0),
    ) as run:
        task.fit(run, 600)
    assert torch.isfinite(task.w).all() and run.schedule.exact is False
    assert run.vectors["l2"].max() < 25 and "rollbacks to earlier weights" in run.status


def test_accumulation_clipping_and_amp_scales_leave_the_sign():
    ends = []
    for scale, parts, clip in ((1.0, 1, None), (1024.0, 1, None), (1.0, 2, None), (1.0, 1, 0.05)):
        task = Regression()
        with SelfTuning(
            task.optimizer,
            lambda task=task: task.loss(task.valid),
            horizon=120,
            l2=Vector(4, 1e-4, 5.0),
        ) as run:
            for _ in range(120):
                task.optimizer.zero_grad()
                for part in range(parts):
                    x, y = (a[part::parts] for a in task.train)
                    loss = task.loss((x, y)) + (run["l2"] * task.w**2).sum()
                    run.backward(loss * scale / parts)
                task.w.grad /= scale
                if clip:
                    torch.nn.utils.clip_grad_norm_([task.w], clip)
                task.optimizer.step()
        ends.append(run.vectors["l2"])
    for strengths in ends:
        assert strengths[2:].min() > strengths[:2].max()
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-2, atol=1e-3)
