"""Random training loops: watching changes nothing, no number is wrong, self-tuning never raises.

The seeds are fixed. For more: ``python tests/support/fuzz_loops.py --loops 5000 --start 0``.
"""

import pytest
import torch
from fuzz_loops import script
from loop_checks import check, differences, same
from random_loops import LoopSpec, draw
from training_loop import HABITS, Loop

LOOPS = range(100)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("seed", LOOPS)
def test_a_random_loop(seed):
    spec = draw(seed)
    verdict = check(spec, tuned=(("blend", "greedy")[seed % 2],))
    assert not verdict.problems, "\n".join(["", *verdict.problems, script(spec)])


def test_most_loops_can_be_run_and_are_differentiable():
    """Or the fuzzer would say nothing."""
    verdicts = [check(draw(seed), tuned=()) for seed in range(1000, 1020)]
    assert sum(v.is_possible for v in verdicts) > 15
    assert sum(v.is_differentiable for v in verdicts) > 8
    assert sum(v.is_given for v in verdicts) > 4


def test_a_loop_is_determined_by_its_seed():
    assert draw(3) == draw(3) and draw(3) != draw(4)
    first, second = (Loop(draw(3)).run().trace for _ in range(2))
    assert not list(differences(first, second))


def test_differences_are_seen():
    first, second = (Loop(LoopSpec(seed), steps_of=None).run().trace for seed in (0, 1))
    assert "losses differ in step 0" in list(differences(first, second))
    assert same(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same(torch.tensor([0.0]), torch.tensor([1.0]))


def test_wrong_numbers_are_seen(monkeypatch):
    spec = LoopSpec(0)
    assert not check(spec, ()).problems
    hidden = type("Hidden", (), {"values": 0})
    assert hidden  # placeholder


def test_a_failing_loop_prints_as_a_script():
    for name in HABITS:
        compile(script(LoopSpec(0, habits=(name,))), "script", "exec")
