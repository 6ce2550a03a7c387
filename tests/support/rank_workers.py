"""What the two processes of test_tuning_ranks.py run, and the same in one with the joint batch."""

import contextlib
import warnings

import optuna
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from two_ranks import TorchDistributedTrial, joined

from optuna_glocal import GlocalCallback, Observe, SelfTuning, Tune

BOX, STEPS = {"lr": (1e-5, 10.0), "l2": (1e-6, 1.0)}, 120
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
ADAMW = {"optimizer": torch.optim.AdamW, "h": {"lr": 3e-3, "weight_decay": 1e-2}}


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

    def batches(self, parts):
        """Of each step, the parts of this rank's share of the batch."""
        for _ in range(STEPS):
            chosen = torch.randint(0, 300, (16,), generator=self.generator)
            yield chosen.chunk(self.size)[self.rank].chunk(parts)

    def loss(self, whole, part, l2):
        """With a penalty on the outputs."""
        out = whole(self.x[part])
        return functional.cross_entropy(out, self.y[part]) + l2 * out.square().mean()

    def validation_loss(self):
        """Of this rank's half of the validation data."""
        mine = slice(self.rank, None, self.size)
        return functional.cross_entropy(self.model(self.xv[mine]), self.yv[mine])

    def value(self):
        with torch.no_grad():
            return self.validation_loss().item()


def ddp(model, group=None):
    return nn.parallel.DistributedDataParallel(model, process_group=group)


def fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def weights_of(model):
    params = [p.detach() for p in model.parameters()]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for p in params]


def made(optimizer, validation_loss, trial, names, options, observe):
    if trial is None:
        boxes = {name: BOX[name] for name in names}
        return SelfTuning(optimizer, validation_loss, horizon=STEPS, options=options, **boxes)
    for name in names:
        trial.suggest_float(name, *BOX[name], log=True)
    tune = False if observe else options or True
    return GlocalCallback(
        trial, optimizer, validation_loss, horizon=STEPS, tune=tune, observe=observe
    )


def train(
    rank=0, size=1, wrap=None, *, optimizer=torch.optim.SGD, h=SGD, l2=False, options=None,
    observe=None, parts=1, scheduler=None, trial=None, validation=None, value=None, act=None,
):  # fmt: skip
    """One run, and all that it leaves. ``act(rank, step, run, loss)`` may give another loss."""
    task = Task(rank, size)
    whole = wrap(task.model) if wrap else task.model
    stepped = optimizer(task.model.parameters(), **h)
    plan = scheduler(stepped) if scheduler else None
    rates, t = [], 0

    def looked():
        return validation(task, t) if validation else task.validation_loss()

    names = ("lr", "l2") if l2 else ("lr",)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = made(stepped, looked, trial, names, options, observe)
        with run:
            # After ours, which writes the rate.
            stepped.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            for t, chosen in enumerate(task.batches(parts)):
                stepped.zero_grad()
                for i, part in enumerate(chosen):
                    waits = (
                        isinstance(whole, nn.parallel.DistributedDataParallel) and i + 1 < parts
                    )
                    with whole.no_sync() if waits else contextlib.nullcontext():
                        loss = task.loss(whole, part, run["l2"] if l2 else 0.0) / parts
                        run.backward(act(rank, t, run, loss) if act else loss)
                stepped.step()
                if plan:
                    plan.step()
            raw, best = weights_of(task.model), None
            with contextlib.suppress(LookupError):
                best = run.best_of(lambda: value(task) if value else task.value())
                run.load_best()
    return {
        "rates": rates,
        "hyperparameters": run.hyperparameters,
        "weights": raw,
        "best": best,
        "best weights": weights_of(task.model),
        "status": run.status,
        "rollbacks": getattr(getattr(run._mode, "tuner", None), "rollbacks", 0),
        "said": [str(w.message) for w in said],
    }


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def spoilt_at(step):
    """The loss of the last rank is not a number in this step."""

    def act(rank, t, run, loss):
        is_last = not dist.is_initialized() or rank == dist.get_world_size() - 1
        return loss * torch.nan if t == step and is_last else loss

    return act


def halted_at(step):
    """A fault of ours on rank 1 alone."""

    def act(rank, t, run, loss):
        if (rank, t) == (1, step):
            run._run.shield.halt("A test stopped this rank.")
        return loss

    return act


def validation_that_raises(task, t):
    if (task.rank, t >= 40) == (1, True):
        raise LookupError("no more data")
    return task.validation_loss()


def value_that_raises(task):
    if task.rank == 1:
        raise LookupError("no more data")
    return task.value()


#: Options of runs that two processes and one have in common.
ALIKE = {
    "sgd": {},
    "adamw": ADAMW,
    "accumulated": {"parts": 2},
    "under a scheduler": {"scheduler": cosine},
    "not finite early": {"act": spoilt_at(8)},
    "not finite late": {"act": spoilt_at(70)},
    "of the loss": {"l2": True},
    "greedy": {"l2": True, "options": Tune(by="greedy")},
}
COPIES_ONLY = {"of the loss", "greedy"}
#: Options of runs in which one of two processes fails.
FAILING = {
    "a loss raises": {"l2": True, "validation": validation_that_raises},
    "halted early": {"act": halted_at(13)},
    "halted late": {"act": halted_at(52)},
    "halted before": {"act": halted_at(0)},
    "greedy halted": {"act": halted_at(13), "options": Tune(by="greedy")},
    "best_of raises": {"value": value_that_raises},
}


def trial():
    return optuna.trial.FixedTrial({"lr": SGD["lr"]})


def work(rank, port, folder):
    """One of the two processes."""
    with joined(rank, port):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        alone = [dist.new_group([0]), dist.new_group([1])][rank]
        found = {}
        for name, options in ALIKE.items():
            found["ddp", name] = train(rank, 2, ddp, **options)
            if name not in COPIES_ONLY:
                found["fsdp", name] = train(rank, 2, fsdp, **options)
        for name, options in FAILING.items():
            found["ddp", name] = train(rank, 2, ddp, **options)
        other = {**SGD, "lr": SGD["lr"] * (1 + rank)}
        found["other starts"] = train(rank, 2, ddp, h=other)
        found["a group of one"] = train(0, 1, lambda model: ddp(model, alone))
        found["one by one"] = train()
        shared = TorchDistributedTrial(trial())
        found["shared"] = train(rank, 2, ddp, trial=shared)
        found["shared"]["attrs"] = sorted(shared.user_attrs)
        found["not shared"] = train(rank, 2, ddp, trial=trial())
        found["fsdp", "of the loss"] = train(rank, 2, fsdp, l2=True)
        found["fsdp", "greedy"] = train(rank, 2, fsdp, options=Tune(by="greedy"))
        found["fsdp", "observed"] = train(
            rank, 2, fsdp, trial=TorchDistributedTrial(trial()), observe=Observe()
        )
        found["ddp", "windows"] = train(rank, 2, ddp, options=Tune(by="local"))
        torch.save(found, f"{folder}/{rank}.pt")
