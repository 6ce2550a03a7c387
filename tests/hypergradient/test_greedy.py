"""The greedy hypergradient is the derivative of the validation loss one real step ahead."""

import copy

import oracles
import pytest
import torch
from torch import nn

from optuna_glocal.hypergradient.bindings import Bindings
from optuna_glocal.hypergradient.greedy import Greedy
from optuna_glocal.hypergradient.optimizers import group_entries, set_group_entry


def loss_of(model, x, y, l2=0.0):
    penalty = sum((p**2).sum() for p in model.parameters())
    return nn.functional.cross_entropy(model(x), y) + l2 * penalty


def run_up(make, steps=4, width=5):
    """A model and its optimizer, a few real steps in, with the gradients of the next."""
    g = torch.Generator().manual_seed(0)
    x, xv = (torch.randn(20, 4, generator=g, dtype=torch.float64) for _ in range(2))
    y, yv = (torch.randint(0, 3, (20,), generator=g) for _ in range(2))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()
    optimizer = make(model)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    return model, optimizer, (x, y), (xv, yv)


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.3, weight_decay=0.02),
    "momentum": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.3, momentum=0.8, dampening=0.3, weight_decay=0.02
    ),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.8, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.03, weight_decay=0.02, eps=1e-3),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.03, weight_decay=0.1, eps=1e-3),
    "two groups": lambda m: torch.optim.SGD(
        [{"params": m[0].parameters(), "lr": 0.1}, {"params": m[2].parameters(), "lr": 0.3}],
        momentum=0.5,
    ),
}


def ahead(model, optimizer, valid, group, entry, change):
    """Validation loss after the step that a changed entry would take."""
    grads = [p.grad for p in model.parameters()]
    model, optimizer = copy.deepcopy((model, optimizer))
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad.clone()
    entries = optimizer.param_groups[group]
    set_group_entry(entries, entry, group_entries(entries)[entry] + change)
    optimizer.step()
    return loss_of(model, *valid).item()


@pytest.mark.parametrize("large", [False, True], ids=["flattened", "by blocks"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_entries_against_differences_of_the_real_step(name, large, monkeypatch):
    if large:
        monkeypatch.setattr("optuna_glocal.hypergradient.greedy._BLOCK", 7)
    model, optimizer, _, valid = run_up(OPTIMIZERS[name])
    names = [
        (i, entry)
        for i, group in enumerate(optimizer.param_groups)
        for entry in ("lr", "momentum", "dampening", "weight_decay", "beta1", "beta2", "eps")
        if group_entries(group).get(entry)
    ]
    values = {f"{e}{i}": group_entries(optimizer.param_groups[i])[e] for i, e in names}
    bindings = Bindings(optimizer, values)
    for i, entry in names:
        bindings.bind(i, {entry: bindings[f"{entry}{i}"]})
    expected = {}
    for i, entry in names:
        e = 1e-6 * values[f"{entry}{i}"]
        near = ahead(model, optimizer, valid, i, entry, e)
        slope = (near - ahead(model, optimizer, valid, i, entry, -e)) / (2 * e)
        noise = oracles.rounding(near, operations=4) / e
        expected[f"{entry}{i}"] = pytest.approx(slope, rel=1e-5, abs=noise)
    greedy = Greedy(optimizer, bindings)
    greedy.hold()
    optimizer.step()
    v = torch.autograd.grad(loss_of(model, *valid), greedy.params)
    got = greedy.by_entries(v)
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key] == value, key


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_at_fixed_effective_lr_is_that_of_the_averaging_form(nesterov):
    """lr / (1 - m) held, and the buffer rescaled to what it would be had m always been so."""
    name = "nesterov" if nesterov else "undampened"
    OPTIMIZERS["undampened"] = lambda m: torch.optim.SGD(m.parameters(), lr=0.3, momentum=0.8)
    model, optimizer, _, valid = run_up(OPTIMIZERS[name])
    lr, m, e = 0.3, 0.8, 1e-6

    def value(change):
        twin = copy.deepcopy(model)
        grads = [p.grad for p in model.parameters()]
        buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
        now, eff = m + change, lr / (1 - m)
        with torch.no_grad():
            for p, g, b in zip(twin.parameters(), grads, buffers, strict=True):
                mean = now * (1 - m) * b + (1 - now) * g
                p.sub_(eff * (now * mean + (1 - now) * g if nesterov else mean))
        return loss_of(twin, *valid).item()

    expected = (value(e) - value(-e)) / (2 * e)
    noise = oracles.rounding(value(e), operations=4) / e
    bindings = Bindings(optimizer, {"lr": lr, "momentum": m})
    greedy = Greedy(optimizer, bindings)
    greedy.coupled = {0: "lr"}
    greedy.hold()
    optimizer.step()
    got = greedy.by_entries(torch.autograd.grad(loss_of(model, *valid), greedy.params))
    assert got["momentum"] == pytest.approx(expected, rel=1e-5, abs=noise)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adamw"])
def test_a_hyperparameter_of_the_loss_against_differences(name):
    """⟨∇L_val, dθ'/dλ⟩ with the validation gradient where the step begins."""
    model, optimizer, train, valid = run_up(OPTIMIZERS[name])
    l2, e = 0.05, 1e-6
    v = torch.autograd.grad(loss_of(model, *valid), list(model.parameters()))

    def stepped(change):
        twin, other = copy.deepcopy((model, optimizer))
        other.zero_grad()
        loss_of(twin, *train, l2=l2 + change).backward()
        other.step()
        return [p.detach() for p in twin.parameters()]

    ends = zip(v, stepped(e), stepped(-e), strict=True)
    expected = sum((a * (p - m)).sum().item() / (2 * e) for a, p, m in ends)
    terms = [a * p for a, p in zip(v, stepped(e), strict=True)]
    noise = oracles.rounding(*terms, operations=4) / e
    bindings = Bindings(optimizer, {"l2": l2})
    greedy = Greedy(optimizer, bindings)
    optimizer.zero_grad()
    loss = loss_of(model, *train, l2=bindings["l2"])
    grads = torch.autograd.grad(loss, greedy.params, create_graph=True)
    for p, grad in zip(greedy.params, grads, strict=True):
        p.grad = grad.detach().clone()
    got = greedy.by_loss(v, grads)
    assert got == {"l2": pytest.approx(expected, rel=1e-6, abs=noise)}


def test_unknown_optimizers_are_refused():
    p = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([p], lr=0.1)
    with pytest.raises(ValueError, match="tune: expected an optimizer with a closed-form rule"):
        Greedy(optimizer, Bindings(optimizer, {"lr": 0.1}))


def sgd(**settings):
    return lambda m: torch.optim.SGD(m.parameters(), lr=0.3, **settings)


def adamw(kind=torch.optim.AdamW, **settings):
    return lambda m: kind(m.parameters(), lr=0.03, eps=1e-3, **settings)


REMEMBERED = {
    "sgd": sgd(weight_decay=0.02),
    "momentum": sgd(momentum=0.8, dampening=0.3, weight_decay=0.02),
    "undampened, maximize": sgd(momentum=0.8, weight_decay=0.02, maximize=True),
    "nesterov": sgd(momentum=0.8, nesterov=True, weight_decay=0.02),
    "adamw": adamw(weight_decay=0.1, betas=(0.7, 0.9)),
    "adamw, maximize": adamw(weight_decay=0.1, maximize=True),
    "adam": adamw(torch.optim.Adam),
}
FORGOTTEN = {
    "a small momentum": sgd(momentum=0.05, dampening=0.05),
    "coupled decay": adamw(torch.optim.Adam, weight_decay=0.1),
    "a small beta": adamw(betas=(0.01, 0.9)),
    "amsgrad": adamw(amsgrad=True),
}


def greedy_of(make, entries, **settings):
    model, optimizer, _, valid = run_up(make)
    for group in optimizer.param_groups:
        for entry, value in settings.items():
            set_group_entry(group, entry, value)
    values = {e: group_entries(optimizer.param_groups[0])[e] for e in entries}
    bindings = Bindings(optimizer, values)
    for entry in entries:
        bindings.bind(0, {entry: bindings[entry]})
    greedy = Greedy(optimizer, bindings)
    greedy.hold()
    held = [held.point is None for held in greedy._held]
    optimizer.step()
    return greedy.by_entries(torch.autograd.grad(loss_of(model, *valid), greedy.params)), held


def entries_of(make):
    group = group_entries(run_up(make)[1].param_groups[0])
    names = ("lr", "momentum", "dampening", "weight_decay", "beta1", "beta2")
    return [e for e in names if e in group and (group[e] or e != "weight_decay")]


@pytest.mark.parametrize("large", [False, True], ids=["flattened", "by blocks"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}], ids=["", "momentum moved to 0"])
@pytest.mark.parametrize("name", REMEMBERED)
def test_what_a_step_leaves_behind_tells_what_its_jacobian_does(
    name, settings, large, monkeypatch
):
    """The copies' way is held against the real optimizer above; this one against the copies."""
    make = REMEMBERED[name]
    if settings and "momentum" not in group_entries(run_up(make)[1].param_groups[0]):
        pytest.skip("no momentum")
    if large:
        monkeypatch.setattr("optuna_glocal.hypergradient.greedy._BLOCK", 7)
        monkeypatch.setattr("optuna_glocal.hypergradient.optimizers.adam._BLOCK", 7)
    entries = entries_of(make)
    got, without_copies = greedy_of(make, entries, **settings)
    assert all(without_copies)
    for rule in ("sgd.SGD", "adam.Adam"):
        monkeypatch.setattr(
            f"optuna_glocal.hypergradient.optimizers.{rule}.remembers", lambda *_: False
        )
    expected, without_copies = greedy_of(make, entries, **settings)
    assert not any(without_copies)
    assert got.keys() == expected.keys() == set(entries)
    limit = oracles.rounding(*expected.values())
    for entry, value in expected.items():
        assert got[entry] == pytest.approx(value, rel=1e-9, abs=limit), entry


@pytest.mark.parametrize("name", FORGOTTEN)
def test_where_a_step_leaves_too_little_copies_are_made(name):
    make = FORGOTTEN[name]
    _, without_copies = greedy_of(make, entries_of(make))
    assert not any(without_copies)


def test_the_first_step_of_a_momentum_is_copied():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2)).backward()
    greedy = Greedy(optimizer, Bindings(optimizer, {"lr": 0.1}))
    greedy.hold()
    assert all(held.point is not None for held in greedy._held)


def test_dead_inputs_count_nothing_in_adam():
    """v' = 0 where no gradient ever came: no 0 / 0."""
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([x], lr=0.1, eps=1e-8)
    bindings = Bindings(optimizer, {"lr": 0.1})
    bindings.bind(0, {"beta2": bindings["lr"] * 9.99})
    greedy = Greedy(optimizer, bindings)
    for _ in range(3):
        optimizer.zero_grad()
        (x * torch.tensor([1.0, 0.0, -2.0])).sum().backward()
        greedy.hold()
        optimizer.step()
        h = greedy.by_entries([torch.ones(3)])
    assert greedy._held == [] and torch.isfinite(torch.tensor(h["lr"]))
