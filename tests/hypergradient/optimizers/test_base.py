"""What a rule offers besides its Jacobian, by default."""

import pytest
import torch

from optuna_glocal.hypergradient.optimizers import PARAM, Point, Rule


class Plain(Rule):
    def linearize(self, point):
        raise NotImplementedError


def test_the_faster_ways_are_optional():
    rule = Plain()
    point = Point(torch.ones(2), torch.ones(2), {}, {"lr": 0.1}, 1)
    z = {PARAM: torch.ones(1, 2)}
    assert rule.advance(z, None, point, {}) is False and (z[PARAM] == 1).all()
    assert rule.remembers({"lr": 0.1}, [{}], ["lr"]) is False
    with pytest.raises(NotImplementedError):
        rule.pull_back(point, torch.ones(2), ["lr"])


def test_a_rule_must_state_its_step():
    with pytest.raises(TypeError, match="abstract"):
        Rule()
