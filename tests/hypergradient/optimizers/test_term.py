"""Terms differentiate themselves as autograd does."""

import pytest
import torch

from optuna_glocal.hypergradient.optimizers.term import (
    Term,
    absolute,
    maximum,
    plus,
    select,
    sqrt,
    term_of,
    times,
)

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
EXPRESSIONS = {
    "sum": lambda x, a: x + a + 2.0,
    "difference": lambda x, a: 1.0 - x - a,
    "product": lambda x, a: a * x * x * 3.0,
    "quotient": lambda x, a: x / (x * x + a) + 1.0 / (x * x + 1.0),
    "power": lambda x, a: a**3 * x + (a + 1.0) ** a * x,
    "negative": lambda x, a: -x * a,
    "root": lambda x, a: (x * x + a).sqrt() if isinstance(x, torch.Tensor) else sqrt(x * x + a),
    "absolute": lambda x, a: a * (x.abs() if isinstance(x, torch.Tensor) else absolute(x)),
    "maximum": lambda x, a: (
        torch.maximum(x * a, x * x) if isinstance(x, torch.Tensor) else maximum(x * a, x * x)
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_value_and_derivatives_are_those_of_autograd(name):
    expression = EXPRESSIONS[name]
    x, a = Term(lambda: X, name="x"), Term(lambda: 0.7, name="a")
    term = expression(x, a)
    leaves = [X.clone().requires_grad_(), torch.full_like(X, 0.7).requires_grad_()]
    value = expression(*leaves)
    torch.testing.assert_close(term.value, value.detach())
    for leaf, expected in zip("xa", torch.autograd.grad(value.sum(), leaves), strict=True):
        torch.testing.assert_close(torch.as_tensor(term.by(leaf)).expand(3), expected)
    assert term.by("other") == 0.0 and set(term.names) == {"x", "a"}


def test_everything_is_computed_once_and_only_when_read():
    calls = []
    x = Term(lambda: calls.append("x") or X, name="x")
    y = x * x + x
    assert not calls
    assert y.value is y.value and torch.equal(y.by("x"), y.by("x")) and calls == ["x"]


def test_kinks_at_zero_have_no_slope():
    zero = Term(lambda: torch.zeros(2), name="x")
    assert (sqrt(zero).by("x") == 0).all() and (absolute(zero).by("x") == 0).all()
    assert sqrt(Term(lambda: 0.0, name="x")).by("x") == 0.0


def test_where_two_are_equal_the_second_is_the_maximum():
    a, b = Term(lambda: X, name="a"), Term(lambda: X.clone(), name="b")
    top = maximum(a, b)
    assert (torch.as_tensor(top.by("a")) == 0).all() and (top.by("b") == 1).all()


def test_a_choice_by_masks():
    mask = torch.tensor([1.0, 0.0, 1.0])
    x = Term(lambda: X, name="x")
    chosen = select([(mask, x), (1 - mask, 5.0)])
    torch.testing.assert_close(chosen.value, torch.where(mask > 0, X, 5.0))
    torch.testing.assert_close(chosen.by("x"), mask)


def test_floats_cost_no_arithmetic():
    assert plus(0.0, X) is X and times(1.0, X) is X and times(0.0, X) == 0.0
    assert term_of(2.0).number == 2.0 and term_of(x := Term(lambda: 1.0)) is x
