"""Where the next step starts: copies of many parameters, views of one."""

import torch

from optuna_glocal.hypergradient.optimizers import point_of, rule_of, view_of


def adam(steps=2):
    params = [torch.randn(2, 2, requires_grad=True), torch.randn(3, requires_grad=True)]
    optimizer = torch.optim.Adam(params, lr=0.1)
    for k in range(steps + 1):
        if k:
            optimizer.step()
        for p in params:
            p.grad = torch.randn_like(p)
    return optimizer, params


def test_copies_of_all_members_flattened():
    optimizer, params = adam()
    point = point_of(optimizer, 0, params, rule_of(optimizer))
    assert torch.equal(point.param, torch.cat([p.detach().flatten() for p in params]))
    assert torch.equal(point.grad, torch.cat([p.grad.flatten() for p in params]))
    assert set(point.state) == {"exp_avg", "exp_avg_sq"} and point.step == 3
    assert point.rows.shape == (4, 7) and point.group["beta2"] == 0.999
    optimizer.step()
    assert not torch.equal(point.param[:4], params[0].detach().flatten())


def test_views_of_one_member():
    optimizer, params = adam()
    view = view_of(optimizer, 0, params[0], rule_of(optimizer), {"lr": 0.2})
    assert view.param.data_ptr() == params[0].data_ptr() and view.group == {"lr": 0.2}
    whole = point_of(optimizer, 0, params, rule_of(optimizer))
    assert torch.equal(view.state["exp_avg"], whole.state["exp_avg"][:4])


def test_before_the_first_step_there_is_no_state():
    optimizer, params = adam(steps=0)
    point = point_of(optimizer, 0, params, rule_of(optimizer))
    assert point.state == {} and point.step == 1 and point.rows.shape == (2, 7)


def test_a_counter_stays_one_number_where_all_agree():
    params = [torch.randn(2, requires_grad=True), torch.randn(3, requires_grad=True)]
    optimizer = torch.optim.NAdam(params)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    same = point_of(optimizer, 0, params, rule_of(optimizer)).state["mu_product"]
    assert same.ndim == 0
    optimizer.state[params[0]]["mu_product"] *= 2
    wide = point_of(optimizer, 0, params, rule_of(optimizer)).state["mu_product"]
    assert torch.equal(wide, torch.cat([(2 * same).expand(2), same.expand(3)]))
