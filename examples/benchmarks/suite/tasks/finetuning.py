"""Fine-tuning with discriminative learning rates: a body that knows five classes, five new ones.

The network is trained once on the classes 0 to 4 of MNIST-1D; every run then gets its body, a new
head, and 500 rows of the classes 5 to 9. The body and the head have a learning rate each.
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from ..task import Range, Task
from .common import Split, supervised
from .mnist1d import signals

ROWS, PRE_TRAINING, BATCH = 500, 1500, 32


def body():
    def layer(inputs, outputs):
        convolution = nn.Conv1d(inputs, outputs, 5, stride=2, padding=2)
        return [convolution, nn.GroupNorm(4, outputs), nn.ReLU()]

    return nn.Sequential(*layer(1, 16), *layer(16, 32), *layer(32, 32), nn.Flatten())


def head():
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(32 * 5, 5))


def classes(is_new):
    """The split restricted to five classes, numbered from 0."""
    parts = []
    for x, y in (signals().train, signals().validation, signals().test):
        kept = (y >= 5) == is_new
        parts.append((x[kept], y[kept] - 5 * is_new))
    return Split(*parts)


@functools.cache
def pre_trained():
    """The body's weights after training on the classes that are not fine-tuned on."""
    (x, y), g = classes(False).train, torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(body(), head())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PRE_TRAINING)
        for _ in range(PRE_TRAINING):
            rows = torch.randint(len(y), (64,), generator=g)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            rate.step()
    return {k: v.detach().clone() for k, v in model[0].state_dict().items()}


def build(h, seed):
    model, new = nn.Sequential(body(), head()), classes(True)
    model[0].load_state_dict(pre_trained())
    x, y = new.train
    split = Split((x[:ROWS], y[:ROWS]), new.validation, new.test)
    decay = {"weight_decay": h["weight_decay"]}
    groups = [
        {"params": list(part.parameters()), "lr": h[name], **decay}
        for part, name in zip(model, ("lr_body", "lr_head"), strict=True)
    ]

    def bind(callback):
        for i, name in enumerate(("lr_body", "lr_head")):
            callback.bind(group=i, lr=functools.partial(callback.__getitem__, name))

    return supervised(model, groups, split, BATCH, seed, bind=bind)


TASKS = [
    Task(
        "finetuning",
        500,
        "adamw",
        {
            "lr_body": Range(1e-6, 0.1),
            "lr_head": Range(1e-5, 0.3),
            "weight_decay": Range(1e-4, 1.0),
        },
        {"lr_body": 1e-3, "lr_head": 1e-2, "weight_decay": 1e-2},
        build,
    )
]
