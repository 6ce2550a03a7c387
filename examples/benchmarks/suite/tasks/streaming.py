"""A teacher's labels on fresh batches: gradient noise that never dies out, no over-fitting.

Inputs are ill-conditioned (deviations over one and a half decades), labels are drawn from the
teacher's probabilities. The validation loss is the mean divergence KL(teacher || student), that is
the cross-entropy in excess of the least possible, without the labels' sampling noise.
"""

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..task import Problem, Range, Task, steps_of

INPUTS, HIDDEN, CLASSES, BATCH, ROWS = 20, 48, 5, 32, 4000
SCALE = torch.logspace(0, -1.5, INPUTS)


def network():
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


@functools.lru_cache(maxsize=2)
def teacher_of(seed):
    """The teacher and the two sets that it labels with probabilities."""
    with torch.random.fork_rng(devices=[]):
        teacher = network().requires_grad_(False)
    g = steps_of(seed, 5)
    for p in teacher.parameters():
        scale = 1.5 / math.sqrt(p.shape[-1]) if p.dim() > 1 else 0.3
        p.copy_(torch.randn(p.shape, generator=g) * scale)
    sets = {}
    for part, purpose in (("validation", 8), ("test", 9)):
        x = inputs(ROWS, steps_of(seed, purpose))
        sets[part] = x, F.log_softmax(2.5 * teacher(x), 1)
    return teacher, sets


def inputs(n, generator):
    return torch.randn(n, INPUTS, generator=generator) * SCALE / SCALE.mean()


def build(h, seed):
    teacher, sets = teacher_of(seed)
    model = network()
    rest = {k: h[k] for k in ("momentum", "weight_decay") if k in h}
    groups = [{"params": list(model.parameters()), "lr": h["lr"], **rest}]

    def drawn(generator):
        def draw():
            x = inputs(BATCH, generator)
            p = F.softmax(2.5 * teacher(x), 1)
            return x, torch.multinomial(p, 1, generator=generator)[:, 0]

        return draw

    look = drawn(steps_of(seed, 2))

    def loss(batch, h):
        return F.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(part):
        x, target = sets[part]
        output = F.log_softmax(model(x), 1)
        wrong = (output.argmax(1) != target.argmax(1)).float().mean().item()
        return F.kl_div(output, target, reduction="batchmean", log_target=True).item(), wrong

    return Problem(
        model,
        groups,
        drawn(steps_of(seed, 1)),
        loss,
        lambda: loss(look(), h),
        evaluate,
        (BATCH, ROWS),
    )


SGD = {"lr": Range(1e-4, 3.0), "momentum": Range(0.5, 0.99, log=False)}
ADAM = {"lr": Range(1e-5, 1.0), "weight_decay": Range(1e-5, 1e-1)}
KINDS = {
    "sgd": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (ADAM, {"lr": 1e-2, "weight_decay": 1e-4}),
}

TASKS = [
    Task(
        f"stream-{kind}-{steps}",
        steps,
        kind,
        space,
        strong,
        build,
        budget=30 if (kind, steps) == ("adamw", 1000) else 10,
    )
    for kind, (space, strong) in KINDS.items()
    for steps in (300, 1000, 3000, 10_000)
]
