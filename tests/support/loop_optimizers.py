"""The optimizers of random training loops, with values of what they can be given.

An entry is the class, its fixed options, and the hyperparameters that a trial may suggest for it
beside the learning rate, each with a value to start from.
"""

import torch
from torch import optim

BETAS = {"beta1": 0.9, "beta2": 0.95}
DECAY = {"weight_decay": 0.02}
SGD, ADAM = {"momentum": 0.8, **DECAY}, {**BETAS, **DECAY, "eps": 1e-3}


class Lookalike(torch.optim.Adam):
    """A class that no rule is registered for."""


class SignMomentum(torch.optim.Optimizer):
    """An optimizer of the user's own: a smooth Lion."""

    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("kept", torch.zeros_like(p))
                    kept.mul_(group["momentum"]).add_(p.grad, alpha=1 - group["momentum"])
                    p.sub_(group["lr"] * torch.tanh(10 * kept))
        return loss


class Counted(SignMomentum):
    """With a warm-up of its own, counted outside ``state``."""

    made = 0

    def step(self, closure=None):
        self.made += 1
        for group in self.param_groups:
            group["lr"] = group["lr"] * min(1.0, self.made / 4)
        return super().step(closure)


OPTIMIZERS = {
    "SGD": (optim.SGD, {}, DECAY, 0.3),
    "SGD with momentum": (optim.SGD, {}, SGD, 0.1),
    "SGD, Nesterov": (optim.SGD, {"nesterov": True}, SGD, 0.1),
    "SGD, dampened": (optim.SGD, {}, {**SGD, "dampening": 0.3}, 0.2),
    "SGD uphill": (optim.SGD, {"maximize": True}, SGD, 0.02),
    "Adam": (optim.Adam, {}, ADAM, 0.02),
    "Adam, amsgrad": (optim.Adam, {"amsgrad": True}, ADAM, 0.02),
    "AdamW": (optim.AdamW, {}, ADAM, 0.02),
    "Adamax": (optim.Adamax, {}, {**BETAS, **DECAY}, 0.02),
    "NAdam": (optim.NAdam, {}, {**BETAS, **DECAY, "momentum_decay": 4e-3}, 0.02),
    "NAdam, decoupled": (optim.NAdam, {"decoupled_weight_decay": True}, ADAM, 0.02),
    "RAdam": (optim.RAdam, {}, {"beta1": 0.9, "beta2": 0.7, **DECAY}, 0.02),
    "RMSprop": (optim.RMSprop, {}, {"alpha": 0.95, "eps": 1e-3, **DECAY}, 0.01),
    "RMSprop, centred": (
        optim.RMSprop, {"centered": True}, {"alpha": 0.9, "momentum": 0.5, "eps": 1e-2}, 0.01
    ),
    "Adagrad": (optim.Adagrad, {"eps": 1e-3}, {"lr_decay": 0.05, **DECAY}, 0.1),
    "Adadelta": (optim.Adadelta, {"eps": 1e-4}, {"rho": 0.9, **DECAY}, 1.0),
    "Rprop": (optim.Rprop, {}, {}, 0.01),
    "ASGD": (optim.ASGD, {}, {"lambd": 1e-2, "alpha": 0.75, **DECAY}, 0.1),
    "Adafactor": (optim.Adafactor, {}, {**DECAY, "d": 1.5}, 0.05),
    "SparseAdam": (optim.SparseAdam, {}, {}, 0.02),
    "LBFGS": (optim.LBFGS, {"max_iter": 2}, {}, 0.1),
    "a lookalike of Adam": (Lookalike, {}, {**BETAS, **DECAY}, 0.02),
    "one of the user's own": (SignMomentum, {}, {"momentum": 0.9}, 0.02),
    "one that counts for itself": (Counted, {}, {}, 0.02),
}  # fmt: skip
if hasattr(optim, "Muon"):
    OPTIMIZERS["Muon"] = (optim.Muon, {}, {"momentum": 0.9, **DECAY}, 0.02)

#: Drawn a fifth as often: these cannot be followed, or only with a closure.
RARE = {"SparseAdam", "LBFGS", "one that counts for itself"}
#: Families with several implementations of one step.
WITH_FOREACH = {
    optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop,
    optim.Adagrad, optim.Adadelta,
    optim.Rprop, optim.ASGD, optim.Adafactor,
}  # fmt: skip
WITH_FUSED = {optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad}


def optimizer(name, groups, values, how):
    """The optimizer ``name``.

    Args:
        name: A key of ``OPTIMIZERS``.
        groups: Its param groups.
        values: Of the hyperparameters; what is not the optimizer's is left alone.
        how: ``"foreach"``, ``"single"``, ``"fused"`` or ``""``.
    """
    kind, options, suggested, _ = OPTIMIZERS[name]
    mine = {k: v for k, v in values.items() if k in suggested or k == "lr"}
    if "nesterov" in options and "momentum" not in mine:
        mine["momentum"] = 0.7
    betas = (mine.pop("beta1", 0.9), mine.pop("beta2", 0.95))
    if "beta1" in suggested:
        mine["betas"] = betas
    if kind is optim.RMSprop and "eps" not in mine:
        mine["eps"] = 1e-2
    if how in ("foreach", "single") and kind in WITH_FOREACH:
        mine["foreach"] = how == "foreach"
    if how == "fused" and kind in WITH_FUSED:
        mine["fused"] = True
    return kind(groups, **options, **mine)
