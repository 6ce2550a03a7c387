"""Habits of people who train networks, each of which a random training loop may have.

A habit changes a :class:`~random_loops.Loop` at named places. ``CARRIED`` are those by which the
loop carries more than weights from step to step, ``WRITING`` those that write weights between
steps or change which parameters are trained.
"""

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

HARMLESS, CARRIED, WRITING = {}, {}, {}


class Habit:
    """One habit; at every place it does nothing unless it says otherwise."""

    def start(self, loop):
        """Model and optimizer are there; the callback is not."""

    def inside(self, loop):
        """The callback has been entered."""

    def before(self, loop):
        """A step begins."""

    def batch(self, loop, x):
        return x

    def output(self, loop, out):
        """The logits of a training batch are there."""

    def loss(self, loop, x, out, loss):
        return loss

    def gradients(self, loop):
        """Between backward and step."""

    def after(self, loop):
        """The step has been made."""


def habit(where, name):
    def register(kind):
        kind.name = name
        where[name] = kind
        return kind

    return register


@habit(HARMLESS, "numpy noise")
class NumpyNoise(Habit):
    def batch(self, loop, x):
        noisy = x.is_floating_point()
        return x + 0.1 * torch.from_numpy(np.random.randn(*x.shape)).to(x) if noisy else x


@habit(HARMLESS, "random flips")
class Flips(Habit):
    def batch(self, loop, x):
        return x.flip(-1) if random.random() < 0.5 else x


@habit(HARMLESS, "mixed inputs")
class Mixup(Habit):
    def batch(self, loop, x):
        if not x.is_floating_point():
            return x
        share = np.random.beta(0.4, 0.4)
        return share * x + (1 - share) * x[torch.randperm(len(x))]


@habit(HARMLESS, "evaluate now and then")
class Evaluate(Habit):
    def after(self, loop):
        if loop.t % 3 == 1:
            loop.model.eval()
            with torch.no_grad():
                loop.losses.append(loop.criterion(loop.model(loop.x[:8]), loop.y[:8]))
            loop.model.train()


@habit(HARMLESS, "seed in every step")
class Seed(Habit):
    def before(self, loop):
        torch.manual_seed(loop.t)


@habit(HARMLESS, "average the weights")
class Average(Habit):
    def start(self, loop):
        self.average = AveragedModel(loop.model, avg_fn=lambda a, p, n: 0.9 * a + 0.1 * p)

    def after(self, loop):
        self.average.update_parameters(loop.model)


@habit(HARMLESS, "evaluate at the average")
class SwapAverage(Habit):
    """As in moving averages that are put in for validation, and taken out again."""

    def start(self, loop):
        self.average = [p.detach().clone() for p in loop.params]

    @torch.no_grad()
    def after(self, loop):
        for a, p in zip(self.average, loop.params, strict=True):
            a.lerp_(p, 0.1)
        if loop.t % 4 == 3:
            kept = [p.clone() for p in loop.params]
            for a, p in zip(self.average, loop.params, strict=True):
                p.copy_(a)
            loop.losses.append(loop.criterion(loop.model(loop.x[:8]), loop.y[:8]))
            for k, p in zip(kept, loop.params, strict=True):
                p.copy_(k)


@habit(HARMLESS, "save and copy")
class Save(Habit):
    def after(self, loop):
        if loop.t % 4 == 2:
            copy.deepcopy(loop.model.state_dict()), copy.deepcopy(loop.optimizer.state_dict())
            copy.deepcopy(loop.model)


@habit(HARMLESS, "attack by sign")
class Attack(Habit):
    """Adversarial training: the batch moves by the sign of its own gradient."""

    def batch(self, loop, x):
        if not x.is_floating_point():
            return x
        x = x.clone().requires_grad_()
        loss = loop.criterion(loop.model(x), loop.labels)
        return (x + 0.05 * torch.autograd.grad(loss, x)[0].sign()).detach()


@habit(HARMLESS, "gradient penalty")
class Penalty(Habit):
    def batch(self, loop, x):
        return x.clone().requires_grad_() if x.is_floating_point() else x

    def loss(self, loop, x, out, loss):
        if not x.requires_grad:
            return loss
        (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return loss + 0.01 * g.square().sum(-1).mean()


@habit(HARMLESS, "penalty on logits")
class LogitPenalty(Habit):
    def loss(self, loop, x, out, loss):
        return loss + 0.01 * out.square().mean() + 1e-3 * torch.logsumexp(out, 1).mean()


@habit(HARMLESS, "annealed loss")
class Annealed(Habit):
    def loss(self, loop, x, out, loss):
        return loss * ((loop.t + 1) / loop.spec.steps)


@habit(HARMLESS, "hard pseudo labels")
class HardLabels(Habit):
    def loss(self, loop, x, out, loss):
        return loss + 0.2 * F.cross_entropy(out, out.detach().argmax(1))


@habit(HARMLESS, "skip steps")
class Skip(Habit):
    def before(self, loop):
        loop.skips = loop.t % 4 == 3


@habit(HARMLESS, "zero every second time")
class ZeroLess(Habit):
    def before(self, loop):
        loop.zeroes = loop.t % 2 == 0


@habit(HARMLESS, "load what was saved")
class Reload(Habit):
    def after(self, loop):
        if loop.t == 4:
            loop.model.load_state_dict(copy.deepcopy(loop.model.state_dict()))


@habit(CARRIED, "mean teacher")
class Teacher(Habit):
    def start(self, loop):
        self.teacher = copy.deepcopy(loop.model).requires_grad_(False)

    def loss(self, loop, x, out, loss):
        with torch.no_grad():
            told = self.teacher(x)
        return loss + 0.5 * F.mse_loss(out, told)

    @torch.no_grad()
    def after(self, loop):
        for a, p in zip(self.teacher.parameters(), loop.model.parameters(), strict=True):
            a.lerp_(p, 0.2)


@habit(CARRIED, "soft pseudo labels")
class SoftLabels(Habit):
    def loss(self, loop, x, out, loss):
        return loss + 0.5 * F.cross_entropy(out, F.softmax(2 * out.detach(), 1))


@habit(CARRIED, "detached weights")
class Focal(Habit):
    def loss(self, loop, x, out, loss):
        return loss * loss.detach().clamp(max=10.0)


@habit(CARRIED, "labels of the last step")
class Stale(Habit):
    last = None

    def loss(self, loop, x, out, loss):
        kept, self.last = self.last, out.detach()
        return loss if kept is None or kept.shape != out.shape else loss + F.mse_loss(out, kept)


@habit(CARRIED, "moving centre")
class Centre(Habit):
    centre = 0.0

    def loss(self, loop, x, out, loss):
        self.centre = 0.8 * self.centre + 0.2 * out.detach().mean(0)
        return loss + 0.2 * (out - self.centre).square().mean()


@habit(CARRIED, "loss by its running mean")
class RunningMean(Habit):
    mean = 1.0

    def loss(self, loop, x, out, loss):
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        return loss / self.mean


@habit(CARRIED, "validate at the average")
class ValidateAverage(Habit):
    def start(self, loop):
        loop.validated = copy.deepcopy(loop.model).requires_grad_(True)

    @torch.no_grad()
    def after(self, loop):
        pairs = zip(loop.validated.parameters(), loop.model.parameters(), strict=True)
        for a, p in pairs:
            a.lerp_(p, 0.3)


@habit(CARRIED, "a second optimizer")
class Second(Habit):
    """The last parameters are another optimizer's, at a learning rate of its own."""

    def start(self, loop):
        kept = {id(p) for g in loop.optimizer.param_groups for p in g["params"]}
        others = [p for p in loop.model.parameters() if id(p) not in kept and p.requires_grad]
        self.other = torch.optim.AdamW(others, lr=0.03)

    def before(self, loop):
        self.other.zero_grad()

    def after(self, loop):
        self.other.step()


@habit(CARRIED, "resumed")
class Resumed(Habit):
    def start(self, loop):
        for _ in range(2):
            loop.optimizer.zero_grad()
            loop.criterion(loop.model(loop.x[:8]), loop.y[:8]).backward()
            if not isinstance(loop.optimizer, torch.optim.LBFGS):
                loop.optimizer.step()
        loop.optimizer.zero_grad()


def writing(name):
    """Registers a function of one parameter, called on all after every step."""

    def register(write):
        class Writes(Habit):
            @torch.no_grad()
            def after(self, loop):
                for p in loop.params:
                    write(p)

        Writes.source = write
        return habit(WRITING, name)(Writes)

    return register


writing("clamp weights")(lambda p: p.clamp_(-0.4, 0.4))
writing("clamp data")(lambda p: p.data.clamp_(-0.4, 0.4))
writing("decay weights")(lambda p: p.mul_(0.99))
writing("noise on weights")(lambda p: p.add_(1e-3 * torch.randn_like(p)))
writing("max-norm")(lambda p: p.copy_(torch.renorm(p, 2, 0, 0.5)) if p.ndim > 1 else None)
writing("unit rows")(lambda p: p.div_(p.norm(dim=1, keepdim=True)) if p.ndim > 1 else None)


@habit(WRITING, "restore")
class Restore(Habit):
    def after(self, loop):
        if loop.t == 2:
            self.kept = copy.deepcopy(loop.model.state_dict())
        if loop.t == 6:
            loop.model.load_state_dict(self.kept)


@habit(WRITING, "re-initialize")
class Reinitialize(Habit):
    @torch.no_grad()
    def after(self, loop):
        if loop.t == 4:
            nn.init.normal_(loop.params[-1], std=0.1)
            loop.optimizer.state.pop(loop.params[-1], None)


@habit(WRITING, "freeze midway")
class Freeze(Habit):
    def before(self, loop):
        if loop.t == 5:
            loop.params[0].requires_grad_(False)
            loop.params[0].grad = None


@habit(WRITING, "unfreeze midway")
class Unfreeze(Habit):
    def start(self, loop):
        loop.params[0].requires_grad_(False)

    def before(self, loop):
        loop.params[0].requires_grad_(loop.t >= 4)


@habit(WRITING, "add a group")
class AddGroup(Habit):
    def before(self, loop):
        if loop.t == 4:
            kept = {id(p) for g in loop.optimizer.param_groups for p in g["params"]}
            others = [p for p in loop.model.parameters() if id(p) not in kept and p.requires_grad]
            loop.optimizer.add_param_group({"params": others, "lr": 0.01})
            loop.params = [*loop.params, *others]


@habit(WRITING, "sharpness-aware")
class Sharpness(Habit):
    """Gradients are taken where the loss is nearly the greatest, close by."""

    def gradients(self, loop):
        with torch.no_grad():
            for p in loop.params:
                if p.grad is not None:
                    p.add_(0.01 * p.grad)
        moved = [p.grad.clone() if p.grad is not None else None for p in loop.params]
        loop.optimizer.zero_grad()
        loop.backward(loop.criterion(loop.model(loop.inputs), loop.labels))
        with torch.no_grad():
            for p, g in zip(loop.params, moved, strict=True):
                if g is not None:
                    p.sub_(0.01 * g)


#: The last parameters are left to the habit.
HOLDS_OUT = {"a second optimizer", "add a group"}
