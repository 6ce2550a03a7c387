"""A copy that steps as the user's optimizer would, and leaves that one alone."""

import torch

from optuna_glocal.hypergradient.optimizers.float64_copy import is_carried, set_group, set_member


def test_the_copy_takes_the_user_s_step():
    p = torch.randn(4, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.1, foreach=True)
    for _ in range(2):
        p.grad = torch.randn(4, dtype=torch.float32)
        optimizer.step()
    p.grad = torch.randn(4, dtype=torch.float32)
    twin = torch.zeros(4, requires_grad=True)
    copy = torch.optim.Adam([twin])
    set_group(copy.param_groups[0], optimizer.param_groups[0], {"beta1": 0.9})
    set_member(copy, twin, optimizer, p)
    assert twin.dtype == torch.float64 and copy.param_groups[0]["foreach"] is False
    copy.step()
    assert optimizer.state[p]["step"] == 2 and p.dtype == torch.float32
    optimizer.step()
    torch.testing.assert_close(twin.float(), p, rtol=1e-5, atol=1e-6)


def test_setting_an_entry_does_not_reach_the_user_s_tensor():
    real = {"params": [], "lr": torch.tensor(0.1), "betas": (0.9, 0.99)}
    twin = {"params": []}
    set_group(twin, real, {"lr": 0.5, "beta2": 0.5})
    assert twin["lr"] == 0.5 and twin["betas"] == (0.9, 0.5)
    assert real["lr"].item() != 0.5 and real["betas"] == (0.9, 0.99)


def test_every_value_may_be_moved():
    p = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones(2)
    optimizer.step()
    twin = torch.zeros(2, requires_grad=True)
    copy, seen = torch.optim.SGD([twin], lr=0.1), []
    set_member(copy, twin, optimizer, p, lambda name, value: seen.append(name) or value + 1)
    assert seen == ["param", "grad", "momentum_buffer"]
    assert torch.equal(twin.grad, torch.full((2,), 2.0)) and p.grad.eq(1).all()


def test_floating_tensors_have_tangents():
    assert is_carried(torch.ones(())) and not is_carried(torch.ones((), dtype=torch.long))
    assert not is_carried(0.5)
