"""What random training loops do to gradients: clipping, hooks, and arithmetic of their own."""

import math

import torch
from loop_habits import Habit, habit
from torch import nn

GRADIENTS, HOOKS = {}, {}


def between(name):
    """Registers a function of the loop that is called between backward and step."""

    def register(act):
        class Between(Habit):
            def gradients(self, loop):
                act(loop)

        Between.source = act
        return habit(GRADIENTS, name)(Between)

    return register


def grads(loop):
    return [p.grad for p in loop.params if p.grad is not None]


@between("clip by norm")
def clip(loop):
    nn.utils.clip_grad_norm_(loop.params, 0.3)


@between("clip by norm, all parameters")
def clip_model(loop):
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.3, foreach=False)


@between("clip by the 1-norm")
def clip_1(loop):
    nn.utils.clip_grad_norm_(loop.params, 1.0, norm_type=1)


@between("clip by the 3-norm")
def clip_3(loop):
    nn.utils.clip_grad_norm_(loop.params, 0.2, norm_type=3)


@between("clip by the largest")
def clip_inf(loop):
    nn.utils.clip_grad_norm_(loop.params, 0.1, norm_type=math.inf)


@between("clip by value")
def clip_value(loop):
    nn.utils.clip_grad_value_(loop.params, 0.05)


@between("clip each parameter")
def clip_each(loop):
    for p in loop.params:
        nn.utils.clip_grad_norm_([p], 0.1)


@between("clip by hand")
def clip_by_hand(loop):
    norm = torch.stack([g.norm() for g in grads(loop)]).norm()
    for g in grads(loop):
        g.mul_(min(1.0, 0.3 / (float(norm) + 1e-6)))


@between("clip in two groups")
def clip_in_two(loop):
    half = len(loop.params) // 2
    nn.utils.clip_grad_norm_(loop.params[:half], 0.2)
    nn.utils.clip_grad_norm_(loop.params[half:], 0.2)


@between("clip by value, then norm")
def clip_twice(loop):
    nn.utils.clip_grad_value_(loop.params, 0.1)
    nn.utils.clip_grad_norm_(loop.params, 0.3)


@between("normalize")
def normalize(loop):
    norm = torch.stack([g.norm() for g in grads(loop)]).norm()
    for g in grads(loop):
        g.div_(norm + 1e-3)


@between("halve")
def halve(loop):
    for g in grads(loop):
        g.mul_(0.5)


@between("divide by three")
def thirds(loop):
    for p in loop.params:
        if p.grad is not None:
            p.grad = p.grad / 3


@between("noise")
def noise(loop):
    for g in grads(loop):
        g.add_(1e-2 * torch.randn_like(g))


@between("centralize")
def centralize(loop):
    for g in grads(loop):
        if g.ndim > 1:
            g.sub_(g.mean(1, keepdim=True))


@between("decay into the gradient")
def decay(loop):
    for p in loop.params:
        if p.grad is not None:
            p.grad.add_(p.detach(), alpha=0.01)


@between("nan to num")
def tidy(loop):
    for g in grads(loop):
        torch.nan_to_num_(g)


@between("drop one")
def drop(loop):
    if loop.t % 3 == 2:
        loop.params[0].grad = None


@between("zero one")
def zero(loop):
    if loop.params[0].grad is not None:
        loop.params[0].grad.zero_()


@habit(GRADIENTS, "clip in a step hook")
class ClipInStep(Habit):
    def start(self, loop):
        loop.optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(loop.params, 0.3) and None
        )


@habit(GRADIENTS, "clip in a late step hook")
class ClipInLateStep(Habit):
    def inside(self, loop):
        loop.optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(loop.params, 0.3) and None
        )


@habit(HOOKS, "count")
class Count(Habit):
    """Read-only hooks of every kind, which count how often they fire."""

    def start(self, loop):
        for name, p in loop.model.named_parameters():
            if p.requires_grad:
                p.register_hook(lambda g, name=name: loop.fired.append(("leaf", name)))
                p.register_post_accumulate_grad_hook(
                    lambda p, name=name: loop.fired.append(("accumulated", name))
                )
        module = [m for m in loop.model.modules() if next(m.parameters(False), None) is not None]
        module[-1].register_full_backward_hook(lambda *_: loop.fired.append(("module", "last")))


class OnParams(Habit):
    change = None

    def start(self, loop):
        for p in loop.params:
            p.register_hook(type(self).change)


def on_params(name, change):
    kind = type(
        "On" + name.title().replace(" ", ""), (OnParams,), {"change": staticmethod(change)}
    )
    kind.source = change
    habit(HOOKS, name)(kind)


on_params("clamp gradients", lambda g: g.clamp(-0.05, 0.05))
on_params("double gradients", lambda g: 2 * g)
on_params("read gradients", lambda g: g.norm().item() and None)


@habit(HOOKS, "clamp logits' gradients")
class ClampLogits(Habit):
    def output(self, loop, out):
        if out.requires_grad:
            out.register_hook(lambda g: g.clamp(-1e-2, 1e-2))


@habit(HOOKS, "reverse gradients")
class Reverse(Habit):
    """The gradient reversal of domain adaptation, on one parameter."""

    def start(self, loop):
        loop.params[-1].register_hook(lambda g: -0.1 * g)


@habit(HOOKS, "clip when accumulated")
class ClipAccumulated(Habit):
    def start(self, loop):
        def clamp(p):
            p.grad.clamp_(-0.05, 0.05)

        for p in loop.params:
            p.register_post_accumulate_grad_hook(clamp)


@habit(HOOKS, "retain grad")
class Retain(Habit):
    """Gradients of logits and inputs are kept, as for saliency."""

    def output(self, loop, out):
        out.retain_grad()
        loop.retained.append(out)


@habit(HOOKS, "inputs with gradients")
class InputGradients(Habit):
    def batch(self, loop, x):
        if not x.is_floating_point():
            return x
        x = x.clone().requires_grad_()
        loop.retained.append(x)
        return x
