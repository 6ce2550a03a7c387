"""The implicit gradient against closed forms, and against differences of optima solved anew."""

import pytest
import torch
from torch.nn import functional as F

from optuna_glocal.hypergradient.adjoint.implicit import Implicit
from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.errors import TangentError

DTYPE = torch.float64


def trained(optimizer, bindings, train_loss, validation_loss, steps, solves, change=None):
    """Trains at full batch; the last ``solves`` steps give the implicit gradient."""
    implicit = Implicit(optimizer, bindings, solves)
    for t in range(steps):
        implicit.equilibrium.count()
        if t == steps - solves:
            implicit.begin()
            implicit.look(validation_loss())
        optimizer.zero_grad()
        for loss in train_loss():
            if implicit.has_begun:
                implicit.before_backward(loss)
            loss.backward()
        if change is not None:
            change()
        if implicit.has_begun:
            implicit.before_step()
        optimizer.step()
    return implicit.result()


class Ridge:
    """y = x 1 + noise, with well-conditioned x."""

    def __init__(self, n=40, d=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(n, d, generator=g, dtype=DTYPE))
        # Curvatures between .8 and 1.2, which few steps solve for.
        self.x = n**0.5 * q * torch.linspace(0.8, 1.2, d, dtype=DTYPE).sqrt()
        self.y = self.x.sum(1) + torch.randn(n, generator=g, dtype=DTYPE)
        self.x_val = torch.randn(n, d, generator=g, dtype=DTYPE)
        self.y_val = torch.randn(n, generator=g, dtype=DTYPE)
        self.theta = torch.zeros(d, dtype=DTYPE, requires_grad=True)

    def train(self, scale=1.0):
        return scale * ((self.x @ self.theta - self.y) ** 2).mean() / 2

    def validate(self):
        return ((self.x_val @ self.theta - self.y_val) ** 2).mean() / 2

    def exact(self, decay, scale=1.0):
        """dL/d(decay) and dL/d(scale) of the closed form, by autograd through the solve."""
        w, s = (torch.tensor(x, dtype=DTYPE, requires_grad=True) for x in (decay, scale))
        n = len(self.y)
        A = s * self.x.T @ self.x / n + w * torch.eye(len(self.theta), dtype=DTYPE)
        theta = torch.linalg.solve(A, s * self.x.T @ self.y / n)
        loss = ((self.x_val @ theta - self.y_val) ** 2).mean() / 2
        return [g.item() for g in torch.autograd.grad(loss, [w, s])]


OPTIMIZERS = {
    "sgd": lambda p, w: torch.optim.SGD(p, lr=0.2, weight_decay=w),
    "nesterov": lambda p, w: torch.optim.SGD(
        p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=w
    ),
    "rmsprop": lambda p, w: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=0.3, weight_decay=w),
    "adagrad": lambda p, w: torch.optim.Adagrad(p, lr=1.0, weight_decay=w),
    "adam": lambda p, w: torch.optim.Adam(p, lr=0.2, betas=(0.5, 0.9), weight_decay=w, eps=1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ridge_regression_has_the_gradient_of_its_closed_form(name):
    ridge = Ridge()
    optimizer = OPTIMIZERS[name]([ridge.theta], 0.3)
    bindings = Bindings(optimizer, {"weight_decay": 0.3, "scale": 0.7})
    scale = bindings["scale"]
    found = trained(optimizer, bindings, lambda: [ridge.train(scale)], ridge.validate, 250, 100)
    by_decay, by_scale = ridge.exact(0.3, 0.7)
    assert found.gradient["weight_decay"].item() == pytest.approx(by_decay, rel=1e-6)
    assert found.gradient["scale"].item() == pytest.approx(by_scale, rel=1e-6)
    assert found.residual < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_a_solve_that_is_not_finished_says_by_how_much(seed):
    """Seven products for eight curvatures from .07 to 2.4: off, by less than is stated."""
    ridge = Ridge(d=8, seed=seed)
    ridge.x *= torch.linspace(0.3, 1.6, 8, dtype=DTYPE)
    optimizer = torch.optim.SGD([ridge.theta], lr=0.3, momentum=0.5, weight_decay=0.1)
    bindings = Bindings(optimizer, {"weight_decay": 0.1, "scale": 1.0})
    scale = bindings["scale"]
    found = trained(optimizer, bindings, lambda: [ridge.train(scale)], ridge.validate, 160, 7)
    assert found.residual > 0.01
    for name, exact in zip(("weight_decay", "scale"), ridge.exact(0.1), strict=True):
        off = abs(found.gradient[name].item() - exact)
        assert 1e-4 * abs(exact) < off < found.error[name].item()


def test_softmax_regression_has_the_differences_of_its_optimum():
    """The optimum is solved for anew, by Newton's method, at neighbouring λ."""
    g = torch.Generator().manual_seed(1)
    x, x_val = (torch.randn(60, 3, generator=g, dtype=DTYPE) for _ in range(2))
    y, y_val = (torch.randint(0, 3, (60,), generator=g) for _ in range(2))
    theta = torch.zeros(9, dtype=DTYPE, requires_grad=True)

    def train(theta, smoothing):
        logits = F.log_softmax(x @ theta.view(3, 3), 1)
        hit = logits.gather(1, y[:, None]).mean()
        return -(1 - smoothing) * hit - smoothing * logits.mean()

    def validate(theta):
        return F.cross_entropy(x_val @ theta.view(3, 3), y_val)

    def slope(objective, at):
        free = at.clone().requires_grad_()
        return torch.autograd.grad(objective(free), free)[0]

    def optimum_loss(decay, smoothing):
        at = torch.zeros(9, dtype=DTYPE)

        def objective(t):
            return train(t, smoothing) + decay * (t * t).sum() / 2

        for _ in range(12):
            hessian = torch.autograd.functional.hessian(objective, at)
            at = at - torch.linalg.solve(hessian, slope(objective, at))
        return validate(at).item()

    optimizer = torch.optim.SGD([theta], lr=1.0, weight_decay=0.2)
    bindings = Bindings(optimizer, {"weight_decay": 0.2, "smoothing": 0.2})
    smoothing = bindings["smoothing"]
    found = trained(
        optimizer, bindings, lambda: [train(theta, smoothing)], lambda: validate(theta), 300, 100
    )
    e = 1e-4
    by_decay = (optimum_loss(0.2 + e, 0.2) - optimum_loss(0.2 - e, 0.2)) / (2 * e)
    by_smoothing = (optimum_loss(0.2, 0.2 + e) - optimum_loss(0.2, 0.2 - e)) / (2 * e)
    assert found.gradient["weight_decay"].item() == pytest.approx(by_decay, rel=1e-6)
    assert found.gradient["smoothing"].item() == pytest.approx(by_smoothing, rel=1e-6)


def adamw_rest(ridge, decay, eps):
    """θ of g + w (|g| + ε) θ = 0 by Newton's method: at full batch √v is |g|."""
    at = ridge.theta.detach().clone()
    n = len(ridge.y)

    def force(t):
        g = ridge.x.T @ (ridge.x @ t - ridge.y) / n
        return g + decay * (g.abs() + eps) * t

    for _ in range(20):
        at = at - torch.linalg.solve(torch.autograd.functional.jacobian(force, at), force(at))
    return ((ridge.x_val @ at - ridge.y_val) ** 2).mean().item() / 2


def test_adamw_has_the_differences_of_its_rest_whose_metric_moves_with_it():
    ridge = Ridge()
    optimizer = torch.optim.AdamW(
        [ridge.theta], lr=0.2, betas=(0.5, 0.5), eps=0.3, weight_decay=0.2
    )
    bindings = Bindings(optimizer, {"weight_decay": 0.2})
    found = trained(optimizer, bindings, lambda: [ridge.train()], ridge.validate, 300, 120)
    e = 1e-4
    up, down = (adamw_rest(ridge, 0.2 + sign * e, 0.3) for sign in (1, -1))
    assert found.gradient["weight_decay"].item() == pytest.approx((up - down) / (2 * e), rel=1e-6)


def test_a_vector_of_hyperparameters_has_a_gradient_of_its_shape():
    ridge = Ridge()
    weights = torch.linspace(0.5, 1.5, 40, dtype=DTYPE).requires_grad_()
    optimizer = torch.optim.SGD([ridge.theta], lr=0.2, weight_decay=0.3)
    bindings = Bindings(optimizer, {"weights": 1.0})
    bindings["weights"]
    bindings._leaves["weights"] = weights

    def train():
        return [(weights * (ridge.x @ ridge.theta - ridge.y) ** 2).mean() / 2]

    found = trained(optimizer, bindings, train, ridge.validate, 200, 60)
    free = weights.detach().clone().requires_grad_()
    A = (ridge.x.T * free) @ ridge.x / 40 + 0.3 * torch.eye(4, dtype=DTYPE)
    theta = torch.linalg.solve(A, (ridge.x.T * free) @ ridge.y / 40)
    (exact,) = torch.autograd.grad(((ridge.x_val @ theta - ridge.y_val) ** 2).mean() / 2, free)
    torch.testing.assert_close(found.gradient["weights"], exact, rtol=1e-6, atol=1e-9)


def test_accumulated_and_scaled_gradients_give_the_same():
    ridge = Ridge()
    optimizer = torch.optim.SGD([ridge.theta], lr=0.2, weight_decay=0.3)
    bindings = Bindings(optimizer, {"weight_decay": 0.3})

    def unscale():
        ridge.theta.grad /= 1024

    found = trained(
        optimizer,
        bindings,
        lambda: [512 * ridge.train(), 512 * ridge.train()],
        ridge.validate,
        200,
        60,
        change=unscale,
    )
    assert found.gradient["weight_decay"].item() == pytest.approx(ridge.exact(0.3)[0], rel=1e-6)


def test_a_step_without_finite_gradients_is_passed_by():
    """As when a scaler overflows: the solve goes on, and ends with the others."""
    ridge, calls = Ridge(), []
    optimizer = torch.optim.SGD([ridge.theta], lr=0.2, weight_decay=0.3)
    bindings = Bindings(optimizer, {"weight_decay": 0.3})

    def train():
        calls.append(1)
        return [ridge.train(float("inf") if len(calls) in (142, 150, 199) else 1.0)]

    def leave_out():
        ridge.theta.grad.nan_to_num_(0.0, 0.0, 0.0)

    found = trained(optimizer, bindings, train, ridge.validate, 200, 60, change=leave_out)
    # Where the gradient is left out, the decay is not: the last of them is felt.
    assert found.gradient["weight_decay"].item() == pytest.approx(ridge.exact(0.3)[0], rel=0.05)


def test_a_gradient_that_was_changed_is_refused():
    ridge = Ridge()
    optimizer = torch.optim.SGD([ridge.theta], lr=0.2, weight_decay=0.3)
    bindings = Bindings(optimizer, {"weight_decay": 0.3})

    def sign():
        ridge.theta.grad.sign_()

    with pytest.raises(TangentError, match="another way than by one factor"):
        trained(optimizer, bindings, lambda: [ridge.train()], ridge.validate, 20, 10, change=sign)


def test_a_run_that_is_still_moving_is_told_by_its_force():
    """Minibatches: near rest the mean force is noise; early it is many times that."""
    rests = []
    for steps in (22, 500):
        ridge = Ridge(n=400)
        g = torch.Generator().manual_seed(0)
        optimizer = torch.optim.SGD([ridge.theta], lr=0.01, weight_decay=0.3)
        bindings = Bindings(optimizer, {"weight_decay": 0.3})

        def train(ridge=ridge, g=g):
            rows = torch.randint(400, (20,), generator=g)
            return [((ridge.x[rows] @ ridge.theta - ridge.y[rows]) ** 2).mean() / 2]

        found = trained(optimizer, bindings, train, ridge.validate, steps, 20)
        rests.append(found.rest)
    assert rests[0] > 2
    assert rests[1] < 2


def test_an_optimizer_whose_rest_is_unknown_is_refused():
    p = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Rprop([p])
    with pytest.raises(TangentError, match="where Rprop comes to rest"):
        Implicit(optimizer, Bindings(optimizer, {}), 10)
