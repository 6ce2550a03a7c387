"""Each rule is the real optimizer's step, its coefficients that step's derivative."""

import copy
import functools

import oracles
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optuna_glocal.hypergradient.optimizers import (
    GRAD,
    PARAM,
    GenericStep,
    Linear,
    Point,
    group_entries,
    refusal,
    rule_of,
    view_of,
)

P = 6
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "sgd momentum": (torch.optim.SGD, {"momentum": 0.7, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd nesterov": (torch.optim.SGD, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}),
    "sgd maximize": (torch.optim.SGD, {"momentum": 0.7, "maximize": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adam amsgrad": (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    "adam maximize": (torch.optim.Adam, {"maximize": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw amsgrad": (torch.optim.AdamW, {"weight_decay": 0.1, "amsgrad": True}),
    "nadam": (torch.optim.NAdam, {"weight_decay": 0.1, "momentum_decay": 0.1}),
    "nadam decoupled": (
        torch.optim.NAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ),
    # At beta2 = 0.999 the first five steps are unrectified; here the switch is between.
    "radam": (torch.optim.RAdam, {"weight_decay": 0.1}),
    "radam rectified": (torch.optim.RAdam, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    "radam decoupled": (
        torch.optim.RAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ),
    "adamax": (torch.optim.Adamax, {"weight_decay": 0.1, "betas": (0.8, 0.7)}),
    "adamax maximize": (torch.optim.Adamax, {"maximize": True}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
    "adagrad maximize": (
        torch.optim.Adagrad, {"initial_accumulator_value": 0.3, "maximize": True},
    ),
    "adadelta": (torch.optim.Adadelta, {"weight_decay": 0.1}),
    "adadelta maximize": (torch.optim.Adadelta, {"maximize": True, "eps": 1e-3}),
    "rmsprop": (torch.optim.RMSprop, {"weight_decay": 0.1}),
    "rmsprop centered": (torch.optim.RMSprop, {"alpha": 0.8, "centered": True, "maximize": True}),
    "rmsprop momentum": (
        torch.optim.RMSprop, {"momentum": 0.7, "centered": True, "weight_decay": 0.1},
    ),
    "asgd": (torch.optim.ASGD, {"weight_decay": 0.1, "lambd": 0.2}),
    "asgd maximize": (torch.optim.ASGD, {"maximize": True, "t0": 1.0, "lambd": 0.2}),
    "rprop": (torch.optim.Rprop, {}),
    "rprop clamped": (torch.optim.Rprop, {"step_sizes": (1e-6, 0.052), "maximize": True}),
}  # fmt: skip
IN_PLACE = [n for n in OPTIMIZERS if n.split()[0] in ("sgd", "adam", "adamw")]
FUSED = [n for n in OPTIMIZERS if n.split()[0] in ("sgd", "adam", "adamw", "adagrad")]


@pytest.fixture(autouse=True)
def _counters_in_float64():
    """Or torch would keep mu_product and eta in float32, where differences drown."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(name, steps=3, foreach=None, **changes):
    """A real optimizer some steps into its life, and gradients for the next."""
    cls, arguments = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(P, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = cls([p], **{"lr": 0.05, **arguments, "foreach": foreach, **changes})
    for _ in range(steps):
        p.grad = torch.randn(P, generator=generator, dtype=torch.float64)
        optimizer.step()
    p.grad = torch.randn(P, generator=generator, dtype=torch.float64)
    return optimizer, p


def point_of(optimizer, p):
    state = optimizer.state[p]
    names = rule_of(optimizer).state_names
    return Point(
        param=p.detach().clone(),
        grad=p.grad.clone(),
        state={n: state[n].clone() for n in names if isinstance(state.get(n), torch.Tensor)},
        group=group_entries(optimizer.param_groups[0]),
        step=int(state.get("step", 0)) + 1,
    )


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rule_takes_the_real_step(name, steps, foreach):
    check_real_step(name, steps, foreach)


def check_real_step(name, steps, foreach):
    optimizer, p = stepped(name, steps, foreach)
    after = taken(rule_of(optimizer).linearize(point_of(optimizer, p)))
    optimizer.step()
    assert_same(after[PARAM], p.detach())
    for key, value in optimizer.state[p].items():
        if key in after and value is not None:
            assert_same(after[key].expand_as(value), value)


def assert_same(got, expected):
    """But for rounding of the whole tensor, of whose size are the terms of each entry."""
    limit = oracles.rounding(expected.double())  # what torch keeps in float32 is rounded alike
    torch.testing.assert_close(got, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["nadam", "asgd"])
def test_scalars_are_rounded_as_torch_rounds_them(name):
    torch.set_default_dtype(torch.float32)
    check_real_step(name, 4, False)


@pytest.mark.parametrize("name", FUSED)
def test_fused_takes_the_same_step(name):
    optimizer, p = stepped(name, 3, None, fused=True)
    after = taken(rule_of(optimizer).linearize(point_of(optimizer, p)))
    optimizer.step()
    assert_same(after[PARAM], p.detach())


def taken(linear):
    return {name: value() for name, value in linear.after.items()}


def moved(point, direction, entries, e):
    state = {k: v + e * direction[k] for k, v in point.state.items()}
    group = {k: v + e * entries.get(k, 0.0) for k, v in point.group.items()}
    return Point(
        point.param + e * direction[PARAM], point.grad + e * direction[GRAD], state, group,
        point.step,
    )  # fmt: skip


def check_derivative(optimizer, p):
    rule, point = rule_of(optimizer), point_of(optimizer, p)
    generator = torch.Generator().manual_seed(2)
    # torch fills Adagrad's sum with a when it is made: at fixed state nothing depends on it.
    entries = [
        name
        for name in rule.entries
        if point.group[name] != 0 and name != "initial_accumulator_value"
    ]
    names = [PARAM, GRAD, *point.state]
    direction = {n: torch.randn(P, generator=generator, dtype=torch.float64) for n in names}
    # A direction in proportion to the state, or 1e-6 of it would change a young v by half.
    direction |= {n: direction[n] * value for n, value in point.state.items()}
    slopes = {name: 0.1 * point.group[name] for name in entries}
    linear = rule.linearize(point)
    got = linear.jvp(
        {n: z.unsqueeze(0) for n, z in direction.items()},
        {n: torch.tensor([s], dtype=torch.float64) for n, s in slopes.items()},
    )
    e = 1e-6
    ahead = taken(rule.linearize(moved(point, direction, slopes, e)))
    behind = taken(rule.linearize(moved(point, direction, slopes, -e)))
    for output, z in got.items():
        expected = (ahead[output] - behind[output]) / (2 * e)
        noise = oracles.rounding(ahead[output], operations=8) / e
        torch.testing.assert_close(z[0], expected.expand_as(z[0]), rtol=1e-6, atol=noise)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_jvp_is_the_derivative_of_the_step(name, steps):
    check_derivative(*stepped(name, steps))


# Where a gradient is zero the step goes as sqrt(β2): between 0 and the differences' own step no
# difference of it means anything.
edge = st.one_of(st.just(0.0), st.floats(1e-3, 0.99))


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 2)
def test_jvp_at_random_hyperparameters(momentum, dampening, decay, lr, steps):
    sgd = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay}
    check_derivative(*stepped("sgd", steps, **sgd))
    adam = {"lr": lr, "betas": (momentum, dampening), "weight_decay": decay, "eps": 1e-3}
    check_derivative(*stepped("adam", steps, **adam))
    check_derivative(*stepped("adamw", steps, **adam))


@settings(deadline=None, max_examples=40)
@given(edge, edge, st.floats(0, 0.5), st.floats(1e-4, 1.0), st.integers(0, 3))
@example(0.0, 0.0, 0.0, 0.1, 0)
@example(0.0, 0.0, 0.0, 0.1, 3)
@example(0.0, 0.5, 0.0, 0.1, 3)
@example(0.5, 0.0, 0.1, 0.1, 3)
def test_jvp_of_the_others_at_random_hyperparameters(a, b, decay, lr, steps):
    shared = {"lr": lr, "weight_decay": decay, "eps": 1e-3}
    for decoupled in (False, True):
        betas = {"betas": (a, b), "decoupled_weight_decay": decoupled}
        check_derivative(*stepped("nadam", steps, **shared, **betas, momentum_decay=b))
        check_derivative(*stepped("radam", steps, **shared, **betas))
    check_derivative(*stepped("adamax", steps, **shared, betas=(a, b)))
    check_derivative(*stepped("adadelta", steps, **shared, rho=a))
    check_derivative(*stepped("adagrad", steps, **shared, lr_decay=a))
    check_derivative(*stepped("rmsprop", steps, **shared, alpha=a, momentum=b))
    asgd = {"lr": lr, "weight_decay": decay, "lambd": a, "alpha": b}
    check_derivative(*stepped("asgd", steps, **asgd))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_that_never_has_a_gradient_keeps_its_tangent(name):
    """sqrt(v) has no derivative there, the step does."""
    cls, arguments = OPTIMIZERS[name]
    options = {"lr": 0.05, **arguments}
    options.pop("weight_decay", None)
    p = torch.ones(2, requires_grad=True)
    optimizer = cls([p], **options)
    rule = rule_of(optimizer)
    if cls is torch.optim.AdamW:
        options["weight_decay"] = 0.0
        optimizer = cls([p], **options)
    z = {PARAM: torch.tensor([[3.0, 3.0]])}
    for _ in range(4):
        p.grad = torch.tensor([0.0, 1.0])
        point = point_of(optimizer, p)
        entries = {entry: torch.ones(1) for entry in rule.entries if entry != "weight_decay"}
        if cls is torch.optim.ASGD:  # decays without weight decay
            entries = {"lr": torch.ones(1)}
            point.group["lambd"] = 0.0
        z = rule.linearize(point).jvp({**z, GRAD: torch.zeros(1, 2)}, entries)
        assert all(torch.isfinite(value).all() for value in z.values())
        assert z[PARAM][0, 0].item() == 3.0
        optimizer.step()


def test_at_an_amsgrad_tie_the_maximum_follows_the_newest():
    optimizer, p = stepped("adam amsgrad", 3)
    point = point_of(optimizer, p)
    tied = point.state | {
        "max_exp_avg_sq": taken(rule_of(optimizer).linearize(point))["exp_avg_sq"]
    }
    plain = {k: v for k, v in point.state.items() if k != "max_exp_avg_sq"}
    z = {name: torch.ones(1, P) for name in (PARAM, GRAD, *tied)}
    entries = {entry: torch.ones(1) for entry in rule_of(optimizer).entries}
    with_tie, without = (
        rule_of(optimizer)
        .linearize(Point(point.param, point.grad, state, group, point.step))
        .jvp(z, entries)[PARAM]
        for state, group in ((tied, point.group), (plain, {**point.group, "amsgrad": 0.0}))
    )
    assert_same(with_tie, without)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vjp_is_the_adjoint_of_jvp(name):
    optimizer, p = stepped(name)
    linear: Linear = rule_of(optimizer).linearize(point_of(optimizer, p))
    generator = torch.Generator().manual_seed(3)
    v, g = (torch.randn(P, generator=generator, dtype=torch.float64) for _ in range(2))
    zero = {PARAM: torch.zeros(1, P, dtype=torch.float64)}
    by_entry, by_grad = linear.vjp(v, rule_of(optimizer).entries), linear.vjp_grad(v)
    through_g = linear.jvp({**zero, GRAD: g.unsqueeze(0)}, {})[PARAM][0] * v
    assert_same_sum(by_grad * g, through_g)
    for entry in rule_of(optimizer).entries:
        one = {entry: torch.ones(1, dtype=torch.float64)}
        forward = linear.jvp(zero, one)[PARAM][0] * v
        assert_same_sum(by_entry.get(entry, torch.zeros(())), forward)


def assert_same_sum(got, terms):
    limit = oracles.rounding(terms)
    torch.testing.assert_close(got.sum(), terms.sum(), rtol=0, atol=limit)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize(
    "name", [n for n in OPTIMIZERS if n.split()[0] in ("sgd", "adam", "adamw")]
)
def test_advancing_in_place_is_the_jvp(name, steps):
    """Whole, and block by block on views of the parameter's own tensors."""
    optimizer, p = stepped(name, steps)
    rule, point = rule_of(optimizer), point_of(optimizer, p)
    generator = torch.Generator().manual_seed(5)
    random = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    z = {n: random(2, P) * (n == PARAM or steps > 0) for n in (PARAM, *rule.advanced)}
    dg = random(2, P)
    # In proportion to 1 - beta, by which the step divides: beta2's terms would drown all others.
    units = {entry: abs(1 - point.group[entry]) for entry in rule.entries}
    slopes = {e: {0: 1.5 * unit, 1: -0.5 * i * unit} for i, (e, unit) in enumerate(units.items())}
    entries = {n: torch.tensor([s[0], s[1]], dtype=torch.float64) for n, s in slopes.items()}
    expected = rule.linearize(point).jvp({**z, GRAD: dg}, entries)
    for blocks, at in (
        ([slice(0, P)], point),
        ([slice(0, 2), slice(2, P)], view_of(optimizer, 0, p, rule)),
    ):
        got, g = {n: t.clone() for n, t in z.items()}, dg.clone()
        for b in blocks:
            parts = {n: t[:, b] for n, t in got.items()}
            done = rule.advance(parts, g[:, b], at.block(b), slopes)
            assert done == ("amsgrad" not in name and point.group.get("momentum") != 0)
        if done:
            for n, t in got.items():
                assert_same(t, expected[n])


def test_a_weight_without_gradient_has_finite_tangents_under_adam():
    optimizer, p = stepped("adam", 0, weight_decay=0.0)
    p.grad[0] = 0.0
    linear = rule_of(optimizer).linearize(point_of(optimizer, p))
    z = linear.jvp(
        {PARAM: torch.ones(1, P).double(), GRAD: torch.ones(1, P).double()},
        {"beta2": torch.ones(1).double()},
    )
    assert all(torch.isfinite(value).all() for value in z.values())


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, with a smooth sign so that it has a derivative."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.tanh(10 * (b1 * m + (1 - b1) * p.grad))
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_jvp_is_the_derivative_of_the_real_step(name, steps):
    """Two central differences of ``step`` itself per tangent, on a copy."""
    optimizer, p = stepped(name, steps)
    before = copy.deepcopy([p.detach(), p.grad, dict(optimizer.state[p])])
    point, rule = point_of(optimizer, p), rule_of(optimizer)
    generator = torch.Generator().manual_seed(4)
    z = {key: torch.randn(2, P, generator=generator, dtype=torch.float64) for key in (PARAM, GRAD)}
    for key, value in point.state.items():
        # One number per weight on our side, one per tensor on torch's.
        wide = torch.randn(2, *value.shape, generator=generator).reshape(2, -1)
        z[key] = (wide * value.flatten()).expand(2, P)
    entries = {
        e: torch.tensor([0.5, -1.0]) * min(point.group[e], abs(1 - point.group[e]))
        for e in rule.entries
        if e != "initial_accumulator_value"
    }
    exact = rule.linearize(point).jvp(z, entries)
    narrow = {key: z[key][:, : point.state[key].numel()] for key in point.state}
    got = GenericStep(optimizer, 0).jvp([p], {**z, **narrow}, entries)
    for key in set(got) & set(exact):
        wide = got[key].expand_as(exact[key])
        largest = exact[key].abs().max().item()
        torch.testing.assert_close(wide, exact[key], rtol=1e-6, atol=1e-8 * largest)
    now = [p.detach(), p.grad, dict(optimizer.state[p])]
    torch.testing.assert_close(before, now, rtol=0, atol=0)


MATRICES = {
    "adafactor": ("Adafactor", {"lr": 0.05, "weight_decay": 0.1, "d": 1.1}),
    "adafactor maximize": (
        "Adafactor",
        {"maximize": True, "eps": (1e-3, 1e-3), "foreach": True, "d": 1.1},
    ),
    # Both floors in force.
    "adafactor eps": ("Adafactor", {"eps": (0.8, 3.0), "d": 1.1}),
    "muon": ("Muon", {"lr": 0.05}),
    "muon plain": ("Muon", {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
}


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", MATRICES)
def test_steps_that_mix_entries_are_the_derivative_of_the_real_one(name, steps, monkeypatch):
    kind, options = MATRICES[name]
    if not hasattr(torch.optim, kind):
        pytest.skip(f"this torch has no {kind}")
    if kind == "Muon":  # in bfloat16 there is nothing to take differences of
        monkeypatch.setattr(
            "optuna_glocal.hypergradient.optimizers.muon._ARITHMETIC", torch.float64
        )
        monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", oracles.orthogonal)
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3), (3, 5)] if kind == "Muon" else [(4, 3), (3,), (2, 3, 4), ()]
    params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    optimizer = getattr(torch.optim, kind)(params, **options)
    for k in range(steps + 1):
        if k:
            optimizer.step()
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
    width = sum(p.numel() for p in params)
    z = {key: torch.randn(2, width, generator=generator) for key in (PARAM, GRAD)}
    states = [optimizer.state[p] for p in params] if steps else []
    for key in ("row_var", "col_var", "variance", "momentum_buffer"):
        held = [state[key].flatten() for state in states if key in state]
        if held:
            value = torch.cat(held)
            z[key] = torch.randn(2, len(value), generator=generator) * value
    known = group_entries(optimizer.param_groups[0])
    names = ("lr", "momentum", "weight_decay", "beta2_decay", "d", "eps1", "eps2")
    entries = {n: torch.tensor([0.5, -1.0]) * known[n] for n in names if n in known}
    exact = GenericStep(optimizer, 0).jvp(params, z, entries)
    monkeypatch.setattr("optuna_glocal.hypergradient.optimizers.registry._MATRIX_STEPS", {})
    differences = GenericStep(optimizer, 0).jvp(params, z, entries)
    assert exact.keys() >= {PARAM} and exact.keys() <= differences.keys()
    for key, value in exact.items():
        largest = value.abs().max().item()
        torch.testing.assert_close(value, differences[key], rtol=1e-5, atol=1e-7 * largest)


def test_generic_step_of_a_hand_written_optimizer():
    p = torch.linspace(-1, 1, P, dtype=torch.float64).requires_grad_()
    optimizer = Lion([p], weight_decay=0.1)
    for k in range(3):
        p.grad = torch.sin(torch.arange(P) + k).double() * 0.1
        optimizer.step()
    m = optimizer.state[p]["exp_avg"].clone()
    z = {PARAM: torch.zeros(1, P).double()}
    got = GenericStep(optimizer, 0).jvp([p], z, {"lr": torch.ones(1).double()})
    expected = -0.1 * p.detach() - torch.tanh(10 * (0.9 * m + 0.1 * p.grad))
    largest = expected.abs().max().item()
    torch.testing.assert_close(got[PARAM][0], expected, rtol=1e-6, atol=1e-9 * largest)


def test_what_cannot_work_is_refused_with_a_sentence():
    p = [torch.zeros(2, requires_grad=True)]
    assert "inside its step" in refusal(torch.optim.LBFGS(p))
    assert "sparse" in refusal(torch.optim.SparseAdam(p))
    assert refusal(torch.optim.SGD(p)) is None
    if hasattr(torch.optim, "Muon"):
        ours = type("Ours", (torch.optim.Muon,), {})
        matrix = [torch.zeros(2, 2, requires_grad=True)]
        assert "bfloat16" in refusal(ours(matrix))
        assert refusal(torch.optim.Muon(matrix)) is None
