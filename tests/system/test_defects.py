"""Defects that were found by use, each of them once: what must be instead, and where it is tested.

S: watching changed training. A: a wrong hypergradient was given. C: self-tuning. X: a crash.

| defect | what happened | tested by |
| --- | --- | --- |
| 01 (X1) | a callback after a plain backward of a compiled model killed training | here |
| 02 (A1) | hooks on parameters and activations were not seen | hypergradient/test_escapes |
| 03 (A6) | parameters that join later counted as constants | hypergradient/test_escapes |
| 04 (A3) | weights written between steps were not seen | hypergradient/test_escapes |
| 05 (A9) | gradients times a constant were taken for clipping | hypergradient/test_escapes |
| 06 (A5) | backwards without a second derivative counted as zero | hypergradient/test_escapes |
| 07 (S4, A2) | optimizers with random numbers or state of their own | hypergradient/test_escapes |
| 08 (S3, S5, S6) | random states, buffers and weights differed | test_users_backward, here |
| 09 (A4) | several callbacks in one trial: the last replaced the others | with records |
| 10 (A12) | tangents began at 0 again after a resume | hypergradient/test_escapes |
| 11 (A8) | groups at a multiple and second optimizers were left out | test_bindings, here |
| 12, a10 (A10) | teachers, pseudo labels, hidden state carried on | with what is carried |
| 13 (A7) | clipping in a step hook that was registered late | hypergradient/test_escapes |
| 14 (C2) | loops that assign the learning rate: moves without effect | tuning/test_replay |
| 15 (C3) | a loss that may rise was taken for divergence | tuning/test_rollback |
| 16 (C4) | a roll-back restored neither buffers nor averages | tuning/test_rollback |
| 17 | steps of a subclass that calls super().step() counted twice | here |
| 18 | retain_graph=True could not be said | hypergradient/test_users_backward |
| 19 (S8) | hooks fired several times, retained gradients doubled | test_users_backward, here |
| 20 (C1) | a replay under OneCycleLR had 25 times the learning rate | tuning/test_replay |
| 21 (C7) | loss hyperparameters were replayed one step early | tuning/test_replay |
| 22 | record_gradient took unknown names | storage/test_given_gradient |
| 23 (C6) | a loss hyperparameter asked for late was detached | training/test_self_tuning |
| 24, 25 (S1) | leaves outside the optimizer got no gradient | hypergradient/test_users_backward |
| 26 (S2) | what is unfrozen or added never trained under autocast | here |
| 27 (S7) | a branch that comes later got other gradients | here |
| a5 (A5) | reentrant checkpoints behind frozen layers | here |
| a9 (A9) | compiled models and steps, scalers at odd scales | here, hypergradient/test_escapes |
| a11 (A11) | schedulers made late, by hand, with own numbers | test_late_schedulers, test_twin |
| c5 (C5) | no resume: observed runs say so, tuned ones begin again | hypergradient/test_escapes |
| user_e, user_f | best_of when maximising, and with batch norm | test_averaged_weights |
| user_b, c, g, h, k | frameworks' logs; one run and its peers | integrations, benchmarks |

Training loops are those of the loop fuzzer, with one habit more.
"""

import warnings

import pytest
import torch
from loop_checks import check, differences
from loop_habits import Habit
from loop_models import MODELS
from loop_optimizers import OPTIMIZERS
from random_loops import LoopSpec
from torch import nn
from torch.nn import functional as F
from training_loop import HABITS, Loop

GIVEN = "An estimate is given."


@pytest.fixture
def checked(monkeypatch):
    """Checks a loop, with a habit of its own if one is given."""

    def check_it(habit=None, **parts):
        habits = parts.pop("habits", ())
        if habit is not None:
            monkeypatch.setitem(HABITS, "own", habit)
            habits = (*habits, "own")
        return check(LoopSpec(0, habits=habits, **parts), tuned=())

    return check_it


# -- 01, a9: compiled -----------------------------------------------------------------------------


class WarmUp(Habit):
    """A plain backward before the callback, as people make one."""

    def start(self, loop):
        loop.criterion(loop.model(loop.x[:8]), loop.y[:8]).backward()
        loop.optimizer.zero_grad()


class CompiledStep(Habit):
    def start(self, loop):
        loop.optimizer.step = torch.compile(loop.optimizer.step, backend="eager")


@pytest.mark.parametrize("warm", [True, False])
def test_a_compiled_model_trains_as_without_us(checked, warm):
    torch._dynamo.reset()
    verdict = checked(WarmUp if warm else None, model="compiled", steps=6)
    assert verdict.is_possible and not verdict.problems


def test_a_compiled_step_is_followed_or_refused(checked):
    torch._dynamo.reset()
    verdict = checked(CompiledStep, steps=6)
    assert verdict.is_possible and not verdict.problems


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("habits", [(), ("clip by norm",)])
def test_a_scaler_s_steps_are_followed(checked, precision, habits):
    verdict = checked(step="skipping scaler", precision=precision, habits=habits)
    assert not verdict.problems and verdict.status == GIVEN


# -- 08: what the search for modules does not find ------------------------------------------------


class Slotted:
    __slots__ = ("net",)


class BehindSlots(Habit):
    """The validation closure reaches the model through an object without ``__dict__``."""

    def start(self, loop):
        holder = Slotted()
        holder.net, x, y = loop.model, loop.x[24:], loop.y[24:]
        loop.validation = lambda: F.cross_entropy(holder.net.train()(x), y)


class BehindDicts(Habit):
    def start(self, loop):
        held, x, y = {"a": {"b": {"c": {"d": loop.model}}}}, loop.x[24:], loop.y[24:]
        loop.validation = lambda: F.cross_entropy(held["a"]["b"]["c"]["d"].train()(x), y)


class BehindManyAttributes(Habit):
    def start(self, loop):
        held, x, y = nn.Module(), loop.x[24:], loop.y[24:]
        for i in range(100):
            setattr(held, f"number{i}", i)
        held.__dict__["net"] = loop.model
        loop.validation = lambda: F.cross_entropy(held.net.train()(x), y)


@pytest.mark.parametrize("habit", [BehindSlots, BehindDicts, BehindManyAttributes])
def test_batch_statistics_are_the_user_s_own_however_the_closure_holds_the_model(checked, habit):
    assert not checked(habit, model="batch_norm").problems


@pytest.mark.parametrize("validation", ["train", "eval"])
def test_an_embedding_that_renormalizes_in_validation(checked, validation):
    assert not checked(model="embedding_max_norm", validation=validation).problems


# -- 11: multiples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", ["", "cosine to lr / 10", "CyclicLR", "OneCycleLR, lr alone"]
)
@pytest.mark.parametrize("groups", ["one", "tenth"])
def test_multiples_of_the_learning_rate(checked, scheduler, groups):
    values = {"lr": 0.0871234567, "momentum": 0.8123}
    parts = {"optimizer": "SGD with momentum", "scheduler": scheduler, "groups": groups}
    verdict = checked(values=values, **parts)
    assert verdict.is_possible and not verdict.problems and not verdict.left_out
    assert verdict.is_given or groups == "tenth" and scheduler


# -- 17: counted twice ----------------------------------------------------------------------------


class Mine(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("step", ["plain", "closure", "skipping scaler"])
def test_a_subclass_that_calls_its_parent_s_step_is_counted_once(checked, monkeypatch, step):
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # torch wraps its step, too
    monkeypatch.setitem(OPTIMIZERS, "SGD", (Mine, *OPTIMIZERS["SGD"][1:]))
    verdict = checked(step=step)
    assert not verdict.problems and verdict.status == GIVEN


# -- 19, 26: hooks and leaves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", ["tanh", "lstm", "weight_norm", "causal_attention", "prelu", "checkpoint_saved"]
)
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_hooks_fire_and_gradients_are_retained_once(checked, model, precision):
    habits = ("count", "retain grad", "inputs with gradients")
    assert not checked(model=model, precision=precision, habits=habits).problems


@pytest.mark.parametrize("habit", ["unfreeze midway", "add a group", "freeze midway"])
@pytest.mark.parametrize("model", ["transformer_layer", "tanh"])
def test_what_joins_or_leaves_trains_as_without_us(checked, habit, model):
    for precision in ("bfloat16", "float64"):
        verdict = checked(model=model, precision=precision, habits=(habit,), optimizer="AdamW")
        assert verdict.is_possible and not verdict.problems and not verdict.is_given


# -- 27: branches ---------------------------------------------------------------------------------


class Branching(nn.Module):
    """From the fifth training batch on, there is more to the graph."""

    def __init__(self, later):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act, self.later, self.seen = nn.PReLU(), later, 0

    def forward(self, x):
        h = self.act(self.a(x))
        if self.seen >= 4:
            h = h + self.later(self.b(h))
        return self.c(h)


class Counting(Habit):
    def before(self, loop):
        loop.model.seen += 1


@pytest.mark.parametrize(
    "later", [lambda: nn.GroupNorm(2, 8), nn.GELU, lambda: nn.LayerNorm(8), nn.Tanh]
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_branch_that_comes_later_gets_the_gradients_of_a_plain_run(
    monkeypatch, later, precision
):
    monkeypatch.setitem(HABITS, "own", Counting)
    monkeypatch.setitem(MODELS, "tanh", lambda: Branching(later()))
    spec = LoopSpec(0, habits=("own",), precision=precision, values={"lr": 0.1})
    assert not check(spec, tuned=()).problems


# -- a5 -------------------------------------------------------------------------------------------


class FrozenFirst(Habit):
    """As in fine-tuning with adapters: a frozen embedding whose output is told to need gradients.

    Validation goes around the checkpoints, which cannot be differentiated otherwise.
    """

    def start(self, loop):
        x, y, m = loop.x[24:], loop.y[24:], loop.model
        for p in m.a.parameters():
            p.requires_grad_(False)
        loop.validation = lambda: F.cross_entropy(m.c(torch.tanh(m.b(torch.tanh(m.a(x))))), y)


def test_reentrant_checkpoints_behind_a_frozen_layer(checked):
    verdict = checked(FrozenFirst, model="checkpoint_reentrant", habits=("inputs with gradients",))
    assert verdict.is_possible and not verdict.problems and not verdict.is_given


def test_the_harness_sees_no_difference_between_two_plain_runs():
    """Or all of the above would say nothing about ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [Loop(LoopSpec(0, model="dropout")).run().trace for _ in range(2)]
    assert not list(differences(*runs))
