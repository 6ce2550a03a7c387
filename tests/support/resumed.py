"""Random training loops that are interrupted, saved, and resumed in new objects."""

import io
import random
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from torch import nn
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Record

BOXES = {"lr": (1e-5, 3.0), "omm": (0.01, 1.0), "weight_decay": (1e-6, 0.1), "l2": (1e-6, 0.1)}
OPTIMIZERS = {
    "sgd": lambda p, lr, wd: torch.optim.SGD(p, lr, 0.9, weight_decay=wd),
    "plain sgd": lambda p, lr, wd: torch.optim.SGD(p, lr, weight_decay=wd),
    "adamw": lambda p, lr, wd: torch.optim.AdamW(p, lr, weight_decay=wd),
    "fused adamw": lambda p, lr, wd: torch.optim.AdamW(p, lr, weight_decay=wd, fused=True),
    "rmsprop": lambda p, lr, wd: torch.optim.RMSprop(p, lr, weight_decay=wd),
}
S = torch.optim.lr_scheduler
SCHEDULERS = {
    "none": lambda o, n: None,
    "cosine": S.CosineAnnealingLR,
    "cosine to a floor": lambda o, n: S.CosineAnnealingLR(o, n, eta_min=1e-4),
    "exponential": lambda o, n: S.ExponentialLR(o, 0.99),
    "one cycle": lambda o, n: S.OneCycleLR(o, 0.1, total_steps=n + 1),
    "warm-up, then steps": lambda o, n: S.SequentialLR(
        o, [S.LinearLR(o, 0.1, total_iters=5), S.StepLR(o, 10, 0.5)], [5]
    ),
    "plateau": lambda o, n: S.ReduceLROnPlateau(o, patience=3),
    "by hand": lambda o, n: _ByHand(o, n),
}


class _ByHand:
    """A loop that assigns the learning rate itself."""

    def __init__(self, optimizer, steps):
        self.optimizer, self.first, self.steps, self.t = optimizer, 0.01, steps, 0

    def step(self):
        self.t += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.first * (1 - self.t / (self.steps + 1))

    def state_dict(self):
        return {"t": self.t}

    def load_state_dict(self, state):
        self.t = state["t"]


@dataclass
class Spec:
    """One loop."""

    by: str = "blend"
    optimizer: str = "sgd"
    scheduler: str = "none"
    steps: int = 48
    lr: float = 0.01
    normalized: bool = False
    dropout: float = 0.0
    l2: bool = False
    binds: bool = False
    groups: int = 1
    accumulate: int = 1
    average: bool = True
    explodes: int = 0
    half: bool = False
    seed: int = 0

    @classmethod
    def drawn(cls, seed):
        r = random.Random(seed)
        optimizer, scheduler = (
            r.choice([o for o in OPTIMIZERS if "fused" not in o]),
            r.choice(["none", "none", *SCHEDULERS]),
        )
        return cls(
            by=r.choice(["blend", "blend", "blend", "greedy", "local", "glocal"]),
            optimizer=optimizer,
            scheduler=scheduler,
            steps=r.choice([24, 48, 96]),
            lr=r.choice([1e-5, 1e-2, 1.0]),
            normalized=r.random() < 0.3,
            dropout=r.choice([0.0, 0.3]),
            l2=r.random() < 0.5,
            # OneCycleLR sets a momentum of its own.
            binds=optimizer == "sgd" and scheduler != "one cycle" and r.random() < 0.4,
            groups=r.choice([1, 2]),
            accumulate=r.choice([1, 1, 2]),
            average=r.random() < 0.8,
            explodes=r.choice([0, 0, r.randrange(3, 40)]),
            seed=seed,
        )


class Part:
    """One process of a run: all objects made anew, from the same script."""

    def __init__(self, spec, tune, trial=None):
        self.spec = spec
        torch.manual_seed(spec.seed), random.seed(spec.seed), np.random.seed(spec.seed)
        self.x, self.y = torch.randn(64, 6), torch.randint(0, 3, (64,))
        layers = [nn.Linear(6, 8), nn.Tanh(), nn.Dropout(spec.dropout), nn.Linear(8, 3)]
        if spec.normalized:
            layers.insert(1, nn.BatchNorm1d(8))
        self.model = nn.Sequential(*layers)
        start = {"lr": spec.lr, "weight_decay": 1e-3}
        start |= {"omm": 0.1} if spec.binds else {}
        start |= {"l2": 1e-3} if spec.l2 else {}
        self.trial = optuna.trial.FixedTrial(start) if trial is None else trial
        for name in start:
            self.trial.suggest_float(name, *BOXES[name], log=True)
        params = list(self.model.parameters())
        cut = len(params) // 2 if spec.groups == 2 else 0
        groups = [{"params": p} for p in (params[:cut], params[cut:]) if p]
        self.optimizer = OPTIMIZERS[spec.optimizer](groups, spec.lr, 1e-3)
        self.scheduler = SCHEDULERS[spec.scheduler](self.optimizer, spec.steps)
        # Large enough that the first steps are left out, and doubled soon again.
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**19, growth_interval=7, enabled=spec.half
        )
        self.glocal = GlocalCallback(
            self.trial, self.optimizer, self.validation, horizon=spec.steps, **tune
        )
        if spec.binds:
            self.glocal.bind(momentum=lambda: 1 - self.glocal["omm"])

    def validation(self):
        self.model.train()  # batch statistics
        rows = torch.randint(0, 64, (32,))
        return F.cross_entropy(self.model(self.x[rows]), self.y[rows])

    def steps(self, begin, end):
        """Trains; what each step leaves of learning rates and hyperparameters."""
        spec, seen = self.spec, []
        for t in range(begin, end):
            self.model.train()
            self.optimizer.zero_grad()
            for _ in range(spec.accumulate):
                rows = torch.randint(0, 64, (16,))
                with torch.autocast("cpu", torch.float16, enabled=spec.half):
                    loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
                if spec.l2:
                    loss = loss + self.glocal["l2"] * sum(
                        p.square().sum() for p in self.model.parameters()
                    )
                if spec.explodes and t == spec.explodes:
                    loss = loss * torch.inf
                self.glocal.backward(self.scaler.scale(loss / spec.accumulate))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if isinstance(self.scheduler, S.ReduceLROnPlateau):
                self.scheduler.step(float(t % 3))
            elif self.scheduler is not None:
                self.scheduler.step()
            rates = [group["lr"] for group in self.optimizer.param_groups]
            seen.append((rates, self.glocal.hyperparameters))
        return seen

    def saved(self):
        """Through a file, as a checkpoint is."""
        held = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch": torch.get_rng_state(),
            "glocal": self.glocal.state_dict(),
        }
        file = io.BytesIO()
        torch.save(held, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, held):
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(held["scheduler"])
        self.scaler.load_state_dict(held["scaler"])
        self.glocal.load_state_dict(held["glocal"])
        torch.set_rng_state(held["torch"])

    def left(self):
        """What the run has come to."""
        glocal = self.glocal
        averages = glocal._averages
        best = glocal.best_of(lambda: self.validation().item())
        return {
            "weights": [p.detach().clone() for p in self.model.parameters()],
            "buffers": [b.clone() for b in self.model.buffers()],
            "state": self.optimizer.state_dict()["state"],
            "averages": None if averages is None else averages.state_dict(),
            "best": best,
            "is_averaged": glocal.is_averaged,
        }

    def told(self):
        """What the callback says once the block is left."""
        glocal = self.glocal
        told = {
            "hyperparameters": glocal.hyperparameters,
            "schedule": None if glocal.schedule is None else glocal.schedule.to_dict(),
            "trajectory": [glocal.trajectory.steps.tolist(), glocal.trajectory.losses.tolist()],
            "h": glocal.trajectory.hypergradients.tolist(),
            "status": glocal.status,
        }
        if record := Record.from_json(self.trial.user_attrs.get("glocal:record")):
            kept = dict(vars(record))
            told["record"] = {k: v for k, v in kept.items() if "seconds" not in k}
        return told


def whole(spec, tune):
    """The run that nobody interrupts."""
    part = Part(spec, tune)
    with part.glocal:
        seen = part.steps(0, spec.steps)
        left = part.left()
    return seen, left, part.told()


def interrupted(spec, tune, at):
    """The same in parts, each in new objects."""
    seen, held, begin = [], None, 0
    for end in [*sorted(at), spec.steps]:
        part = Part(spec, tune)
        with part.glocal:
            if held is not None:
                part.load(held)
            seen += part.steps(begin, end)
            if end < spec.steps:
                held, begin = part.saved(), end
            else:
                left = part.left()
    return seen, left, part.told()


def differences(a, b, place=""):
    """Where two structures of numbers and tensors are not the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        return [] if same else [f"{place}: {a} != {b}"]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{place}: {a} != {b}"]
        return [d for k in a for d in differences(a[k], b[k], f"{place}.{k}")]
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)) or len(a) != len(b):
            return [f"{place}: lengths {len(a)} != {len(b)}"]
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{place}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{place}: {a} != {b}"]
