"""Which rule belongs to which optimizer, and which optimizers are refused."""

import pytest
import torch

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.optimizers import (
    PARAM,
    Inputs,
    Rule,
    group_entries,
    linear,
    refusal,
    registry,
    rule,
    rule_of,
)


def test_what_cannot_work_is_refused_with_a_sentence():
    p = [torch.zeros(2, requires_grad=True)]
    assert "inside its step" in refusal(torch.optim.LBFGS(p))
    assert "sparse" in refusal(torch.optim.SparseAdam(p))
    assert refusal(torch.optim.SGD(p)) is None
    if hasattr(torch.optim, "Muon"):
        ours = type("Ours", (torch.optim.Muon,), {})
        matrix = [torch.zeros(2, 2, requires_grad=True)]
        assert "bfloat16" in refusal(ours(matrix))
        assert refusal(torch.optim.Muon(matrix)) is None


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})


class PlainRule(Rule):
    entries = ("lr",)

    def linearize(self, point):
        x = Inputs(point)
        return linear({PARAM: x.param - x.entry("lr") * x.grad}, self.entries)


@pytest.fixture
def own_registry(monkeypatch):
    for name in ("_RULES", "_MATRIX_STEPS"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


def test_an_optimizer_of_one_s_own(own_registry):
    optimizer = Plain([torch.zeros(2, requires_grad=True)])
    assert rule_of(optimizer) is None
    assert rule(Plain)(PlainRule) is PlainRule
    assert isinstance(rule_of(optimizer), PlainRule)
    assert rule_of(type("Sub", (Plain,), {})(optimizer.param_groups[0]["params"])) is None


def test_a_name_that_this_torch_lacks_registers_nothing(own_registry):
    before = dict(registry._RULES)
    rule("NoSuchOptimizer")(PlainRule)
    assert before == registry._RULES
    rule("SGD")(PlainRule)
    assert isinstance(rule_of(torch.optim.SGD([torch.zeros(1)])), PlainRule)


def test_every_rule_names_entries_of_its_optimizer():
    assert len(registry._RULES) == 11
    for cls, made in registry._RULES.items():
        entries = group_entries(cls([torch.zeros(1)], lr=0.1).param_groups[0])
        named = set(made.entries) - {"initial_accumulator_value"}
        assert named <= set(entries), cls


def test_the_greedy_hypergradient_uses_a_rule_of_one_s_own(own_registry):
    rule(Plain)(PlainRule)
    w = torch.ones(3, requires_grad=True)
    optimizer = Plain([w])
    greedy = Greedy(optimizer, Bindings(optimizer, {"lr": 0.1}))
    w.grad = torch.tensor([1.0, 2.0, 3.0])
    greedy.hold()
    assert greedy.by_entries([torch.ones(3)]) == {"lr": -6.0}


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear])
def test_what_is_no_optimizer_is_refused(wrong):
    with pytest.raises(TypeError, match="optimizer class"):
        rule(wrong)


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match="subclass of Rule"):
        rule(Plain)(Plain)
