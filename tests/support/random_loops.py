"""Training loops spelled out, and drawn at random: each is determined by its seed."""

import dataclasses
import random

import loop_shaped_models  # noqa: F401  (registers its models)
from loop_gradients import GRADIENTS, HOOKS
from loop_habits import CARRIED, HARMLESS, WRITING
from loop_models import MODELS
from loop_optimizers import OPTIMIZERS, RARE
from loop_schedulers import SCHEDULERS
from training_loop import CRITERIA

RARE_MODELS = {
    "compiled",
    "once_differentiable_function",
    "checkpoint_reentrant",
    "embedding_sparse",
}
#: Hooks that only read.
READING = ("count", "read gradients", "retain grad", "inputs with gradients")


@dataclasses.dataclass(frozen=True)
class LoopSpec:
    """One training loop, spelled out.

    Attributes:
        seed: Of data, initial weights and every random number of the loop.
        model, criterion, optimizer, scheduler: Keys of their pools; no scheduler is ``""``.
        values: What the trial suggests.
        habits: Keys of ``training_loop.HABITS``, in the order in which they act.
        groups: ``"one"``, ``"tenth"`` (the second half at lr / 10), ``"own"`` (at a learning rate
            of its own, ``lr_head``) or ``"no decay"`` (biases without weight decay).
        bound: ``"name"``, ``"base"`` (lr is ten times what is suggested) or ``"loss"``, where the
            learning rate is a number and only hyperparameters of the loss are suggested.
        backward: ``"plain"``, ``"retained"``, ``"twice"``, ``"inputs"``, ``"gradient"``,
            ``"routed"`` or ``"own"`` (``loss.backward()`` itself, now and then).
        step: ``"plain"``, ``"closure"``, ``"scaler"`` or ``"skipping scaler"``.
        validation: ``"train"`` or ``"eval"``, the model's mode in the validation closure.
        precision: ``"float64"``, ``"float32"`` or ``"bfloat16"`` (autocast).
        how: Implementation of the optimizer's step.
    """

    seed: int
    model: str = "tanh"
    criterion: str = "cross entropy"
    optimizer: str = "SGD"
    scheduler: str = ""
    values: dict[str, float] = dataclasses.field(default_factory=lambda: {"lr": 0.1})
    habits: tuple[str, ...] = ()
    groups: str = "one"
    bound: str = "name"
    backward: str = "plain"
    step: str = "plain"
    accumulate: int = 1
    steps: int = 10
    validation: str = "train"
    precision: str = "float64"
    how: str = ""
    sets_to_none: bool = True

    def __str__(self):
        default = LoopSpec(self.seed)
        fields = [f.name for f in dataclasses.fields(self)]
        told = [n for n in fields if n == "seed" or getattr(self, n) != getattr(default, n)]
        return f"LoopSpec({', '.join(f'{n}={getattr(self, n)!r}' for n in told)})"


def draw(seed):
    """The loop of a seed. Some cannot be run, plain or not: the parts do not fit."""
    rng = random.Random(f"loop {seed}")
    name = chosen(rng, OPTIMIZERS, RARE)
    groups = rng.choice(["one"] * 5 + ["tenth", "own", "no decay"])
    bound = rng.choice(["name"] * 8 + ["base", "loss"])
    backward = chosen(rng, BACKWARDS, {"inputs", "gradient", "own"})
    step = "closure" if name == "LBFGS" else rng.choice(["plain"] * 8 + STEPS)
    model = chosen(rng, MODELS, RARE_MODELS)
    criterion = chosen(rng, CRITERIA, {"margins"})
    scheduler = rng.choice(list(SCHEDULERS)) if rng.random() < 0.45 else ""
    if groups == "own" and scheduler in ONE_RATE:
        scheduler = ""
    return LoopSpec(
        seed=seed,
        model=model,
        criterion=criterion,
        optimizer=name,
        scheduler=scheduler,
        values=values(rng, name, groups, bound),
        habits=habits(rng),
        groups=groups,
        bound=bound,
        backward=backward,
        step=step,
        accumulate=1 if step == "closure" else rng.choice([1, 1, 1, 2]),
        steps=rng.choice([7, 8, 9, 10]),
        validation=rng.choice(["train", "train", "eval"]),
        precision=rng.choice(["float64"] * 8 + ["float32", "bfloat16"]),
        how=rng.choice(["", "", "foreach", "single", "fused"]),
        sets_to_none=rng.random() < 0.8,
    )


BACKWARDS = [*4 * ["plain"], "retained", "twice", "routed", "inputs", "gradient", "own"]
#: Give all groups the same learning rate.
ONE_RATE = {"OneCycleLR", "OneCycleLR, lr alone", "CyclicLR"}
STEPS = ["closure", "scaler", "skipping scaler"]


def chosen(rng, pool, rare):
    """One of a pool; the rare ones a fifth as often."""
    return rng.choice([name for name in pool for _ in range(1 if name in rare else 5)])


def values(rng, name, groups, bound):
    """What the trial suggests. No two are alike, or one would be bound to the other's entry."""
    _, _, suggested, lr = OPTIMIZERS[name]
    lr *= 10 ** rng.uniform(-0.7, 0.3)
    out = {"loss": {}, "base": {"base": lr / 10}}.get(bound, {"lr": lr})
    if bound != "loss":
        for key, value in suggested.items():
            if len(out) < 3 and rng.random() < 0.4:
                out[key] = 1 - (1 - value) * rng.uniform(0.8, 1.2) if value > 0.5 else (
                    value * rng.uniform(0.8, 1.2)
                )  # fmt: skip
        if groups == "own":
            out["lr_head"] = lr * rng.uniform(0.3, 0.6)
    if bound == "loss" or rng.random() < 0.15:
        out["l2"] = 0.01 * rng.uniform(0.5, 1.5)
    if rng.random() < 0.1:
        out["smooth"] = 0.1 * rng.uniform(0.5, 1.5)
    return out


def habits(rng):
    """Few that leave gradients to be given, fewer that may not."""
    out = rng.sample(list(HARMLESS), rng.choice([0, 0, 1, 1, 2]))
    for pool, share in ((CARRIED, 0.1), (WRITING, 0.1), (GRADIENTS, 0.35)):
        if rng.random() < share:
            out.append(rng.choice(list(pool)))
    if rng.random() < 0.25:
        out.append(rng.choice([*HOOKS, *3 * READING]))
    return tuple(out)
