"""What a step did to the parameters and to a loss, against runs at rates a little apart."""

import math

import pytest
import torch

from optuna_glocal.hypergradient.agreement import Agreement
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.tuning.meta_optimizer import MetaOptimizer
from optuna_glocal.tuning.position import Position
from optuna_glocal.tuning.step_change import StepChange
from optuna_glocal.tuning.transforms import Coordinate

pytestmark = pytest.mark.usefixtures("double_precision")

RATES = {"lr": 0.3, "head": 0.07}


class Step:
    """One step of plain gradient descent on three param groups; no rate moves the last.

    Args:
        rates: The learning rates of the other two.
        factor: What a schedule multiplies them with in this step.
    """

    def __init__(self, rates, factor=1.0):
        g = torch.Generator().manual_seed(0)
        self.params = [torch.randn(n, generator=g).requires_grad_() for n in (3, 2, 4, 2)]
        first, second, third, last = self.params
        groups = [{"params": [first, second], "lr": rates["lr"]},
                  {"params": [third], "lr": rates["head"]},
                  {"params": [last], "lr": 0.02}]  # fmt: skip
        optimizer = torch.optim.SGD(groups)
        bindings = Bindings(optimizer, rates)
        bindings.bind(1, {"lr": lambda: bindings["head"]})
        bindings.freeze()
        coordinates = {name: Coordinate.of(1e-3, 1.0, True) for name in rates}
        position = Position(optimizer, bindings, coordinates, MetaOptimizer(0.1))
        for group in optimizer.param_groups[:2]:
            group["lr"] *= factor
        self.before = [p.detach().clone() for p in self.params]
        self.change = StepChange(self.params, optimizer, position, Agreement())
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
        self.change.end()


def directions():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=g) for n in (3, 2, 4, 2)]


def loss_after(name, by):
    """The inner product with the directions after a step whose rate is exp(by) as large."""
    moved = Step({**RATES, name: RATES[name] * math.exp(by)})
    return sum((v * p.detach()).sum() for v, p in zip(directions(), moved.params, strict=True))


@pytest.mark.parametrize("name", RATES)
def test_products_are_the_derivative_by_the_log_of_a_rate(name):
    change, e = Step(RATES).change, 1e-5
    got = change.by_name([p.item() for p in change.products(directions())])
    assert set(got) == set(RATES), "no rate moves the last group"
    expected = (loss_after(name, e) - loss_after(name, -e)) / (2 * e)
    assert got[name] == pytest.approx(expected.item(), rel=1e-8)


def test_a_schedule_s_factor_is_taken_back_on_request():
    whole, quarter = (Step(RATES, f).change for f in (1.0, 0.25))
    assert quarter.rates == {i: pytest.approx(r / 4) for i, r in whole.rates.items()}
    products = [p.item() for p in quarter.products(directions())]
    expected = whole.by_name([p.item() for p in whole.products(directions())])
    assert quarter.by_name(products, at_full_rate=True) == pytest.approx(expected)
    in_force = {name: value / 4 for name, value in expected.items()}
    assert quarter.by_name(products) == pytest.approx(in_force)


def test_squares_are_the_lengths_of_the_step_and_of_the_way_from_the_start():
    step, start = Step(RATES), directions()
    got = step.change.distances([s.item() for s in step.change.squares(start)])
    for i, at in {0: slice(0, 2), 1: slice(2, 3)}.items():
        after = torch.cat([p.detach() for p in step.params[at]])
        lengths = [(after - torch.cat(other[at])).square().sum() for other in (step.before, start)]
        assert got[i] == pytest.approx([x.item() for x in lengths], rel=1e-6)
    assert set(got) == {0, 1}


def test_a_parameter_without_a_gradient_and_a_sparse_one_count_as_they_are():
    change, (first, _, third, _) = Step(RATES).change, directions()
    dense = change.products([first, torch.zeros(2), third, None])
    assert torch.equal(*(p[0] for p in (dense, change.products([first, None, third, None]))))
    sparse = change.products([first.to_sparse(), None, third, None])
    torch.testing.assert_close(sparse, dense)
    assert [p.item() for p in change.products([None] * 4)] == [0.0, 0.0]
