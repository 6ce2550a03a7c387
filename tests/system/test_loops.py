"""Random training loops: watching changes nothing, no number is wrong, self-tuning never raises.

The seeds are fixed. For more: ``python tests/support/fuzz_loops.py --loops 5000 --start 0``.
"""

import warnings

import numpy as np
import pytest
import torch
import training_loop
from fuzz_loops import counts, script, smaller
from loop_checks import check, differences, same
from random_loops import LoopSpec, draw
from training_loop import HABITS, Loop

from optuna_glocal.hypergradient.tangent import Tangent
from optuna_glocal.training.self_tuning import Tuning

LOOPS = range(100)


GIVEN = "An estimate is given."
# Found by longer runs, and made small. What must be given, or refused with a sentence.
FOUND = [
    (LoopSpec(73, model="weight_norm", habits=("count",)), GIVEN),
    (LoopSpec(93, model="batch_norm", groups="own", values={"lr": 0.5, "lr_head": 0.21}), GIVEN),
    (LoopSpec(153, model="relu_in_place", groups="no decay", bound="base", step="skipping scaler",
              values={"base": 0.0225141103894757, "weight_decay": 0.019342815681155794},
              habits=("attack by sign", "clip each parameter")), GIVEN),
    (LoopSpec(0, step="scaler", habits=("clip by value",)), GIVEN),
    (LoopSpec(440, scheduler="momentum by hand", values={"weight_decay": 0.0168}), GIVEN),
    (LoopSpec(642, optimizer="Adafactor", habits=("drop one",)), "Some parameters have no"),
    (LoopSpec(0, optimizer="a lookalike of Adam", values={"lr": 0.01, "weight_decay": 0.0178},
              step="closure"), GIVEN),
    (LoopSpec(30110, values={"lr": 0.0119}, habits=("clip in two groups",), backward="own",
              sets_to_none=False), "A gradient did not come from glocal.backward"),
    (LoopSpec(0, optimizer="Adam", values={"weight_decay": 0.0226, "lr": 0.01},
              habits=("zero every second time",)), GIVEN),
    (LoopSpec(1, model="embedding_bag", backward="inputs", criterion="margins",
              habits=("zero every second time", "clamp logits' gradients")), GIVEN),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quickly():
    """In one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", LOOPS)
def test_a_random_loop(seed):
    spec = draw(seed)
    problems = check(spec, tuned=(("blend", "greedy")[seed % 2],)).problems
    assert not problems, "\n".join(["", *problems, script(spec)])


@pytest.mark.parametrize(("spec", "status"), FOUND, ids=lambda value: "")
def test_a_loop_in_which_something_was_wrong(spec, status):
    verdict = check(spec)
    assert not verdict.problems
    assert verdict.status.startswith(status)


def test_most_loops_can_be_run_and_are_differentiable():
    """Or the others would say nothing."""
    verdicts = [check(draw(seed), tuned=()) for seed in range(1000, 1012)]
    assert sum(v.is_possible for v in verdicts) >= 9
    assert sum(v.is_differentiable for v in verdicts) >= 5
    assert sum(v.is_given for v in verdicts) >= 2
    assert "12 loops" in counts(verdicts)


def test_a_loop_is_determined_by_its_seed():
    assert draw(3) == draw(3) and draw(3) != draw(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second, other = (Loop(LoopSpec(seed)).run().trace for seed in (0, 0, 1))
    assert not list(differences(first, second))
    assert "losses differ in step 0" in list(differences(first, other))


def test_what_differs_is_seen():
    nan = torch.tensor([float("nan"), 1.0])
    assert same(nan, nan.clone()) and not same(nan, torch.tensor([0.0, 1.0]))
    assert same({"a": [np.arange(3), None]}, {"a": [np.arange(3), None]})
    assert not same(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
    assert not same([1.0], [1.0, 2.0])


def test_changed_training_is_seen(monkeypatch):
    monkeypatch.setattr(Tangent, "after_step", lambda self: torch.rand(1))
    problems = check(LoopSpec(0), tuned=()).problems
    assert problems[0] == "watched: torch's random state differ in step 0"


def test_wrong_numbers_are_seen_and_named(monkeypatch):
    right = Tangent.hypergradient

    def wrong(self, loss):
        return [
            h * (1.001 if name == "lr" else 1.0)
            for name, h in zip(self.names, right(self, loss), strict=True)
        ]

    monkeypatch.setattr(Tangent, "hypergradient", wrong)
    spec = LoopSpec(0, values={"lr": 0.1, "weight_decay": 0.02})
    (problem,) = check(spec, tuned=()).problems
    assert problem.startswith("wrong: lr at step 2")


def test_an_error_of_a_tuned_run_is_seen(monkeypatch):
    def fail(self, loss):
        raise RuntimeError("ours")

    monkeypatch.setattr(Tuning, "backward", fail)
    assert check(LoopSpec(0), tuned=("blend",)).problems == ["blend: raised RuntimeError: ours"]


def test_a_failing_loop_gets_smaller_as_long_as_it_fails(monkeypatch):
    monkeypatch.setattr(Tangent, "after_step", lambda self: torch.rand(1))
    spec = LoopSpec(0, habits=("halve",), scheduler="StepLR")
    assert smaller(spec, lambda s: check(s, ())) == LoopSpec(0)


def test_a_failing_loop_prints_as_a_script():
    for name in HABITS:
        compile(script(LoopSpec(0, habits=(name,))), "script", "exec")
    assert training_loop.HABITS is HABITS
