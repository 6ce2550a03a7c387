"""No point survives a refusal that concerns it: what is left is what differences say."""

import math

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from optuna_glocal import GlocalCallback, Observe

LR, STEPS = 0.0837465, 7


class Loop:
    """A training with a habit that cannot be followed; it does nothing unless a case says so."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 4), nn.Tanh(),
            nn.Linear(4, 2),
        ).double()  # fmt: skip
        self.weights = list(self.model.parameters())
        self.draws = torch.Generator().manual_seed(1)

    def output(self, t, out):
        """The logits of a training batch are there."""

    def loss(self, t, loss):
        return loss

    def gradients(self, t):
        """Between backward and step."""

    def after(self, t):
        """A step was made."""

    def noise(self, like):
        return 0.05 * torch.randn(like.shape, generator=self.draws, dtype=like.dtype)

    def train(self, lr, watches):
        x, y = torch.tensor([[1, 0], [2, 3], [0, 4], [3, 1]]), torch.tensor([0, 1, 1, 0])
        optimizer = torch.optim.SGD(self.weights, lr=lr, momentum=0.7)
        losses = []

        def validate():
            return F.cross_entropy(self.model(x.flip(0)), y)

        def steps(backward):
            for t in range(STEPS):
                optimizer.zero_grad()
                out = self.model(x)
                self.output(t, out)
                backward(self.loss(t, F.cross_entropy(out, y)))
                with torch.no_grad():
                    self.gradients(t)
                optimizer.step()
                with torch.no_grad():
                    self.after(t)
                    losses.append(validate().item())

        if not watches:
            steps(torch.Tensor.backward)
            return losses
        trial = FixedTrial({"lr": lr})
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        observe = Observe(estimator="global", tangents=True, every=1)
        with GlocalCallback(trial, optimizer, validate, horizon=STEPS, observe=observe) as glocal:
            steps(glocal.backward)
        return glocal


class PaddedNoise(Loop):
    """The row that embeddings read and do not train moves."""

    def gradients(self, t):
        self.weights[0].grad.add_(self.noise(self.weights[0]))


class LatePaddedNoise(PaddedNoise):
    def gradients(self, t):
        if t >= 3:
            super().gradients(t)


class LatePadding(Loop):
    """The padded row gets gradients of its own from a penalty."""

    def loss(self, t, loss):
        return loss + self.weights[0][0].sum() if t == 3 else loss


class PaddedWrite(Loop):
    def after(self, t):
        if t == 3:
            self.weights[0][0] += self.weights[0][1]


class PaddedDecay(Loop):
    """At first the row is at rest, and then weights are pulled to each other."""

    def after(self, t):
        if t >= 2:
            self.weights[0].lerp_(self.weights[0].mean(0, keepdim=True), 0.1)


class NodeHook(Loop):
    """Acts on the gradients inside the graph, in some steps."""

    steps = range(3, STEPS)

    def output(self, t, out):
        if t in self.steps:
            out.register_hook(lambda g: g.clamp(-0.05, 0.05))


class NodeHookByTurns(NodeHook):
    steps = range(1, STEPS, 2)


class NodeHookByThrees(NodeHook):
    steps = range(2, STEPS, 3)


class NodeHookOnce(NodeHook):
    steps = (3,)


class NodeHookLast(NodeHook):
    steps = (STEPS - 1,)


def checkpointed(loss):
    """Ends the tangents, as its inside is hidden."""
    return checkpoint(torch.clone, loss, use_reentrant=True)


class ParamHook(Loop):
    def output(self, t, out):
        if t == 3:
            self.weights[1].register_hook(lambda g: g.sign() * g.abs().clamp(max=0.01))


class WriteOnce(Loop):
    def after(self, t):
        if t == 4:
            self.weights[1].data.mul_(0.5)


class ByNumpy(Loop):
    def after(self, t):
        if t >= 3:
            self.weights[1].numpy()[:] *= 0.9


class NumberOfWeights(Loop):
    """A factor that was read out of torch."""

    scale = 1.0

    def loss(self, t, loss):
        scale, self.scale = self.scale, math.exp(-float(loss))
        return loss * scale


class NumberByTurns(NumberOfWeights):
    def loss(self, t, loss):
        return loss * (1 + float(self.weights[1].detach().norm())) if t % 2 else loss


class NumberOfWeightsAndMore(NumberOfWeights):
    """Found at the same backward as something else."""

    def loss(self, t, loss):
        loss = loss * (1 + float(loss)) if t == 3 else loss
        return checkpointed(loss) if t == 3 else loss


CASES = {kind.__name__: kind for kind in Loop.__subclasses__()}
for kind in list(CASES.values()):
    CASES |= {k.__name__: k for k in kind.__subclasses__()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_no_point_survives_a_refusal_that_concerns_it(case):
    glocal = CASES[case]().train(LR, True)
    trajectory = glocal.trajectory

    def central(e):
        ahead, behind = (np.array(CASES[case]().train(LR + d, False)) for d in (e, -e))
        return (ahead - behind) / (2 * e)

    expected = (4 * central(1e-5) - central(2e-5)) / 3
    for name in trajectory.names:
        h = trajectory.hypergradients[1:, trajectory.names.index(name)]
        for t, value in zip(trajectory.steps[1:], h, strict=True):
            assert math.isnan(value) or value == pytest.approx(expected[t - 1], rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_point_before_the_refusal_stays():
    h = PaddedNoise().train(LR, True).trajectory.hypergradients[:, 0]
    assert np.isnan(h).all()
    h = LatePadding().train(LR, True).trajectory.hypergradients[1:, 0]
    assert np.isfinite(h[:3]).all() and np.isnan(h[3:]).all()
