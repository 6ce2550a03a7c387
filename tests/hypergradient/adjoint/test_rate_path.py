"""What a held hyperparameter changes through the learning rate's path, which is taken as given.

With L(w, η) the loss at the end of a run and η*(w) the best scale of the path,
dL(w, η*(w))/dw = ∂L/∂w + ∂L/∂η dη*/dw, and ∂L/∂η is 0 at η*: a path near the best one has a second
term that is as small as it is near.
"""

import pytest
import torch

STEPS, DTYPE = 15, torch.float64


def loss_at_end(w, scale):
    """Of ``STEPS`` steps of SGD with weight decay w, at a rate that falls from ``scale`` to 0."""
    g = torch.Generator().manual_seed(0)
    x, x_val = (torch.randn(30, 5, generator=g, dtype=DTYPE) for _ in range(2))
    y, y_val = (rows.sum(1) + 2 * torch.randn(30, generator=g, dtype=DTYPE) for rows in (x, x_val))
    theta = torch.zeros(5, dtype=DTYPE)
    for t in range(STEPS):
        gradient = x.T @ (x @ theta - y) / 30 + w * theta
        theta = theta - scale * (1 - t / STEPS) * gradient
    return ((x_val @ theta - y_val) ** 2).mean() / 2


def derivatives(w, scale):
    """∂L/∂w, ∂L/∂η, ∂²L/∂η², ∂²L/∂η∂w by autograd through the run."""
    w, scale = (torch.tensor(at, dtype=DTYPE, requires_grad=True) for at in (w, scale))
    by_w, by_scale = torch.autograd.grad(loss_at_end(w, scale), [w, scale], create_graph=True)
    mixed, curvature = torch.autograd.grad(by_scale, [w, scale])
    return by_w.item(), by_scale.item(), curvature.item(), mixed.item()


def best_scale(w):
    """η* by Newton's method."""
    scale = 0.1
    for _ in range(50):
        _, slope, curvature, _ = derivatives(w, scale)
        if abs(slope) < 1e-11:
            return scale
        scale -= slope / curvature if curvature > 0 else 0.1 * scale * slope / abs(slope)
    raise AssertionError(f"no best path: a slope of {slope} is left")


def total(w, away):
    """dL/dw by differences of whole runs, each with a path that is ``away`` from its best."""
    e = 1e-4
    up, down = (
        loss_at_end(torch.tensor(at, dtype=DTYPE), away * best_scale(at)) for at in (w + e, w - e)
    )
    return float(up - down) / (2 * e)


def test_at_the_best_path_the_derivative_through_it_vanishes():
    by_w, _, curvature, mixed = derivatives(0.3, best_scale(0.3))
    assert abs(mixed / curvature) > 1e-2  # the path does move with w
    assert total(0.3, 1.0) == pytest.approx(by_w, rel=1e-6)


def test_near_the_best_path_it_is_as_small_as_the_distance():
    """∂L/∂η dη*/dw there: exactly, and half of it at half the distance."""
    scale = best_scale(0.3)
    _, _, curvature, mixed = derivatives(0.3, scale)
    through = {}
    for away in (1.25, 1.02, 1.01):
        by_w, slope, *_ = derivatives(0.3, away * scale)
        through[away] = total(0.3, away) - by_w
        assert through[away] == pytest.approx(slope * away * -mixed / curvature, rel=1e-4)
    assert through[1.02] == pytest.approx(2 * through[1.01], rel=0.05)
