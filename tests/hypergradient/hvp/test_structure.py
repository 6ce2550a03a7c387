"""Graphs that are built alike have one structure; others are told apart."""

import torch

from optuna_glocal.hypergradient.hvp.structure import explore, root_first

W, V = (torch.randn(3, 3, requires_grad=True) for _ in range(2))


def loss(x, w=W, v=V):
    hidden = (x @ w).tanh()
    return (hidden @ v + hidden).sum()


def test_another_step_is_followed_in_the_same_order():
    nodes, structure = explore(loss(torch.randn(2, 3)).grad_fn)
    other = loss(torch.randn(5, 3))
    followed = structure.follow(other.grad_fn)
    assert [type(n) for n in followed] == [type(n) for n in nodes] == list(structure.kinds)
    assert followed[0] is other.grad_fn and set(structure.variables) == {W, V, None}


def test_other_operations_leaves_and_wiring_are_noticed():
    x = torch.randn(2, 3)
    _, structure = explore(loss(x).grad_fn)
    assert structure.follow(loss(x).exp().grad_fn) is None
    assert structure.follow(loss(x, v=torch.randn(3, 3, requires_grad=True)).grad_fn) is None
    assert structure.follow(loss(x, w=V, v=W).grad_fn) is None
    assert structure.follow(loss(x, v=V.detach()).grad_fn) is None
    hidden, again = (x @ W).tanh(), (x @ W).tanh()
    assert structure.follow((hidden @ V + again).sum().grad_fn) is None


def test_root_first_is_a_topological_order():
    _, structure = explore(loss(torch.randn(2, 3)).grad_fn)
    order = root_first(structure.edges)
    place = {node: i for i, node in enumerate(order)}
    assert sorted(order) == list(range(len(structure.kinds)))
    for node, own in enumerate(structure.edges):
        assert all(place[node] < place[j] for j, _ in own if j >= 0)
