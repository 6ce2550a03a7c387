"""A step that mixes entries, differentiated by autograd."""

import torch

from optuna_glocal.hypergradient.optimizers import (
    GRAD,
    PARAM,
    GenericStep,
    MatrixStep,
    registry,
    rule,
    rule_of,
)


class Normalized(torch.optim.Optimizer):
    """θ' = θ - lr g / ‖g‖."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad / p.grad.norm(), alpha=self.param_groups[0]["lr"])


class NormalizedStep(MatrixStep):
    entries = ("lr",)

    def first_state(self, p):
        return {}

    def __call__(self, x, group, k):
        return {PARAM: x[PARAM] - x["lr"] * x[GRAD] / x[GRAD].norm()}


def test_tangents_of_several_parameters_are_the_closed_form(monkeypatch):
    monkeypatch.setattr(registry, "_MATRIX_STEPS", dict(registry._MATRIX_STEPS))
    rule(Normalized)(NormalizedStep)
    params = [torch.randn(2, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    optimizer = Normalized(params)
    for p in params:
        p.grad = torch.randn_like(p)
    z = {PARAM: torch.randn(2, 10), GRAD: torch.randn(2, 10)}
    slope = torch.tensor([1.0, -0.5])
    assert rule_of(optimizer) is None
    got = GenericStep(optimizer, 0).jvp(params, z, {"lr": slope})[PARAM]
    start = 0
    for p in params:
        part, g = slice(start, start + p.numel()), p.grad.flatten()
        size, dg = g.norm(), z[GRAD][:, part]
        turned = (dg - torch.outer(dg @ g, g) / size**2) / size
        expected = z[PARAM][:, part] - 0.1 * turned - torch.outer(slope, g / size)
        torch.testing.assert_close(got[:, part], expected)
        start = part.stop
