import torch

from optuna_glocal.hypergradient.adjoint.products import products


def test_products_are_those_of_the_formula():
    """loss = Σ_i a_i x_i³ / 3 + B: g = a x², H = diag(2 a x), ∂⟨g, p⟩/∂a = x² p."""
    torch.manual_seed(0)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    unused = torch.randn(2, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, dtype=torch.float64, requires_grad=True)
    other = torch.tensor(1.0, requires_grad=True)
    p = torch.randn(6, dtype=torch.float64)
    loss = (a * x**3).sum() / 3 + 2.0
    g, product, mixed = products(loss, [x, unused], p, {"a": a, "other": other})
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(g, torch.cat([(a * x**2).detach(), zero]))
    torch.testing.assert_close(product, torch.cat([(2 * a * x).detach() * p[:4], zero]))
    assert mixed.keys() == {"a"}
    torch.testing.assert_close(mixed["a"], (x**2).detach() * p[:4])
    loss.backward()  # its graph is kept


def test_a_loss_linear_in_everything_has_no_product():
    x = torch.ones(2, requires_grad=True)
    g, product, mixed = products((3 * x).sum(), [x], torch.ones(2), {})
    assert g.tolist() == [3.0, 3.0]
    assert product.tolist() == [0.0, 0.0]
    assert mixed == {}
