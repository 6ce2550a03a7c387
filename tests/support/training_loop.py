"""A training loop made of parts and habits, run plain, watched or self-tuned."""

import contextlib
import copy
import random

import numpy as np
import torch
from loop_gradients import GRADIENTS, HOOKS
from loop_habits import CARRIED, HARMLESS, HOLDS_OUT, WRITING
from loop_models import INPUTS, KINDS, MODELS
from loop_optimizers import optimizer
from loop_schedulers import SCHEDULERS
from optuna.trial import FixedTrial
from torch.nn import functional as F

from optuna_glocal import GlocalCallback, Observe, Tune

#: Suggested between 0 and 1.
FRACTIONS = {"beta1", "beta2", "momentum", "alpha", "rho", "dampening", "smooth"}
HABITS = {**HARMLESS, **CARRIED, **WRITING, **GRADIENTS, **HOOKS}
CRITERIA = {
    "cross entropy": F.cross_entropy,
    "smoothed": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
    "weighted": lambda out, y: F.cross_entropy(out, y, weight=torch.tensor([1.0, 2.0, 0.5])),
    "squares": lambda out, y: F.mse_loss(out, F.one_hot(y, 3).to(out)),
    "huber": lambda out, y: F.smooth_l1_loss(out, F.one_hot(y, 3).to(out), beta=0.5),
    "one against all": lambda out, y: F.binary_cross_entropy_with_logits(
        out, F.one_hot(y, 3).to(out)
    ),
    "margins": F.multi_margin_loss,
    "divergence": lambda out, y: F.kl_div(
        F.log_softmax(out, 1), 0.9 * F.one_hot(y, 3).to(out) + 1 / 30, reduction="batchmean"
    ),
    "by hand": lambda out, y: (torch.logsumexp(out, 1) - out.gather(1, y[:, None])[:, 0]).mean(),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Loop:
    """One run of a loop.

    Args:
        spec: Which.
        mode: ``"plain"``, ``"watched"``, ``"blend"`` or ``"greedy"``.
        values: In place of ``spec.values``.
        each: Called with the loop after every step of the optimizer, when the weights are what
            they stay: before the next batch, or at the end. Nothing is noted in such a run.
        horizon: The optimizer's steps, where they are fewer than the loop's.
    """

    def __init__(self, spec, mode="plain", values=None, each=None, horizon=None):
        self.spec, self.mode, self.each = spec, mode, each
        self.horizon, self.made = horizon or spec.steps, 0
        self.values = dict(spec.values if values is None else values)
        self.fired, self.retained, self.losses, self.trace = [], [], [], []
        self.has_begun, self.last, self.is_due = False, -1, False
        self.t, self.skips, self.zeroes, self.glocal = 0, False, True, None

    def run(self):
        """Trains; returns itself."""
        spec = self.spec
        single = spec.precision != "float64"
        with default_dtype(torch.float32 if single else torch.float64):
            torch.manual_seed(spec.seed), random.seed(spec.seed), np.random.seed(spec.seed)
            self.make()
            scope = contextlib.nullcontext() if self.mode == "plain" else self.callback()
            with scope as self.glocal:
                self.bind()
                self.each_habit("inside")
                for self.t in range(spec.steps):
                    self.one_step()
                self.look_at_last()
        return self

    def make(self):
        spec = self.spec
        self.x, self.y = INPUTS[KINDS[spec.model]](48), torch.randint(0, 3, (48,))
        self.model = self.validated = MODELS[spec.model]()
        self.criterion = CRITERIA[spec.criterion]
        self.habits = [HABITS[name]() for name in spec.habits]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if spec.optimizer == "Muon":
            trained = [p for p in trained if p.ndim == 2]
        if HOLDS_OUT & set(spec.habits):
            trained = trained[: max(1, len(trained) - 2)]
        self.params = trained
        values = {k: v for k, v in self.values.items() if k not in ("l2", "smooth")}
        self.lr = 10 * values["base"] if spec.bound == "base" else values.get("lr", 0.05)
        values["lr"] = self.lr
        self.optimizer = optimizer(spec.optimizer, self.param_groups(trained), values, spec.how)
        self.optimizer.register_step_post_hook(self.stepped)
        self.scheduler = None
        if spec.scheduler:
            self.scheduler = SCHEDULERS[spec.scheduler](self.optimizer, self.lr, spec.steps)
        scales = "scaler" in spec.step
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scales else None
        self.each_habit("start")
        self.has_begun = True

    def stepped(self, *_):
        if self.has_begun:
            # Twice in one step, if the optimizer's class calls its parent's step.
            self.made += self.last != self.t
            self.last, self.is_due = self.t, self.each is not None

    def look_at_last(self):
        """What the loop writes after its last step has been written."""
        if self.is_due:
            self.is_due = False
            self.each(self)

    def param_groups(self, trained):
        half, groups = len(trained) // 2, self.spec.groups
        if groups == "one" or not half:
            return trained
        if groups == "no decay":
            decayed = [p for p in trained if p.ndim > 1]
            others = [p for p in trained if p.ndim <= 1]
            return [g for g in ({"params": decayed}, {"params": others, "weight_decay": 0.0})
                    if g["params"]]  # fmt: skip
        lr = self.lr / 10 if groups == "tenth" else self.values.get("lr_head", 0.02)
        return [{"params": trained[:half]}, {"params": trained[half:], "lr": lr}]

    def callback(self):
        trial = FixedTrial(self.values)
        for name, value in self.values.items():
            if name in FRACTIONS:
                trial.suggest_float(name, 0.0, 0.999)
            else:
                trial.suggest_float(name, value / 30, value * 30, log=True)
        how = {"observe": Observe(estimator="global", tangents=True, every=2)}
        if self.mode != "watched":
            how = {"tune": Tune(by=self.mode)}
        return GlocalCallback(trial, self.optimizer, self.validation, horizon=self.horizon, **how)

    def bind(self):
        glocal, count = self.glocal, len(self.optimizer.param_groups)
        if glocal is not None and self.spec.bound == "base":
            # CyclicLR keeps its maximum to itself; the group holds the minimum.
            times = 2 if self.spec.scheduler == "CyclicLR" else 10
            glocal.bind(lr=lambda: times * glocal["base"], group=0)
            if count > 1 and self.spec.groups != "own":
                share = self.optimizer.param_groups[1]["lr"] / self.optimizer.param_groups[0]["lr"]
                glocal.bind(lr=lambda: share * times * glocal["base"], group=1)
        if glocal is not None and "lr_head" in self.values and count > 1:
            glocal.bind(group=1, lr=lambda: glocal["lr_head"])

    def hyperparameter(self, name):
        """As a tensor, for the loss."""
        return torch.tensor(self.values[name]) if self.glocal is None else self.glocal[name]

    def each_habit(self, place, *args):
        for habit in self.habits:
            getattr(habit, place)(self, *args)

    def validation(self):
        """A closure as people write it: it changes the model's mode."""
        net = self.validated
        net.eval() if self.spec.validation == "eval" else net.train()
        return F.cross_entropy(net(self.x[24:]), self.y[24:])

    # -- one step ---------------------------------------------------------------------------------

    def one_step(self):
        spec = self.spec
        self.each_habit("before")
        self.model.train()
        if spec.step == "closure":
            self.optimizer.step(self.closure)
        else:
            if self.zeroes:
                self.optimizer.zero_grad(set_to_none=spec.sets_to_none)
            for _ in range(spec.accumulate):
                self.one_batch()
            if "scaler" in spec.step:
                self.scaled_step()
            else:
                self.each_habit("gradients")
                self.note_gradients()
                if not self.skips:
                    self.optimizer.step()
        self.each_habit("after")
        if self.scheduler is not None and not self.skips:
            plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([float(self.t % 3)] if plateau else []))
        self.note()

    def closure(self):
        self.optimizer.zero_grad(set_to_none=self.spec.sets_to_none)
        loss = self.one_batch()
        self.each_habit("gradients")
        self.note_gradients()
        return loss

    def scaled_step(self):
        self.scaler.unscale_(self.optimizer)
        self.each_habit("gradients")
        if self.spec.step == "skipping scaler" and self.t % 4 == 2:
            found = self.scaler._found_inf_per_device(self.optimizer)
            for flag in found.values():
                flag.fill_(1.0)
        self.note_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def one_batch(self):
        self.look_at_last()
        rows = torch.randint(0, 24, (8,))
        x, self.labels = self.x[rows], self.y[rows]
        for habit in self.habits:
            x = habit.batch(self, x)
        self.inputs = x
        with torch.autocast("cpu", torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            out = self.model(x)
            self.each_habit("output", out)
            loss = self.criterion(out, self.labels)
        for habit in self.habits:
            loss = habit.loss(self, x, out, loss)
        if "l2" in self.values:
            loss = loss + self.hyperparameter("l2") * sum(p.square().sum() for p in self.params)
        if "smooth" in self.values:
            share = self.hyperparameter("smooth")
            loss = (1 - share) * loss - share * F.log_softmax(out, 1).mean()
        self.losses.append(loss.detach().clone())
        self.backward_of((loss / self.spec.accumulate), out)
        return loss.detach()

    def backward_of(self, loss, out):
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        kind = self.spec.backward
        if kind == "retained":
            self.backward(loss, retain_graph=True)
            self.backward(0.1 * out.square().mean())
        elif kind == "twice":
            self.backward(loss)
            extra = self.model(self.inputs)
            self.backward(0.1 * extra.square().mean())
        elif kind == "inputs":
            self.backward(loss, inputs=[p for p in self.params if p.requires_grad])
        elif kind == "gradient":
            self.backward(loss, gradient=torch.tensor(0.5).to(loss))
        elif kind == "routed" and self.glocal is not None:
            self.glocal.routed(lambda: loss.backward())()
        elif kind == "own" and self.t % 3 == 2:
            loss.backward()
        else:
            self.backward(loss)

    def backward(self, loss, **options):
        loss.backward(**options) if self.glocal is None else self.glocal.backward(loss, **options)

    # -- what is compared -------------------------------------------------------------------------

    def note_gradients(self):
        self.noted = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def note(self):
        """What the step has left."""
        if self.each is not None:
            return
        states = self.optimizer.state_dict()["state"]
        self.trace.append(
            {
                "losses": self.losses,
                "gradients": self.noted,
                "retained gradients": [r.grad for r in self.retained],
                "weights": [p.detach().clone() for p in self.model.parameters()],
                "buffers": [b.clone() for b in self.model.buffers()],
                "optimizer state": copy.deepcopy(states),
                "learning rates": [g["lr"] for g in self.optimizer.param_groups],
                "hooks": list(self.fired),
                "torch's random state": torch.get_rng_state(),
                "numpy's random state": np.random.get_state()[1].copy(),
                "python's random state": random.getstate(),
                "flags": [m.training for m in self.model.modules()],
                "requires_grad": [p.requires_grad for p in self.model.parameters()],
            }
        )
        self.losses, self.retained = [], []
