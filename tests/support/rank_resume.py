"""What each of two processes does in ``tests/system/test_resume_ranks.py``."""

import io
import pathlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from two_ranks import joined

from optuna_glocal import SelfTuning

STEPS, AT = 40, (4, 25)  # within the first quarter, and after it
WRAPS = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp": fully_shard,
    "by hand": lambda model: model,  # the loop averages the gradients
}


def train(rank, wrap, begin=0, end=STEPS, saved=None):
    """A run from one step to another; what is saved there, or what it ends with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(400, 4)
    y, whole = x[:, :1].sin(), WRAPS[wrap](model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    own = slice(300 + 50 * rank, 350 + 50 * rank)

    def validation_loss():
        return (whole(x[own]) - y[own]).square().mean()

    with SelfTuning(optimizer, validation_loss, horizon=STEPS, lr=(1e-5, 1.0)) as run:
        parts["run"] = run
        if saved is not None:
            held = torch.load(io.BytesIO(saved), weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(held[name])
        for step in range(begin, end):
            rows = torch.randint(
                300, (16,), generator=torch.Generator().manual_seed(2 * step + rank)
            )
            optimizer.zero_grad()
            run.backward((whole(x[rows]) - y[rows]).square().mean())
            for p in model.parameters() if wrap == "by hand" else ():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
            optimizer.step()
            scheduler.step()
        if end < STEPS:
            file = io.BytesIO()
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            return file.getvalue()
        weights = [p.detach() for p in model.parameters()]
        weights = [(w.full_tensor() if wrap == "fsdp" else w).clone() for w in weights]
        return weights, run.best_of(lambda: validation_loss().item()), run.hyperparameters


def work(rank, port, folder):
    with joined(rank, port):
        out = {}
        for wrap in WRAPS:
            out[wrap] = [train(rank, wrap)]
            for step in AT:
                saved = train(rank, wrap, end=step)
                out[wrap].append(train(rank, wrap, step, saved=saved))
        torch.save(out, pathlib.Path(folder) / f"{rank}.pt")
