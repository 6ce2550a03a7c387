"""A run that is interrupted and resumed equals the one that is not, bit for bit."""

import random

import pytest
from resumed import Part, Spec, differences, interrupted, whole

from optuna_glocal import Observe, Tune

pytestmark = pytest.mark.filterwarnings("ignore:Trial 0 goes on:RuntimeWarning")


def check(spec, tune, at):
    assert not differences(whole(spec, tune), interrupted(spec, tune, at)), (spec, at)


@pytest.mark.parametrize("seed", range(16))
def test_random_loops_at_random_steps(seed):
    spec, draw = Spec.drawn(seed), random.Random(seed + 1)
    at = draw.sample(range(1, spec.steps), draw.choice([1, 1, 3]))
    check(spec, {"tune": Tune(by=spec.by, average=spec.average)}, at)


@pytest.mark.parametrize("at", [1, 5, 11, 12, 13, 20, 29, 40, 47])
def test_each_phase_of_the_default_tuner(at):
    check(Spec(l2=True, normalized=True, dropout=0.2), {"tune": True}, [at])


@pytest.mark.parametrize("at", [4, 7, 24, 30])
def test_runs_that_have_gone_back(at):
    check(Spec(lr=1.0, explodes=3, l2=True), {"tune": True}, [at])
    check(Spec(lr=1.0, explodes=22, l2=True), {"tune": True}, [at])


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("at", [[1, 4, 9], [2, 13], [30, 47]])
@pytest.mark.parametrize(
    ("by", "how"),
    [
        ("blend", {}), ("blend", {"optimizer": "fused adamw"}),
        ("greedy", {"accumulate": 2, "optimizer": "adamw"}), ("local", {"scheduler": "cosine"}),
    ],
)  # fmt: skip
def test_half_precision_whose_scaler_leaves_steps_out(by, how, at):
    check(Spec(half=True, l2=True, **how), {"tune": Tune(by=by)}, at)


def test_steps_are_left_out_in_these_runs():
    part = Part(Spec(half=True, l2=True), {"tune": True})
    with part.glocal:
        part.steps(0, 12)
        assert 4 < part.glocal.state_dict()["steps"] < 12
    assert 1.0 < part.scaler.get_scale() < 2.0**19


@pytest.mark.parametrize("at", [12, 20, 31])
def test_an_observed_run_after_its_window(at):
    check(Spec(scheduler="cosine"), {"observe": Observe(window=12, tangents=True)}, [at])
