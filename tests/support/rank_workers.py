"""What the two processes of test_tuning_ranks.py run, and the same in one with the joint batch."""

import contextlib
import os
import warnings

import optuna
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from optuna_glocal import GlocalCallback, SelfTuning, Tune

BOX, STEPS = {"lr": (1e-5, 10.0), "l2": (1e-6, 1.0)}, 80
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAMW = {"lr": 3e-3, "weight_decay": 1e-2}


class Task:
    """A small classification task in float64; a step's batch of 16 is one half to either rank."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size
        g = self.generator = torch.Generator().manual_seed(0)
        centres = torch.randn(3, 6, generator=g, dtype=torch.float64)
        self.y, self.yv = (torch.randint(0, 3, (n,), generator=g) for n in (300, 200))
        noise = [torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (300, 200)]
        self.x, self.xv = centres[self.y] + noise[0], centres[self.yv] + noise[1]
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 3)).double()

    def batches(self, steps, parts=1):
        """The parts of this rank's share of each step's batch."""
        for _ in range(steps):
            chosen = torch.randint(0, 300, (16,), generator=self.generator)
            yield chosen.chunk(self.size)[self.rank].chunk(parts)

    def loss(self, whole, part):
        return functional.cross_entropy(whole(self.x[part]), self.y[part])

    def validation_loss(self):
        """Of this rank's half of the validation data."""
        mine = slice(self.rank, None, self.size)
        return functional.cross_entropy(self.model(self.xv[mine]), self.yv[mine])

    def value(self):
        with torch.no_grad():
            return self.validation_loss().item()


def ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole_weights(model):
    return [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach().clone()
            for p in model.parameters()]  # fmt: skip


def tuned(
    rank=0, size=1, wrap=None, optimizer=torch.optim.SGD, h=SGD, l2=False, options=None,
    parts=1, validate=None, act=None, scheduler=None,
):  # fmt: skip
    """One run that tunes itself, and all that it leaves."""
    task = Task(rank, size)
    whole = wrap(task.model) if wrap and size > 1 else task.model
    made = optimizer(task.model.parameters(), **h)
    plan = scheduler(made) if scheduler else None
    boxes = {name: BOX[name] for name in (("lr", "l2") if l2 else ("lr",))}
    rates, steps = [], 0
    made.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))

    def validation_loss():
        return task.validation_loss() if validate is None else validate(task, steps)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = SelfTuning(made, validation_loss, horizon=STEPS, options=options, **boxes)
        with run:
            for steps, chosen in enumerate(task.batches(STEPS, parts)):
                made.zero_grad()
                for i, part in enumerate(chosen):
                    is_last = i == len(chosen) - 1
                    holds = wrap is ddp and size > 1 and not is_last
                    with whole.no_sync() if holds else contextlib.nullcontext():
                        loss = task.loss(whole, part) / len(chosen)
                        if l2:
                            loss = loss + run["l2"] * sum(
                                (p**2).sum() for p in task.model.parameters()
                            ) / len(chosen)
                        if act is not None:
                            act(run, steps)
                        run.backward(loss)
                made.step()
                if plan:
                    plan.step()
            raw = whole_weights(task.model)
            best = run.best_of(task.value)
            run.load_best()
    return {
        "rates": rates,
        "hyperparameters": run.hyperparameters,
        "weights": raw,
        "best": best,
        "is_averaged": run.is_averaged,
        "best weights": whole_weights(task.model),
        "status": run.status,
        "rollbacks": run._mode.tuner.rollbacks if run._mode.tuner else 0,
        "said": [str(w.message) for w in said],
    }
