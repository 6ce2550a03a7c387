"""What each of the two processes of test_averaging_ranks.py runs, and one with the joint batch."""

import warnings

import optuna
import torch
import torch.distributed as dist
from rank_workers import SGD, STEPS, Task, ddp, trial, weights_of
from two_ranks import TorchDistributedTrial, joined

from optuna_glocal import GlocalCallback, SelfTuning, Vector
from optuna_glocal.hypergradient import agreement, hand_averaging


def all_reduced(model):
    """As in the tutorials."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def flattened(model):
    """In one message, and clipped afterwards."""
    grads = [p.grad for p in model.parameters()]
    message = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(message)
    pieces = message.div_(dist.get_world_size()).split([g.numel() for g in grads])
    for grad, piece in zip(grads, pieces, strict=True):
        grad.copy_(piece.view_as(grad))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)


def noisy(model):
    """Of one process alone: changed, and not averaged."""
    for p in model.parameters():
        p.grad += 0.1 * torch.randn_like(p.grad)


def hooked(model):
    """Averages within the backward."""

    def average(p):
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(average)


def clipped(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def train(rank=0, size=1, average=None, *, wrap=None, given=None, boxes=None, prepare=None):
    """One run, and all that it leaves."""
    task = Task(rank, size)
    whole = wrap(task.model) if wrap else task.model
    if prepare:
        prepare(task.model)
    optimizer, rates = torch.optim.SGD(task.model.parameters(), **SGD), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if given is None:
            boxes = boxes or {"lr": (1e-5, 10.0)}
            run = SelfTuning(optimizer, task.validation_loss, horizon=STEPS, **boxes)
        else:
            given.suggest_float("lr", 1e-5, 10.0, log=True)
            run = GlocalCallback(given, optimizer, task.validation_loss, horizon=STEPS, tune=True)
        with run:
            for (rows,) in task.batches(1):
                optimizer.zero_grad()
                loss = task.loss(whole, rows, 0.0)
                if boxes and "l2" in boxes:
                    loss = loss + (run["l2"] * task.model[0].weight.square().sum(0)).sum()
                run.backward(loss)
                if average:
                    average(task.model)
                optimizer.step()
                rates.append(optimizer.param_groups[0]["lr"])
            raw, best = weights_of(task.model), run.best_of(task.value)
            run.load_best()
    learnt = run["l2"].detach().clone() if boxes and "l2" in boxes else None
    return {
        "rates": rates, "weights": raw, "best": best, "best weights": weights_of(task.model),
        "status": run.status, "said": [str(w.message) for w in said], "l2": learnt,
    }  # fmt: skip


VECTORS = {
    "vector": {"l2": Vector(6, 1e-6, 1.0)},
    "vector and rate": {"l2": Vector(6, 1e-6, 1.0), "lr": (1e-5, 10.0)},
}
BY_HAND = {"all_reduce": all_reduced, "flattened": flattened}


def best_of_on_one_rank(rank):
    """What the rank that calls it alone is told."""
    agreement._PATIENCE = 0.5
    task = Task(rank, 2)
    whole = ddp(task.model)
    optimizer = torch.optim.SGD(whole.parameters(), **SGD)
    with SelfTuning(optimizer, task.validation_loss, horizon=STEPS, lr=(1e-5, 10.0)) as run:
        said = ""
        if rank == 0:
            try:
                run.best_of(task.value)
            except RuntimeError as error:
                said = str(error)
        dist.barrier()
        raise InterruptedError(said)


def work(rank, port, folder):
    """One of the two processes."""
    with joined(rank, port):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        found = {name: train(rank, 2, average) for name, average in BY_HAND.items()}
        found["hooks"] = train(rank, 2, prepare=hooked)
        found["shared trial"] = train(rank, 2, all_reduced, given=TorchDistributedTrial(trial()))
        for name, boxes in VECTORS.items():
            found[name] = train(rank, 2, wrap=ddp, boxes=boxes)
        hand_averaging._PATIENCE = 0.5  # the other rank is waited for in vain
        found["alone"] = train(average=noisy) if rank == 0 else train(average=clipped)
        try:
            best_of_on_one_rank(rank)
        except InterruptedError as error:
            found["best_of"] = str(error)
        torch.save(found, f"{folder}/{rank}.pt")
