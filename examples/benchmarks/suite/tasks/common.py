"""What the tasks share: data in three parts, batches drawn from them, a supervised problem."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..task import Problem, steps_of

EVALUATED = 2048  # rows per forward pass of an evaluation: bounds memory, changes no figure


@dataclass(frozen=True)
class Split:
    """Inputs and targets for training, validation and test."""

    train: tuple[torch.Tensor, torch.Tensor]
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def split_of(x, y, n_train, n_validation, seed=0):
    """``x`` and ``y`` in a fixed order, standardised by the training part where ``x`` is float."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    ends = [n_train, n_train + n_validation]
    parts = zip(x.tensor_split(ends), y.tensor_split(ends), strict=True)
    return Split(*parts)


def standardised(x, n_train, seed=0):
    """``x`` with the mean and the deviation that the training rows of :func:`split_of` have."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    known = x[order[:n_train]]
    return ((x - known.mean(0)) / known.std(0).clamp(min=1e-6)).float()


def sampler(data, batch, generator, augment=None):
    """A function that draws ``batch`` rows with replacement."""

    def draw():
        rows = torch.randint(len(data[1]), (batch,), generator=generator)
        x, y = data[0][rows], data[1][rows]
        return (augment(x, generator) if augment else x), y

    return draw


def error_rate(output, y):
    return (output.argmax(-1) != y).float().mean().item()


@torch.no_grad()
def evaluated(model, data, loss, error):
    """(mean loss, error rate or None) over all of ``data``, in eval mode."""
    was_training = model.training
    model.eval()
    pieces = zip(data[0].split(EVALUATED), data[1].split(EVALUATED), strict=True)
    outputs = [(model(x), y) for x, y in pieces]
    model.train(was_training)
    output, y = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return loss(output, y).item(), error(output, y) if error else None


@torch.no_grad()
def refresh_batch_norm(model, draw, batches=10):
    """Recomputes running statistics at the weights as they are, averaged ones for instance."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over the batches
    was_training = model.training
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(batches):
            model(draw()[0])
    model.train(was_training)
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum


def supervised(
    model, groups, split, batch, seed, *, loss=F.cross_entropy, error=error_rate, **options
):
    """A problem whose training loss is ``loss`` of the model's output.

    Options:
        augment: Of the training inputs, given a generator.
        train_loss: Of (output, target, hyperparameters), where it differs from ``loss``.
        has_batch_norm: Whether running statistics are recomputed before an evaluation.
        clip, bind: As in :class:`~suite.task.Problem`.
    """
    augment, train_loss = options.pop("augment", None), options.pop("train_loss", None)
    has_batch_norm = options.pop("has_batch_norm", False)
    look = sampler(split.validation, batch, steps_of(seed, 2))

    def training(b, h):
        return train_loss(model(b[0]), b[1], h) if train_loss else loss(model(b[0]), b[1])

    def validation_loss():
        x, y = look()
        return loss(model(x), y)

    def evaluate(part):
        if has_batch_norm:
            refresh_batch_norm(model, sampler(split.train, 128, steps_of(seed, 3), augment))
        return evaluated(model, getattr(split, part), loss, error)

    return Problem(
        model,
        groups,
        sampler(split.train, batch, steps_of(seed, 1), augment),
        training,
        validation_loss,
        evaluate,
        (batch, len(split.validation[1])),
        **options,
    )


def decayed(model, h):
    """AdamW's two groups: matrices decay, biases and norms do not."""
    params = [p for p in model.parameters() if p.requires_grad]
    betas = {"betas": (h["beta1"], h.get("beta2", 0.999))} if "beta1" in h else {}
    common = {"lr": h["lr"], **betas}
    return [
        {
            "params": [p for p in params if p.dim() > 1],
            "weight_decay": h["weight_decay"],
            **common,
        },
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0, **common},
    ]
